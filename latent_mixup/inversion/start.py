"""Where an inversion starts when there is no encoder: what a generator's own draws say about an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.losses.base import pixel_mse
from latent_mixup.sampling import keyed_generator

COARSE = 32  # images are averaged down to so many pixels
RIDGE = 0.1  # weight of the penalty, in mean squared norms of an image
BATCH = 64  # images decoded at a time
TINY = 1e-30  # where all draws give the same image, they say nothing


class DrawnStart:
    """The nearer of two codes: that of the nearest of the draws, and a linear guess fitted to all of them.

    The guess is ridge regression of the codes on the images. It is exact where the generator is linear, and far from
    the draws it may be off: then the nearest draw is taken.

    Args:
        generator: Its mean code and prior are drawn from.
        draws: How many.
        seed: Of the draws; an image's start depends on nothing else.
    """

    def __init__(self, generator: Generator, draws: int, seed: int) -> None:
        self.generator = generator
        own = [generator.mean_latent()[None], generator.sample_latents(draws, keyed_generator("start", seed))]
        self.codes = torch.cat([codes.to(generator.device) for codes in own])
        with torch.no_grad():
            self.images = torch.cat([coarse(generator.decode(codes)) for codes in self.codes.split(BATCH)])
        self.mean_image, self.mean_code = self.images.mean(0), self.codes.mean(0)
        self.weights = self._fit()

    def _fit(self) -> Tensor:
        """Ridge regression in its dual form, ``[draws + 1, D]``: no matrix of pixels x pixels is needed."""
        centred = (self.images - self.mean_image).double()
        gram = centred @ centred.T
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp_min(TINY))
        codes = (self.codes - self.mean_code).flatten(1).double()
        weights: Tensor = torch.linalg.solve(gram, codes)
        return weights.to(self.codes.dtype)

    @torch.no_grad()
    def __call__(self, targets: Tensor) -> Tensor:
        """Images ``[B, C, R, R]`` in [-1, 1] to codes ``[B, *latent_shape]``."""
        return torch.cat([self._better(part) for part in targets.split(BATCH)])

    def _better(self, targets: Tensor) -> Tensor:
        small = coarse(targets)
        nearest = self.codes[torch.cdist(small, self.images).argmin(1)]
        guess = (small - self.mean_image) @ (self.images - self.mean_image).T @ self.weights
        guess = self.mean_code + guess.view_as(nearest)
        errors = [pixel_mse(self.generator.decode(codes), targets) for codes in (nearest, guess)]
        better = errors[1] < errors[0]
        return torch.where(better.view(-1, *[1] * (guess.ndim - 1)), guess, nearest)


def coarse(images: Tensor) -> Tensor:
    """Images ``[B, C, R, R]``, averaged down to 32 px where they are larger, as rows."""
    if images.shape[-1] > COARSE:
        images = F.interpolate(images, size=COARSE, mode="area")
    return images.flatten(1)
