"""Make what is bundled as "fashion-mnist" again, from Fashion-MNIST itself.

Trains the generator, inverts all 60,000 training images, keeps the best 1,000 codes a class, and writes them with
their images to --assets. Each stage resumes where it stopped. --runs keeps the generator, the whole bank, a sheet
of pictures and reconstruction.json, the measurement of what came out.

    python benchmarks/make_fashion_mnist.py --data-root data --runs runs --assets latent_mixup/assets/fashion-mnist
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from latent_mixup import LatentBank, hub, invert, load_generator
from latent_mixup.bank import fingerprint
from latent_mixup.bundled import idx_bytes
from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.inversion import pixel_mse
from latent_mixup.pictures import mix_sheet
from latent_mixup.training import CompactRecipe, shuffled_batches, train_classifier, train_compact

NAME = "fashion-mnist"
HOW: dict[str, Any] = {"optimizer": "adam", "steps": 50, "lr": 0.1, "batch_size": 500}
PER_CLASS, TEST_IMAGES = 1000, 2000


def best_of_each_class(bank: LatentBank, per_class: int) -> LatentBank:
    """The ``per_class`` rows with the least MSE of each class, in the order of the data set."""
    assert bank.mse is not None
    rows = []
    for label in range(bank.num_classes):
        of_class = (bank.hard_labels == label).nonzero()[:, 0]
        rows.append(of_class[bank.mse[of_class].argsort(stable=True)[:per_class]])
    return bank.subset(torch.cat(rows).sort().values)


def reference_classifier(images: Tensor, labels: Tensor) -> PaperCNN:
    """The paper's classifier, trained on real images for five epochs: the judge of the reconstructions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN()
        per_epoch = len(images) // 64
        batches = shuffled_batches(images, labels, 64, 5 * per_epoch, seed=0)
        train_classifier(model, batches, decay_every=per_epoch)
    return model


@torch.no_grad()
def predictions(model: PaperCNN, images: Tensor) -> Tensor:
    """Predicted classes, ``[N]``."""
    return torch.cat([model(chunk).argmax(1) for chunk in images.split(500)])


@torch.no_grad()
def decode_all(generator: Generator, bank: LatentBank) -> Tensor:
    """Every row's image, in order."""
    return torch.cat([generator.decode(bank[row : row + 1000][0]) for row in range(0, len(bank), 1000)])


def quantiles(mse: Tensor) -> dict[str, float]:
    """Mean, median and 95th percentile, in units of [-1, 1] squared."""
    return {
        "mean": round(float(mse.mean()), 5),
        "median": round(float(mse.median()), 5),
        "p95": round(float(mse.quantile(0.95)), 5),
    }


def pca_mse(images: Tensor, numbers: int) -> float:
    """MSE of a linear code of as many numbers, fitted to the same images."""
    flat = images.flatten(1).double()
    centred = flat - flat.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -numbers:]
    return round(float((centred - centred @ axes @ axes.T).square().mean()), 5)


def picture(generator: Generator, bank: LatentBank, images: Tensor) -> bytes:
    """Sixteen random pairs of the bank, real, reconstructed and mixed."""
    rows, partners = torch.randint(len(bank), (2, 16), generator=torch.Generator().manual_seed(0))
    real_own, real_other = (images[bank.source_index[chosen]] for chosen in (rows, partners))
    return mix_sheet(generator, bank[rows][0], bank[partners][0], real_own, real_other, zoom=3)


def measure(
    generator: Generator, bank: LatentBank, test_bank: LatentBank, images: Tensor, labels: Tensor, test: Any
) -> dict[str, Any]:
    """How good the codes are, judged by pixels and by a classifier that was trained on real images."""
    assert bank.mse is not None
    assert test_bank.mse is not None
    judge = reference_classifier(images, labels)
    on_real = predictions(judge, from_uint8(test.data[:, None]))
    on_rebuilt = predictions(judge, decode_all(generator, test_bank))
    accuracy, rebuilt_accuracy = (float((found == test.targets).float().mean()) for found in (on_real, on_rebuilt))
    return {
        "train_mse": quantiles(bank.mse),
        "test_mse": quantiles(test_bank.mse),
        "pca_mse_of_as_many_numbers": pca_mse(images, generator.latent_shape[0]),
        "classifier_accuracy_on_real_test_images": round(accuracy, 4),
        "classifier_accuracy_on_reconstructions": round(rebuilt_accuracy, 4),
        "share_of_accuracy_kept": round(rebuilt_accuracy / accuracy, 4),
        "same_prediction": round(float((on_real == on_rebuilt).float().mean()), 4),
        "generator_digest": generator.digest(),
        "bank_digest": bank.digest(),
        "inversion": bank.metadata["inversion"],
    }


def bundle(generator: Generator, bank: LatentBank, train: Any, test: Any, assets: Path) -> None:
    """Write generator, best codes and their real images to the folder that ships with the package."""
    generator.save_pretrained(assets / "generator", dtype=torch.float16)
    best = best_of_each_class(bank, PER_CLASS)
    best.save_pretrained(assets / "bank")
    chosen = best.source_index
    hub.write_folder(
        assets / "data",
        {
            "train-images-idx3-ubyte.xz": idx_bytes(train.data[chosen]),
            "train-labels-idx1-ubyte.xz": idx_bytes(train.targets[chosen]),
            "t10k-images-idx3-ubyte.xz": idx_bytes(test.data[:TEST_IMAGES]),
            "t10k-labels-idx1-ubyte.xz": idx_bytes(test.targets[:TEST_IMAGES]),
        },
    )


@click.command()
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds Fashion-MNIST.")
@click.option("--runs", type=FOLDER, required=True, help="Folder for what is made on the way.")
@click.option("--assets", type=FOLDER, required=True, help="Folder for what ships.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
def main(data_root: Path, runs: Path, assets: Path, threads: int | None) -> None:
    """Train, invert, measure, bundle."""
    if threads:
        torch.set_num_threads(threads)
    train, test = (torchvision_dataset(NAME, data_root, train=train) for train in (True, False))
    facts = {"name": NAME, "dataset": {"name": NAME, **fingerprint(train)}}
    train_compact(train.data[:, None], train.targets, runs / "generator", recipe=CompactRecipe(), facts=facts)
    generator = load_generator(runs / "generator")

    started = time.perf_counter()
    bank = invert(train, generator, out=runs / "bank", loss=pixel_mse, **HOW)
    minutes = (time.perf_counter() - started) / 60
    test_bank = invert(test, generator, out=runs / "test-bank", loss=pixel_mse, **HOW)
    images = from_uint8(train.data[:, None])
    found = measure(generator, bank, test_bank, images, train.targets, test)
    record = {**found, "inversion_minutes_of_this_call": round(minutes, 2), "threads": torch.get_num_threads()}
    hub.write_folder(
        runs,
        {
            "mixes.png": picture(generator, bank, images),
            "reconstruction.json": (json.dumps(record, indent=2) + "\n").encode(),
        },
    )
    bundle(generator, bank, train, test, assets)
    click.echo(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
