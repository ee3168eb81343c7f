"""Losses of inversion (pixels, features, LPIPS) and of robust training."""

from latent_mixup.losses.base import pixel_mse
from latent_mixup.losses.features import FeatureLoss
from latent_mixup.losses.perceptual import LPIPS, PerceptualLoss
from latent_mixup.losses.trades import trades

__all__ = [
    "LPIPS",
    "FeatureLoss",
    "PerceptualLoss",
    "pixel_mse",
    "trades",
]
