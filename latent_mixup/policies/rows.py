"""What a policy knows of a bank: the class of each row, the rows of each class, where codes lie and how far apart."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank

NUM_LOOKED_AT = 4096  # codes, evenly spaced, that mean and spread are taken of


class Rows:
    """A bank as a policy sees it; each process finds for itself what it needs.

    Args:
        bank: Every row of it has a label.
    """

    def __init__(self, bank: LatentBank) -> None:
        self.bank = bank

    def __len__(self) -> int:
        return len(self.bank)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to a worker process does not grow with the bank."""
        return {"bank": self.bank}

    def codes(self, rows: Tensor) -> Tensor:
        """Codes of some rows, ``[k, *latent_shape]`` float32."""
        return self.bank[rows][0]

    @cached_property
    def classes(self) -> Tensor:
        """Class of each row, ``[N]`` int64; of a soft label the likeliest."""
        return self.bank.hard_labels

    @cached_property
    def by_class(self) -> Tensor:
        """All rows, those of class 0 first, ``[N]`` int64."""
        return self.classes.argsort(stable=True)

    @cached_property
    def class_counts(self) -> Tensor:
        """How many rows each class has, ``[num_classes]`` int64."""
        return self.bank.class_counts

    @cached_property
    def class_starts(self) -> Tensor:
        """Where each class begins in :attr:`by_class`, ``[num_classes]`` int64."""
        return self.class_counts.cumsum(0) - self.class_counts

    def of_class(self, classes: Tensor, u: Tensor) -> Tensor:
        """A row of each class, the one that ``u`` in [0, 1) points at."""
        return self.by_class[self.class_starts[classes] + (u * self.class_counts[classes]).long()]

    @cached_property
    def mean(self) -> Tensor:
        """The mean code, ``latent_shape`` float32."""
        return self._looked_at.mean(0)

    @cached_property
    def spread(self) -> Tensor:
        """Standard deviation of each entry of a code, ``latent_shape`` float32."""
        return self._looked_at.std(0, correction=0)

    @property
    def _looked_at(self) -> Tensor:
        return self.codes(torch.linspace(0, len(self) - 1, min(len(self), NUM_LOOKED_AT), device="cpu").long())
