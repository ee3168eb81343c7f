"""Whether a generator works: a test on codes and images of its own making, which needs no data.

An image that a generator made is one that it can make: where its code is not found again, the program or the
conversion is at fault, and not the image. The other checks say what is broken, which a re-inversion alone does not.

**What it cannot see.** Any smooth decoder passes, a wrong one too. Of a trained StyleGAN2 these pass: kernels
transposed or turned by 180 degrees, weights of two layers of one shape swapped, biases lost, random numbers in place
of every convolution. Only the images tell: ``latent-mixup info --sheet`` draws some.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from latent_mixup.generators.base import Generator
from latent_mixup.inversion.optimise import optimise_codes, reconstruction_mse
from latent_mixup.losses.base import Loss, pixel_mse
from latent_mixup.quality.checks import (
    Check,
    Errors,
    check_batch,
    check_codes,
    check_encoder,
    check_errors,
    check_gradient,
    check_images,
    check_numbers,
    check_prior,
    check_range,
    check_repeats,
    check_spread,
    check_weights,
    measured_gradient,
)
from latent_mixup.sampling import keyed_generator

BETAS = (0.9, 0.999)  # in 100 steps these come closer than invert's, which are for 1,000
PROBES = 4  # codes that batch and gradient are tried on, one at a time
DRAWS, PRIOR_DRAWS = 64, 1000
BATCH = 16
CODES, OTHERS, PRIOR, DIRECTIONS = range(4)  # streams of random numbers


@dataclass(frozen=True)
class SelfTest:
    """What :func:`self_test` found.

    Attributes:
        checks: In the order of their making; one that makes the rest pointless is the last.
        mse: The errors of the re-inversion; None where the test ended before it.
        images: Images that were to be inverted.
        steps: Gradient steps an image.
        seed: Of every draw.
        seconds: Of the whole test.
    """

    checks: tuple[Check, ...]
    mse: Errors | None
    images: int
    steps: int
    seed: int
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if _failed(check))

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """``"passed"``, or what failed and what that hints at."""
        return "; ".join(f"{check.name}: {check.hint}" for check in self.failed) or "passed"


def self_test(
    generator: Generator,
    *,
    images: int = 4,
    steps: int = 100,
    lr: float = 0.05,
    seed: int = 0,
    loss: Loss | None = None,
    draws: int = DRAWS,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SelfTest:
    """Invert images that the generator itself made, and look at what may be broken on the way.

    The start knows nothing of their codes: it is the encoder's, or the nearest of other draws.

    Args:
        generator: What is tested.
        images: Images to invert.
        steps: Gradient steps an image; with fewer than 60, a generator that works may fail.
        lr: First learning rate; it falls to zero along a half cosine.
        seed: Of every draw.
        loss: ``(images, targets) -> [B]``. None: the pixel MSE, which the verdict is about in any case.
        draws: Other codes; their decodes give the mean image, the range, and the start.
        device: Where to decode. None: where the generator is.
        progress: Show progress bars.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> self_test(load_generator("fashion-mnist")).verdict
        'passed'
    """
    if images < 1 or steps < 1 or draws < PROBES or not lr > 0:
        raise ValueError(
            f"images >= 1, steps >= 1, draws >= {PROBES}, lr > 0 are needed: got {images}, {steps}, {draws}, {lr}"
        )
    started = time.perf_counter()
    generator = generator.to(device or generator.device)
    objective = loss or pixel_mse
    if isinstance(objective, torch.nn.Module):
        objective = objective.to(generator.device)
    checks, task = _look(generator, images, draws, seed, progress)
    errors = None
    if task is not None:
        errors = _invert_again(generator, task, objective, steps, lr, progress)
        checks.append(check_errors(errors, steps))
    return SelfTest(tuple(checks), errors, images, steps, seed, time.perf_counter() - started)


def self_test_table(result: SelfTest) -> str:
    """A line for each check."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check.name) for check in result.checks)
    return "\n".join(f"{marks[check.passed]:<6}  {check.name:<{width}}  {check.found}" for check in result.checks)


def _failed(check: Check) -> bool:
    return check.passed is False


class _Task(NamedTuple):
    """What is left to invert: images, where to start, and the mean of other images."""

    made: Tensor
    start: Tensor
    mean_image: Tensor


def _look(generator: Generator, images: int, draws: int, seed: int, progress: bool) -> tuple[list[Check], _Task | None]:
    """Every check but the last; no task where one of them makes the rest pointless."""
    codes, others, prior = (
        generator.sample_latents(n, keyed_generator("self-test-codes", seed, stream))
        for n, stream in ((images, CODES), (draws, OTHERS), (PRIOR_DRAWS, PRIOR))
    )
    checks = [check_weights(generator), check_codes(generator, prior)]
    if _failed(checks[-1]):
        return checks, None
    decoded = _decode(generator, torch.cat([codes, others]), progress)
    checks += [check_prior(generator, prior), check_images(generator, decoded)]
    if _failed(checks[-1]):
        return checks, None
    made, seen = decoded.split([images, draws])
    probes, mean_image = others[:PROBES], seen.mean(0)
    checks += [check_repeats(generator, probes), check_batch(generator, probes), check_range(seen), check_spread(seen)]
    if _failed(checks[-1]):
        return checks, None
    noise = torch.randn(probes.shape, generator=keyed_generator("self-test-directions", seed)).to(probes)
    directed = list(zip(probes.split(1), (noise * probes.std()).split(1), strict=True))
    gradient, error = measured_gradient(generator, _bar(progress, "gradient", directed), mean_image)
    checks.append(check_gradient(gradient, error))
    if _failed(checks[-1]):
        return checks, None
    checks.append(check_numbers(generator, gradient))
    if not generator.has_encoder:
        return checks, _Task(made, _nearest(made, others, seen), mean_image)
    start = generator.encode(made).detach()
    checks.append(check_encoder(generator, start, made, mean_image))
    return checks, _Task(made, start, mean_image) if start.shape == codes.shape else None


@torch.no_grad()
def _decode(generator: Generator, codes: Tensor, progress: bool) -> Tensor:
    parts = codes.split(BATCH)
    return torch.cat([generator.decode(part) for part in _bar(progress, "decode", parts)])


def _nearest(made: Tensor, others: Tensor, seen: Tensor) -> Tensor:
    """Of other codes, the one whose image is nearest to each of those that were made."""
    return others[torch.cdist(made.flatten(1), seen.flatten(1)).argmin(1)]


@torch.enable_grad()
def _invert_again(generator: Generator, task: _Task, loss: Loss, steps: int, lr: float, progress: bool) -> Errors:
    with _bar(progress, "invert again", total=steps + 1) as bar:

        def counted(images: Tensor, targets: Tensor) -> Tensor:
            bar.update()
            return loss(images, targets)

        codes, _ = optimise_codes(
            generator, task.made, task.start, counted, steps=steps, lr=lr, betas=BETAS, optimizer="adam"
        )
    return Errors(
        guess=float(pixel_mse(task.mean_image, task.made).mean()),
        start=float(reconstruction_mse(generator, task.start, task.made).mean()),
        found=float(reconstruction_mse(generator, codes, task.made).mean()),
    )


def _bar(progress: bool, what: str, parts: Any = None, total: int | None = None) -> Any:
    return tqdm(parts, total=total, desc=what, leave=False, disable=None if progress else True)
