"""The command line of the paper's tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch.backends.cudnn as cudnn
from record import RESULTS, data_option, threads_option

from latent_mixup.cli.shared import FOLDER, one_sentence, several
from latent_mixup.demo.comparison import Budget
from paper.trials import UNMIXED, Benchmark

QUICK = "quick"  # the preset whose results are not kept


@dataclass(frozen=True)
class Order:
    """A command line, read.

    Attributes:
        data_root: Folder of the data set.
        work: Folder for codes and classifiers.
        out: Folder for results.
        device: Where to train and to score.
        preset: Name of the preset.
        changes: Epochs and batch size that differ from the preset's.
    """

    data_root: Path
    work: Path
    out: Path
    device: str
    preset: str
    changes: dict[str, int]


BenchmarkOf: TypeAlias = Callable[..., Benchmark]
Decorate: TypeAlias = Callable[[BenchmarkOf], click.Command]


def command(dataset: str, presets: Sequence[str], *, default: str, methods: str, seeds: str, help: str) -> Decorate:
    """Decorates ``(order, **further options) -> Benchmark``: gives the command line that runs it."""
    options = several(
        data_option,
        click.option("--preset", type=click.Choice(list(presets)), default=default, show_default=True),
        click.option("--methods", help=f"Names with commas between; default: all of {methods}."),
        click.option("--seeds", default=seeds, show_default=True, help="Numbers with commas between."),
        click.option("--out", type=FOLDER, help=f"Folder for results; default: benchmarks/results/{dataset}."),
        click.option("--work", type=FOLDER, help=f"Folder for codes and classifiers; default: runs/{dataset}."),
        click.option("--epochs", type=click.IntRange(1), help="Default: the preset's."),
        click.option("--batch-size", type=click.IntRange(1), help="Default: the preset's."),
        click.option("--grid", is_flag=True, help="Choose alpha on the validation images first, as the paper did."),
        click.option("--device", default="cpu", show_default=True, help="Where to train and to score."),
        click.option("--tf32", is_flag=True, help="Train with TF32 convolutions on a GPU; scoring is in float32."),
        threads_option,
    )

    def decorate(benchmark_of: BenchmarkOf) -> click.Command:
        def main(
            data_root: Path,
            preset: str,
            methods: str | None,
            seeds: str,
            out: Path | None,
            work: Path | None,
            grid: bool,
            device: str,
            tf32: bool,
            epochs: int | None,
            batch_size: int | None,
            **more: Any,
        ) -> None:
            click.echo(f"{dataset}: reading images from {data_root}")
            runs = work or Path("runs", dataset, *([QUICK] if preset == QUICK else []))
            results = out or (runs / "results" if preset == QUICK else RESULTS / dataset)
            given = {"epochs": epochs, "batch_size": batch_size}
            changes = {name: value for name, value in given.items() if value is not None}
            order = Order(data_root, runs, results, set_up(device, tf32=tf32), preset, changes)
            run_all(benchmark_of(order, **more), methods, seeds, grid=grid)

        main.__doc__ = help
        main.__dict__.update(getattr(benchmark_of, "__dict__", {}))  # the further options
        made: click.Command = click.command()(options(one_sentence(main)))
        return made

    return decorate


def set_up(device: str, *, tf32: bool = False) -> str:
    """The device to use; under ``torchrun`` each process has a GPU of its own.

    Args:
        device: As given on the command line.
        tf32: Whether convolutions on a GPU round their factors to TF32 in training; in scoring they never do.
    """
    cudnn.allow_tf32 = tf32
    cudnn.benchmark = True
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def folder_of(name: str, own: Budget, changes: Mapping[str, int]) -> tuple[Budget, str]:
    """A preset's budget with its changes, and the folder of its results: a changed budget has another."""
    budget = replace(own, **changes)
    return budget, name if budget == own else f"{name}-{budget.epochs}x{budget.batch_size}"


def run_all(bench: Benchmark, methods: str | None, seeds: str, *, grid: bool = False) -> None:
    """Run every method with every seed, all methods of one seed before the next.

    Args:
        bench: The benchmark.
        methods: Names with commas between; None: all of the preset's.
        seeds: Numbers with commas between.
        grid: Choose alpha first.
    """
    known = list(bench.preset.methods)
    chosen = known if methods is None else methods.split(",")
    for method in chosen:
        if method not in known:
            raise click.BadParameter(f"no method is called {method!r}: expected some of {', '.join(known)}")
    alphas: dict[str, float] = {}
    for seed in map(int, seeds.split(",")):
        for method in chosen:
            trial = bench.trial(method, seed)
            if grid and method not in UNMIXED:
                alphas[method] = alphas.get(method) or bench.best_alpha(trial)
                trial = replace(trial, budget=replace(trial.budget, alpha=alphas[method]))
            bench.run(trial)
