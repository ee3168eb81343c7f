"""How many gradients and seconds does inversion need to be as good as the authors' loop?

The authors' loop is AdamW at 0.03 with betas 0.95 and 0.999 and weight decay 0.01, 1,000 steps from an encoder's code
(bundled generator) or the mean code (StyleGAN2). Here it is stronger than theirs: a batch at a time, and each image
keeps its best step. Blocks of images take turns, so that a machine whose speed drifts does not decide. Gradients that
are spent before the first image, to learn the curvature, are counted beside those of the images.

Targets are real images of Fashion-MNIST and MNIST for the bundled generator, and a small StyleGAN2's own images for
that one, which has random weights. ``--trained FOLDER`` adds real Fashion-MNIST images, with a black border, for a
StyleGAN2 that was trained on them.

    python benchmarks/inversion/inversion.py --data-root data --out benchmarks/results/inversion.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from latent_mixup import load_generator
from latent_mixup.generators import Generator, StyleGAN2
from latent_mixup.images import from_uint8
from latent_mixup.inversion.curvature import DRAWS, Curvature, learn_curvature
from latent_mixup.inversion.optimise import optimise_codes, reconstruction_mse
from latent_mixup.inversion.start import DrawnStart
from latent_mixup.losses.base import Loss, pixel_mse
from latent_mixup.losses.chosen import default_loss
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.stylegan2.train import pad_to_power_of_two

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, data_option, out_option, publish

STEPS = 1_000
BLOCK = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "200 steps, 1 restart (default)": {"steps": 200, "restarts": 1},
    "80 steps": {"steps": 80, "restarts": 0},
}


@dataclass(frozen=True)
class Problem:
    """Images to invert, where the authors' loop and ours start, and the cost of our start for all images."""

    name: str
    generator: Generator
    targets: Tensor
    loss: Loss
    theirs: Tensor
    ours: Tensor
    start_decodes: int = 0
    start_seconds: float = 0.0


def authors_loop(
    generator: Generator, targets: Tensor, start: Tensor, loss: Loss, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """The best codes and losses of ``steps`` steps of the authors' optimiser (Latent-Mixup, section 2.1.1)."""
    codes = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([codes], lr=0.03, betas=(0.95, 0.999), weight_decay=0.01)
    best, best_loss = start.clone(), torch.full((len(start),), torch.inf)
    for _ in range(steps):
        losses = loss(generator.decode(codes), targets)
        better = losses.detach() < best_loss
        best[better], best_loss[better] = codes.detach()[better], losses.detach()[better]
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return best, best_loss


def real_images(name: str, root: Path, n: int) -> Tensor:
    """``n`` training images, always the same, ``[n, 1, 28, 28]`` uint8."""
    images: Tensor = getattr(torchvision.datasets, name)(root, train=True).data
    return images[torch.randperm(len(images), generator=keyed_generator("inversion-images"))[:n], None]


def small_stylegan2() -> StyleGAN2:
    """A network of random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleGAN2(z_dim=64, w_dim=64, img_resolution=32, channel_base=512, channel_max=32, latent_space="w+")


def problems(root: Path, n: int, n_stylegan2: int, trained: Path | None) -> list[Problem]:
    """All problems, with ``n`` images each, for StyleGAN2 ``n_stylegan2``."""
    compact = load_generator("fashion-mnist")
    found = []
    for name in ("FashionMNIST", "MNIST"):
        targets = from_uint8(real_images(name, root, n))
        start = compact.encode(targets)
        for words, loss in (("pixels", pixel_mse), ("features", default_loss(compact))):
            count = n if words == "pixels" else n // 2
            codes = start[:count]
            found.append(Problem(f"{name}, {words}", compact, targets[:count], loss, codes, codes))
    stylegan2 = small_stylegan2()
    made = stylegan2.decode(stylegan2.sample_latents(n_stylegan2, keyed_generator("inversion-codes")))
    networks: dict[str, tuple[Generator, Tensor]] = {"StyleGAN2, random weights, its own images": (stylegan2, made)}
    if trained is not None:
        images = pad_to_power_of_two(real_images("FashionMNIST", root, n_stylegan2))
        networks["StyleGAN2, trained, FashionMNIST"] = (load_generator(trained), from_uint8(images))
    for name, (generator, targets) in networks.items():
        mean = generator.mean_latent().expand(len(targets), *generator.latent_shape)
        started = time.perf_counter()
        start = DrawnStart(generator, DRAWS, 0)(targets)
        seconds = time.perf_counter() - started
        found.append(Problem(name, generator, targets, pixel_mse, mean, start, DRAWS, seconds))
    return found


Way: TypeAlias = Callable[[slice, Loss], tuple[Tensor, Tensor]]


class Tally:
    """Gradients, seconds and errors of one way of inverting."""

    def __init__(self, problem: Problem, way: Way) -> None:
        self.problem, self.way = problem, way
        self.gradients, self.seconds = 0, 0.0
        self.losses: list[Tensor] = []
        self.mse: list[Tensor] = []

    def block(self, rows: slice) -> None:
        """Invert one block of images."""
        started = time.perf_counter()
        codes, losses = self.way(rows, self.counted)
        self.seconds += time.perf_counter() - started
        self.losses.append(losses)
        self.mse.append(reconstruction_mse(self.problem.generator, codes, self.problem.targets[rows]))

    def counted(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss; counts the images that it is called with."""
        self.gradients += len(images)
        return self.problem.loss(images, targets)

    def record(self) -> dict[str, Any]:
        """The numbers as JSON."""
        losses, mse = torch.cat(self.losses), torch.cat(self.mse)
        return {
            "gradients_an_image": round(self.gradients / len(mse), 1),
            "seconds": round(self.seconds, 2),
            "loss": {"median": float(losses.median()), "p95": float(losses.quantile(0.95))},
            "mse": {"mean": float(mse.mean()), "median": float(mse.median()), "p95": float(mse.quantile(0.95))},
        }


def ways(problem: Problem, curvature: Curvature, steps: int) -> dict[str, Way]:
    """The authors' loop, from their start and, where it is another one, from ours; and ours."""
    generator, targets = problem.generator, problem.targets

    def theirs(start: Tensor) -> Way:
        return lambda rows, loss: authors_loop(generator, targets[rows], start[rows], loss, steps)

    def ours(setting: dict[str, Any]) -> Way:
        return lambda rows, loss: optimise_codes(
            generator, targets[rows], problem.ours[rows], loss, curvature=curvature, **setting
        )

    found = {"authors": theirs(problem.theirs), **{name: ours(setting) for name, setting in SETTINGS.items()}}
    if problem.theirs is not problem.ours:
        found["authors, our start"] = theirs(problem.ours)
    return found


def compare(problem: Problem, steps: int) -> dict[str, Any]:
    """The authors' loop and ours, block by block."""
    started = time.perf_counter()
    curvature = learn_curvature(problem.generator, problem.loss, DRAWS, 0)
    learning = time.perf_counter() - started + problem.start_seconds
    tallies = {name: Tally(problem, way) for name, way in ways(problem, curvature, steps).items()}
    for first in tqdm(range(0, len(problem.targets), BLOCK), desc=problem.name, unit="block", disable=None):
        for tally in tallies.values():
            tally.block(slice(first, first + BLOCK))
    return {
        "problem": problem.name,
        "n": len(problem.targets),
        "learning": {"gradients": DRAWS, "decodes": problem.start_decodes, "seconds": round(learning, 2)},
        "ways": {name: tally.record() for name, tally in tallies.items()},
    }


def independence(problem: Problem, n: int = 256) -> dict[str, Any]:
    """Differences between the results of ``n`` images in batches of 1, 7 and 64."""
    generator, targets, start = problem.generator, problem.targets[:n], problem.ours[:n]
    curvature = learn_curvature(generator, problem.loss, DRAWS, 0)
    found = {
        size: optimise_codes(generator, targets, start, problem.loss, batch_size=size, curvature=curvature, steps=200)
        for size in (1, 7, 64)
    }
    record: dict[str, Any] = {"problem": problem.name, "n": len(targets)}
    for size in (1, 7):
        (codes, losses), (other, other_losses) = found[size], found[64]
        images = (generator.decode(codes) - generator.decode(other)).abs().flatten(1).amax(1)
        apart = (losses - other_losses).abs() / other_losses
        record[f"{size} against 64"] = {
            "pixel": {"largest": float(images.max()), "median": float(images.median())},
            "relative_loss": {"largest": float(apart.max()), "median": float(apart.median())},
            "relative_mean_loss": float(losses.mean() / other_losses.mean() - 1),
        }
    return record


@click.command()
@data_option
@out_option
@click.option("--images", type=click.IntRange(2), default=512, show_default=True)
@click.option("--stylegan2-images", type=click.IntRange(1), default=64, show_default=True)
@click.option("--trained", type=click.Path(file_okay=False, path_type=Path), help="A StyleGAN2 of Fashion-MNIST.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Steps of the authors' loop.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(
    data_root: Path,
    out: Path,
    images: int,
    stylegan2_images: int,
    trained: Path | None,
    steps: int,
    threads: int,
) -> None:
    """Compare, print and write."""
    torch.set_num_threads(threads)
    found = problems(data_root, images, stylegan2_images, trained)
    record = {
        "authors_steps": steps,
        "threads": threads,
        "independence": independence(found[0]),
        "problems": [compare(problem, steps) for problem in found],
        **circumstances(),
    }
    publish(out, record)


if __name__ == "__main__":
    main()
