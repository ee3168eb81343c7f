"""Inversion: finding the latent code of a real image."""

from latent_mixup.inversion.engine import invert
from latent_mixup.inversion.losses import FeatureLoss, pixel_mse
from latent_mixup.inversion.optimise import optimise_codes

__all__ = ["FeatureLoss", "invert", "optimise_codes", "pixel_mse"]
