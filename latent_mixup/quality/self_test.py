"""Self-test of a generator: invert images that it made itself; needs no data.

A generator can make every image that it made. So where the code of such an image is not found again, the program or
the conversion is at fault, not the image. The other checks locate the fault, which a re-inversion alone does not.

**Limits.** Any smooth decoder passes, a wrong one too. Of a trained StyleGAN2 these pass: kernels transposed or turned
by 180 degrees, weights of two layers of one shape swapped, biases lost, random numbers in place of every convolution.
Only the images tell: ``latent-mixup info --sheet`` draws some.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator, check_generator
from latent_mixup.inversion.optimise import leave_inference_mode, optimise_codes, reconstruction_mse
from latent_mixup.losses.base import Loss, pixel_mse
from latent_mixup.pictures import text_table
from latent_mixup.quality import checks
from latent_mixup.quality.checks import CheckResult, Errors
from latent_mixup.runs import tqdm
from latent_mixup.sampling import keyed_generator

BETAS = (0.9, 0.999)  # better in 100 steps than invert's, which are for 1,000
PROBES = 4  # codes for the checks of batch and gradient
DRAWS, PRIOR_DRAWS = 64, 1000
BATCH = 16
CODES, OTHERS, PRIOR = range(3)  # streams of codes


@dataclass(frozen=True)
class SelfTest:
    """Result of :func:`self_test`.

    Attributes:
        checks: In order; a failure that makes the rest pointless is the last one.
        mse: Errors of the re-inversion; None where the test ended before it.
        images: Number of images to invert.
        steps: Gradient steps per image.
        seed: Seed of all draws.
        seconds: Duration of the test.
    """

    checks: tuple[CheckResult, ...]
    mse: Errors | None
    images: int
    steps: int
    seed: int
    seconds: float

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """``"passed"``, or each failed check with its likely cause."""
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
    """Check weights, codes, images and gradients of a generator, then invert images that it made itself.

    The start is independent of their codes: the encoder's codes, or the nearest of other draws.

    Args:
        generator: The generator to test.
        images: Number of images to invert.
        steps: Gradient steps per image; with fewer than 60, a working generator may fail.
        lr: Initial learning rate; it falls to zero along a half cosine.
        seed: Seed of all draws.
        loss: ``(images, targets) -> [B]``. None: the pixel MSE, which decides the verdict in any case.
        draws: Number of other codes; their decodes give the mean image, the range, and the start.
        device: Where to decode. None: where the generator is.
        progress: Show progress bars.

    Raises:
        TypeError: ``generator`` is none; a module is wrapped first.
        ValueError: A setting is out of range.

    Example:
        >>> self_test(load_generator("fashion-mnist")).verdict
        'passed'
    """
    if images < 1 or steps < 1 or draws < PROBES or not lr > 0:
        raise ValueError(
            f"images >= 1, steps >= 1, draws >= {PROBES}, lr > 0 are needed: got {images}, {steps}, {draws}, {lr}"
        )
    check_generator(generator)
    started = time.perf_counter()
    objective = loss or pixel_mse
    if isinstance(objective, torch.nn.Module):
        objective = objective.to(device or generator.device)
    with torch.inference_mode(False):  # which has no gradients to check
        generator = leave_inference_mode(generator.to(device or generator.device))
        results, inversion = _look(generator, images, draws, seed, progress)
        errors = None
        if inversion is not None:
            errors = _invert_again(generator, inversion, objective, steps, lr, progress)
            results.append(checks.check_errors(errors, steps))
    return SelfTest(tuple(results), errors, images, steps, seed, time.perf_counter() - started)


def self_test_table(result: SelfTest) -> str:
    """A line for each check."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    return text_table([(marks[check.passed], check.name, check.found) for check in result.checks], "<")


class _Inversion(NamedTuple):
    """Images to invert, where to start, and the mean of other images."""

    made: Tensor
    start: Tensor
    mean_image: Tensor


def _look(
    generator: Generator, images: int, draws: int, seed: int, progress: bool
) -> tuple[list[CheckResult], _Inversion | None]:
    """Every check but the last; no inversion where one of them makes it pointless."""
    results = [checks.check_weights(generator)]

    def failed(*more: CheckResult) -> bool:
        results.extend(more)
        return more[-1].passed is False

    codes, others, prior = (
        generator.sample_latents(n, keyed_generator("self-test-codes", seed, stream))
        for n, stream in ((images, CODES), (draws, OTHERS), (PRIOR_DRAWS, PRIOR))
    )
    if failed(checks.check_codes(generator, prior)):
        return results, None
    decoded = _decode(generator, torch.cat([codes, others]), progress)
    if failed(checks.check_prior(generator, prior), checks.check_images(generator, decoded)):
        return results, None
    made, seen = decoded.split([images, draws])
    probes, mean_image = others[:PROBES], seen.mean(0)
    if failed(
        checks.check_repeats(generator, probes),
        checks.check_batch(generator, probes),
        checks.check_range(seen),
        checks.check_spread(seen),
    ):
        return results, None
    stream = keyed_generator("self-test-directions", seed)
    noise = torch.randn(probes.shape, generator=stream, dtype=torch.float32, device="cpu").to(probes)
    directed = list(zip(probes.split(1), (noise * probes.std()).split(1), strict=True))
    gradient, error = checks.measured_gradient(generator, _bar(progress, "gradient", directed), mean_image)
    if failed(checks.check_gradient(gradient, error)):
        return results, None
    results.append(checks.check_numbers(generator, gradient))
    if not generator.has_encoder:  # start at the other code whose image is nearest
        nearest = torch.cdist(made.flatten(1), seen.flatten(1)).argmin(1)
        return results, _Inversion(made, others[nearest], mean_image)
    start = generator.encode(made).detach()
    results.append(checks.check_encoder(generator, start, made, mean_image))
    return results, _Inversion(made, start, mean_image) if start.shape == codes.shape else None


@torch.no_grad()
def _decode(generator: Generator, codes: Tensor, progress: bool) -> Tensor:
    parts = codes.split(BATCH)
    return torch.cat([generator.decode(part) for part in _bar(progress, "decode", parts)])


@torch.enable_grad()
def _invert_again(
    generator: Generator, inversion: _Inversion, loss: Loss, steps: int, lr: float, progress: bool
) -> Errors:
    with _bar(progress, "invert again", total=steps + 1) as bar:

        def counted(images: Tensor, targets: Tensor) -> Tensor:
            bar.update()
            return loss(images, targets)

        codes, _ = optimise_codes(
            generator, inversion.made, inversion.start, counted, steps=steps, lr=lr, betas=BETAS, optimizer="adam"
        )
    return Errors(
        guess=float(pixel_mse(inversion.mean_image, inversion.made).mean()),
        start=float(reconstruction_mse(generator, inversion.start, inversion.made).mean()),
        found=float(reconstruction_mse(generator, codes, inversion.made).mean()),
    )


def _bar(progress: bool, what: str, parts: Any = None, total: int | None = None) -> Any:
    return tqdm(parts, total=total, desc=what, leave=False, disable=None if progress else True)
