"""How long is a training step with each method of the ``fixed`` preset?

Blocks of steps take turns, another method first in each turn; a ratio is to the standard block of the same turn. A
block holds as many steps as a generator decodes batches at a time, hence whole decodes. Codes come from WORK, and are
made where they are missing.

    python benchmarks/speed/method_time.py --data-root data --out benchmarks/results/method_time.json
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.demo.comparison import Budget, Codes, Data, Method, Run, paper_points, seeded

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import Effort, Workshop, of_rows
from paper.methods import methods
from paper.small_images import GENERATED
from paper.trials import split
from record import circumstances, data_option, out_option, publish, threads_option

BLOCK = 8
LEFT_OUT = ("gan_0.025", "gan_0.020", "dcgan")  # the same generator and size as "gan", and codes that take hours


def stepper(method: Method, data: Data, codes: Codes | None, budget: Budget) -> Callable[[], None]:
    """One training step a call."""
    with seeded(0):
        model = PaperCNN(data.num_classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=budget.lr, fused=True)
    batches, loss = method(Run(data, codes, budget, 0, model, paper_points(model)))

    def step() -> None:
        images, targets = next(batches)
        optimizer.zero_grad()
        loss(model, images, targets).backward()
        optimizer.step()

    return step


def measured(steppers: dict[str, Callable[[], None]], turns: int) -> list[dict[str, Any]]:
    """Median milliseconds of a step, and of the ratios to the first, by name."""
    names = list(steppers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(-1, turns), unit="turn", disable=None):  # the first warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            for _ in range(BLOCK):
                steppers[name]()
            if turn >= 0:
                seconds[name].append((time.perf_counter() - started) / BLOCK)
    standard = seconds[names[0]]
    return [
        {
            "method": name,
            "median_ms": round(1e3 * statistics.median(found), 2),
            "median_ratio_to_standard": round(
                statistics.median(a / b for a, b in zip(found, standard, strict=True)), 3
            ),
            "n": turns,
        }
        for name, found in seconds.items()
    ]


@click.command()
@data_option
@click.option("--work", type=FOLDER, default=Path("runs/fashion-mnist"), show_default=True, help="Folder for codes.")
@out_option
@click.option("--turns", type=click.IntRange(1), default=25, show_default=True)
@threads_option
def main(data_root: Path, work: Path, out: Path, turns: int) -> None:
    """Time all methods in turn; print and write medians."""
    train, test = (torchvision_dataset("fashion-mnist", data_root, train=part) for part in (True, False))
    images = split("fashion-mnist", train, test)
    shop = Workshop("fashion-mnist", train, work, Effort())
    known: dict[str | None, Codes | None] = {None: None}
    steppers, budget = {}, Budget(epochs=20)
    for name, (method, codes) in methods(GENERATED["fashion-mnist"]).items():
        if codes in LEFT_OUT:
            continue
        if codes is not None and codes not in known:
            known[codes] = of_rows(shop.codes(codes), images.rows)
        steppers[name] = stepper(method, images.train, known[codes], budget)
    rows = measured(steppers, turns)
    publish(out, {"batch_size": budget.batch_size, "steps_a_block": BLOCK, "rows": rows, **circumstances()})


if __name__ == "__main__":
    main()
