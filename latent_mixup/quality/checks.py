"""What a self-test looks at: each check a function of a generator, its codes and its images, with its limit.

Limits were measured on the bundled generator, on two StyleGAN2 of 32 px trained on Fashion-MNIST (with and without
classes, in W and W+), on untrained ones and on wrapped modules. What was measured stands beside each limit.
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
MIN_SPREAD = 1 / 255  # half a grey level of 8 bits: less is not to be seen
MAX_BATCH_SHIFT = 1e-2  # of the images' deviation; rounding is 1e-6 on a CPU, and may be 1e-3 on a GPU
MAX_SLOPE_ERROR = 0.1  # at most 0.06; with a quarter of the image cut off from the gradient, from 0.16
SLOPE_STEPS = (1e-3, 3e-4, 1e-4)  # the best counts: a large one crosses kinks of ReLUs, a small one drowns in rounding
MIN_TWIN = 64  # numbers in weights of which no two are the same: low-pass filters have 16 and are


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: None where there was nothing to look at; ``found`` says why.
        found: What was measured.
        hint: What a failure hints at; empty otherwise.
    """

    name: str
    passed: bool | None
    found: str
    hint: str = ""


@dataclass(frozen=True)
class Errors:
    """Mean pixel MSE of the images that were inverted, in units of [-1, 1] squared.

    Attributes:
        guess: To the mean of other decodes.
        start: Of what the inversion started from.
        found: Of what it found.
    """

    guess: float
    start: float
    found: float

    @property
    def ratio(self) -> float:
        """``found / guess``."""
        return self.found / self.guess


# --------------------------------------------------------------------------------------------------
# Weights and codes
# --------------------------------------------------------------------------------------------------


def check_weights(generator: Generator) -> Check:
    """All weights are finite, no matrix or kernel is zero, and no two are the same."""
    broken = [name for name, tensor in generator.state_dict().items() if not tensor.isfinite().all()]
    weights = {
        name: weight.detach()
        for name, weight in generator.named_parameters()
        if weight.ndim >= 2 and not name.endswith("bias")
    }
    zero = [name for name, weight in weights.items() if not weight.any()]
    twice = [] if broken else _twins({name: weight for name, weight in weights.items() if name not in zero})
    found = [f"{name} is not finite" for name in broken]
    found += [f"{name} is all zero" for name in zero] + [f"{one} is the same as {other}" for one, other in twice]
    if not found:
        return Check("weights", True, "finite, none zero, no two the same")
    return Check("weights", False, _few(found), f"{_few(found)}: a layer that was not read, or read from a wrong place")


def _twins(weights: dict[str, Tensor]) -> list[tuple[str, str]]:
    seen: dict[tuple[tuple[int, ...], float], str] = {}
    twins = []
    for name, weight in weights.items():
        first = seen.setdefault((tuple(weight.shape), float(weight.double().sum())), name)
        if first != name and weight.numel() >= MIN_TWIN and torch.equal(weights[first], weight):
            twins.append((name, first))
    return twins


def check_codes(generator: Generator, draws: Tensor) -> Check:
    """The prior gives finite codes of the shape promised, and not always the same one."""
    name, promised = "codes", [len(draws), *generator.latent_shape]
    if list(draws.shape) != promised or draws.dtype != torch.float32:
        found = f"{list(draws.shape)} {_dtype(draws)}, promised {promised} float32"
        return Check(name, False, found, "sample_latents does not give what latent_shape says")
    if not draws.isfinite().all():
        share = 1 - float(draws.isfinite().float().mean())
        return Check(name, False, f"{share:.2%} of the numbers are not finite", "a weight of the mapping is broken")
    if (draws == draws[:1]).all():
        return Check(name, False, "all draws are the same", "the mapping network's weights may be missing")
    return Check(name, True, f"finite, deviation {float(draws.std()):.2g}")


def check_prior(generator: Generator, draws: Tensor) -> Check:
    """In W, the draws' mean is ``w_avg``: the one check of weights against a number that training left behind."""
    name, mean = "mean code", generator.mean_latent().to(draws)
    if generator.latent_space not in ("w", "w+"):
        return Check(name, None, f"the generator keeps no average in {generator.latent_space}")
    if not mean.any():
        return Check(name, None, "not tracked: w_avg is zero")
    shift = float((draws.mean(0) - mean).square().sum().div(draws.var(0).sum()).sqrt())
    found = f"the mean of {len(draws):,} w is {shift:.2g} deviations from w_avg"
    if shift <= MAX_PRIOR_SHIFT:
        return Check(name, True, found)
    return Check(
        name, False, found, "w_avg is not the mean of w: the mapping network's weights or their scale are wrong"
    )


# --------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------


def check_images(generator: Generator, images: Tensor) -> Check:
    """``decode`` gives finite float32 images of the shape promised."""
    name, size = "images", [generator.img_channels, generator.img_resolution, generator.img_resolution]
    if list(images.shape[1:]) != size or images.dtype != torch.float32:
        found = f"{list(images.shape[1:])} {_dtype(images)}, promised {size} float32"
        return Check(name, False, found, "decode does not give what img_channels and img_resolution say")
    share = 1 - float(images.isfinite().float().mean())
    if share:
        return Check(
            name, False, f"{share:.2%} of the values are not finite", "a weight is broken, or a layer overflows"
        )
    return Check(name, True, f"finite, {' x '.join(map(str, size))}, float32")


@torch.no_grad()
def check_repeats(generator: Generator, codes: Tensor) -> Check:
    """The same codes give the same images: the same bytes on a CPU, within rounding elsewhere."""
    first, second = generator.decode(codes), generator.decode(codes)
    shift = _shift(second, first)
    if shift <= (0 if first.device.type == "cpu" else MAX_BATCH_SHIFT):
        return Check("repeats", True, "the same images twice")
    hint = "decode draws random numbers: use stored noise, and no dropout"
    return Check("repeats", False, f"two decodes differ by {shift:.2g} of the images' deviation", hint)


@torch.no_grad()
def check_batch(generator: Generator, codes: Tensor) -> Check:
    """An image does not depend on its batch."""
    together = generator.decode(codes)
    alone = torch.cat([generator.decode(code) for code in codes.split(1)])
    shift = _shift(alone, together)
    found = f"alone and among {len(codes)}, an image differs by {shift:.2g} of the images' deviation"
    if shift <= MAX_BATCH_SHIFT:
        return Check("batch", True, found)
    return Check(
        "batch", False, found, "an image depends on its batch: a normalisation over the batch, in training mode?"
    )


def check_range(images: Tensor) -> Check:
    """Most values are near [-1, 1], and not all of them in [0, 1]."""
    low, high = float(images.min()), float(images.max())
    beyond, far = (float((images.abs() > limit).float().mean()) for limit in (1, OUTSIDE))
    found = f"{low:.3g} to {high:.3g}; {beyond:.1%} of the values outside [-1, 1], {far:.1%} beyond {OUTSIDE}"
    if far > MAX_OUTSIDE:
        hint = "the images are in another range (wrap takes image_range=), or the last layer has lost its scale"
        return Check("range", False, found, hint)
    if low >= 0 and high <= 1:
        return Check("range", False, found, "the images are in [0, 1], not in [-1, 1]: wrap takes image_range=(0, 1)")
    return Check("range", True, found)


def check_spread(images: Tensor) -> Check:
    """Images of different codes can be told apart. How near the nearest are tells how many kinds there are."""
    spread = float(images.var(0).mean().sqrt())
    found = f"images of different codes differ by {spread:.2g} (standard deviation)"
    if spread < MIN_SPREAD:
        hint = "decodes of different codes are the same: weights of the mapping or of styles are missing, or untrained"
        return Check("variety", False, found, hint)
    flat = images.flatten(1)
    distances = torch.cdist(flat, flat).square().fill_diagonal_(torch.inf) / flat.shape[1]
    nearest = float(distances.amin(1).mean()) / spread**2
    return Check("variety", True, f"{found}; the nearest other is at {nearest:.1%} of a guess's mse")


# --------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------


def measured_gradient(
    generator: Generator, codes: Iterable[tuple[Tensor, Tensor]], mean_image: Tensor
) -> tuple[Tensor, float]:
    """The gradient of each image's way from the mean, ``[B, *latent_shape]``, and how far finite differences are off.

    Each code, ``[1, *latent_shape]``, comes with a direction of that shape. The scalar is
    ``(decode(code) * away).sum()`` with ``away = image - mean_image`` held fixed. Its slope along the direction is
    compared, over all codes together, in the best of the step sizes. In float32, summed in float64: ``decode`` need not
    take doubles.
    """
    gradients, slopes, differences = [], [], []
    for code, direction in codes:
        gradient, away = _gradient(generator, code, mean_image)
        gradients.append(gradient)
        slopes.append((gradient.double() * direction).sum())
        differences.append([_difference(generator, code, direction * step, away) / step for step in SLOPE_STEPS])
    slope, difference = torch.stack(slopes).cpu(), torch.tensor(differences, dtype=torch.float64)
    return torch.cat(gradients), float((difference - slope[:, None]).norm(dim=0).min() / slope.norm())


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
    """Half of what the scalar changes from one side of the code to the other."""
    return float(((generator.decode(code + step).double() - generator.decode(code - step)) * away).sum() / 2)


def check_gradient(gradient: Tensor, error: float) -> Check:
    """The latents get a gradient, and it is the slope of ``decode``."""
    if not gradient.isfinite().all():
        return Check("gradient", False, "it is not finite", "a layer overflows, or divides by zero")
    if not gradient.any():
        hint = "no gradient reaches the codes: decode detaches them, rounds, or runs without gradients"
        return Check("gradient", False, "it is zero", hint)
    found = f"within {error:.1%} of finite differences"
    if error <= MAX_SLOPE_ERROR:
        return Check("gradient", True, found)
    hint = (
        "the gradient is not the slope of decode: a part of it is detached, rounded or random, or a backward is wrong"
    )
    return Check("gradient", False, f"{error:.0%} off finite differences", hint)


def check_numbers(generator: Generator, gradient: Tensor) -> Check:
    """Every number of a code moves the image."""
    dead = ~gradient.any(0)
    if not dead.any():
        return Check("latents", True, "every number of a code moves the image")
    layers = dead.flatten(1).all(1).nonzero().flatten().tolist() if generator.latent_space == "w+" else []
    if layers:
        found = f"of {len(dead)} layers in W+, {', '.join(map(str, layers))} (from 0) do not move the image"
    else:
        found = f"{int(dead.sum()):,} of {dead.numel():,} numbers of a code do not move the image"
    return Check("latents", False, found, f"{found}: the weights that read them may be zero or not loaded")


# --------------------------------------------------------------------------------------------------
# Inversion
# --------------------------------------------------------------------------------------------------


def check_encoder(generator: Generator, start: Tensor, made: Tensor, mean_image: Tensor) -> Check:
    """The encoder's codes decode to something nearer than the mean of other images."""
    promised = [len(made), *generator.latent_shape]
    if list(start.shape) != promised:
        hint = "the encoder does not give what latent_shape says"
        return Check("encoder", False, f"{list(start.shape)}, promised {promised}", hint)
    guess = float(pixel_mse(mean_image, made).mean())
    error = float(reconstruction_mse(generator, start, made).mean())
    found = f"mse {error:.3g}, {error / guess:.1%} of that of the mean image"
    if error < guess:
        return Check("encoder", True, found)
    return Check("encoder", False, found, "the encoder is worse than a guess: it is untrained, or another decoder's")


def check_errors(errors: Errors, steps: int) -> Check:
    """Gradient steps found the images again."""
    found = (
        f"mse {errors.found:.3g} after {steps} steps from {errors.start:.3g}, "
        f"{errors.ratio:.1%} of the mean image's {errors.guess:.3g}"
    )
    if errors.ratio <= MAX_RATIO:
        return Check("re-inversion", True, found)
    hint = "its own images are not found again: decode is not smooth, or needs more steps than these"
    return Check("re-inversion", False, found, hint)


def _shift(images: Tensor, others: Tensor) -> float:
    """The largest difference of two batches, in deviations of the second; 0 where they are equal."""
    if torch.equal(images, others):
        return 0.0
    return float((images - others).abs().max() / others.std())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(texts: list[str], most: int = 3) -> str:
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")
