"""How a loss bends in a generator's latent space, on the average: learnt from images of the generator's own making."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.losses.base import Loss
from latent_mixup.sampling import keyed_generator

DRAWS = 1024  # images of the generator's own making that a run learns from, if nobody says otherwise
DISTANCE = 0.3  # of a code from the one that made the image, in standard deviations of the codes
FLOOR = 1e-3  # curvature of the flat directions, as a share of the steepest
TINY = 1e-30
BATCH = 64  # images at a time


@dataclass(frozen=True)
class Curvature:
    """A symmetric positive matrix: ``directions`` with their own curvature, all others at the floor.

    Attributes:
        directions: Orthonormal rows, ``[k, D]``.
        above: Their curvature beyond the floor, ``[k]``, in units of the floor.
    """

    directions: Tensor
    above: Tensor

    def solve(self, x: Tensor) -> Tensor:
        """The inverse applied to rows ``[B, D]``, up to a factor that is the same for all."""
        return x - (x @ self.directions.T * (self.above / (1 + self.above))) @ self.directions


@torch.inference_mode(False)
@torch.enable_grad()
def learn_curvature(generator: Generator, loss: Loss, draws: int, seed: int) -> Curvature:
    """The mean second derivative of the loss around codes whose image it is.

    At a code that is off by a random ``d``, the gradient is ``H d``; over such gradients ``g``, the root of the mean of
    ``g g^T`` is the mean of ``H`` where the codes' own do not differ much. Needs no second derivatives, and no matrix
    of D x D. A gradient that is not finite tells nothing.

    Args:
        generator: Its prior is drawn from.
        loss: ``(images, targets) -> [B]``.
        draws: How many; directions beyond so many count as flat.
        seed: Of the draws.

    Returns:
        The curvature of codes that are flattened to ``[D]``.
    """
    draw = keyed_generator("curvature", seed)
    codes = generator.sample_latents(draws, draw).cpu()
    offset = DISTANCE * codes.std() * torch.randn(codes.shape, generator=draw)
    slopes = []
    for made, off in zip(codes.split(BATCH), (codes + offset).split(BATCH), strict=True):
        with torch.no_grad():
            images = generator.decode(made.to(generator.device))
        moved = off.to(generator.device).requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(generator.decode(moved), images).sum(), moved)
        slopes.append(slope.flatten(1))
    gradients = torch.cat(slopes)
    gradients[~gradients.isfinite().all(1)] = 0.0
    # the root of the mean of g g^T, up to a factor, from the gradients' singular values
    _, bends, directions = torch.linalg.svd(gradients, full_matrices=False)
    floor = (FLOOR * bends[0]).clamp_min(TINY)
    return Curvature(directions, (bends / floor - 1).clamp_min(0))
