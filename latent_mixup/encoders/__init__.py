"""Encoders: images in [-1, 1] to latent codes of one generator."""

from __future__ import annotations

from pathlib import Path

from latent_mixup.encoders.base import Encoder, load
from latent_mixup.encoders.mlp import MLPEncoder
from latent_mixup.encoders.restyle import ReStyleEncoder
from latent_mixup.generators.base import Generator

__all__ = ["Encoder", "MLPEncoder", "ReStyleEncoder", "load_encoder"]

ARCHITECTURES: dict[str, type[Encoder]] = {"MLPEncoder": MLPEncoder, "ReStyleEncoder": ReStyleEncoder}


def load_encoder(
    name: str | Path,
    generator: Generator,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Encoder:
    """The encoder that ``save_pretrained`` or a training run wrote, on the generator's device.

    Args:
        name: A folder with ``config.json`` and ``model.safetensors``, or ``org/repo[@revision]`` on the Hub.
        generator: The one whose codes the encoder was trained to find.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Where the Hub client keeps its downloads.
        token: For private repositories.
        local_files_only: Do not go online.

    Raises:
        FileNotFoundError: There is nothing of that name.
        FormatError: What is there is not an encoder; the message names file and field.
        ValueError: The encoder belongs to another generator, or to another latent space of this one.
        HubError: The Hub did not give it.
    """
    return load(
        name,
        generator,
        ARCHITECTURES,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
