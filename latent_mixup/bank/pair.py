"""A generator and the bank that belongs to it, by one name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latent_mixup import hub
from latent_mixup.bank.bank import LatentBank
from latent_mixup.generators import Generator, load_generator

if TYPE_CHECKING:
    from typing_extensions import Unpack


def load(name: str | Path, *, verify: bool = True, **where: Unpack[hub.HubOptions]) -> tuple[Generator, LatentBank]:
    """A generator and its bank: of a bundled name, a folder that ``fit`` made, or a bank on the Hugging Face Hub.

    Args:
        name: Such as ``"fashion-mnist"``, ``"my-run"`` or ``"org/bank[@revision]"``. A bank on the Hub names the
            repository and commit of its generator.
        verify: Compare the SHA-256 of the generator's weights with the one that its config names.
        where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`latent_mixup.hub.HubOptions`.

    Raises:
        FileNotFoundError: There is nothing of that name, or the bank does not say where its generator is.
        FormatError: What is there is damaged.
        ValueError: The two do not belong together.

    Example:
        >>> generator, bank = load("fashion-mnist")
        >>> bank.latent_shape == generator.latent_shape
        True
    """
    bank = LatentBank.from_pretrained(name, **where)
    if hub.is_hub_id(str(name)) and not Path(name).exists():
        stated = bank.metadata.get("generator") or {}
        if not (stated.get("repo") and stated.get("commit")):
            raise FileNotFoundError(
                f"the bank {str(name)!r} does not name the repository of its generator: load the two one by one, with "
                "latent_mixup.LatentBank.from_pretrained and latent_mixup.load_generator"
            )
        where = {**where, "revision": stated["commit"]}
        generator = load_generator(stated["repo"], verify=verify, **where)
    else:
        generator = load_generator(name, verify=verify, **where)
    bank.check(generator)
    return generator, bank


def list_pretrained() -> list[str]:
    """The names of the pairs that come with the package, sorted.

    Example:
        >>> list_pretrained()
        ['cifar10', 'fashion-mnist', 'mnist']
    """
    return sorted({*hub.bundled_names("generator")} & {*hub.bundled_names("bank")})
