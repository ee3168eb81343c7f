"""A learnt density of latent codes: draws new codes, and brings codes between classes back to likely ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_FREQUENCY = 32.0  # of the embedding of t, in half turns


class CodeFlow(nn.Module):
    """A rectified flow on codes ``[B, latent_dim]`` whose numbers are about as large as a standard normal's.

    The network predicts the velocity ``noise - code`` at ``x_t = (1 - t) * code + t * noise``. Following it from
    ``t = 1`` to ``t = 0`` turns noise into a code.

    Args:
        latent_dim: Numbers in a code.
        width: Hidden numbers of each block.
        blocks: Residual blocks.

    Reference: Liu et al., "Flow Straight and Fast" (2023), equation 1; Lipman et al., "Flow Matching" (2023).

    Example:
        >>> CodeFlow(8)(torch.zeros(2, 8), torch.zeros(2)).shape
        torch.Size([2, 8])
    """

    def __init__(self, latent_dim: int, width: int = 512, blocks: int = 3) -> None:
        super().__init__()
        self.frequencies: Tensor
        steps = torch.linspace(0, math.log(MAX_FREQUENCY), 16, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", math.pi * steps.exp(), persistent=False)
        self.time = nn.Linear(2 * len(steps), width)
        self.enter = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latent_dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at ``x``, ``[B, latent_dim]``, and time ``t``, ``[B]`` in [0, 1]; as ``x``."""
        turns = t[:, None] * self.frequencies
        when = self.time(torch.cat([turns.sin(), turns.cos()], dim=1))
        hidden = self.enter(x) + when
        for block in self.blocks:
            hidden = hidden + block(hidden + when)
        velocity: Tensor = self.leave(hidden)
        return velocity

    def loss(self, codes: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the velocity; ``codes`` and ``noise`` ``[B, latent_dim]``, ``t`` ``[B]``; a scalar."""
        times = t[:, None]
        velocity: Tensor = self((1 - times) * codes + times * noise, t)
        return (velocity - (noise - codes)).square().mean()

    def denoise(self, x: Tensor, t: Tensor, steps: int) -> Tensor:
        """Follow the velocity from time ``t`` to 0 in equal steps of Heun's method.

        Args:
            x: ``[B, latent_dim]``.
            t: Where each starts, ``[B]`` in [0, 1]; one that starts at 0 stays as it is.
            steps: Their number.

        Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022),
        algorithm 1.
        """
        length = t[:, None] / steps
        for step in range(steps):
            velocity = self(x, t * (1 - step / steps))
            ahead = x - length * velocity
            x = x - length / 2 * (velocity + self(ahead, t * (1 - (step + 1) / steps)))
        return x
