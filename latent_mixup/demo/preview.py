"""``latent-mixup preview``: what mixes of two chosen classes look like."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.labels import MISSING
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator

LAMS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.15, 0.0)


def class_index(name: str, classes: Sequence[str] | None, num_classes: int) -> int:
    """A class by its number, its name, or an unambiguous beginning of it, in any case.

    Raises:
        ValueError: No class is called that, or several begin with it.
    """
    wanted = name.strip().lower()
    known = [str(label).lower() for label in classes or range(num_classes)]
    if wanted in known:
        return known.index(wanted)
    if wanted.isdigit() and int(wanted) < num_classes:
        return int(wanted)
    starting = [number for number, label in enumerate(known) if wanted and label.startswith(wanted)]
    if len(starting) == 1:
        return starting[0]
    problem = "is the beginning of several classes" if starting else "is no class"
    raise ValueError(f"{name!r} {problem} of this bank: expected one of {', '.join(known)}")


def preview_sheet(
    generator: Generator, bank: LatentBank, pairs: Sequence[tuple[str, str]], *, rows: int = 4, seed: int = 0
) -> bytes:
    """A PNG of mixes of chosen classes: from a code of the first class, on the left, to one of the second.

    Args:
        generator: Decodes the bank's codes.
        bank: Codes and labels, of soft ones the likeliest class; ``metadata["classes"]`` names the classes.
        pairs: Two classes each: names, beginnings of names, or numbers.
        rows: Random pairs of codes shown for each pair of classes.
        seed: Of the choice of codes.

    Raises:
        ValueError: A class is not known, or the bank has no code of it, or no labels at all.
    """
    bank.check(generator)
    if (bank.labels < 0).all():
        bank.check_labelled()
    classes = bank.metadata.get("classes")
    strips, captions = [], []
    for number, pair in enumerate(pairs):
        indices = [class_index(name, classes, bank.num_classes) for name in pair]
        own, other = (
            bank[_rows_of_class(bank, index, rows, keyed_generator("preview", seed, number, side))][0]
            for side, index in enumerate(indices)
        )
        along = torch.stack([mixes(generator, own, other, lam) for lam in LAMS], dim=1)
        strips += list(along)
        captions += [" to ".join(classes[index].lower() if classes else str(index) for index in indices)] * rows
    return png(strips, captions, zoom=3)


def _rows_of_class(bank: LatentBank, label: int, count: int, generator: torch.Generator) -> torch.Tensor:
    of_class = (bank.hard_labels == label).nonzero()[:, 0]
    if not len(of_class):
        known = sorted(set(bank.hard_labels.tolist()) - {MISSING})
        raise ValueError(f"the bank has no code of class {label}: it has {known}")
    return of_class[torch.randint(len(of_class), (count,), generator=generator)]
