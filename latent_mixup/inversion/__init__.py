"""Inversion: finding the latent code of a real image."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from latent_mixup.inversion.engine import invert
from latent_mixup.inversion.optimise import optimise_codes
from latent_mixup.inversion.refine import refine
from latent_mixup.losses import LPIPS, FeatureLoss, PerceptualLoss, pixel_mse

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
    """Names from the packages above, imported when they are first asked for."""
    above = {"report": "quality.report", "self_test": "quality.self_test", "train_encoder": "training.encoder"}
    if name in above:
        return getattr(import_module(f"latent_mixup.{above[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
