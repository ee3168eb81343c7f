"""Generators and banks that the benchmarks decode, made where they are missing; each stage resumes.

``WORK/NAME`` is the generator of the codes called NAME, ``WORK/NAME-bank`` its bank of the training images. One process
makes it, and others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
from record import claimed, data_option, threads_option
from torch.utils.data import Subset

from latent_mixup import LatentBank, files, invert, load_generator, refine
from latent_mixup.bank import fingerprint
from latent_mixup.cli.shared import several, uint8_images
from latent_mixup.demo.comparison import Codes
from latent_mixup.generators import VAE, Generator
from latent_mixup.images import from_uint8
from latent_mixup.inversion import FeatureLoss, pixel_mse
from latent_mixup.inversion.optimise import reconstruction_mse
from latent_mixup.runs import Progress
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
from paper import paper_code

# the paper's optimiser, but for its batches of 16: each image takes its own steps
PAPER: dict[str, Any] = {"optimizer": "adam", "lr": 0.03, "betas": (0.95, 0.999)}
# Codes that the paper's code keeps: of MNIST those below the median; of Fashion-MNIST those with an MSE up to 0.1. The
# unit of that is not known (images are in [0, 1] there, decoded ones in [-1, 1]): here [-1, 1] squared.
BETTER_HALF: dict[str, Any] = {"keep": 0.5}
PROBES, MUCH_BETTER = 256, 0.5  # codes that are decoded to compare; their MSE is at most this share of others' MSE
KEPT: dict[str, dict[str, Any]] = {"fashion-mnist": {"max_mse": 0.1}}


@dataclass(frozen=True)
class Effort:
    """The work that goes into the codes.

    Attributes:
        compact_steps: Training steps of our generator.
        feature_steps: Training steps of the feature networks: ours, and the one for inverting into the paper's GAN.
        vae_steps: Training steps of the VAE.
        dcgan_epochs: Training epochs of the paper's GAN.
        steps: Gradients an image to invert into our generator; None: the default of ``invert``.
        refine_steps: Further gradients for images whose code has a large error.
        paper_steps: Gradients an image to invert into the paper's GAN.
        paper_images: Number of images that are inverted into the paper's GAN, from the first on; None: all.
        paper_pairs: Number of generated pairs that the paper's MLP is trained on, six times.
        images: Number of images that generators are trained on and that are inverted, from the first on; None: all.
    """

    compact_steps: int = 20_000
    feature_steps: int = 1500
    vae_steps: int = 10_000
    dcgan_epochs: int = 80
    steps: int | None = None
    refine_steps: int = 4000
    paper_steps: int = 1000
    paper_images: int | None = None
    paper_pairs: int = paper_code.PAIRS
    images: int | None = None


@dataclass(frozen=True)
class Workshop:
    """Makes codes.

    Attributes:
        dataset: Name of the data set.
        images: Its training images in torchvision's form.
        work: Folder for generators and banks.
        effort: See :class:`Effort`.
        compact: Keywords of :func:`latent_mixup.training.train_compact` for the generator's size.
        device: Where generators are trained and images inverted.
        given: ``GENERATOR:BANK`` of codes that are not made here, by name.
    """

    dataset: str
    images: Any
    work: Path
    effort: Effort
    compact: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    given: dict[str, str] = field(default_factory=dict)

    def codes(self, name: str) -> Codes:
        """The codes of that name: given ones, or those of :data:`MAKERS`."""
        if name not in self.given:
            return MAKERS[name](self)
        generator, _, bank = self.given[name].partition(":")
        codes = Codes(load_generator(generator).to(self.device), LatentBank.from_pretrained(bank))
        check_belong(codes, self.images)
        return codes

    @property
    def batch(self) -> dict[str, int]:
        """Images inverted at a time; each takes its own steps, so that this changes speed alone."""
        return {} if self.device == "cpu" else {"batch_size": 2048}

    def to_invert(self, limit: int | None = None) -> Any:
        """The images that get a code: all, or the first ``limit``."""
        limits = [number for number in (limit, self.effort.images) if number is not None]
        return Subset(self.images, range(min(limits))) if limits else self.images

    def training_images(self) -> torch.Tensor:
        """The images that generators are trained on, ``[N, C, R, R]`` uint8."""
        images: torch.Tensor = uint8_images(self.images)
        return images[: self.effort.images]

    def labels(self) -> torch.Tensor:
        """Labels of :meth:`training_images`, ``[N]`` int64."""
        targets: torch.Tensor = torch.as_tensor(self.images.targets)
        return targets[: self.effort.images]

    def facts(self) -> dict[str, Any]:
        """The entries of a generator's metadata about its data."""
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
    """Our compact generator, as 0.1 came with for MNIST and Fashion-MNIST, and every image inverted into it."""
    recipe = CompactRecipe(steps=shop.effort.compact_steps, feature_steps=shop.effort.feature_steps)

    def train(folder: Path) -> Generator:
        data = shop.training_images(), shop.labels()
        return train_compact(*data, folder, recipe=recipe, facts=shop.facts(), device=shop.device, **shop.compact)

    generator = shop.generator("gan", train)
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
    """The paper's VAE, made correct, and its encoder's codes."""
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


def _paper_gan(shop: Workshop) -> Generator:
    recipe = DCGANRecipe(epochs=shop.effort.dcgan_epochs)
    data = shop.training_images()
    return shop.generator(
        "dcgan", lambda folder: train_dcgan(data, folder, recipe=recipe, facts=shop.facts(), device=shop.device)
    )


def dcgan(shop: Workshop) -> Codes:
    """The paper's GAN, trained as published, and images inverted into it our way.

    1,000 steps of Adam along a cosine on the features of a classifier, from an MLP trained on generated images; in eval
    mode, without weight decay, and with the best step kept.
    """
    generator = _paper_gan(shop)

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


def dcgan_as_published(shop: Workshop) -> Codes:
    """The paper's GAN and its inversion as published; each block of images is written when it is done."""
    generator = _paper_gan(shop)
    number = shop.effort.paper_images or len(shop.labels())
    name = f"dcgan_as_published-{number}"

    def as_published(out: Path) -> LatentBank:
        images, labels = from_uint8(shop.training_images()[:number]), shop.labels()[:number]
        features = train_features(from_uint8(shop.training_images()), shop.labels(), steps=shop.effort.feature_steps)
        encoder = paper_code.encoder_as_published(generator, shop.effort.paper_pairs)
        features.to(shop.device)
        found = []
        with Progress(number, name, "images") as bar:
            for block, rows in enumerate(torch.arange(number).split(50 * paper_code.INVERSION_BATCH)):
                path = shop.work / f"{name}-blocks" / f"{block:05}.safetensors"
                if not path.is_file():
                    pairs = [
                        paper_code.invert_as_published(
                            generator, batch, encoder(batch), features, shop.effort.paper_steps
                        )
                        for batch in images[rows].to(shop.device).split(paper_code.INVERSION_BATCH)
                    ]
                    latents, mse = (torch.cat(each).cpu() for each in zip(*pairs, strict=True))
                    made = safetensors.torch.save({"latents": latents, "mse": mse})
                    files.write_folder(path.parent, {path.name: made})
                found.append(safetensors.torch.load_file(path))
                bar.advance(len(rows))
        latents, mse = (torch.cat([part[name] for part in found]) for name in ("latents", "mse"))
        facts = {"inversion": {"as": "published", "steps": shop.effort.paper_steps, "optimizer": "adamw"}}
        bank = LatentBank(latents, labels, source_index=torch.arange(number), mse=mse, metadata=facts)
        bank.save_pretrained(out, dtype=torch.float32)
        return LatentBank.from_pretrained(out)

    return Codes(generator, shop.bank(name, as_published))


def kept(make: Callable[[Workshop], Codes]) -> Callable[[Workshop], Codes]:
    """The codes that the paper trained on: without those with a large error."""

    def filtered(shop: Workshop) -> Codes:
        codes = make(shop)
        return Codes(codes.generator, codes.bank.filter(**KEPT.get(shop.dataset, BETTER_HALF)))

    return filtered


_025 = refined(0.025, gan, "gan_0.025")
MAKERS: dict[str, Callable[[Workshop], Codes]] = {
    "gan": gan,
    "gan_0.025": _025,
    "gan_0.020": refined(0.020, _025, "gan_0.020"),
    "vae": vae,
    "vae_sharpened": vae_sharpened,
    "dcgan": dcgan,
    "dcgan_kept": kept(dcgan),
    "dcgan_as_published": dcgan_as_published,
    "dcgan_as_published_kept": kept(dcgan_as_published),
}


def given_codes(pairs: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """``NAME=GENERATOR:BANK`` to name and ``GENERATOR:BANK``.

    Raises:
        click.BadParameter: A pair has another form, or its name is not one of ``names``.
    """
    found = {}
    for pair in pairs:
        name, _, where = pair.partition("=")
        generator, _, bank = where.partition(":")
        if not (generator and bank) or name not in names:
            raise click.BadParameter(f"expected NAME=GENERATOR:BANK with a name of {', '.join(names)}: got {pair!r}")
        found[name] = where
    return found


def check_belong(codes: Codes, images: Any) -> None:
    """Raise ``ValueError`` unless codes belong to their generator and to the images, in their order.

    Shapes, digests and labels are compared, and the MSE of up to 256 decoded codes with their own image and with
    another one of the class.
    """
    codes.bank.check(codes.generator)
    codes.bank.check(images)
    probe = codes.bank.subset(torch.linspace(0, len(codes.bank) - 1, min(PROBES, len(codes.bank))).long())
    pixels, by_label = uint8_images(images), probe.hard_labels.argsort(stable=True)
    another = torch.empty_like(by_label).index_copy(0, by_label, by_label.roll(-1))
    own, others = (
        float(mse_of(probe, codes.generator, pixels, probe.source_index[rows]).median())
        for rows in (torch.arange(len(probe)), another)
    )
    if own > MUCH_BETTER * others:
        raise ValueError(
            f"the codes do not belong to the images: their median MSE is {own:.4g}, with other images {others:.4g}; "
            "pass the generator and the data set that they were made with, in its order"
        )


def mse_of(bank: LatentBank, generator: Generator, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """MSE of each row's decode with the image of index ``targets`` ``[N]``, ``[N]``."""
    found = []
    with torch.no_grad(), Progress(len(bank), "decode", "codes") as bar:
        for rows in torch.arange(len(bank)).split(100):
            latents, real = bank[rows][0], from_uint8(pixels[targets[rows]])
            found.append(reconstruction_mse(generator, latents.to(generator.device), real.to(generator.device)).cpu())
            bar.advance(len(rows))
    return torch.cat(found)


def of_rows(codes: Codes, rows: torch.Tensor) -> Codes:
    """The codes of these training images alone."""
    ours = torch.isin(codes.bank.source_index, rows).nonzero()[:, 0]
    return Codes(codes.generator, codes.bank.subset(ours))


def described(codes: Codes) -> dict[str, Any]:
    """The errors of the codes, in units of [-1, 1] squared, that figures 1 to 3 of the paper are drawn from."""
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
    data_option,
    click.option("--generator", help="Folder, bundled name or Hub id; default: DATASET."),
    click.option("--bank", required=True, help="Of the training images: a folder or a Hub id."),
    click.option("--limit", type=click.IntRange(100), help="Number of training images, to see that it runs."),
    threads_option,
)
