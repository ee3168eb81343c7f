"""How small may a pool of rendered mixes be? Accuracy and robustness against live decoding, on Fashion-MNIST.

Half of each batch is mixes, decoded live or drawn from a pool; everything else is the ``fixed`` preset with fewer
epochs. One JSON file a (method, seed) under --out; finished ones are skipped.

    python benchmarks/search/pools.py --data-root data --bank runs/fashion-mnist/gan-bank
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import click
import torch
from torch import Tensor

from latent_mixup import LatentBank, RenderedMixupDataset, load_generator
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.demo.comparison import Budget, Codes, Method, Run, decoded_mixes, standard
from latent_mixup.functional import soft_targets
from latent_mixup.images import from_uint8
from latent_mixup.pool.render import render
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.classifier import Batches, cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import of_rows
from paper.running import run_all
from paper.small_images import PAPER_CNN
from paper.trials import Benchmark, Methods, Preset, split
from record import RESULTS, data_option, threads_option

PROB = 0.5
SIZES = (2_000, 10_000, 50_000, 200_000)


def from_pool(folder: Path, size: int) -> Method:
    """Batches whose mixes come from the first ``size`` of a pool, in the places of live decoding."""

    def batches(run: Run) -> Batches:
        codes = run.needed_codes()
        render(codes.generator, codes.bank, folder, n=max(SIZES), seed=0)  # nothing is done where it is there
        pool = RenderedMixupDataset(folder)
        for number, (images, labels, draw) in enumerate(run.draws(PROB)):
            entries = torch.randint(size, (len(draw.slots),), generator=keyed_generator("pool-rows", run.seed, number))
            targets = pool.targets(entries)
            assert isinstance(targets, Tensor)
            yield (
                images.index_copy(0, draw.slots, from_uint8(pool.images(entries))),
                soft_targets(labels, run.data.num_classes).index_copy(0, draw.slots, targets),
            )

    return lambda run: (batches(run), cross_entropy)


def methods(work: Path) -> Methods:
    """Real images alone; live decoding; a pool of each size."""
    pools: Methods = {f"pool_{size}": (from_pool(work / "pool", size), "gan") for size in SIZES}
    return {"standard": (standard, None), "live": (decoded_mixes(PROB), "gan"), **pools}


@click.command()
@data_option
@click.option("--generator", default="fashion-mnist", show_default=True, help="Folder, bundled name or Hub id.")
@click.option("--bank", required=True, help="Bank of all 60,000 training images: a folder or a Hub id.")
@click.option(
    "--work", type=FOLDER, default=Path("runs/pools"), show_default=True, help="Folder for pools, classifiers."
)
@click.option("--out", type=FOLDER, default=RESULTS / "pools", help="Folder for results.")
@click.option("--seeds", default="0,1", show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True)
@threads_option
def main(data_root: Path, generator: str, bank: str, work: Path, out: Path, seeds: str, epochs: int) -> None:
    """Train and score each method with each seed."""
    train, test = (torchvision_dataset("fashion-mnist", data_root, train=part) for part in (True, False))
    images = split("fashion-mnist", train, test)

    @cache
    def codes_named(_name: str) -> Codes:
        return of_rows(Codes(load_generator(generator), LatentBank.from_pretrained(bank)), images.rows)

    scores = {"deepfool_images": 1000, "pgd_images": 1000, "corruption_images": 0}
    preset = Preset(Budget(epochs=epochs), methods(work), PAPER_CNN, scores=scores)
    run_all(Benchmark(images, "fashion-mnist", preset, codes_named, work, out), None, seeds)


if __name__ == "__main__":
    main()
