"""Inversion: finding the latent code of a real image."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from latent_mixup.inversion.engine import invert
from latent_mixup.inversion.optimise import optimise_codes
from latent_mixup.inversion.refine import refine
from latent_mixup.losses import LPIPS, FeatureLoss, PerceptualLoss, pixel_mse

_ABOVE = {  # built on inversion, and offered here
    "report": "latent_mixup.quality.report",
    "self_test": "latent_mixup.quality.self_test",
    "train_encoder": "latent_mixup.training.encoder",
}

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
    if name in _ABOVE:
        return getattr(import_module(_ABOVE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
