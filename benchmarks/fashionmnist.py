"""Fashion-MNIST, 60,000 training and 10,000 test images: six methods on the same footing.

One JSON file a (method, seed) under --out; started again, finished ones are skipped, so that several processes
may share the work with --methods and --seeds. benchmarks/tables.py draws the table from the files.

    python benchmarks/fashionmnist.py --data-root data --generator GENERATOR --bank BANK --out results
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from tqdm import tqdm

from latent_mixup import LatentBank, hub, load_generator
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.comparison import CODE_METHODS, METHODS, Budget, Codes, Data, circumstances, train_and_score
from latent_mixup.images import from_uint8


def read_data(root: Path) -> Data:
    """All of Fashion-MNIST, in [-1, 1]."""
    train, test = (torchvision_dataset("fashion-mnist", root, train=train) for train in (True, False))
    return Data(from_uint8(train.data[:, None]), train.targets, from_uint8(test.data[:, None]), test.targets)


def read_codes(generator: str, bank: str) -> Codes:
    """A generator and its bank, checked to belong together."""
    codes = Codes(load_generator(generator), LatentBank.from_pretrained(bank))
    codes.bank.check(codes.generator)
    return codes


@click.command()
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds Fashion-MNIST.")
@click.option("--generator", default="fashion-mnist", show_default=True, help="Folder, bundled name or Hub id.")
@click.option("--bank", default="fashion-mnist", show_default=True, help="Folder, bundled name or Hub id.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the results.")
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--deepfool-images", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
def main(
    data_root: Path,
    generator: str,
    bank: str,
    out: Path,
    methods: str,
    seeds: str,
    epochs: int,
    deepfool_images: int,
    threads: int | None,
) -> None:
    """Train and score each method with each seed."""
    if threads:
        torch.set_num_threads(threads)
    data, budget = read_data(data_root), Budget(epochs=epochs, deepfool_images=deepfool_images)
    chosen = methods.split(",")
    codes = read_codes(generator, bank) if CODE_METHODS.keys() & set(chosen) else None
    steps = budget.steps(data.train_images)
    for seed in map(int, seeds.split(",")):
        for method in chosen:
            name = f"{method}-{seed}.json"
            if (out / name).is_file():
                continue
            used = codes if method in CODE_METHODS else None
            started = time.perf_counter()
            with tqdm(total=steps, desc=f"{method}, seed {seed}", unit="step", disable=None) as bar:
                result = train_and_score(method, data, used, budget, seed=seed, on_step=bar.update)
            record = {
                "dataset": "fashion-mnist",
                "preset": "fixed",
                "train_images": len(data.train_images),
                **result,
                **circumstances(used, budget),
                "seconds": round(time.perf_counter() - started, 1),
            }
            hub.write_folder(out, {name: (json.dumps(record, indent=2) + "\n").encode()})


if __name__ == "__main__":
    main()
