"""The start of an inversion without an encoder, from generated images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.losses.base import pixel_mse
from latent_mixup.sampling import keyed_generator

COARSE = 32  # pixels that larger images are averaged down to
RIDGE = 0.1  # weight of the penalty, in mean squared norms of an image
BATCH = 64  # images decoded at a time
TINY = 1e-30  # all draws may give the same image


class DrawnStart:
    """The better of two codes: the nearest of some draws, and a linear guess fitted to all of them.

    The guess is ridge regression of codes on images. It is exact for a linear generator, and may be off far from the
    draws, where the nearest draw is taken.

    Args:
        generator: Gives its mean code and draws from its prior.
        draws: Number of draws.
        seed: Seed of the draws; an image's start depends on nothing else.
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
        """Ridge regression in its dual form, ``[draws + 1, D]``; float64, so on the CPU, which every machine has."""
        centred = (self.images - self.mean_image).cpu().double()
        gram = centred @ centred.T
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp_min(TINY))
        codes = (self.codes - self.mean_code).flatten(1).cpu().double()
        weights: Tensor = torch.linalg.solve(gram, codes)
        return weights.to(self.codes)

    @torch.no_grad()
    def __call__(self, targets: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] to codes ``[B, *latent_shape]``."""
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
    """Images ``[B, C, H, W]`` as rows; a larger side is averaged down to 32 px."""
    size = [min(side, COARSE) for side in images.shape[2:]]
    if size != [*images.shape[2:]]:
        images = F.interpolate(images, size=size, mode="area")
    return images.flatten(1)
