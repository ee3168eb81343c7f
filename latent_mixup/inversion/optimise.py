"""The optimiser of codes: gradient steps for a batch whose images do not touch each other."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.inversion.losses import Loss, pixel_mse
from latent_mixup.sampling import keyed_generator

START_DRAWS = 256


def optimise_codes(
    generator: Generator,
    targets: Tensor,
    start: Tensor,
    loss: Loss,
    *,
    steps: int,
    lr: float,
    betas: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Move each code so that its decode comes closer to its target; keep the best step of each image.

    The losses are summed, and Adam works on each number alone, so an image's result does not depend on
    its batch. A code is recorded *before* the optimiser moves it, with the loss that belongs to it. The
    learning rate falls to zero along a half cosine; there is no weight decay, which would pull a code
    towards zero by a factor of 0.3 in 4,000 steps of the paper's settings.

    Args:
        generator: Decodes the codes.
        targets: Images ``[B, C, R, R]`` in [-1, 1].
        start: Codes ``[B, *latent_shape]`` to start from.
        loss: ``(images, targets) -> [B]``.
        steps: Gradient steps; 0 keeps ``start``.
        lr: First learning rate.
        betas: Adam's.

    Returns:
        The best codes ``[B, *latent_shape]`` and their losses ``[B]``, infinite where none was finite.

    Reference: Latent-Mixup, section 2.1.1: AdamW, 0.03, (0.95, 0.999), 1,000 steps.
    """
    codes = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([codes], lr=lr, betas=betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    best = start.detach().clone()
    best_loss = torch.full((len(start),), torch.inf, device=start.device)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            losses = loss(generator.decode(codes), targets)
        if losses.shape != best_loss.shape:
            raise ValueError(f"loss needs one number an image, [{len(start)}]: got {list(losses.shape)}")
        better = losses.detach() < best_loss
        best[better], best_loss[better] = codes.detach()[better], losses.detach()[better]
        if step < steps:
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            schedule.step()
    return best, best_loss


@torch.no_grad()
def nearest_start(generator: Generator, targets: Tensor, seed: int) -> Tensor:
    """Where an inversion starts without an encoder: of the mean code and 256 draws, the nearest in pixels.

    Args:
        generator: The draws are its prior's.
        targets: Images ``[B, C, R, R]`` in [-1, 1].
        seed: The draws depend on it alone.

    Returns:
        Codes ``[B, *latent_shape]``.
    """
    draws = generator.sample_latents(START_DRAWS, keyed_generator(seed))
    candidates = torch.cat([generator.mean_latent()[None], draws.to(generator.device)])
    decoded = generator.decode(candidates).flatten(1)
    return candidates[torch.cdist(targets.flatten(1), decoded).argmin(1)]


def reconstruction_mse(generator: Generator, codes: Tensor, targets: Tensor) -> Tensor:
    """Pixel MSE of each decoded code, ``[B]``, without a gradient."""
    with torch.no_grad():
        return pixel_mse(generator.decode(codes), targets)
