"""The mean curvature of a loss in a generator's latent space, learnt from generated images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.losses.base import Loss
from latent_mixup.sampling import keyed_generator

DRAWS = 1024  # default number of generated images
DISTANCE = 0.3  # of a code from the one whose image is the target, in standard deviations of the codes
FLOOR = 1e-3  # curvature of the flat directions, as a share of the steepest
TINY = 1e-30
BATCH = 64  # images at a time


@dataclass(frozen=True)
class Curvature:
    """A symmetric positive matrix: ``directions`` have their own curvature, all others the floor.

    Attributes:
        directions: Orthonormal rows, ``[k, D]``.
        above: Curvature beyond the floor, ``[k]``, in units of the floor.
    """

    directions: Tensor
    above: Tensor

    def solve(self, x: Tensor) -> Tensor:
        """The inverse times rows ``[B, D]``, up to one factor for all."""
        return x - (x @ self.directions.T * (self.above / (1 + self.above))) @ self.directions


@torch.inference_mode(False)
@torch.enable_grad()
def learn_curvature(generator: Generator, loss: Loss, draws: int, seed: int) -> Curvature:
    """The mean second derivative H of the loss around the codes of generated images.

    At a code that is off by a random ``d``, the gradient is ``g = H d``; the root of the mean of ``g g^T`` is the mean
    of ``H`` if ``H`` does not differ much between codes. No second derivatives and no D x D matrix are needed. A
    gradient that is not finite is ignored.

    Args:
        generator: Gives draws from its prior.
        loss: ``(images, targets) -> [B]``.
        draws: Number of draws; there are at most as many directions that are not flat.
        seed: Seed of the draws.

    Returns:
        The curvature of codes that are flattened to ``[D]``.
    """
    draw = keyed_generator("curvature", seed)
    codes = generator.sample_latents(draws, draw).cpu()
    offset = DISTANCE * codes.std() * torch.randn(codes.shape, generator=draw, dtype=codes.dtype, device="cpu")
    found = []
    for made, off in zip(codes.split(BATCH), (codes + offset).split(BATCH), strict=True):
        with torch.no_grad():
            images = generator.decode(made.to(generator.device))
        moved = off.to(generator.device).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(generator.decode(moved), images).sum(), moved)
        found.append(gradient.flatten(1))
    gradients = torch.cat(found)
    gradients[~gradients.isfinite().all(1)] = 0.0
    # the root of the mean of g g^T, up to a factor, from the gradients' singular values
    on_mps = gradients.device.type == "mps"  # which has no SVD
    _, values, directions = torch.linalg.svd(gradients.cpu() if on_mps else gradients, full_matrices=False)
    floor = (FLOOR * values[0]).clamp_min(TINY)
    return Curvature(directions.to(gradients.device), (values / floor - 1).clamp_min(0).to(gradients.device))
