"""Loading an encoder by its name."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from latent_mixup.encoders.base import Encoder, load
from latent_mixup.encoders.mlp import MLPEncoder
from latent_mixup.encoders.restyle import ReStyleEncoder
from latent_mixup.generators.base import Generator
from latent_mixup.hub import HubOptions

ARCHITECTURES: dict[str, type[Encoder]] = {"MLPEncoder": MLPEncoder, "ReStyleEncoder": ReStyleEncoder}


def load_encoder(
    name: str | Path, generator: Generator, *, verify: bool = True, **where: Unpack[HubOptions]
) -> Encoder:
    """The encoder that ``save_pretrained`` or a training run wrote, on the generator's device.

    Args:
        name: A folder with ``config.json`` and ``model.safetensors``, or ``org/repo[@revision]`` on the Hub.
        generator: The one whose codes the encoder was trained to find.
        verify: Compare the SHA-256 of the weights with the one that the config, or the Hub's cache, names.
        where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`latent_mixup.hub.HubOptions`.

    Raises:
        FileNotFoundError: There is nothing of that name.
        FormatError: What is there is not an encoder; the message names file and field.
        ValueError: The encoder belongs to another generator, or to another latent space of this one.
        HubError: The Hub did not give it.
    """
    return load(name, generator, ARCHITECTURES, verify=verify, **where)
