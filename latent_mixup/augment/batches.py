"""Samples and batches of every form: dicts, named tuples, further fields; PIL images, arrays and tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.utils.data import default_collate

from latent_mixup.augment.base import MixSettings, check_dtype, in_kind, is_pair, wrapped
from latent_mixup.images import check_size, image_key_of, pixel_values
from latent_mixup.labels import Key, describe_sample, label_key_of, part_of, random_states_kept, read_label


@dataclass(frozen=True)
class Fields:
    """A sample or a batch, and where its image and label are.

    Attributes:
        whole: A mapping, tuple, list or named tuple.
        image_key: A name, or a number in a tuple.
        label_key: Likewise.
    """

    whole: Any
    image_key: Key
    label_key: Key

    @classmethod
    def of(cls, whole: Any, settings: MixSettings, what: str = "a batch") -> Fields:
        """The fields that ``image_key`` and ``label_key`` name; else those with the usual names, or the first two.

        Args:
            whole: A sample or a batch.
            settings: The wrapper's keywords.
            what: For the error.

        Raises:
            TypeError: It is no mapping and no sequence, or has no image or no label.
        """
        if not isinstance(whole, tuple | list | Mapping):
            raise TypeError(f"{what} needs to be (images, labels), or a dict with both: got {describe_sample(whole)}")
        try:
            keys = image_key_of(whole, settings.image_key), label_key_of(whole, settings.label_key)
            if keys[1] is None:
                raise ValueError("no labels")
            for key in keys:
                part_of(whole, key)
        except ValueError as cause:
            raise TypeError(f"{what} needs images and labels: got {describe_sample(whole)}; {cause}") from None
        assert keys[0] is not None
        return cls(whole, keys[0], keys[1])

    @property
    def pair(self) -> tuple[Any, Any]:
        """Image and label, or those of a batch."""
        return self.whole[self.image_key], self.whole[self.label_key]

    def replaced(self, image: Any, target: Any) -> Any:
        """The whole with these in the place of image and label; its other fields are the same objects."""
        if isinstance(self.whole, Mapping):
            changed: Any = copy.copy(self.whole)
            changed[self.image_key], changed[self.label_key] = image, target
            return changed
        parts = list(self.whole)
        for key, values in ((self.image_key, image), (self.label_key, target)):
            parts[cast(int, key)] = values  # a name would have been refused
        if hasattr(self.whole, "_fields"):
            return type(self.whole)(*parts)
        return type(self.whole)(parts)


def is_batch(value: Any, image_key: Key | None) -> bool:
    """Whether this is a batch, ``(images, labels)`` or a mapping of both, and not a list of samples."""
    if isinstance(value, Mapping):
        return True
    place = image_key if isinstance(image_key, int) else 0
    return isinstance(value, tuple | list) and len(value) > place and getattr(value[place], "ndim", 0) == 4


@dataclass(frozen=True)
class Sample:
    """One sample of a data set.

    Attributes:
        fields: All of it.
        image: ``[C, H, W]``, uint8 or float: a tensor as the data set gives it; PIL images and arrays become tensors.
        label: See :func:`latent_mixup.labels.read_label`.
    """

    fields: Fields
    image: Tensor
    label: Tensor


class OwnSamples:
    """The samples of a data set, and mixes in their place: the same kind of image, and the same further fields.

    Args:
        dataset: ``dataset[i]`` is ``(image, label, ...)``, a named tuple, or a mapping with both. An image is as in
            :func:`latent_mixup.images.pixel_values`, and comes out as a tensor ``[C, H, W]``, float or uint8.
        settings: The wrapper's keywords.
        img_channels: Channels of decoded images.
    """

    def __init__(self, dataset: Any, settings: MixSettings, img_channels: int) -> None:
        self.dataset, self.settings, self.img_channels = dataset, settings, img_channels
        self._first: Sample | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Each process reads a first sample for itself."""
        return {**self.__dict__, "_first": None}

    def read(self, index: int) -> Sample:
        """Sample ``index``.

        Raises:
            TypeError: It has no image or no label, or one of another kind.
            ValueError: Its image or its label is not as it needs to be.
        """
        fields = self._fields(index)
        image, label = fields.pair
        try:
            values = pixel_values(image, self.img_channels)
            check_dtype(values, normalized=self.settings.moments is not None)
            as_it_is = isinstance(image, Tensor) and (image.shape, image.dtype) == (values.shape, values.dtype)
            return Sample(
                fields, image if as_it_is else values, read_label(label, multi_label=self.settings.multi_label)
            )
        except (TypeError, ValueError) as cause:
            raise type(cause)(f"sample {index}: {cause}") from None

    def replaced(self, sample: Sample, target: Any) -> Any:
        """A sample with another target."""
        if is_pair(sample.fields.whole, self.settings):
            return sample.image, target
        return sample.fields.replaced(sample.image, target)

    def mixes(self, indices: Sequence[int], decoded: Tensor, targets: Sequence[Any]) -> list[Any]:
        """Mixes in the place of some samples.

        A data set of pairs is asked for one sample alone, by which the kind of its images is known; one with further
        fields for each.

        Args:
            indices: Of the samples, at least one.
            decoded: ``[k, C, H, W]`` float in [-1, 1].
            targets: k of them.

        Raises:
            ValueError: Decoded images have another size than the data set's own.
        """
        if self._first is None:
            with random_states_kept():  # a look that leaves no trace in the data set's augmentation
                self._first = self.read(indices[0])
        like = self._first.image
        images = in_kind(decoded, like)
        check_size(like[None], images)
        pairs = zip((wrapped(image, like) for image in images), targets, strict=True)
        if is_pair(self._first.fields.whole, self.settings):
            return list(pairs)
        return [self._fields(index).replaced(*pair) for index, pair in zip(indices, pairs, strict=True)]

    def _fields(self, index: int) -> Fields:
        return Fields.of(self.dataset[index], self.settings, f"sample {index}")


def collated(samples: Sequence[Any], settings: MixSettings, img_channels: int) -> Any:
    """A batch by ``default_collate``, which takes neither PIL images nor labels in lists: these become tensors."""
    image, label = Fields.of(samples[0], settings).pair
    if isinstance(image, Tensor) and not isinstance(label, tuple | list):
        return default_collate([*samples])
    own = OwnSamples(samples, settings, img_channels)
    read = [own.read(index) for index in range(len(samples))]
    return default_collate([sample.fields.replaced(sample.image, sample.label) for sample in read])
