"""The presets of MNIST and Fashion-MNIST, and their command line.

``fixed`` gives every method the same loss, range, steps and seeds: draw conclusions from it. ``paper_code`` repeats
what was published, mistakes included. ``policies`` changes one part of the paper's policy at a time. ``quick``
takes minutes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
import torch
from record import RESULTS, SEARCHED
from torch import nn

from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import torchvision_dataset
from latent_mixup.demo.comparison import Budget, train_paper_cnn
from paper import one_change, paper_code, running
from paper.codes import Effort, Workshop
from paper.methods import methods as fixed_methods
from paper.settings import searched
from paper.trials import Benchmark, Classifier, Preset, split, stored_codes

GENERATED = {"mnist": 1.0, "fashion-mnist": 0.5}  # share of the training images that the generator makes in the paper
GAN_EPOCHS = {"mnist": 80, "fashion-mnist": 85}  # epochs of the paper's GAN
COMPACT: dict[str, dict[str, Any]] = {  # widths of our generator, as released in 0.1
    "mnist": {"decoder_widths": (256, 512), "encoder_widths": (256, 128)},
    "fashion-mnist": {},
}
HALF = 0.5  # share of decoded images with which policies are compared
BUDGETS = {
    "fixed": Budget(epochs=20),
    "paper_code": Budget(epochs=50, batch_size=16),
    "policies": Budget(epochs=6),
    "quick": Budget(epochs=3),
}
EFFORTS = {
    "fixed": Effort(),
    "paper_code": Effort(paper_images=5000),
    "policies": Effort(),
    "quick": Effort(
        compact_steps=200,
        feature_steps=200,
        vae_steps=400,
        dcgan_epochs=1,
        steps=20,
        refine_steps=20,
        paper_steps=20,
        paper_images=500,
        paper_pairs=2000,
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


def preset(name: str, dataset: str, **changes: int) -> Preset:
    """The preset of that name for a data set; ``changes``: of its epochs and batch size."""
    budget, folder = running.folder_of(name, BUDGETS[name], changes)
    if name == "paper_code":
        odd = {paper_code.BEFORE_NORMALISATION: (replace(budget, epochs=90), True)}
        unit_range = dataset == "fashion-mnist"
        return Preset(budget, paper_code.methods(dataset), PAPER_CNN, unit_range=unit_range, odd=odd, folder=folder)
    if name == "policies":
        methods = one_change.methods(HALF, RESULTS / dataset)
    else:
        methods = fixed_methods(GENERATED[dataset], searched(RESULTS / SEARCHED))
    return Preset(budget, methods, PAPER_CNN, scores=SCORES.get(name, {}), folder=folder)


def command(dataset: str) -> click.Command:
    """The command line of one data set's benchmark."""

    def benchmark(order: running.Order) -> Benchmark:
        train, test = (torchvision_dataset(dataset, order.data_root, train=part) for part in (True, False))
        effort = EFFORTS[order.preset]
        if order.preset != running.QUICK:
            effort = replace(effort, dcgan_epochs=GAN_EPOCHS[dataset])
        images = split(dataset, train, test, effort.images)
        shop = Workshop(dataset, train, order.work, effort, COMPACT[dataset], order.device)
        codes = stored_codes(shop.codes, images, order.out / "codes")
        chosen = preset(order.preset, dataset, **order.changes)
        return Benchmark(images, order.preset, chosen, codes, order.work, order.out, order.device)

    decorate = running.command(
        dataset,
        list(BUDGETS),
        default="fixed",
        methods=", ".join(fixed_methods(GENERATED[dataset])),
        seeds="0,1,2",
        help=f"Train and score each method on {dataset} with each seed; several processes share the work.",
    )
    return decorate(benchmark)
