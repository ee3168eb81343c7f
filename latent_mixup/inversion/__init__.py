"""Inversion: finding the latent code of a real image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_mixup.inversion.engine import invert
from latent_mixup.inversion.optimise import optimise_codes
from latent_mixup.inversion.refine import refine
from latent_mixup.losses.base import FeatureLoss, pixel_mse
from latent_mixup.losses.perceptual import LPIPS, PerceptualLoss
from latent_mixup.quality.report import report
from latent_mixup.quality.self_test import self_test

if TYPE_CHECKING:
    from latent_mixup.training.encoder import train_encoder

__all__ = [
    "LPIPS",
    "FeatureLoss",
    "PerceptualLoss",
    "invert",
    "optimise_codes",
    "pixel_mse",
    "refine",
    "report",
    "self_test",
    "train_encoder",
]


def __getattr__(name: str) -> Any:
    """``train_encoder``, when it is first asked for: training draws sheets and needs what the rest does not."""
    if name == "train_encoder":
        from latent_mixup.training.encoder import train_encoder

        return train_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
