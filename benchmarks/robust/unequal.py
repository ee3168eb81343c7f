"""Unequal classes, 100 : 1: does mixing codes within a class help the rare ones more than what needs no generator?

1,000 images of the commonest class, each further class has fewer, down to 10; which is which is drawn with each
seed. Every method takes the same steps and chooses one of two settings on validation images:

    python benchmarks/robust/unequal.py fashion-mnist --data-root data --choose
    python benchmarks/robust/unequal.py fashion-mnist --data-root data
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from latent_mixup import invert
from latent_mixup.cli.shared import FOLDER, one_sentence
from latent_mixup.demo.comparison import seeded
from latent_mixup.functional import lerp, mix_latents, path_named
from latent_mixup.images import from_uint8
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import RESULTS, data_option, threads_option

from robust.runs import CHOOSING_SEED, SEEDS, best_options, numbers, run_each
from robust.setting import NUM_CLASSES, SETTINGS, Images, Workshop, moved, small_cnn

COMMONEST, RATIO, NEIGHBOURS = 1_000, 100, 5
BATCH, STEPS = 64, 2_000
METHODS = {  # options: weight decay; power of the counts; strength; share of a batch
    "plain": (0.0, 5e-4),
    "oversample": (0.5, 1.0),
    "weights": (0.5, 1.0),
    "adjusted": (1.0, 1.5),
    "cmo": (0.5, 1.0),
    "pixel_smote": (0.5, 1.0),
    "decodes": (0.5, 1.0),
    "latent_smote": (0.5, 1.0),
}
EVEN = ("pixel_smote", "decodes", "latent_smote")  # which draw classes evenly
Made = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Trial:
    """One method with one seed."""

    shop: Workshop
    method: str
    option: float
    seed: int

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and their labels."""
        images, draw = self.shop.images, keyed_generator("unequal-rows", self.seed)
        order, ranks = torch.randperm(len(images.train), generator=draw), torch.randperm(NUM_CLASSES, generator=draw)
        rows = []
        for number in range(NUM_CLASSES):
            count = round(COMMONEST * RATIO ** (-ranks[number].item() / (NUM_CLASSES - 1)))
            rows.append(order[images.train_labels[order] == number][:count])
        chosen = torch.cat(rows)
        return from_uint8(images.train[chosen]), images.train_labels[chosen]

    def run(self, *, test: bool) -> dict[str, Any]:
        """Train, and score on validation or test images."""
        model = self._train()
        images = self.shop.images
        record = {"option": self.option, "validation": _scores(model, images.validation)["accuracy"], "scores": {}}
        return {**record, "scores": _scores(model, images.test)} if test else record

    def _train(self) -> nn.Module:
        images, labels = self.data
        counts = labels.bincount(minlength=NUM_CLASSES).float()
        power = {"oversample": self.option}.get(self.method, float(self.method in EVEN))
        chances, rare = counts[labels] ** -power, 1 / counts[labels]
        weight = counts**-self.option if self.method == "weights" else torch.ones(NUM_CLASSES)
        shift = self.option * (counts / counts.sum()).log() if self.method == "adjusted" else torch.zeros(NUM_CLASSES)
        made = self._maker() if self.method in EVEN else None
        with seeded(self.seed):
            model = small_cnn(images.shape[1])
            decay = self.option if self.method == "plain" else 0.0
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            for step in range(STEPS):
                draw = keyed_generator("unequal-batch", self.seed, step)
                rows = torch.multinomial(chances, BATCH, replacement=True, generator=draw)
                batch, targets = images[rows], F.one_hot(labels[rows], NUM_CLASSES).float()
                if made is not None:
                    count = round(BATCH * self.option)
                    batch = torch.cat([made(rows[:count], draw), batch[count:]])
                elif self.method == "cmo" and torch.rand((), generator=draw) < self.option:
                    others = torch.multinomial(rare, BATCH, replacement=True, generator=draw)
                    batch, share = _pasted(batch, images[others], draw)
                    targets = share * targets + (1 - share) * F.one_hot(labels[others], NUM_CLASSES)
                logits = model(moved(batch, self.shop.images.setting.pad, draw)) + shift
                loss = F.cross_entropy(logits, targets, weight=weight / weight.mean())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return model.eval()

    def _maker(self) -> Made:
        """Rows to images: mixed with one of the nearest of their class, or decoded alone."""
        images, labels = self.data
        if self.method == "pixel_smote":
            near = _neighbours(images.flatten(1), labels)
            return lambda rows, draw: lerp(images[rows], images[_one_of(near[rows], draw)], _lam(rows, draw))
        generator = self.shop.generator()
        codes = invert(TensorDataset(images, labels), generator, progress=False)[:][0]
        if self.method == "decodes":
            decodes = torch.cat([generator.decode(part) for part in codes.split(256)])
            return lambda rows, draw: decodes[rows]
        near, path = _neighbours(codes.flatten(1), labels), path_named(generator.preferred_path)

        @torch.no_grad()
        def mixed(rows: Tensor, draw: torch.Generator) -> Tensor:
            others = _one_of(near[rows], draw)
            return generator.decode(mix_latents(codes[rows], codes[others], _lam(rows, draw), path))

        return mixed


def _neighbours(features: Tensor, labels: Tensor) -> Tensor:
    """The nearest others of each row's class, ``[N, NEIGHBOURS]``."""
    near = torch.empty(len(labels), NEIGHBOURS, dtype=torch.int64)
    for number in labels.unique():
        rows = (labels == number).nonzero()[:, 0]
        distances = torch.cdist(features[rows], features[rows]).fill_diagonal_(math.inf)
        near[rows] = rows[distances.topk(NEIGHBOURS, largest=False).indices]
    return near


def _one_of(near: Tensor, draw: torch.Generator) -> Tensor:
    return near.gather(1, torch.randint(NEIGHBOURS, (len(near), 1), generator=draw))[:, 0]


def _lam(rows: Tensor, draw: torch.Generator) -> Tensor:
    return torch.rand(len(rows), generator=draw)


def _pasted(images: Tensor, others: Tensor, draw: torch.Generator) -> tuple[Tensor, float]:
    """A box of ``others`` in ``images``, and the share of the area that is left; CutMix's box, Beta(1, 1)."""
    size = images.shape[-1]
    side = round(size * math.sqrt(1 - torch.rand((), generator=draw).item()))
    top, left = (int(torch.randint(size - side + 1, (), generator=draw)) for _ in range(2))
    pasted = images.clone()
    pasted[:, :, top : top + side, left : left + side] = others[:, :, top : top + side, left : left + side]
    return pasted, 1 - (side / size) ** 2


@torch.no_grad()
def _scores(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Mean of the classes' accuracies, and the lowest of them."""
    images, labels = data
    right = torch.cat([model(part).argmax(1) for part in images.split(500)]) == labels
    each = torch.stack([right[labels == number].float().mean() for number in range(NUM_CLASSES)])
    return {"accuracy": each.mean().item(), "worst_class": each.min().item()}


@click.command()
@click.argument("dataset", type=click.Choice(list(SETTINGS)))
@data_option
@click.option("--out", type=FOLDER, help="For results; default: benchmarks/results/robust/DATASET/unequal.")
@click.option("--methods", help="Names with commas between; default: all.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--choose", is_flag=True, help="Run both options of each method, scored on validation images alone.")
@threads_option
@one_sentence
def main(dataset: str, data_root: Path, out: Path | None, methods: str | None, seeds: str, choose: bool) -> None:
    """Train and score each method with each seed; several processes share the work."""
    folder = out or RESULTS / "robust" / dataset / "unequal"
    shop = Workshop(Images.read(dataset, data_root), Path())
    known = {name: METHODS[name] for name in (methods.split(",") if methods else METHODS)}
    if choose:
        names = [f"{name}-{number}" for name, options in known.items() for number in range(len(options))]

        def chosen(name: str, seed: int) -> dict[str, Any]:
            method, number = name.split("-")
            return Trial(shop, method, known[method][int(number)], seed).run(test=False)

        run_each(folder / "options", names, [CHOOSING_SEED], chosen)
        return
    best = best_options(folder / "options", known)
    run_each(folder, list(known), numbers(seeds), lambda name, seed: Trial(shop, name, best[name], seed).run(test=True))


if __name__ == "__main__":
    main()
