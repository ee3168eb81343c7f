"""Inversion losses: pixels, features, LPIPS."""

from latent_mixup.losses.base import pixel_mse
from latent_mixup.losses.features import FeatureLoss
from latent_mixup.losses.perceptual import LPIPS, PerceptualLoss

__all__ = [
    "LPIPS",
    "FeatureLoss",
    "PerceptualLoss",
    "pixel_mse",
]
