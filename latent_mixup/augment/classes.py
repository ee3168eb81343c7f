"""Classes of mixes: the share of each class's samples that become mixes, and own rows of the classes asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.labels import check_labels, hard_labels
from latent_mixup.policies import BankView
from latent_mixup.sampling import draw_slots

Balance: TypeAlias = Literal["batch", "classes"]
ClassShares: TypeAlias = Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
"""A share for each class, by its number or its name."""


class ByClass:
    """Draws which samples of a batch become mixes, and own rows of the classes that ``balance`` asks for.

    Args:
        balance: See :class:`latent_mixup.augment.base.MixKeywords`.
        prob: Share of samples that become mixes, in [0, 1]; or of each class's, where a class that is not named has 0.
        view: The rows that are drawn from.
        num_classes: Number of classes that a batch may have.

    Raises:
        ValueError: ``prob`` names a class that is not there, one twice, or one without a row.
    """

    def __init__(self, balance: Balance, prob: float | ClassShares, view: BankView, num_classes: int) -> None:
        self.balance, self.view, self.num_classes = balance, view, num_classes
        self.counts = F.pad(view.class_counts, (0, num_classes - len(view.class_counts)))
        alike = 0.0 if isinstance(prob, Mapping) else prob
        self.shares = torch.full((num_classes,), alike, dtype=torch.float64, device="cpu")
        for label, share in self._numbered(prob).items() if isinstance(prob, Mapping) else ():
            self.shares[label] = share

    def draw(
        self, batch_size: int, generator: torch.Generator, labels: Tensor | None, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions that become mixes, ``[k]`` int64, sorted; and their own rows of the bank, ``[k]`` int64.

        Args:
            batch_size: Number of samples.
            generator: Random stream.
            labels: Of the batch, ``[batch_size]`` or soft ``[batch_size, num_classes]``; where no ``rows`` are given.
            rows: The samples' own rows, ``[batch_size]``; None: they are drawn.

        Raises:
            ValueError: A label is outside of ``num_classes``, or the bank has no row of a class that is to be mixed.
        """
        if self.balance == "classes":
            classes = self._drawn(batch_size, generator)
        else:
            classes = self._classes_of(labels) if rows is None else self.view.classes[rows]
        slots = draw_slots(batch_size, self.shares[classes], generator)
        return slots, self.view.draw_of_class(classes[slots], generator) if rows is None else rows[slots]

    def shown_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Own rows of mixes of no batch, such as in a picture, ``[count]`` int64; classes by their rows and shares."""
        return self.view.draw_of_class(self._drawn(count, generator), generator)

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Classes ``[count]``: evenly, or as often as rows and shares have it."""
        mixed = self.counts * (self.shares if self.shares.any() else 1)
        weights = (self.counts > 0 if self.balance == "classes" else mixed).double()
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def _classes_of(self, labels: Tensor | None) -> Tensor:
        """The class of each sample of a batch, ``[batch_size]`` int64 on the CPU."""
        assert labels is not None
        check_labels(labels, self.num_classes)
        classes = hard_labels(labels).long().cpu()
        missing = classes[(self.counts[classes] == 0) & (self.shares[classes] > 0)]
        if len(missing):
            raise ValueError(
                f"a mix in the place of a sample of class {self._name(int(missing[0]))} needs a row of that class: "
                "the bank has none that may be mixed; invert images of it, or name other classes alone, "
                "prob={class: share}"
            )
        return classes

    def _numbered(self, prob: ClassShares) -> dict[int, float]:
        """Shares by the number of the class."""
        found: dict[int, float] = {}
        for key, share in prob.items():
            label = self._number(key)
            if label in found:
                raise ValueError(f"prob needs each class once: class {self._name(label)} is there twice")
            if share and not self.counts[label]:
                raise ValueError(
                    f"prob names class {self._name(label)}, of which the bank has no row that may be mixed: leave it "
                    "out, or invert images of it"
                )
            found[label] = share
        return found

    def _number(self, key: int | str) -> int:
        names = self.view.bank.class_names
        labels = [label for label, name in enumerate(names) if name == key] if isinstance(key, str) else [key]
        if len(labels) != 1 or not 0 <= labels[0] < self.num_classes:
            raise ValueError(
                f"prob names class {key!r:.80}: expected a number below {self.num_classes}, or a name that one class "
                f"has: {', '.join(names):.200}"
            )
        return labels[0]

    def _name(self, label: int) -> str:
        names = self.view.bank.class_names
        name = names[label] if label < len(names) else str(label)
        return name if name == str(label) else f"{label} ({name})"
