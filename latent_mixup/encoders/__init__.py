"""Encoders: images in [-1, 1] to latent codes of one generator."""

from latent_mixup.encoders.base import Encoder
from latent_mixup.encoders.loading import load_encoder
from latent_mixup.encoders.mlp import MLPEncoder
from latent_mixup.encoders.restyle import ReStyleEncoder

__all__ = ["Encoder", "MLPEncoder", "ReStyleEncoder", "load_encoder"]
