"""The checks of a self-test: each is a function of a generator, its codes and its images, with its limit.

Limits were measured on the bundled generator, on two StyleGAN2 of 32 px trained on Fashion-MNIST (with and without
classes, in W and W+), on untrained ones and on wrapped modules. The measured values stand beside each limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.inversion.optimise import reconstruction_mse
from latent_mixup.losses.base import pixel_mse

MAX_RATIO = 0.3  # error after and before: to 0.14 for 4 images and 100 steps, to 0.21 for 2 images and 60 steps
MAX_PRIOR_SHIFT = 0.4  # in deviations of w: 0.03 to 0.05; with other weights in the mapping network, from 0.57
OUTSIDE = 1.5  # trained StyleGAN2 have 0.3 of their values beyond 1 (black overshot), none beyond this
MAX_OUTSIDE = 0.5  # trained: 0; untrained: 0.22; trained, without ToRGB's scale: from 0.84
MIN_SPREAD = 1 / 255  # half a grey level of 8 bits: less is invisible
MAX_BATCH_SHIFT = 1e-2  # of the images' deviation; rounding is 1e-6 on a CPU, and may be 1e-3 on a GPU
MAX_SLOPE_ERROR = 0.1  # at most 0.06; with a quarter of the image cut off from the gradient, from 0.16
SLOPE_STEPS = (1e-3, 3e-4, 1e-4)  # the best counts: a large one crosses kinks of ReLUs, a small one drowns in rounding
MIN_TWIN = 64  # numbers in a weight that may not equal another weight; low-pass filters have 16, and are equal


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: Name of the check.
        passed: None where the check does not apply; ``found`` says why.
        found: The measured value, in words.
        hint: Likely cause of a failure; empty for a pass.
    """

    name: str
    passed: bool | None
    found: str
    hint: str = ""


def _result(name: str, passed: bool, found: str, hint: str) -> CheckResult:
    return CheckResult(name, passed, found, "" if passed else hint)


@dataclass(frozen=True)
class Errors:
    """Mean pixel MSE of the inverted images, in units of [-1, 1] squared.

    Attributes:
        guess: Of the mean of other decodes.
        start: Of the start codes.
        found: Of the codes found.
    """

    guess: float
    start: float
    found: float

    @property
    def ratio(self) -> float:
        """``found / guess``."""
        return self.found / self.guess


# ---- weights and codes -----------------------------------------------------------------------------


def check_weights(generator: Generator) -> CheckResult:
    """All weights are finite, no matrix or kernel is zero, and no two are the same."""
    broken = [name for name, tensor in generator.state_dict().items() if not tensor.isfinite().all()]
    weights = {
        name: weight.detach()
        for name, weight in generator.named_parameters()
        if weight.ndim >= 2 and not name.endswith("bias")
    }
    zero = [name for name, weight in weights.items() if not weight.any()]
    twice = [] if broken else _twins({name: weight for name, weight in weights.items() if name not in zero})
    found = [f"{name} is not finite" for name in broken] + [f"{name} is all zero" for name in zero] + twice
    few = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    hint = f"{few}: a layer that was not read, or read from a wrong place"
    return _result("weights", not found, few or "finite, none zero, no two the same", hint)


def _twins(weights: dict[str, Tensor]) -> list[str]:
    seen: dict[tuple[tuple[int, ...], float], str] = {}
    twins = []
    for name, weight in weights.items():
        first = seen.setdefault((tuple(weight.shape), float(weight.cpu().double().sum())), name)
        if first != name and weight.numel() >= MIN_TWIN and torch.equal(weights[first], weight):
            twins.append(f"{name} is the same as {first}")
    return twins


def check_codes(generator: Generator, draws: Tensor) -> CheckResult:
    """The prior gives finite codes of the promised shape, and not always the same one."""
    promised = [len(draws), *generator.latent_shape]
    if list(draws.shape) != promised or draws.dtype != torch.float32:
        found = f"{list(draws.shape)} {_dtype(draws)}, promised {promised} float32"
        return CheckResult("codes", False, found, "sample_latents does not give what latent_shape says")
    if not draws.isfinite().all():
        found = f"{1 - float(draws.isfinite().float().mean()):.2%} of the numbers are not finite"
        return CheckResult("codes", False, found, "a weight of the mapping is broken")
    if (draws == draws[:1]).all():
        return CheckResult("codes", False, "all draws are the same", "the mapping network's weights may be missing")
    return CheckResult("codes", True, f"finite, deviation {float(draws.std()):.2g}")


def check_prior(generator: Generator, draws: Tensor) -> CheckResult:
    """In W, the draws' mean is ``w_avg``: the one check of weights against a number that training left behind."""
    mean = generator.mean_latent().to(draws)
    if generator.latent_space not in ("w", "w+"):
        return CheckResult("mean code", None, f"the generator keeps no average in {generator.latent_space}")
    if not mean.any():
        return CheckResult("mean code", None, "not tracked: w_avg is zero")
    shift = float((draws.mean(0) - mean).square().sum().div(draws.var(0).sum()).sqrt())
    found = f"the mean of {len(draws):,} w is {shift:.2g} deviations from w_avg"
    hint = "w_avg is not the mean of w: the mapping network's weights or their scale are wrong"
    return _result("mean code", shift <= MAX_PRIOR_SHIFT, found, hint)


# ---- images ----------------------------------------------------------------------------------------


def check_images(generator: Generator, images: Tensor) -> CheckResult:
    """``decode`` gives finite float32 images of the promised shape."""
    size = [*generator.image_shape]
    if list(images.shape[1:]) != size or images.dtype != torch.float32:
        found = f"{list(images.shape[1:])} {_dtype(images)}, promised {size} float32"
        return CheckResult("images", False, found, "decode does not give what img_channels and img_resolution say")
    share = 1 - float(images.isfinite().float().mean())
    found = f"{share:.2%} of the values are not finite" if share else f"finite, {' x '.join(map(str, size))}, float32"
    return _result("images", not share, found, "a weight is broken, or a layer overflows")


@torch.no_grad()
def check_repeats(generator: Generator, codes: Tensor) -> CheckResult:
    """The same codes give the same images: the same bytes on a CPU, within rounding elsewhere."""
    first, second = generator.decode(codes), generator.decode(codes)
    shift = _shift(second, first)
    passed = shift <= (0 if first.device.type == "cpu" else MAX_BATCH_SHIFT)
    found = "the same images twice" if passed else f"two decodes differ by {shift:.2g} of the images' deviation"
    return _result("repeats", passed, found, "decode draws random numbers: use stored noise, and no dropout")


@torch.no_grad()
def check_batch(generator: Generator, codes: Tensor) -> CheckResult:
    """An image does not depend on its batch."""
    together = generator.decode(codes)
    shift = _shift(torch.cat([generator.decode(code) for code in codes.split(1)]), together)
    found = f"alone and among {len(codes)}, an image differs by {shift:.2g} of the images' deviation"
    hint = "an image depends on its batch: a normalisation over the batch, in training mode?"
    return _result("batch", shift <= MAX_BATCH_SHIFT, found, hint)


def check_range(images: Tensor) -> CheckResult:
    """Most values are near [-1, 1], and not all of them in [0, 1]."""
    low, high = float(images.min()), float(images.max())
    beyond, far = (float((images.abs() > limit).float().mean()) for limit in (1, OUTSIDE))
    found = f"{low:.3g} to {high:.3g}; {beyond:.1%} of the values outside [-1, 1], {far:.1%} beyond {OUTSIDE}"
    hint = "the images are in [0, 1], not in [-1, 1]: wrap takes image_range=(0, 1)"
    if far > MAX_OUTSIDE:
        hint = "the images are in another range (wrap takes image_range=), or the last layer has lost its scale"
    return _result("range", far <= MAX_OUTSIDE and not (low >= 0 and high <= 1), found, hint)


def check_spread(images: Tensor) -> CheckResult:
    """Images of different codes differ. The distance of the nearest ones tells how many kinds there are."""
    spread = float(images.var(0).mean().sqrt())
    found = f"images of different codes differ by {spread:.2g} (standard deviation)"
    hint = "decodes of different codes are the same: weights of the mapping or of styles are missing, or untrained"
    if spread >= MIN_SPREAD:
        flat = images.flatten(1)
        distances = torch.cdist(flat, flat).square().fill_diagonal_(torch.inf) / flat.shape[1]
        found += f"; the nearest other is at {float(distances.amin(1).mean()) / spread**2:.1%} of a guess's mse"
    return _result("variety", spread >= MIN_SPREAD, found, hint)


# ---- gradients -------------------------------------------------------------------------------------


def measured_gradient(
    generator: Generator, codes: Iterable[tuple[Tensor, Tensor]], mean_image: Tensor
) -> tuple[Tensor, float]:
    """The gradient of each image's distance from the mean, ``[B, *latent_shape]``, and its relative error.

    Each code, ``[1, *latent_shape]``, comes with a direction of that shape. The scalar is
    ``(decode(code) * away).sum()`` with ``away = image - mean_image`` held fixed. Its slope along the direction is
    compared with finite differences, over all codes together, in the best of the step sizes. Decoded in float32
    (``decode`` need not take doubles), summed in float64 on the CPU.
    """
    gradients, slopes, differences = [], [], []
    for code, direction in codes:
        gradient, away = _gradient(generator, code, mean_image)
        gradients.append(gradient)
        slopes.append(_dot(gradient, direction))
        differences.append([_difference(generator, code, direction * step, away) / step for step in SLOPE_STEPS])
    slope, difference = (torch.tensor(values, dtype=torch.float64, device="cpu") for values in (slopes, differences))
    return torch.cat(gradients), float((difference - slope[:, None]).norm(dim=0).min() / slope.norm())


def _dot(one: Tensor, other: Tensor) -> float:
    """In float64 on the CPU: not every device has it."""
    return float((one.detach().cpu().double() * other.cpu()).sum())


def _gradient(generator: Generator, code: Tensor, mean_image: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, zero where ``decode`` gives none, and ``away``."""
    with torch.enable_grad():
        code = code.detach().clone().requires_grad_(True)
        image = generator.decode(code)
        away = image.detach() - mean_image
        if not image.requires_grad:
            return torch.zeros_like(code), away
        return torch.autograd.grad((image * away).sum(), code, materialize_grads=True)[0], away


@torch.no_grad()
def _difference(generator: Generator, code: Tensor, step: Tensor, away: Tensor) -> float:
    """The central difference of the scalar."""
    return (_dot(generator.decode(code + step), away) - _dot(generator.decode(code - step), away)) / 2


def check_gradient(gradient: Tensor, error: float) -> CheckResult:
    """The latents get a gradient, and it is the slope of ``decode``."""
    if not gradient.isfinite().all():
        return CheckResult("gradient", False, "it is not finite", "a layer overflows, or divides by zero")
    if not gradient.any():
        hint = "no gradient reaches the codes: decode detaches them, rounds, or runs without gradients"
        return CheckResult("gradient", False, "it is zero", hint)
    hint = "the gradient is not the slope of decode: a part is detached, rounded or random, or a backward is wrong"
    passed = error <= MAX_SLOPE_ERROR
    found = f"within {error:.1%} of finite differences" if passed else f"{error:.0%} off finite differences"
    return _result("gradient", passed, found, hint)


def check_numbers(generator: Generator, gradient: Tensor) -> CheckResult:
    """Every number of a code moves the image."""
    dead = ~gradient.any(0)
    if not dead.any():
        return CheckResult("latents", True, "every number of a code moves the image")
    layers = dead.flatten(1).all(1).nonzero().flatten().tolist() if generator.latent_space == "w+" else []
    if layers:
        found = f"of {len(dead)} layers in W+, {', '.join(map(str, layers))} (from 0) do not move the image"
    else:
        found = f"{int(dead.sum()):,} of {dead.numel():,} numbers of a code do not move the image"
    return CheckResult("latents", False, found, f"{found}: the weights that read them may be zero or not loaded")


# ---- inversion -------------------------------------------------------------------------------------


def check_encoder(generator: Generator, start: Tensor, made: Tensor, mean_image: Tensor) -> CheckResult:
    """The encoder's codes decode to something nearer than the mean of other images."""
    promised = [len(made), *generator.latent_shape]
    if list(start.shape) != promised:
        hint = "the encoder does not give what latent_shape says"
        return CheckResult("encoder", False, f"{list(start.shape)}, promised {promised}", hint)
    guess = float(pixel_mse(mean_image, made).mean())
    error = float(reconstruction_mse(generator, start, made).mean())
    found = f"mse {error:.3g}, {error / guess:.1%} of that of the mean image"
    hint = "the encoder is worse than a guess: it is untrained, or another decoder's"
    return _result("encoder", error < guess, found, hint)


def check_errors(errors: Errors, steps: int) -> CheckResult:
    """Gradient steps found the images again."""
    found = (
        f"mse {errors.found:.3g} after {steps} steps from {errors.start:.3g}, "
        f"{errors.ratio:.1%} of the mean image's {errors.guess:.3g}"
    )
    hint = "its own images are not found again: decode is not smooth, or needs more steps than these"
    return _result("re-inversion", errors.ratio <= MAX_RATIO, found, hint)


def _shift(images: Tensor, others: Tensor) -> float:
    """The largest difference of two batches, in deviations of the second; 0 where they are equal."""
    return 0.0 if torch.equal(images, others) else float((images - others).abs().max() / others.std())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
