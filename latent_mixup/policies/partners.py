"""Partners: which rows of the bank a sample is mixed with, and the bank as a policy sees it.

Each class has ``check(bank)``, which raises ``ValueError`` where a row of the bank has no partner, and
``draw(rows, count, bank, generator)``: ``count`` partners for each of ``rows`` ``[k]``, int64 ``[k, count]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.policies.neighbours import nearest_rows, searched
from latent_mixup.policies.settings import LATER, Between, Setting

NUM_MEASURED = 4096  # codes, evenly spaced, that mean and spread are computed from
MAX_CANDIDATES = 2**16 - 1
MAX_NEAREST = 1024


class BankView:
    """A bank as a policy sees it: the rows that may be drawn, indexed by class, and the mean and spread of their codes.

    Computed in each process when it is first needed; the neighbours of rows go with a copy to another process.

    Args:
        bank: Every row has a label.
        rows: Rows that may be drawn, int64, ascending, each once; None: all.

    Raises:
        ValueError: ``rows`` are others.
    """

    def __init__(self, bank: LatentBank, rows: Tensor | None = None) -> None:
        if rows is not None and len(rows) and (rows[0] < 0 or rows[-1] >= len(bank) or (rows.diff() <= 0).any()):
            raise ValueError(f"rows needs rows of a bank of {len(bank)}, ascending and each once: got {rows}")
        self.bank, self.rows = bank, rows
        self.num_rows = len(bank) if rows is None else len(rows)
        self._neighbours: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.num_rows

    def __getstate__(self) -> dict[str, Any]:
        """The bank, the rows and their neighbours alone; a worker process computes the rest for itself."""
        return {name: getattr(self, name) for name in ("bank", "rows", "num_rows", "_neighbours")}

    def at(self, places: Tensor) -> Tensor:
        """Rows of the bank at places among those that may be drawn, from 0; of the shape of ``places``."""
        return places if self.rows is None else self.rows[places]

    def codes(self, rows: Tensor) -> Tensor:
        """Codes of rows of the bank, ``[k, *latent_shape]`` float32."""
        return self.bank[rows][0]

    def check_classes(self, who: object) -> None:
        """Raise ``ValueError`` where a row has no single class, which partners by class need."""
        if self.bank.multi_label:
            raise ValueError(
                f"{type(who).__name__} needs one class a row: this bank is multi-label, whose rows may have several; "
                "use partners=Anyone(), or Nearest(among=Anyone())"
            )

    def draw(self, k: int, count: int, generator: torch.Generator) -> Tensor:
        """Rows ``[k, count]``, uniform over those that may be drawn."""
        return self.at(torch.randint(len(self), (k, count), generator=generator, device=generator.device))

    def draw_of_class(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """A row of each class, uniform over the class; int64 of the shape of ``classes``."""
        return self.by_class[
            self.class_starts[classes] + (_uniform(classes, generator) * self.class_counts[classes]).long()
        ]

    def draw_neighbours(self, rows: Tensor, count: int, k: int, generator: torch.Generator) -> Tensor:
        """Rows ``[len(rows), count]``, uniform over the ``k`` nearest of the class of each of ``rows``.

        Raises:
            ValueError: One of ``rows`` is not among those that may be drawn.
        """
        places = self._places(rows)
        others = (self.class_counts[self.classes[rows]] - 1).clamp(1, k)[:, None]
        chosen = (_uniform(rows[:, None].expand(-1, count), generator) * others).long()
        return self.neighbours(k)[places[:, None], chosen].long()

    def neighbours(self, k: int) -> Tensor:
        """The ``k`` nearest rows of its own class for each row that may be drawn, ``[len(self), k]`` int32.

        Nearest by the Euclidean distance of codes, the nearest first; the row itself is there only where its class has
        no other. In a class of fewer rows the last entries have no meaning. Computed once for each ``k``.
        """
        if k not in self._neighbours:
            table = torch.zeros(len(self), k, dtype=torch.int32, device="cpu")
            for label, rows in enumerate(self.by_class.split(self.class_counts.tolist())):
                if len(rows) == 1:
                    table[self._places(rows), 0] = rows.int()
                elif len(rows):
                    width = min(k, len(rows) - 1)
                    found = nearest_rows(rows, searched(rows, label), width, self.codes)
                    table[self._places(rows), :width] = found.int()
            self._neighbours[k] = table
        return self._neighbours[k]

    def _places(self, rows: Tensor) -> Tensor:
        """Places of rows of the bank among those that may be drawn; the opposite of :meth:`at`."""
        if self.rows is None:
            return rows
        places = torch.searchsorted(self.rows, rows.contiguous()).clamp_max(len(self) - 1)
        if (missing := rows[self.rows[places] != rows]).numel():
            raise ValueError(f"neighbours are known of the rows that may be drawn alone: row {int(missing[0])} may not")
        return places

    @cached_property
    def classes(self) -> Tensor:
        """Class of every row of the bank, ``[N]`` int64; the likeliest of a soft label."""
        return self.bank.hard_labels

    @cached_property
    def by_class(self) -> Tensor:
        """Rows that may be drawn, class after class, int64."""
        return self.at((self.classes if self.rows is None else self.classes[self.rows]).argsort(stable=True))

    @cached_property
    def class_counts(self) -> Tensor:
        """Number of rows that may be drawn of each class, ``[num_classes]`` int64."""
        if self.rows is None:
            return self.bank.class_counts
        return self.classes[self.rows].bincount(minlength=self.bank.num_classes)

    @cached_property
    def class_starts(self) -> Tensor:
        """Where each class begins in :attr:`by_class`, ``[num_classes]`` int64."""
        return self.class_counts.cumsum(0) - self.class_counts

    @cached_property
    def mean(self) -> Tensor:
        """Mean code, ``latent_shape`` float32."""
        return self._measured().mean(0)

    @cached_property
    def spread(self) -> Tensor:
        """Standard deviation of each entry of a code, ``latent_shape`` float32."""
        return self._measured().std(0, correction=0)

    def _measured(self) -> Tensor:
        some = torch.linspace(0, len(self) - 1, min(len(self), NUM_MEASURED), dtype=torch.float32, device="cpu").long()
        return self.codes(self.at(some))


@dataclass(frozen=True)
class Anyone(Setting):
    """Any row of the bank, the sample's own included: the paper's, and mixup's.

    Example:
        >>> Anyone().draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def check(self, bank: BankView) -> None:
        """Each row has a partner."""

    def draw(self, rows: Tensor, count: int, bank: BankView, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the bank."""
        return bank.draw(len(rows), count, generator)


@dataclass(frozen=True)
class SameClass(Setting):
    """A row of the sample's own class, so that the image alone is mixed. A soft label counts as its likeliest class.

    With ``nearest``, any of the nearest rows of the class, each as likely, as in SMOTE: distances between all rows of a
    class are computed once, before the first draw, and draws then read no code. Where a class has more than 20,000
    rows, the nearest are looked for among 20,000 of them, the same in every process. ``Nearest(16, SameClass())`` needs
    no such start: it takes the nearest of 16 rows that it draws from the class anew each time, which are seldom
    neighbours.

    Args:
        nearest: Number of rows, by the Euclidean distance of codes, that partners are drawn from, from 1 to 1,024: the
            sample itself is none of them unless its class has no other row, and in a class of fewer rows they are all
            the others. None: any row of the class, the sample's own included.

    Raises:
        ValueError: ``nearest`` is out of its range.

    Reference: SMOTE, Chawla et al. 2002 (arXiv 1106.1813), in the latent space.

    Example:
        >>> SameClass(nearest=5).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    nearest: Annotated[int, Between(1, MAX_NEAREST)] | None = field(default=None, metadata=LATER)

    def check(self, bank: BankView) -> None:
        """Raise ``ValueError`` where rows may have several classes. Finds neighbours, before processes are forked."""
        bank.check_classes(self)
        if self.nearest is not None:
            bank.neighbours(self.nearest)

    def draw(self, rows: Tensor, count: int, bank: BankView, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the class or its nearest rows."""
        if self.nearest is not None:
            return bank.draw_neighbours(rows, count, self.nearest, generator)
        return bank.draw_of_class(bank.classes[rows][:, None].expand(-1, count), generator)


@dataclass(frozen=True)
class OtherClass(Setting):
    """A row of any other class than the sample's own.

    Example:
        >>> OtherClass().draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def check(self, bank: BankView) -> None:
        """Raise ``ValueError`` where there is one class alone, or rows may have several."""
        bank.check_classes(self)
        if int((bank.class_counts > 0).sum()) < 2:
            raise ValueError("OtherClass needs a bank of at least two classes: got one")

    def draw(self, rows: Tensor, count: int, bank: BankView, generator: torch.Generator) -> Tensor:
        """``[k, count]``, uniform over the rows of all other classes."""
        classes = bank.classes[rows][:, None].expand(-1, count)
        own = bank.class_counts[classes]
        place = (_uniform(classes, generator) * (len(bank) - own)).long()
        return bank.by_class[torch.where(place < bank.class_starts[classes], place, place + own)]


@dataclass(frozen=True)
class ClassPairs(Setting):
    """A class drawn by the sample's own class, then any row of it.

    Args:
        matrix: Row c: weight of each class as the partner of class c, from 0; rows need not sum to 1.

    Raises:
        ValueError: The matrix is not square, or has a negative number or a row of zeros.

    Example:
        >>> ClassPairs([[0, 1], [1, 0]]).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        size = len(self.matrix)
        if not size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"a class-pair matrix needs to be square: got rows of {[len(r) for r in self.matrix]}")
        for number, row in enumerate(self.matrix):
            if min(row) < 0 or not any(row):
                raise ValueError(f"row {number} of the class-pair matrix needs numbers from 0, not all 0: got {row}")

    def check(self, bank: BankView) -> None:
        """Raise ``ValueError`` where the bank has other classes, several a row, or no row of one that may be drawn."""
        bank.check_classes(self)
        counts = bank.class_counts
        if len(counts) != len(self.matrix):
            raise ValueError(f"the class-pair matrix is of {len(self.matrix)} classes, the bank of {len(counts)}")
        for own in counts.nonzero()[:, 0].tolist():
            for other, weight in enumerate(self.matrix[own]):
                if weight and not counts[other]:
                    raise ValueError(f"the class-pair matrix pairs class {own} with class {other}: the bank has none")

    def draw(self, rows: Tensor, count: int, bank: BankView, generator: torch.Generator) -> Tensor:
        """``[k, count]``: classes by the matrix, and a row uniform over each."""
        matrix = torch.tensor(self.matrix, dtype=torch.float64, device=rows.device)
        edges = (matrix / matrix.amax(1, keepdim=True))[bank.classes[rows]].cumsum(1)
        u = _uniform(rows[:, None].expand(-1, count), generator)
        return bank.draw_of_class(torch.searchsorted(edges, u * edges[:, -1:], right=True), generator)


@dataclass(frozen=True)
class _ByDistance(Setting):
    """The nearest or farthest of some drawn candidates."""

    candidates: Annotated[int, Between(1, MAX_CANDIDATES)] = 16
    among: Anyone | SameClass | OtherClass | ClassPairs = field(default_factory=OtherClass)

    def check(self, bank: BankView) -> None:
        """Delegates to ``among``."""
        self.among.check(bank)

    def draw(self, rows: Tensor, count: int, bank: BankView, generator: torch.Generator) -> Tensor:
        """``[k, count]``, the best of ``candidates`` each."""
        found = self.among.draw(rows, count * self.candidates, bank, generator)
        own, others = bank.codes(rows).flatten(1), bank.codes(found.flatten()).flatten(1)
        distances = (others.unflatten(0, found.shape) - own[:, None]).norm(dim=2)
        best = self._scores(distances, found == rows[:, None]).unflatten(1, (count, -1)).argmax(2, keepdim=True)
        chosen: Tensor = found.unflatten(1, (count, -1)).gather(2, best).squeeze(2)
        return chosen

    def _scores(self, distances: Tensor, is_own: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Nearest(_ByDistance):
    """The nearest of some drawn candidates by the distance of their codes; more candidates are nearer.

    The sample itself is chosen only where nothing else was drawn. Each draw has candidates of its own: for the nearest
    rows of the whole class, see ``SameClass(nearest=)``.

    Args:
        candidates: Number drawn for each partner, from 1.
        among: How they are drawn.

    Raises:
        ValueError: ``candidates`` is below 1.

    Example:
        >>> Nearest(16, OtherClass()).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def _scores(self, distances: Tensor, is_own: Tensor) -> Tensor:
        return -distances.masked_fill(is_own, math.inf)


@dataclass(frozen=True)
class Farthest(_ByDistance):
    """The farthest of some drawn candidates by the distance of their codes; more candidates are farther.

    Args:
        candidates: Number drawn for each partner, from 1.
        among: How they are drawn.

    Raises:
        ValueError: ``candidates`` is below 1.

    Example:
        >>> Farthest(16).draw(torch.tensor([0, 2]), 1, bank, torch.Generator()).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def _scores(self, distances: Tensor, is_own: Tensor) -> Tensor:
        return distances


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """In [0, 1), float64, so that every row of a large class can be reached; of the shape of ``like``."""
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=generator.device)
