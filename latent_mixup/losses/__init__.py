"""Losses of an inversion: pixels, features, LPIPS."""

from latent_mixup.losses.base import FeatureLoss, pixel_mse
from latent_mixup.losses.perceptual import LPIPS, PerceptualLoss

__all__ = [
    "LPIPS",
    "FeatureLoss",
    "PerceptualLoss",
    "pixel_mse",
]
