"""What the command lines of the paper's tables share: options, a changed budget's folder, and the run itself."""

from __future__ import annotations

import os
from dataclasses import replace

import click
import torch
import torch.backends.cudnn as cudnn
from trials import UNMIXED, Benchmark

from latent_mixup.cli.shared import several
from latent_mixup.demo.comparison import Budget

options = several(
    click.option("--epochs", type=click.IntRange(1), help="Default: the preset's."),
    click.option("--batch-size", type=click.IntRange(1), help="Default: the preset's."),
    click.option("--grid", is_flag=True, help="Choose alpha on the validation images first, as the paper did."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores."),
    click.option("--device", default="cpu", show_default=True, help="Where to train and to score."),
    click.option("--tf32", is_flag=True, help="Train with convolutions of a GPU in TF32; scores are in float32."),
)


def folder_of(name: str, own: Budget, budget: Budget) -> str:
    """A preset's folder: its name, and where its budget was changed, epochs and batch size."""
    return name if budget == own else f"{name}-{budget.epochs}x{budget.batch_size}"


def changed(budget: Budget, **given: int | None) -> Budget:
    """The budget with what is not None."""
    return replace(budget, **{name: value for name, value in given.items() if value is not None})


def set_up(device: str, threads: int | None = None, *, tf32: bool = False) -> str:
    """The device to use, of ``torchrun``'s processes one each.

    Args:
        device: As the command line says it.
        threads: On the CPU.
        tf32: Whether convolutions on a GPU may round their factors to TF32 in training; in scoring they never do.
    """
    if threads:
        torch.set_num_threads(threads)
    cudnn.allow_tf32 = tf32
    cudnn.benchmark = True
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def run_all(bench: Benchmark, methods: str | None, seeds: str, *, grid: bool = False) -> None:
    """Every method with every seed, all methods of one seed before the next.

    Args:
        bench: What is run.
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
