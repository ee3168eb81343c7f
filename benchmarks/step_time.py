"""The time of one training step: standard, and latent mixup through LatentMixupLoader, side by side in one run.

The paper's small classifier, Adam, batch 64, the bundled generator and images; every image of a latent-mixup batch is
decoded. Blocks of steps of the two kinds take turns, and the ratio is taken block by block, so that a machine whose
speed drifts does not decide. Data loading is part of both.

    python benchmarks/step_time.py --out step_time.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import trange

from latent_mixup import LatentMixupLoader, hub
from latent_mixup.classifiers import PaperCNN
from latent_mixup.comparison import Budget, Codes, circumstances
from latent_mixup.demo import NAME, bundled_codes, bundled_data


def endless(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


class Trained:
    """A classifier in training, and the seconds that a block of its steps takes."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        torch.manual_seed(0)
        self.batches, self.model = endless(loader), PaperCNN()
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def block(self, steps: int) -> float:
        """Seconds a step."""
        started = time.perf_counter()
        for _ in range(steps):
            images, targets = next(self.batches)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), targets).backward()
            self.optimizer.step()
        return (time.perf_counter() - started) / steps


def loaders(codes: Codes, batch_size: int) -> dict[str, Iterable[tuple[Tensor, Tensor]]]:
    """What is compared: the plain loader, and mixes of it decoded inline or ahead."""
    data = bundled_data()
    images = TensorDataset(data.train_images, data.train_labels)

    def plain() -> DataLoader[tuple[Tensor, ...]]:
        draw = torch.Generator().manual_seed(0)
        return DataLoader(images, batch_size, shuffle=True, drop_last=True, generator=draw)

    def mixed(prefetch: int | None) -> LatentMixupLoader:
        return LatentMixupLoader(plain(), codes.generator, codes.bank, prefetch=prefetch, seed=0)

    return {
        "standard": cast(Iterable[tuple[Tensor, Tensor]], plain()),
        "latent_mixup": mixed(None),
        "latent_mixup_prefetch_2": mixed(2),
    }


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file.")
@click.option("--blocks", type=click.IntRange(3), default=15, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Steps a block.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
def main(out: Path, blocks: int, steps: int, batch_size: int) -> None:
    """Time blocks of steps in turn; print and write medians and ratios."""
    codes = bundled_codes()
    trained = {name: Trained(loader) for name, loader in loaders(codes, batch_size).items()}
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    for each in trained.values():
        each.block(steps)  # warm up
    for _ in trange(blocks, unit="block", disable=None):
        for name, each in trained.items():
            seconds[name].append(each.block(steps))
    record = {
        "dataset": NAME,
        "blocks": blocks,
        "steps_a_block": steps,
        **{
            name: {
                "median_ms": round(1e3 * statistics.median(found), 2),
                "median_ratio_to_standard": round(
                    statistics.median(a / b for a, b in zip(found, seconds["standard"], strict=True)), 3
                ),
            }
            for name, found in seconds.items()
        },
        **circumstances(codes, Budget(epochs=1, batch_size=batch_size)),
    }
    hub.write_folder(out.parent, {out.name: (json.dumps(record, indent=2) + "\n").encode()})
    click.echo(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
