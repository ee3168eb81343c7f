"""What a picture of a bank needs: its generator, by what it knows of it, and pairs of rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.generators.loading import load_generator

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from latent_mixup.hub import HubOptions


def find_generator(stated: Mapping[str, Any], folder: Path | None, **where: Unpack[HubOptions]) -> Generator:
    """The generator that a bank's metadata names: on the Hub, beside the bank as ``fit`` puts it, or by its name.

    Args:
        stated: ``bank.metadata["generator"]``.
        folder: The bank's; None: it is in memory.
        where: As for :func:`load_generator`.

    Raises:
        FileNotFoundError: It is in none of these places.
    """
    if stated.get("repo") and stated.get("commit"):
        return load_generator(stated["repo"], **{**where, "revision": stated["commit"]})
    beside = None if folder is None else folder.parent / "generator"
    name = str(stated.get("name") or "")
    try:
        return load_generator(beside if beside is not None and beside.is_dir() else name, **where)
    except FileNotFoundError as cause:
        raise FileNotFoundError(
            f"the bank's generator is not found by what the bank says of it, {name!r:.100}: pass it, "
            "bank.show(generator)"
        ) from cause


def draw_pairs(labels: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows, and as many partners, each of another class than its row where there is one.

    Args:
        labels: Class of each row, ``[N]``.
        count: Number of pairs; fewer where there are fewer rows.
        draw: Random stream on the CPU.
    """
    order = torch.randperm(len(labels), generator=draw, device="cpu")
    partners = []
    for number, row in enumerate(order[:count]):
        others = order.roll(-count - number)
        partners.append(others[(labels[others] != labels[row]).int().argmax()])
    return order[:count], torch.stack(partners)
