"""Encoders: images in [-1, 1] to latent codes of one generator."""

from __future__ import annotations

from pathlib import Path

from latent_mixup.encoders.base import Encoder, read_encoder
from latent_mixup.encoders.mlp import MLPEncoder
from latent_mixup.encoders.restyle import ReStyleEncoder
from latent_mixup.generators.base import Generator

__all__ = ["Encoder", "MLPEncoder", "ReStyleEncoder", "load_encoder"]

ARCHITECTURES: dict[str, type[Encoder]] = {"MLPEncoder": MLPEncoder, "ReStyleEncoder": ReStyleEncoder}


def load_encoder(folder: str | Path, generator: Generator) -> Encoder:
    """The encoder in a folder that ``save_pretrained`` or a training run wrote, on the generator's device.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        generator: The one whose codes the encoder was trained to find.

    Raises:
        FileNotFoundError: A file is missing.
        FormatError: What is there is not an encoder; the message names file and field.
        ValueError: The encoder belongs to another generator, or to another latent space of this one.
    """
    return read_encoder(Path(folder), generator, ARCHITECTURES)
