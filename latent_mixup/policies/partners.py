"""Which rows of the bank a sample is mixed with: ``[k, count]`` rows for ``[k]`` rows.

Each is drawn from an explicit stream, of what :class:`latent_mixup.policies.rows.Rows` knows of the bank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from latent_mixup.policies.rows import Rows


class Partners(Protocol):
    """What a policy asks of its choice of partners."""

    def check(self, bank: Rows) -> None:
        """Raise ``ValueError`` where a row of the bank has no partner."""

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]`` int64, partners of each of ``rows``, ``[k]``."""


@dataclass(frozen=True)
class Anyone:
    """Any row of the bank, the sample's own included: the paper's, and mixup's.

    Example:
        >>> Anyone().draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def check(self, bank: Rows) -> None:
        """Every row has a partner."""

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the bank."""
        return torch.randint(len(bank), (len(rows), count), generator=generator, device=generator.device)


@dataclass(frozen=True)
class SameClass:
    """A row of the sample's own class: only the image is mixed. A soft label is of its likeliest class.

    Example:
        >>> SameClass().draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def check(self, bank: Rows) -> None:
        """Every row has itself."""

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the class."""
        classes = bank.classes[rows][:, None]
        return bank.of_class(classes.expand(-1, count), _uniform(rows, count, generator))


@dataclass(frozen=True)
class OtherClass:
    """A row of any other class than the sample's own.

    Example:
        >>> OtherClass().draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def check(self, bank: Rows) -> None:
        """Raise ``ValueError`` where there is one class alone."""
        if int((bank.class_counts > 0).sum()) < 2:
            raise ValueError("OtherClass needs a bank of at least two classes: got one")

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the rows of all other classes."""
        classes = bank.classes[rows][:, None]
        own = bank.class_counts[classes]
        place = (_uniform(rows, count, generator) * (len(bank) - own)).long()
        return bank.by_class[torch.where(place < bank.class_starts[classes], place, place + own)]


@dataclass(frozen=True)
class ClassPairs:
    """A class by the sample's own, then any row of it.

    Args:
        matrix: Row c: how likely each class is for a sample of class c, from 0; rows need not sum to 1.

    Raises:
        ValueError: The matrix is not square, or has a negative number or a row of zeros.

    Example:
        >>> ClassPairs([[0, 1], [1, 0]]).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", tuple(tuple(map(float, row)) for row in self.matrix))
        size = len(self.matrix)
        if not size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"a class-pair matrix needs to be square: got rows of {[len(r) for r in self.matrix]}")
        for number, row in enumerate(self.matrix):
            if not all(math.isfinite(value) and value >= 0 for value in row) or not any(row):
                raise ValueError(f"row {number} of the class-pair matrix needs numbers from 0, not all 0: got {row}")

    def check(self, bank: Rows) -> None:
        """Raise ``ValueError`` where the bank has other classes, or none of a class that may be drawn."""
        counts = bank.class_counts
        if len(counts) != len(self.matrix):
            raise ValueError(f"the class-pair matrix is of {len(self.matrix)} classes, the bank of {len(counts)}")
        for own in counts.nonzero()[:, 0].tolist():
            for other, weight in enumerate(self.matrix[own]):
                if weight and not counts[other]:
                    raise ValueError(f"the class-pair matrix pairs class {own} with class {other}: the bank has none")

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``: a class each by the matrix, and a row uniform over it."""
        chances = torch.tensor(self.matrix, dtype=torch.float64)[bank.classes[rows]]
        classes = _categories(chances, _uniform(rows, count, generator))
        return bank.of_class(classes, _uniform(rows, count, generator))


def _categories(chances: Tensor, u: Tensor) -> Tensor:
    """The category of each ``u`` ``[k, count]`` in [0, 1), by the inverse of the cumulative ``chances`` ``[k, C]``."""
    edges = chances.cumsum(1)
    return torch.searchsorted(edges, u * edges[:, -1:], right=True)


@dataclass(frozen=True)
class Nearest:
    """The nearest of some drawn candidates, by the distance of their codes: the more of them, the nearer.

    Args:
        candidates: How many are drawn for each partner, from 1.
        among: How they are drawn.

    Raises:
        ValueError: ``candidates`` is below 1.

    Example:
        >>> Nearest(16, OtherClass()).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    candidates: int = 16
    among: Anyone | SameClass | OtherClass | ClassPairs = field(default_factory=OtherClass)

    def __post_init__(self) -> None:
        _check_candidates(self.candidates)

    def check(self, bank: Rows) -> None:
        """As of what they are drawn among."""
        self.among.check(bank)

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``; the sample itself only where nothing else was drawn."""
        found = self.among.draw(rows, count * self.candidates, bank, generator)
        distances = _distances(rows, found, bank).masked_fill(found == rows[:, None], math.inf)
        return _pick(found, -distances, count)


@dataclass(frozen=True)
class Farthest:
    """The farthest of some drawn candidates, by the distance of their codes: the more of them, the farther.

    Args:
        candidates: How many are drawn for each partner, from 1.
        among: How they are drawn.

    Raises:
        ValueError: ``candidates`` is below 1.

    Example:
        >>> Farthest(16).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    candidates: int = 16
    among: Anyone | SameClass | OtherClass | ClassPairs = field(default_factory=OtherClass)

    def __post_init__(self) -> None:
        _check_candidates(self.candidates)

    def check(self, bank: Rows) -> None:
        """As of what they are drawn among."""
        self.among.check(bank)

    def draw(self, rows: Tensor, count: int, bank: Rows, generator: torch.Generator) -> Tensor:
        """``[k, count]``."""
        found = self.among.draw(rows, count * self.candidates, bank, generator)
        return _pick(found, _distances(rows, found, bank), count)


def _distances(rows: Tensor, found: Tensor, bank: Rows) -> Tensor:
    """Euclidean distance of each row's code to those of what was found for it: ``[k, m]``."""
    own, others = bank.codes(rows).flatten(1), bank.codes(found.flatten()).flatten(1)
    distances: Tensor = (others.unflatten(0, found.shape) - own[:, None]).norm(dim=2)
    return distances


def _pick(found: Tensor, scores: Tensor, count: int) -> Tensor:
    """Of each ``candidates`` in a row of ``found`` ``[k, count * candidates]`` the one with the best score."""
    best = scores.unflatten(1, (count, -1)).argmax(2, keepdim=True)
    picked: Tensor = found.unflatten(1, (count, -1)).gather(2, best)
    return picked[:, :, 0]


def _check_candidates(candidates: int) -> None:
    if candidates < 1:
        raise ValueError(f"candidates needs to be at least 1: got {candidates}")


def _uniform(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """In [0, 1), float64: a row of a class of any size is a whole number of this."""
    return torch.rand(len(rows), count, generator=generator, dtype=torch.float64, device=generator.device)
