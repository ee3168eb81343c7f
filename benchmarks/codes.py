"""Generators and banks that the benchmarks decode, made where they are missing; each stage resumes.

``WORK/NAME`` is the generator of the codes called NAME, ``WORK/NAME-bank`` its bank of the training images. Each is
made by one process, and others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from locks import claimed
from torch.utils.data import Subset

from latent_mixup import LatentBank, hub, invert, load_generator, refine
from latent_mixup.bank import fingerprint
from latent_mixup.cli.shared import FOLDER, several, uint8_images
from latent_mixup.demo.comparison import Codes
from latent_mixup.generators import VAE, Generator
from latent_mixup.images import from_uint8
from latent_mixup.inversion import FeatureLoss, pixel_mse
from latent_mixup.training import (
    CompactRecipe,
    DCGANRecipe,
    VAERecipe,
    train_compact,
    train_dcgan,
    train_encoder,
    train_features,
    train_vae,
)

# how the paper inverts, but for its batches of 16: each image takes its own steps
PAPER: dict[str, Any] = {"optimizer": "adam", "lr": 0.03, "betas": (0.95, 0.999)}
# which codes its own code keeps: those below the median, which is MNIST's limit; of Fashion-MNIST those up to a number,
# whose unit is not known (images are in [0, 1] there, decoded ones in [-1, 1]): here [-1, 1] squared
BETTER_HALF: dict[str, Any] = {"keep": 0.5}
KEPT: dict[str, dict[str, Any]] = {"fashion-mnist": {"max_mse": 0.1}}


@dataclass(frozen=True)
class Effort:
    """How much work goes into the codes.

    Attributes:
        compact_steps: Of training our generator, where none comes with the package.
        feature_steps: Of training the feature networks, ours and the one that codes of the paper's GAN are found by.
        vae_steps: Of training the VAE.
        dcgan_epochs: Of training the paper's GAN.
        steps: Gradients an image to invert into our generator; None: the default of ``invert``.
        refine_steps: More gradients for images whose code has a large error.
        paper_steps: Gradients an image to invert into the paper's GAN its own way.
        paper_images: How many images are inverted that way: the first so many; None: all.
        images: How many images there are at all, to train generators on and to invert: the first so many; None: all.
    """

    compact_steps: int = 20_000
    feature_steps: int = 1500
    vae_steps: int = 10_000
    dcgan_epochs: int = 80
    steps: int | None = None
    refine_steps: int = 4000
    paper_steps: int = 1000
    paper_images: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class Workshop:
    """Makes codes.

    Attributes:
        dataset: Its name.
        images: The training images, in the form that torchvision has them.
        work: Folder for generators and banks.
        effort: See :class:`Effort`.
        compact: Keywords of :func:`latent_mixup.training.train_compact` for the generator's size.
        device: Where generators are trained and images inverted.
    """

    dataset: str
    images: Any
    work: Path
    effort: Effort
    compact: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def codes(self, name: str) -> Codes:
        """The codes of that name: see :data:`MAKERS`."""
        return MAKERS[name](self)

    @property
    def batch(self) -> dict[str, int]:
        """How many images are inverted at a time; each takes its own steps, so that this is a matter of speed alone."""
        return {} if self.device == "cpu" else {"batch_size": 2048}

    def to_invert(self, limit: int | None = None) -> Any:
        """The images that get a code: all, or the first so many."""
        limits = [number for number in (limit, self.effort.images) if number is not None]
        return Subset(self.images, range(min(limits))) if limits else self.images

    def training_images(self) -> torch.Tensor:
        """``[N, C, R, R]`` uint8: what generators learn from."""
        images: torch.Tensor = uint8_images(self.images)
        return images[: self.effort.images]

    def labels(self) -> torch.Tensor:
        """Theirs, ``[N]`` int64."""
        targets: torch.Tensor = torch.as_tensor(self.images.targets)
        return targets[: self.effort.images]

    def facts(self) -> dict[str, Any]:
        """What a generator's metadata says of its data."""
        data = {"name": self.dataset, **fingerprint(self.images), "trained_on": len(self.labels())}
        return {"name": self.dataset, "dataset": data}

    def generator(self, name: str, train: Callable[[Path], Generator]) -> Generator:
        """The generator in ``WORK/NAME``, trained where it is missing."""
        folder = self.work / name
        with claimed(self.work / f"{name}.lock", wait=True):
            made = load_generator(folder) if (folder / "config.json").is_file() else train(folder)
            return made.to(self.device)

    def bank(self, name: str, make: Callable[[Path], LatentBank]) -> LatentBank:
        """The bank in ``WORK/NAME-bank``, made where it is missing."""
        folder = self.work / f"{name}-bank"
        with claimed(self.work / f"{name}-bank.lock", wait=True):
            return LatentBank.from_pretrained(folder) if (folder / "bank.index.json").is_file() else make(folder)


def gan(shop: Workshop) -> Codes:
    """Our generator, the one that comes with the package where it has one, and every image inverted into it."""
    recipe = CompactRecipe(steps=shop.effort.compact_steps, feature_steps=shop.effort.feature_steps)

    def train(folder: Path) -> Generator:
        data = shop.training_images(), shop.labels()
        return train_compact(*data, folder, recipe=recipe, facts=shop.facts(), device=shop.device, **shop.compact)

    bundled = shop.dataset in hub.bundled_names()
    generator = load_generator(shop.dataset).to(shop.device) if bundled else shop.generator("gan", train)
    given: dict[str, Any] = {**shop.batch} if shop.effort.steps is None else {**shop.batch, "steps": shop.effort.steps}
    bank = shop.bank("gan", lambda out: invert(shop.to_invert(), generator, out=out, loss=pixel_mse, **given))
    return Codes(generator, bank)


def refined(above: float, before: Callable[[Workshop], Codes], name: str) -> Callable[[Workshop], Codes]:
    """Codes with more steps for those whose error is at least ``above``, as in section 2.1.2.2 of the paper."""

    def make(shop: Workshop) -> Codes:
        codes = before(shop)
        settings: dict[str, Any] = {"above": above, "steps": shop.effort.refine_steps, "loss": pixel_mse, **shop.batch}
        images = shop.to_invert()
        return Codes(
            codes.generator,
            shop.bank(name, lambda out: refine(codes.bank, images, codes.generator, out=out, **settings)),
        )

    return make


def vae(shop: Workshop) -> Codes:
    """The paper's VAE, made correct; a code is what its encoder says."""
    recipe = VAERecipe(steps=shop.effort.vae_steps)
    network = shop.generator(
        "vae",
        lambda folder: train_vae(shop.training_images(), folder, recipe=recipe, facts=shop.facts(), device=shop.device),
    )
    bank = shop.bank("vae", lambda out: invert(shop.to_invert(), network, out=out, steps=0, loss=pixel_mse))
    return Codes(network, bank)


def vae_sharpened(shop: Workshop) -> Codes:
    """The same VAE and codes, decoded through the paper's sharpening filter."""
    codes = vae(shop)
    assert isinstance(codes.generator, VAE)
    filtered = VAE(**{**codes.generator.arguments(), "sharpen": 1.0})
    filtered.load_state_dict(codes.generator.state_dict())
    return Codes(filtered, codes.bank)


def dcgan(shop: Workshop) -> Codes:
    """The paper's GAN with its own settings, and images inverted its own way, but for its mistakes.

    From an MLP that learnt from generated images, 1,000 steps of Adam on the features of a classifier; in eval mode,
    without weight decay, and the best step is kept.
    """
    recipe = DCGANRecipe(epochs=shop.effort.dcgan_epochs)
    generator = shop.generator(
        "dcgan",
        lambda folder: train_dcgan(
            shop.training_images(), folder, recipe=recipe, facts=shop.facts(), device=shop.device
        ),
    )

    def by_features(out: Path) -> LatentBank:
        images = from_uint8(shop.training_images())
        features = train_features(images, shop.labels(), steps=shop.effort.feature_steps)
        encoder = train_encoder(generator, shop.work / "dcgan-encoder", arch="mlp")
        loss = FeatureLoss(features, pixel_weight=0.0)
        some = shop.to_invert(shop.effort.paper_images)
        paper = {**PAPER, **shop.batch, "encoder": encoder, "steps": shop.effort.paper_steps}
        return invert(some, generator, out=out, loss=loss, **paper)

    limit = shop.effort.paper_images
    name = "dcgan" if limit is None else f"dcgan-{limit}"  # of all images or of some: not each other's
    return Codes(generator, shop.bank(name, by_features))


def dcgan_kept(shop: Workshop) -> Codes:
    """Those of the paper's GAN that the paper trained on: it left out codes with a large error."""
    codes = dcgan(shop)
    return Codes(codes.generator, codes.bank.filter(**KEPT.get(shop.dataset, BETTER_HALF)))


_025 = refined(0.025, gan, "gan_0.025")
MAKERS: dict[str, Callable[[Workshop], Codes]] = {
    "gan": gan,
    "gan_0.025": _025,
    "gan_0.020": refined(0.020, _025, "gan_0.020"),
    "vae": vae,
    "vae_sharpened": vae_sharpened,
    "dcgan": dcgan,
    "dcgan_kept": dcgan_kept,
}


def of_rows(codes: Codes, rows: torch.Tensor) -> Codes:
    """The codes of these training images alone."""
    ours = torch.isin(codes.bank.source_index, rows).nonzero()[:, 0]
    return Codes(codes.generator, codes.bank.subset(ours))


def described(codes: Codes) -> dict[str, Any]:
    """What figures 1 to 3 of the paper are drawn from: the errors of the codes, in units of [-1, 1] squared."""
    mse = codes.bank.mse
    assert mse is not None
    return {
        "rows": len(mse),
        "mse_mean": float(mse.mean()),
        "mse_percentiles": mse.double().quantile(torch.linspace(0, 1, 101, dtype=torch.float64)).tolist(),
        "share_from_0.025": float((mse >= 0.025).double().mean()),
        "share_from_0.020": float((mse >= 0.020).double().mean()),
        "generator_digest": codes.generator.digest(),
        "bank_digest": codes.bank.digest(),
        "made": {name: codes.bank.metadata.get(name) for name in ("inversion", "refined", "versions")},
    }


code_options = several(
    click.argument("dataset", type=click.Choice(["mnist", "fashion-mnist"])),
    click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set."),
    click.option("--generator", help="Folder, bundled name or Hub id; default: DATASET."),
    click.option("--bank", required=True, help="Of the training images: a folder or a Hub id."),
    click.option("--limit", type=click.IntRange(100), help="Of training images: to see that it runs."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores."),
)
