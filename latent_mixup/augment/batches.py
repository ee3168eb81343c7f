"""Batches that are more than a pair: dicts, named tuples, further fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from latent_mixup.augment.base import MixSettings
from latent_mixup.images import image_key_of
from latent_mixup.labels import Key, describe_sample, label_key_of, part_of


def fields_of(batch: Any, settings: MixSettings) -> Fields:
    """Where a batch has its images and labels: see :meth:`Fields.of`."""
    return Fields.of(batch, settings.image_key, settings.label_key)


@dataclass(frozen=True)
class Fields:
    """A batch, and where its images and labels are.

    Attributes:
        batch: A mapping, tuple, list or named tuple.
        image_key: A name, or a number in a tuple.
        label_key: Likewise.
    """

    batch: Any
    image_key: Key
    label_key: Key

    @classmethod
    def of(cls, batch: Any, image_key: Key | None = None, label_key: Key | None = None) -> Fields:
        """The fields of a batch; None: those with the usual names, or the first two.

        Raises:
            TypeError: It is no mapping and no sequence, or has no images or no labels.
        """
        if not isinstance(batch, tuple | list | Mapping):
            raise TypeError(f"a batch needs to be (images, labels), or a dict with both: got {describe_sample(batch)}")
        try:
            keys = image_key_of(batch, image_key), label_key_of(batch, label_key)
            if keys[1] is None:
                raise ValueError("no labels")
            for key in keys:
                part_of(batch, key)
        except ValueError as cause:
            raise TypeError(f"a batch needs images and labels: got {describe_sample(batch)}; {cause}") from None
        assert keys[0] is not None
        return cls(batch, keys[0], keys[1])

    @property
    def pair(self) -> tuple[Any, Any]:
        """Images and labels."""
        return self.batch[self.image_key], self.batch[self.label_key]

    def replaced(self, images: Any, targets: Any) -> Any:
        """The batch with these in the place of its images and labels; its other fields are the same objects."""
        if isinstance(self.batch, Mapping):
            changed: Any = copy.copy(self.batch)
            changed[self.image_key], changed[self.label_key] = images, targets
            return changed
        parts = list(self.batch)
        for key, values in ((self.image_key, images), (self.label_key, targets)):
            parts[cast(int, key)] = values  # a name would have been refused
        if hasattr(self.batch, "_fields"):
            return type(self.batch)(*parts)
        return type(self.batch)(parts)
