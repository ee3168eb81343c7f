r"""Make all generators, banks and feature extractors again, into folders for ``latent-mixup push``.

For MNIST, Fashion-MNIST and CIFAR-10: a generator with its prior, trained without labels, and the codes of training
images drawn at random, as many of each class; for the first two also the paper's feature extractor. For CIFAR-10, from
the files of others: NVIDIA's StyleGAN2 and the authors' three banks. ``published.py`` is the list.

    python benchmarks/publish/publish.py --data-root data
    python benchmarks/publish/publish.py --data-root data --stylegan2-cifar10 stylegan2-cifar10-32x32.pkl \
        --grad-latents plain.npy refined-0.025.npy refined-0.020.npy
    python benchmarks/publish/publish.py --data-root data --only mnist-bank --assets latent_mixup/assets

Each stage goes on where it stopped. ``--runs`` is the folder for unfinished work: a finished run of ``latent-mixup
train-generator`` or ``invert`` in a folder of the artefact's name there is taken up. ``--assets`` writes the bundled
files: generator, bank and, but for CIFAR-10, its images. What the codes are worth is measured by
``benchmarks/generators/knowledge.py``; the cards quote its results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor
from torch.utils.data import Subset

from latent_mixup import LatentBank, cards, files, hub, invert, load_generator
from latent_mixup.bank import fingerprint
from latent_mixup.bundled import idx_bytes
from latent_mixup.cli.publishing import check
from latent_mixup.cli.shared import FOLDER, one_sentence, open_data, uint8_images
from latent_mixup.convert import read_latents, read_nvidia
from latent_mixup.demo.comparison import Codes
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8, pixel_values
from latent_mixup.pictures import mix_sheet, sample_sheet
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import ConvRecipe, train_conv, train_features

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import check_belong, mse_of
from record import RESULTS, threads_option

from publish.published import ARTEFACTS, GREY, ORGANISATION, Artefact

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
GENERATORS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {  # arguments of the recipe, and of the network
    "mnist": ({"steps": 3_500}, {"z_dim": 128, "flow_width": 256}),
    "fashion-mnist": ({"steps": 5_000, "flip": True}, {"z_dim": 128, "flow_width": 256}),
    "cifar10": ({"steps": 8_000, "flip": True}, {"z_dim": 192, "width": 32, "detail": 16, "flow_width": 320}),
}
SHIPPED = {"mnist": (500, 1000), "fashion-mnist": (1000, 2000), "cifar10": (1000, 0)}  # codes a class, test images
GRID = 32  # codes are rounded to a GRID-th, which costs no error that shows and packs well
PAIRS = 16  # columns of a sheet of mixes
PICTURES = {
    "samples.png": "Random codes, decoded.",
    "mixes.png": "Real images a; decoded from their codes; mixes of the codes of a and b with weight 0.75, 0.5 and "
    "0.25 on a; b decoded; real images b; and for comparison a mix of pixels.",
}


@dataclass(frozen=True)
class Effort:
    """What ``--quick`` takes less of.

    Attributes:
        recipe: Arguments of every :class:`ConvRecipe` in the place of the released ones.
        inversion: More keywords of ``invert``.
        feature_steps: Training steps of a feature extractor.
        per_class: Codes of each class; None: as released.
        test_images: Bundled test images; None: as released.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    inversion: dict[str, Any] = field(default_factory=dict)
    feature_steps: int = 1_500
    per_class: int | None = None
    test_images: int | None = None


QUICK = Effort({"steps": 4, "prior_steps": 4, "batch_size": 8}, {"batch_size": 16, "steps": 3}, 2, 3, 5)


@dataclass(frozen=True)
class Workshop:
    """A command line, read.

    Attributes:
        data_root: Folder of torchvision's data sets.
        runs: Folder for unfinished work.
        out: Folder of the folders that are pushed.
        organisation: Organisation on the Hub.
        effort: Recipes.
        device: Where StyleGAN2 decodes.
        network: NVIDIA's file.
        latents: The authors' files by the name of the artefact.
    """

    data_root: Path | None
    runs: Path
    out: Path
    organisation: str
    effort: Effort
    device: str
    network: Path | None
    latents: dict[str, Path]

    def repository(self, name: str) -> str:
        """The name on the Hub."""
        return f"{self.organisation}/{name}"

    def generator(self, artefact: Artefact) -> Generator:
        """The generator that an artefact belongs to, as it is published."""
        folder = self.out / str(artefact.generator)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is missing, which {artefact.name} needs: make {artefact.generator} first"
            )
        return load_generator(folder)

    def images(self, name: str) -> Images:
        """A data set."""
        if self.data_root is None:
            raise FileNotFoundError(f"{name} is needed: pass --data-root")
        return Images(name, self.data_root)

    def write(self, artefact: Artefact, thing: Any, dtype: torch.dtype, **pictures: bytes) -> Path:
        """Write a network or bank, its pictures and its card into the folder that is pushed."""
        folder = self.out / artefact.name
        thing.save_pretrained(folder, dtype=dtype)
        files.write_folder(folder, {f"{name}.png": picture for name, picture in pictures.items()})
        self.write_card(artefact, LatentBank.from_pretrained(folder) if artefact.kind == "bank" else thing)
        return folder

    def write_card(self, artefact: Artefact, thing: Any, generator: str | None = None) -> None:
        """Write the card, with names on the Hub and the quality; ``generator``: the name that its example loads."""
        folder = self.out / artefact.name
        belongs_to = self.repository(artefact.generator) if artefact.generator else None
        extras = cards.Extras(
            name=self.repository(artefact.name),
            generator=generator or belongs_to,
            commands=[
                f"python benchmarks/publish/publish.py --data-root data --only {artefact.name}{self._files(artefact)}"
            ],
            measured=self._measured(artefact, thing),
            pictures={name: text for name, text in PICTURES.items() if (folder / name).is_file()},
        )
        files.write_folder(folder, cards.card_file(folder, thing.describe, extras))

    def _files(self, artefact: Artefact) -> str:
        if artefact.ours:
            return ""
        if artefact.kind == "generator":
            return " --stylegan2-cifar10 stylegan2-cifar10-32x32.pkl"
        return " --grad-latents plain.npy refined-0.025.npy refined-0.020.npy"

    def _measured(self, artefact: Artefact, thing: Any) -> dict[str, str]:
        path = RESULTS / "generators" / f"{artefact.data_set}.json"
        if artefact.kind not in ("generator", "bank") or not artefact.ours or not path.is_file():
            return {}
        found = files.read_json(path)
        digest = thing.generator_digest if artefact.kind == "bank" else thing.digest()
        return quoted(found) if found["generator"]["digest"] == digest else {}


def quoted(found: dict[str, Any]) -> dict[str, str]:
    """What a card says of the check of the codes of test images."""
    error, frechet = found["reconstruction"]["ours"], found["frechet"]
    gains = [f"{found['probe'][size]['codes_minus_pixels']['mean']:+.3f}" for size in ("20", "100")]
    return {
        "MSE of test images, in [-1, 1], mean": f"{error['mse']['mean']:.4f}",
        "share of test images whose class a classifier still sees when they are decoded": f"{error['kept']:.3f}",
        "accuracy of a linear classifier on codes minus on pixels, 20 and 100 labels a class": ", ".join(gains),
        "Frechet distance of samples of the prior; of PCA's": f"{frechet['prior']['ours']:.0f}; "
        f"{frechet['prior']['pca']:.0f}",
        "Frechet distance of half-way mixes between classes; projected": f"{frechet['mixes_between']['ours']:.0f}; "
        f"{frechet['mixes_projected']['ours']:.0f}",
    }


@dataclass(frozen=True)
class Images:
    """A data set."""

    name: str
    root: Path

    @cached_property
    def train(self) -> Any:
        """Training images and labels."""
        return open_data(self.name, self.root)

    @cached_property
    def test(self) -> Any:
        """Test images and labels."""
        return open_data(self.name, self.root, test=True)

    @cached_property
    def pixels(self) -> Tensor:
        """Training images, ``[N, C, H, W]`` uint8."""
        if hasattr(self.train, "data"):
            return cast(Tensor, uint8_images(self.train))
        return torch.stack([pixel_values(image) for image, _ in self.train])

    @cached_property
    def labels(self) -> Tensor:
        """Training labels, ``[N]``."""
        return torch.as_tensor(self.train.targets)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Its entry in metadata; of CIFAR-10, whose images come in several orders, without its labels."""
        if self.name not in GREY:
            return {"name": self.name, "length": len(self.train), "labels": None}
        return {"name": self.name, **fingerprint(self.train)}


# --------------------------------------------------------------------------------------------------
# What is trained here
# --------------------------------------------------------------------------------------------------


def make_generator(shop: Workshop, artefact: Artefact) -> Path:
    """Train the generator and its prior."""
    images, (recipe, network) = shop.images(artefact.data_set), GENERATORS[artefact.data_set]
    generator = train_conv(
        images.pixels,
        shop.runs / artefact.name,
        recipe=ConvRecipe(**recipe | shop.effort.recipe),
        network=network,
        facts={"name": artefact.data_set, "dataset": images.facts},
    )
    return shop.write(artefact, generator, torch.float16, samples=sample_sheet(generator))


def make_bank(shop: Workshop, artefact: Artefact) -> Path:
    """Find the codes of training images drawn at random, as many of each class."""
    name = artefact.data_set
    images, generator = shop.images(name), shop.generator(artefact)
    rows = balanced_rows(images.labels, shop.effort.per_class or SHIPPED[name][0])
    some = Subset(images.train, rows.tolist())
    found = invert(some, generator, out=shop.runs / artefact.name, **shop.effort.inversion)
    facts = images.facts if name in GREY else {**images.facts, "found_by": "image"}
    metadata = {**found.metadata, "dataset": facts, "drawn": "at random, as many of each class"}
    order = found.source_index.argsort()
    codes = ((found[order][0] * GRID).round() / GRID).half()
    rough = LatentBank(codes, found.labels[order], source_index=rows, metadata=metadata)
    mse = mse_of(rough, generator, images.pixels, rows)
    bank = LatentBank(codes, rough.labels, source_index=rows, mse=mse, metadata=metadata)
    return shop.write(artefact, bank, torch.float16, mixes=mixes(generator, bank, images))


def balanced_rows(labels: Tensor, per_class: int) -> Tensor:
    """As many rows of each class, drawn at random, ascending; all of a class that has fewer."""
    order = torch.randperm(len(labels), generator=keyed_generator("shipped-rows"))
    chosen = [order[labels[order] == label][:per_class] for label in range(int(labels.max()) + 1)]
    return torch.cat(chosen).sort().values


def make_features(shop: Workshop, artefact: Artefact) -> Path:
    """Train the paper's feature extractor, on training images and their labels."""
    images = shop.images(artefact.data_set)
    features = train_features(from_uint8(images.pixels), images.labels, steps=shop.effort.feature_steps)
    features.metadata = {"name": artefact.name, "dataset": images.facts, "labels_seen": True}
    return shop.write(artefact, features, torch.float16)


def mixes(generator: Generator, bank: LatentBank, images: Images) -> bytes:
    """Random pairs of the bank: real, reconstructed and mixed."""
    rows, partners = torch.randint(len(bank), (2, PAIRS), generator=keyed_generator("pairs", 0))
    real_own, real_other = (from_uint8(images.pixels[bank.source_index[chosen]]) for chosen in (rows, partners))
    return mix_sheet(generator, bank[rows][0], bank[partners][0], real_own, real_other, zoom=3)


# --------------------------------------------------------------------------------------------------
# CIFAR-10, from the files of others
# --------------------------------------------------------------------------------------------------


def convert_network(shop: Workshop, artefact: Artefact) -> Path:
    """NVIDIA's network."""
    assert shop.network is not None
    generator = read_nvidia(shop.network)
    if (generator.img_channels, generator.img_resolution) != (3, 32):
        raise ValueError(
            f"{shop.network} makes images of {generator.img_channels} channels and {generator.img_resolution} px: "
            "expected the network for CIFAR-10, 3 channels and 32 px"
        )
    generator.metadata |= {"name": artefact.name, "dataset": {"name": artefact.data_set}}
    return shop.write(artefact, generator, torch.float32, samples=sample_sheet(generator))


def convert_bank(shop: Workshop, artefact: Artefact) -> Path:
    """One of the authors' banks, with the MSE of each code where CIFAR-10 is at hand; they published none."""
    generator, bank = shop.generator(artefact).to(shop.device), read_latents(shop.latents[artefact.name])
    bank.metadata["generator"] = {"name": artefact.generator, "digest": generator.digest()}
    bank.metadata["dataset"] = {"name": artefact.data_set}
    bank.metadata["licence"] = generator.metadata["licence"]
    bank.metadata["inversion"]["refined_above"] = list(artefact.refined_above)
    bank.check(generator)
    try:
        images = shop.images(artefact.data_set)
        bank.check(images.train)
    except FileNotFoundError as missing:
        click.echo(f"{artefact.name}: without the MSE of its codes and without pictures ({missing})")
        return shop.write(artefact, bank, torch.float16)
    bank.metadata["dataset"] = {"name": artefact.data_set, **fingerprint(images.train)}
    check_belong(Codes(generator, bank), images.train)
    errors = mse_of(bank, generator, images.pixels, bank.source_index)
    bank = LatentBank(bank[:][0], bank.labels, source_index=bank.source_index, mse=errors, metadata=bank.metadata)
    return shop.write(artefact, bank, torch.float16, mixes=mixes(generator, bank, images))


# --------------------------------------------------------------------------------------------------
# What ships, and what goes to the Hub
# --------------------------------------------------------------------------------------------------


def bundle(shop: Workshop, data_set: str, assets: Path) -> None:
    """Write generator, bank, their cards and, but for CIFAR-10, their real images into the bundled files."""
    images, folder = shop.images(data_set), assets / data_set
    bank = LatentBank.from_pretrained(shop.out / f"{data_set}-bank")
    load_generator(shop.out / f"{data_set}-generator").save_pretrained(folder / "generator", dtype=torch.float16)
    bank.save_pretrained(folder / "bank")
    for part in ("generator", "bank"):
        bundled_card(folder / part, f"--only {data_set}-{part} --assets latent_mixup/assets")
    if data_set in GREY:
        tested = shop.effort.test_images or SHIPPED[data_set][1]
        files.write_folder(
            folder / "data",
            {
                "train-images-idx3-ubyte.xz": idx_bytes(images.train.data[bank.source_index]),
                "train-labels-idx1-ubyte.xz": idx_bytes(images.train.targets[bank.source_index]),
                "t10k-images-idx3-ubyte.xz": idx_bytes(images.test.data[:tested]),
                "t10k-labels-idx1-ubyte.xz": idx_bytes(images.test.targets[:tested]),
            },
        )
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    click.echo(f"{folder}: {len(bank):,} codes, {total / 1e6:.1f} MB")


def bundled_card(folder: Path, arguments: str | None = None) -> None:
    """Write the card of ``DATA-SET/generator`` or ``DATA-SET/bank``, with the bundled name in its example.

    Args:
        folder: The folder; a card that was edited stays.
        arguments: Arguments of this script that make the files; None: the card names no command.
    """
    name, is_bank = folder.parent.name, folder.name == "bank"
    thing = LatentBank.from_pretrained(folder) if is_bank else load_generator(folder)
    command = f"python benchmarks/publish/publish.py --data-root data {arguments}"
    extras = cards.Extras(
        name=name, generator=name if is_bank else None, commands=[command] if arguments is not None else []
    )
    files.write_folder(folder, cards.card_file(folder, thing.describe, extras))


def push_all(shop: Workshop, chosen: list[Artefact]) -> None:
    """Push what was made, generators first: a bank names its generator's commit."""
    commits: dict[str, str] = {}
    for artefact in sorted(chosen, key=lambda artefact: artefact.kind != "generator"):
        if not artefact.licensed:
            click.echo(f"{artefact.name} is not pushed: its authors gave no licence")
            continue
        folder = shop.out / artefact.name
        if artefact.kind == "bank":
            owner = str(artefact.generator)
            if owner not in commits:
                found = load_generator(shop.repository(owner))
                if found.digest() != shop.generator(artefact).digest():
                    raise ValueError(
                        f"{shop.repository(owner)} on the Hub is not the generator in {shop.out}: push that first"
                    )
                commits[owner] = found.metadata["hub"]["commit"]
            place_beside(shop, artefact, commits[owner])
        pushed = hub.push_folder(folder, shop.repository(artefact.name), artefact.kind)
        commits[artefact.name] = pushed.oid
        click.echo(f"{shop.repository(artefact.name)}@{pushed.oid}")


def place_beside(shop: Workshop, artefact: Artefact, commit: str) -> None:
    """Record the generator's commit in a bank, and in the example of its card."""
    folder, repository = shop.out / artefact.name, shop.repository(str(artefact.generator))
    bank = LatentBank.from_pretrained(folder)
    bank.metadata["generator"] |= {"repo": repository, "commit": commit}
    bank.save_pretrained(folder, dtype=bank.dtype)
    shop.write_card(artefact, bank, f"{repository}@{commit}")


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------

MAKERS: dict[tuple[bool, str], Callable[[Workshop, Artefact], Path]] = {
    (True, "generator"): make_generator,
    (True, "bank"): make_bank,
    (True, "features"): make_features,
    (False, "generator"): convert_network,
    (False, "bank"): convert_bank,
}


def stages(shop: Workshop, only: tuple[str, ...]) -> list[Artefact]:
    """The artefacts to make: those named, else all whose input files are given; the others are printed.

    Raises:
        ValueError: The input file of a named artefact is not given.
    """
    chosen = []
    for artefact in ARTEFACTS:
        if only and artefact.name not in only:
            continue
        theirs = {"generator": "--stylegan2-cifar10", "bank": "--grad-latents"}
        option = "--data-root" if artefact.ours else theirs[artefact.kind]
        at_hand = {
            "--data-root": shop.data_root is not None,
            "--stylegan2-cifar10": shop.network is not None,
            "--grad-latents": artefact.name in shop.latents,
        }
        if at_hand[option]:
            chosen.append(artefact)
        elif only:
            raise ValueError(f"{artefact.name} is made from the files of {option}: pass it")
        else:
            click.echo(f"{artefact.name} is left out: it is made from the files of {option}")
    return chosen


@click.command()
@click.option("--data-root", type=FOLDER, help="Folder with torchvision's files.")
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder for unfinished work.")
@click.option("--out", type=FOLDER, default=Path("hub"), show_default=True, help="Folder of the folders to push.")
@click.option("--only", type=click.Choice([each.name for each in ARTEFACTS]), multiple=True, help="Repeatable.")
@click.option("--stylegan2-cifar10", "network", type=FILE, help="NVIDIA's stylegan2-cifar10-32x32.pkl.")
@click.option("--grad-latents", "latents", type=FILE, nargs=3, help="The authors' files: plain, 0.025 and 0.020.")
@click.option("--assets", type=FOLDER, help="Write the bundled files of the banks that are made, into this folder.")
@click.option("--organisation", default=ORGANISATION, show_default=True, help="Organisation on the Hub.")
@click.option("--push", is_flag=True, help="Push everything to the Hub afterwards.")
@click.option("--quick", is_flag=True, help="A few steps of everything, to see that it runs.")
@click.option("--device", default="cpu", show_default=True, help="Where StyleGAN2 decodes, e.g. cuda.")
@threads_option
@one_sentence
def main(
    data_root: Path | None,
    runs: Path,
    out: Path,
    only: tuple[str, ...],
    network: Path | None,
    latents: tuple[Path, Path, Path] | None,
    assets: Path | None,
    organisation: str,
    push: bool,
    quick: bool,
    device: str,
) -> None:
    """Make generators, banks and feature extractors again."""
    banks = [artefact.name for artefact in ARTEFACTS if artefact.kind == "bank" and not artefact.ours]
    files = dict(zip(banks, latents or (), strict=False))
    shop = Workshop(data_root, runs, out, organisation, QUICK if quick else Effort(), device, network, files)
    chosen = stages(shop, only)
    for artefact in chosen:
        folder = MAKERS[artefact.ours, artefact.kind](shop, artefact)
        owner = str(out / artefact.generator) if artefact.generator else None
        click.echo(f"{folder}: {check(folder, artefact.kind, owner)}")
        if assets and artefact.kind == "bank" and artefact.ours:
            bundle(shop, artefact.data_set, assets)
    if push:
        push_all(shop, chosen)


if __name__ == "__main__":
    main()
