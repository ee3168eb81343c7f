"""Distances in the features of a trained network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_mixup.losses.base import pixel_mse
from latent_mixup.networks import eval_mode


class FeatureLoss(nn.Module):
    """MSE of a trained network's features plus ``pixel_weight`` times the pixel MSE.

    Args:
        features: Images ``[B, C, H, W]`` in [-1, 1] to features of any shape. Its parameters are frozen in place, and
            it runs in eval mode whatever mode its owner sets.
        pixel_weight: Weight of the pixel MSE. The paper's experiments use 0; features alone do not determine the
            brightness of flat areas.

    Reference: Latent-Mixup, section 2.1.1 (features after conv 2 and the pool).
    """

    def __init__(self, features: nn.Module, pixel_weight: float = 1.0) -> None:
        super().__init__()
        self.features, self.pixel_weight = features.requires_grad_(False).eval(), pixel_weight

    @property
    def loss_name(self) -> str:
        """Name in a bank's metadata."""
        return f"features + {self.pixel_weight:g} mse"

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """``[B, C, H, W]`` twice to ``[B]``."""
        return self.compare(images, self.embed(targets))

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """Features of the targets, and the targets."""
        with torch.no_grad(), eval_mode(self.features):
            return self.features(targets), targets

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Images ``[B, C, H, W]`` against the result of :meth:`embed`: ``[B]``."""
        features, targets = embedded
        with eval_mode(self.features):
            found = self.features(images)
        return pixel_mse(found, features) + self.pixel_weight * pixel_mse(images, targets)
