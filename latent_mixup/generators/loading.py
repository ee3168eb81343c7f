"""Loading a generator by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latent_mixup.generators.base import Generator
from latent_mixup.generators.compact import CompactGenerator
from latent_mixup.generators.conv import ConvGenerator
from latent_mixup.generators.dcgan import DCGAN
from latent_mixup.generators.diffusers_vae import DiffusersVAE
from latent_mixup.generators.identity import Identity
from latent_mixup.generators.linear import Linear
from latent_mixup.generators.stylegan2 import StyleGAN2
from latent_mixup.generators.vae import VAE
from latent_mixup.networks import load_network

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from latent_mixup.hub import HubOptions

ARCHITECTURES: dict[str, type[Generator]] = {
    architecture.__name__: architecture
    for architecture in (CompactGenerator, ConvGenerator, DCGAN, DiffusersVAE, Identity, Linear, StyleGAN2, VAE)
}


def load_generator(name: str | Path, *, verify: bool = True, **where: Unpack[HubOptions]) -> Generator:
    """A generator from a folder, by its bundled name, or from the Hugging Face Hub, looked for in this order.

    Args:
        name: A folder; a bundled name such as ``"fashion-mnist"``; or ``org/repo[@revision]``.
        verify: Compare the SHA-256 of the weights with the one that the config, or the Hub's cache, names.
        where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`latent_mixup.hub.HubOptions`.

    Raises:
        FileNotFoundError: There is nothing of that name.
        FormatError: What is there is not a generator; the message names file and field.
        HubError: The Hub did not give it.

    Example:
        >>> load_generator("fashion-mnist").decode(torch.zeros(2, 128)).shape
        torch.Size([2, 1, 28, 28])
    """
    return load_network(name, "generator", ARCHITECTURES, verify=verify, **where)
