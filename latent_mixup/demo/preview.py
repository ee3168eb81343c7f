"""``latent-mixup preview``: mixes of chosen classes as a picture."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence

import torch

from latent_mixup.augment.sources import pair_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.labels import MISSING
from latent_mixup.pictures import strip_sheet
from latent_mixup.sampling import keyed_generator

LAMS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.15, 0.0)
NAME_LENGTH = 40  # of a class in a caption


def class_index(wanted: str, names: Sequence[str]) -> int:
    """A class by its name, in any case, or its number.

    Raises:
        ValueError: No class has this name or number, or several have it that differ in case alone.
    """
    exact = wanted.strip()
    if exact in names:
        return list(names).index(exact)
    same = [number for number, name in enumerate(names) if name.lower() == exact.lower()]
    if len(same) == 1:
        return same[0]
    if exact.isdecimal() and int(exact) < len(names):
        return int(exact)
    known = textwrap.shorten(", ".join(names), 400, placeholder=" ...")
    if same:
        raise ValueError(f"{exact!r} is the name of several classes, in other cases: use one of the numbers {same}")
    lower = [name.lower() for name in names]
    begin = [name for name in lower if exact and name.startswith(exact.lower())]
    near = begin or difflib.get_close_matches(exact.lower(), lower, 1)
    meant = f": did you mean {' or '.join(map(repr, near[:3]))}?" if near else ":"
    raise ValueError(f"no class of this bank is called {exact!r}{meant} expected a name or a number, of {known}")


def preview_sheet(
    generator: Generator, bank: LatentBank, pairs: Sequence[Sequence[str | int]], *, rows: int = 4, seed: int = 0
) -> bytes:
    """A PNG of mixes of chosen classes: from a code of the first class, on the left, to one of the second.

    Args:
        generator: Decodes the bank's codes.
        bank: Codes and labels; a soft label counts as its likeliest class. ``metadata["classes"]`` names the classes.
        pairs: Two classes each: names, in any case, or numbers.
        rows: Random pairs of codes shown for each pair of classes.
        seed: Seed of the choice of codes.

    Raises:
        TypeError: ``generator`` or ``bank`` is another kind of object.
        ValueError: A class is not known, or the bank has no code of it, or no labels at all.
    """
    generator, bank = pair_of(generator, bank)
    if not pairs or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise ValueError(f'pairs needs two classes each, such as [("sneaker", "shirt")]: got {pairs!r:.80}')
    bank.check(generator)
    if (bank.labels < 0).all():
        bank.check_labelled()
    names = bank.class_names
    codes, captions = [], []
    for number, pair in enumerate(pairs):
        indices = [class_index(str(name), names) for name in pair]
        codes.append(
            [
                bank[_rows_of_class(bank, index, rows, keyed_generator("preview", seed, number, side))][0]
                for side, index in enumerate(indices)
            ]
        )
        first, second = (textwrap.shorten(names[index].lower(), NAME_LENGTH, placeholder=" ...") for index in indices)
        captions += [f"{first} to {second}"] * rows
    own, other = (torch.cat(side) for side in zip(*codes, strict=True))
    return strip_sheet(generator, own, other, captions, LAMS)


def _rows_of_class(bank: LatentBank, label: int, count: int, generator: torch.Generator) -> torch.Tensor:
    of_class = (bank.hard_labels == label).nonzero()[:, 0]
    if not len(of_class):
        known = sorted(set(bank.hard_labels.tolist()) - {MISSING})
        raise ValueError(f"the bank has no code of class {label}: it has {known}")
    return of_class[torch.randint(len(of_class), (count,), generator=generator, device="cpu")]
