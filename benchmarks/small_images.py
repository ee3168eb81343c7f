"""The presets and the command line of MNIST's and Fashion-MNIST's benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import one_change
import paper_code
import running
import torch
from codes import Effort, Workshop
from methods import methods as fixed_methods
from rows import RESULTS, SEARCHED
from settings import searched
from torch import nn
from trials import Benchmark, Classifier, Preset, split, stored_codes

from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.demo.comparison import Budget, train_paper_cnn

GENERATED = {"mnist": 1.0, "fashion-mnist": 0.5}  # share of the training images that the generator makes in the paper
EPOCHS = {"fixed": 20, "policies": 6, "quick": 3}
GAN_EPOCHS = {"mnist": 80, "fashion-mnist": 85}  # passes that the paper's GAN was trained for
HALF = 0.5  # share of decoded images with which policies are compared
EFFORTS = {
    "fixed": Effort(),
    "paper_code": Effort(paper_images=5000),
    "policies": Effort(),
    "quick": Effort(
        feature_steps=200,
        vae_steps=400,
        dcgan_epochs=1,
        steps=20,
        refine_steps=20,
        paper_steps=20,
        paper_images=500,
        images=6000,
    ),
}
SCORES: dict[str, dict[str, Any]] = {
    "policies": {"deepfool_images": 1000, "pgd_images": 0, "corruption_images": 0},
    "quick": {"deepfool_images": 200, "pgd_images": 200, "corruption_images": 200, "severities": (3,)},
}


def paper_cnn(num_classes: int) -> nn.Module:
    """The paper's small network, laid out as it is trained."""
    return PaperCNN(num_classes).to(memory_format=torch.channels_last)


PAPER_CNN = Classifier(paper_cnn, train_paper_cnn)


def preset(name: str, dataset: str, **given: int | None) -> Preset:
    """The preset of that name for a data set; ``given``: what differs of its budget."""
    if name == "paper_code":
        own = Budget(epochs=50, batch_size=16)
        budget = running.changed(own, **given)
        odd = {paper_code.BEFORE_NORMALISATION: (replace(budget, epochs=90), True)}
        unit_range = dataset == "fashion-mnist"
        folder = running.folder_of(name, own, budget)
        return Preset(budget, paper_code.methods(dataset), PAPER_CNN, unit_range=unit_range, odd=odd, folder=folder)
    own = Budget(epochs=EPOCHS[name])
    budget = running.changed(own, **given)
    if name == "policies":
        methods = one_change.methods(HALF, RESULTS / dataset)
    else:
        methods = fixed_methods(GENERATED[dataset], searched(RESULTS / SEARCHED))
    return Preset(budget, methods, PAPER_CNN, scores=SCORES.get(name, {}), folder=running.folder_of(name, own, budget))


def command(dataset: str) -> click.Command:
    """The command line of one data set's benchmark."""
    names = ", ".join(fixed_methods(GENERATED[dataset]))

    @click.command(help=f"{dataset}: train and score each method with each seed; several processes share the work.")
    @click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
    @click.option("--work", type=FOLDER, help=f"For codes and classifiers; default: runs/{dataset}.")
    @click.option("--out", type=FOLDER, help=f"For results; default: benchmarks/results/{dataset}.")
    @click.option("--preset", "name", type=click.Choice(list(EFFORTS)), default="fixed", show_default=True)
    @click.option("--methods", help=f"With commas between; default: all of {names}.")
    @click.option("--seeds", default="0,1,2", show_default=True)
    @running.options
    def main(
        data_root: Path,
        work: Path | None,
        out: Path | None,
        name: str,
        methods: str | None,
        seeds: str,
        grid: bool,
        threads: int | None,
        device: str,
        tf32: bool,
        **given: int | None,
    ) -> None:
        device = running.set_up(device, threads, tf32=tf32)
        runs, results = work or Path("runs", dataset), out or RESULTS / dataset
        runs = runs / "quick" if name == "quick" else runs
        train, test = (torchvision_dataset(dataset, data_root, train=part) for part in (True, False))
        effort = EFFORTS[name] if name == "quick" else replace(EFFORTS[name], dcgan_epochs=GAN_EPOCHS[dataset])
        images = split(dataset, train, test, effort.images)
        codes = stored_codes(Workshop(dataset, train, runs, effort, device=device).codes, images, results)
        bench = Benchmark(images, name, preset(name, dataset, **given), codes, runs, results, device)
        running.run_all(bench, methods, seeds, grid=grid)

    return main
