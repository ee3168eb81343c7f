"""Adaptive discriminator augmentation: random transformations of real and generated images, as many as are needed.

Each transformation is applied to an image with probability p, so that a generator gains nothing by making transformed
images. p rises while the discriminator overfits to the real images, and falls while it does not.

Reference: Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020): pixel blitting, general
geometric and colour transformations, in the order and with the distributions of the appendix on augmentation. One
difference: images are resampled once, bilinearly; the paper resamples at twice the resolution between two low-pass
filters of an orthogonal wavelet. Filtering, noise and cutout, which the paper's results do not use, are left out.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def adapt(p: float, sign_mean: float, images: int, *, target: float, images_to_one: int) -> float:
    """The next p: up where the discriminator overfits, down where it does not.

    Args:
        p: In [0, 1].
        sign_mean: Mean of ``sign(D(real))`` since the last adjustment, in [-1, 1]: r_t of the paper.
        images: Number of images since then.
        target: Desired ``sign_mean``.
        images_to_one: Number of images that take p from 0 to 1.
    """
    step = images / images_to_one
    return min(1.0, max(0.0, p + (step if sign_mean > target else -step)))


def augment(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Apply each transformation to each image, ``[B, 1 or 3, R, R]`` in [-1, 1], with probability ``p``.

    Differentiable once (bilinear resampling has no second derivative in torch).
    """
    if p == 0:
        return images
    chance = Chance(len(images), p, generator)
    moved = resample(images, geometry(chance, images.shape[-1]).to(images))
    return recolour(moved, colours(chance, images.shape[1]).to(images))


class Chance:
    """Draws for a batch of ``n`` images; :meth:`maybe` keeps each with probability ``p``."""

    def __init__(self, n: int, p: float, generator: torch.Generator) -> None:
        self.n, self.p, self.generator = n, p, generator

    def normal(self) -> Tensor:
        """Standard normal, ``[n]``."""
        return torch.randn(self.n, generator=self.generator)

    def uniform(self) -> Tensor:
        """Uniform in [-1, 1), ``[n]``."""
        return torch.rand(self.n, generator=self.generator) * 2 - 1

    def integer(self, stop: int) -> Tensor:
        """Integers in [0, ``stop``) as floats, ``[n]``."""
        return torch.randint(stop, (self.n,), generator=self.generator).float()

    def maybe(self, value: Tensor, neutral: float | Tensor, p: float | None = None) -> Tensor:
        """``value``, ``[n, ...]``, with probability p for each image, otherwise ``neutral``."""
        happens = torch.rand(self.n, generator=self.generator) < (self.p if p is None else p)
        return torch.where(happens.view(-1, *[1] * (value.ndim - 1)), value, neutral)


def geometry(chance: Chance, resolution: int) -> Tensor:
    """Matrices ``[n, 3, 3]`` from pixels of the result to their source in the image, in coordinates of [-1, 1]."""
    normal, uniform, still = chance.normal, chance.uniform, torch.eye(3)
    pixel = 2 / resolution
    half_turn = 1 - math.sqrt(1 - chance.p)  # two rotations, of which at least one happens with probability p

    def maybe(matrix: Tensor, p: float | None = None) -> Tensor:
        return chance.maybe(matrix, still, p)

    def whole_pixels() -> Tensor:
        return (uniform() * 0.25 / pixel).round() * pixel

    size, stretch = normal().mul(0.2).exp2(), normal().mul(0.2).exp2()
    steps = [
        maybe(scale(1 - 2 * chance.integer(2), torch.ones(chance.n))),
        maybe(rotate(chance.integer(4) * (math.pi / 2))),
        maybe(translate(whole_pixels(), whole_pixels())),
        maybe(scale(size, size)),
        maybe(rotate(uniform() * math.pi), half_turn),
        maybe(scale(stretch, 1 / stretch)),
        maybe(rotate(uniform() * math.pi), half_turn),
        maybe(translate(normal() * 0.25, normal() * 0.25)),
    ]
    return functools.reduce(torch.matmul, steps)


def matrices(rows: list[list[Tensor]]) -> Tensor:
    """Stack ``[n]`` entries, given row by row, into ``[n, rows, columns]``."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def scale(x: Tensor, y: Tensor) -> Tensor:
    """``[n, 3, 3]`` that multiplies the two coordinates."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrices([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def rotate(angle: Tensor) -> Tensor:
    """``[n, 3, 3]`` that turns by ``angle``, in radians."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    return matrices([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def translate(x: Tensor, y: Tensor) -> Tensor:
    """``[n, 3, 3]`` that adds to the two coordinates."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrices([[one, zero, x], [zero, one, y], [zero, zero, one]])


def resample(images: Tensor, taken_from: Tensor) -> Tensor:
    """Resample images by matrices ``[B, 3, 3]`` of :func:`geometry`; beyond their edges they are mirrored."""
    grid = F.affine_grid(taken_from[:, :2], list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def colours(chance: Chance, channels: int) -> Tensor:
    """Affine colour matrices ``[n, channels, channels + 1]``, for pixels ``[channels]`` with a 1 appended.

    Brightness, contrast and luma inversion; for RGB hue and saturation as well, both around the grey axis.
    """
    maybe, normal = chance.maybe, chance.normal
    brightness = maybe(normal() * 0.2, 0)[:, None, None]
    contrast = maybe(normal().mul(0.5).exp2(), 1)[:, None, None]
    turned_over = maybe(chance.integer(2), 0)[:, None, None]
    identity, grey = torch.eye(channels), torch.full((channels, channels), 1 / channels)
    linear = contrast * (identity - 2 * turned_over * grey)
    if channels == 3:
        hue = maybe(chance.uniform() * math.pi, 0)
        saturation = maybe(normal().exp2(), 1)[:, None, None]
        linear = (grey + saturation * (identity - grey)) @ turn_hue(hue) @ linear
    return torch.cat([linear, linear @ (brightness * torch.ones(channels, 1))], 2)


def turn_hue(angle: Tensor) -> Tensor:
    """``[n, 3, 3]`` that turns RGB around the grey axis by ``angle``, in radians (Rodrigues' formula)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return grey + cos * (torch.eye(3) - grey) + sin * cross


def recolour(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply colour matrices ``[B, C, C + 1]`` to images ``[B, C, R, R]``."""
    changed: Tensor = matrix[:, :, :-1] @ images.flatten(2) + matrix[:, :, -1:]
    return changed.view_as(images)
