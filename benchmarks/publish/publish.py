r"""Make all generators, banks, feature extractors and encoders again, into folders for ``latent-mixup push``.

For MNIST and Fashion-MNIST: a generator, the codes of all training images, the feature extractor, an encoder. For
CIFAR-10, from the files of others: NVIDIA's StyleGAN2 and the authors' three banks. ``published.py`` is the list.

    python benchmarks/publish/publish.py --data-root data
    python benchmarks/publish/publish.py --data-root data --stylegan2-cifar10 stylegan2-cifar10-32x32.pkl \
        --grad-latents plain.npy refined-0.025.npy refined-0.020.npy
    python benchmarks/publish/publish.py --data-root data --only mnist-bank --assets latent_mixup/assets

Each stage goes on where it stopped. ``--runs`` is the folder for unfinished work (a finished run of ``latent-mixup
train-generator`` or ``invert`` in a folder of the artefact's name there is taken up) and for NAME-reconstruction.json,
the quality of the codes. ``--assets`` writes the bundled files: generator, best codes and their images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from latent_mixup import LatentBank, cards, files, hub, invert, load_generator
from latent_mixup.bank import fingerprint
from latent_mixup.bundled import idx_bytes
from latent_mixup.classifiers import PaperFeatures
from latent_mixup.cli.publishing import check
from latent_mixup.cli.shared import FOLDER, one_sentence, torchvision_dataset, uint8_images
from latent_mixup.convert import read_latents, read_nvidia
from latent_mixup.demo.comparison import Codes
from latent_mixup.encoders import load_encoder
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.inversion import pixel_mse
from latent_mixup.pictures import mix_sheet
from latent_mixup.quality.info import sample_sheet
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import CompactRecipe, EncoderRecipe, train_compact, train_encoder
from latent_mixup.training.encoder import encoder_sheet

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import check_belong, mse_of
from record import threads_option, write

from publish.published import ARTEFACTS, ORGANISATION, TRAINED_ON, Artefact
from publish.reconstruction import measure

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NETWORK = {"channels": [32, 64, 128, 256], "layers": [1, 1, 1, 1]}  # the encoder's: a small ResNet, for a CPU
HALF_AS_WIDE = {"decoder_widths": (256, 512), "encoder_widths": (256, 128)}
GENERATOR_NETWORK = {"mnist": HALF_AS_WIDE, "fashion-mnist": {}}  # digits are simpler, and both fit into one wheel
SHIPPED = {"mnist": (400, 1000), "fashion-mnist": (1000, 2000)}  # codes of each class, and test images
PAIRS = 16  # columns of a sheet of mixes
PICTURES = {
    "samples.png": "Random codes, decoded.",
    "mixes.png": "Real images a; decoded from their codes; mixes of the codes of a and b with weight 0.75, 0.5 and "
    "0.25 on a; b decoded; real images b; and for comparison a mix of pixels.",
    "encoded.png": "Real images, and what their codes decode to after each pass.",
}


@dataclass(frozen=True)
class Effort:
    """Recipes; other values than the defaults are for tests."""

    generator: CompactRecipe = field(default_factory=CompactRecipe)
    inversion: dict[str, Any] = field(default_factory=lambda: {"batch_size": 250})
    encoder: EncoderRecipe = field(default_factory=lambda: EncoderRecipe(steps=2000, batch_size=32, lr=3e-3))
    judge_epochs: int = 5


QUICK = Effort(
    CompactRecipe(steps=4, batch_size=8, feature_steps=2),
    {"batch_size": 16, "steps": 3, "restarts": 0, "draws": 16},
    EncoderRecipe(steps=2, batch_size=4),
    1,
)


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
            measured=self._measured(artefact),
            pictures={name: text for name, text in PICTURES.items() if (folder / name).is_file()},
        )
        files.write_folder(folder, cards.card_file(folder, thing.describe, extras))

    def _files(self, artefact: Artefact) -> str:
        if artefact.data_set in TRAINED_ON:
            return ""
        if artefact.kind == "generator":
            return " --stylegan2-cifar10 stylegan2-cifar10-32x32.pkl"
        return " --grad-latents plain.npy refined-0.025.npy refined-0.020.npy"

    def _measured(self, artefact: Artefact) -> dict[str, str]:
        path = self.reconstruction(artefact.data_set)
        if artefact.kind not in ("generator", "bank") or not path.is_file():
            return {}
        found = files.read_json(path)
        errors, real = found["test_mse"], found["classifier_accuracy_on_real_test_images"]
        return {
            "MSE of the reconstructions of test images, mean": f"{errors['mean']:.4f}",
            "median": f"{errors['median']:.4f}",
            "95 %": f"{errors['p95']:.4f}",
            "accuracy of a classifier on real test images": f"{real:.4f}",
            "... on their reconstructions": f"{found['classifier_accuracy_on_reconstructions']:.4f}",
        }

    def reconstruction(self, data_set: str) -> Path:
        """File of the quality of a data set's codes."""
        return self.runs / f"{data_set}-reconstruction.json"


@dataclass(frozen=True)
class Images:
    """A data set of torchvision."""

    name: str
    root: Path

    @cached_property
    def train(self) -> Any:
        """Training images and labels."""
        return torchvision_dataset(self.name, self.root, train=True)

    @cached_property
    def test(self) -> Any:
        """Test images and labels."""
        return torchvision_dataset(self.name, self.root, train=False)

    @cached_property
    def pixels(self) -> Tensor:
        """Training images, ``[N, C, H, W]`` uint8."""
        pixels: Tensor = uint8_images(self.train)
        return pixels

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Its entry in metadata."""
        return {"name": self.name, **fingerprint(self.train)}


# --------------------------------------------------------------------------------------------------
# MNIST and Fashion-MNIST
# --------------------------------------------------------------------------------------------------


def make_generator(shop: Workshop, artefact: Artefact) -> Path:
    """Train the compact generator."""
    images = shop.images(artefact.data_set)
    facts = {"name": artefact.data_set, "dataset": images.facts, "labels_seen": True}
    run = shop.runs / artefact.name
    generator = train_compact(
        images.pixels,
        images.train.targets,
        run,
        recipe=shop.effort.generator,
        network=GENERATOR_NETWORK[artefact.data_set],
        facts=facts,
    )
    return shop.write(artefact, generator, torch.float16, samples=sample_sheet(generator))


def make_bank(shop: Workshop, artefact: Artefact) -> Path:
    """Find the codes of all training images, and measure their quality."""
    images, generator = shop.images(artefact.data_set), shop.generator(artefact)

    def find(dataset: Any, name: str) -> LatentBank:
        return invert(dataset, generator, out=shop.runs / name, loss=pixel_mse, **shop.effort.inversion)

    bank, test_bank = find(images.train, artefact.name), find(images.test, f"{artefact.name}-test")
    bank.metadata["dataset"]["name"] = artefact.data_set
    bank.metadata["labels_seen"] = True  # by the feature network of the generator's loss
    path = shop.reconstruction(artefact.data_set)
    known = files.read_json(path) if path.is_file() else {}
    if (known.get("generator_digest"), known.get("bank_digest")) != (generator.digest(), bank.digest()):
        train, test = (images.pixels, images.train.targets), (uint8_images(images.test), images.test.targets)
        record = measure(generator, bank, test_bank, train, test, epochs=shop.effort.judge_epochs)
        write(path, record)
        shop.write_card(next(each for each in ARTEFACTS if each.name == artefact.generator), generator)
    return shop.write(artefact, bank, torch.float16, mixes=mixes(generator, bank, images))


def make_features(shop: Workshop, artefact: Artefact) -> Path:
    """The feature extractor that the generator was trained with; it was trained on the same images and their labels."""
    generator = shop.generator(artefact)
    if not isinstance(generator.features, PaperFeatures):
        raise ValueError(f"{artefact.generator} has no features: it is no compact generator of 28x28 grey images")
    recipe = generator.metadata["recipe"]
    generator.features.metadata = {
        "name": artefact.name,
        "dataset": generator.metadata["dataset"],
        "recipe": {"steps": recipe["feature_steps"], "seed": recipe["seed"]},
        "versions": generator.metadata["versions"],
    }
    return shop.write(artefact, generator.features, torch.float16)


def make_encoder(shop: Workshop, artefact: Artefact) -> Path:
    """Train the encoder."""
    images, generator = shop.images(artefact.data_set), shop.generator(artefact)
    encoder = train_encoder(
        generator,
        shop.runs / artefact.name,
        arch="restyle",
        images_uint8=images.pixels,
        network=NETWORK,
        recipe=shop.effort.encoder,
        facts={"name": artefact.name, "dataset": images.facts},
    )
    shown = from_uint8(uint8_images(images.test)[:PAIRS])
    return shop.write(artefact, encoder, torch.float32, encoded=encoder_sheet(encoder, shown))


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
    bank.metadata["dataset"] = images.facts
    check_belong(Codes(generator, bank), images.train)
    errors = mse_of(bank, generator, images.pixels, bank.source_index)
    bank = LatentBank(bank[:][0], bank.labels, source_index=bank.source_index, mse=errors, metadata=bank.metadata)
    return shop.write(artefact, bank, torch.float16, mixes=mixes(generator, bank, images))


# --------------------------------------------------------------------------------------------------
# What ships, and what goes to the Hub
# --------------------------------------------------------------------------------------------------


def best_of_each_class(bank: LatentBank, per_class: int) -> LatentBank:
    """The ``per_class`` rows with the least MSE of each class, in the order of the data set."""
    assert bank.mse is not None
    rows = []
    for label in range(bank.num_classes):
        of_class = (bank.hard_labels == label).nonzero()[:, 0]
        rows.append(of_class[bank.mse[of_class].argsort(stable=True)[:per_class]])
    return bank.subset(torch.cat(rows).sort().values)


def bundle(shop: Workshop, data_set: str, assets: Path, per_class: int, test_images: int) -> None:
    """Write generator, best codes, their cards and their real images into the bundled files."""
    images, folder = shop.images(data_set), assets / data_set
    generator = load_generator(shop.out / f"{data_set}-generator")
    best = best_of_each_class(LatentBank.from_pretrained(shop.out / f"{data_set}-bank"), per_class)
    generator.save_pretrained(folder / "generator", dtype=torch.float16)
    best.save_pretrained(folder / "bank")
    for part in ("generator", "bank"):
        bundled_card(folder / part, f"--only {data_set}-{part} --assets latent_mixup/assets")
    files.write_folder(
        folder / "data",
        {
            "train-images-idx3-ubyte.xz": idx_bytes(images.train.data[best.source_index]),
            "train-labels-idx1-ubyte.xz": idx_bytes(images.train.targets[best.source_index]),
            "t10k-images-idx3-ubyte.xz": idx_bytes(images.test.data[:test_images]),
            "t10k-labels-idx1-ubyte.xz": idx_bytes(images.test.targets[:test_images]),
        },
    )
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    click.echo(f"{folder}: {len(best):,} codes, {total / 1e6:.1f} MB")


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
        if artefact.kind in ("bank", "encoder"):
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
    """Record the generator's commit in a bank, and in the example of its card or an encoder's."""
    folder, repository = shop.out / artefact.name, shop.repository(str(artefact.generator))
    thing: Any
    if artefact.kind == "bank":
        thing = LatentBank.from_pretrained(folder)
        thing.metadata["generator"] |= {"repo": repository, "commit": commit}
        thing.save_pretrained(folder, dtype=thing.dtype)
    else:
        thing = load_encoder(folder, shop.generator(artefact))
    shop.write_card(artefact, thing, f"{repository}@{commit}")


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------

MAKERS: dict[tuple[bool, str], Callable[[Workshop, Artefact], Path]] = {
    (True, "generator"): make_generator,
    (True, "bank"): make_bank,
    (True, "features"): make_features,
    (True, "encoder"): make_encoder,
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
        needs = {"cifar10": {"generator": "--stylegan2-cifar10", "bank": "--grad-latents"}}
        option = needs.get(artefact.data_set, {}).get(artefact.kind, "--data-root")
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
@click.option("--per-class", type=click.IntRange(1), help="Bundled codes of each class; default: as released.")
@click.option("--test-images", type=click.IntRange(1), help="Bundled test images; default: as released.")
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
    per_class: int | None,
    test_images: int | None,
    organisation: str,
    push: bool,
    quick: bool,
    device: str,
) -> None:
    """Make generators, banks, feature extractors and encoders again."""
    banks = [artefact.name for artefact in ARTEFACTS if artefact.kind == "bank" and artefact.data_set == "cifar10"]
    files = dict(zip(banks, latents or (), strict=False))
    shop = Workshop(data_root, runs, out, organisation, QUICK if quick else Effort(), device, network, files)
    chosen = stages(shop, only)
    for artefact in chosen:
        folder = MAKERS[artefact.data_set in TRAINED_ON, artefact.kind](shop, artefact)
        owner = str(out / artefact.generator) if artefact.generator and artefact.kind != "features" else None
        click.echo(f"{folder}: {check(folder, artefact.kind, owner)}")
        if assets and artefact.kind == "bank" and artefact.data_set in TRAINED_ON:
            shipped = SHIPPED[artefact.data_set]
            bundle(shop, artefact.data_set, assets, per_class or shipped[0], test_images or shipped[1])
    if push:
        push_all(shop, chosen)


if __name__ == "__main__":
    main()
