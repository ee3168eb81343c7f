"""Samples and batches of every form: dicts, named tuples, further fields; PIL images, arrays and tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from latent_mixup.augment.base import MixSettings, check_dtype, in_kind, is_pair, wrapped
from latent_mixup.images import batch_values, check_finite, check_size, image_key_of, pixel_values, stacked_images
from latent_mixup.labels import (
    Key,
    SampleError,
    describe_sample,
    label_key_of,
    part_of,
    random_states_kept,
    read_label,
    read_labels,
    stacked_labels,
)


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
            SampleError: It is no mapping and no sequence, or has no image or no label.
        """
        if not isinstance(whole, tuple | list | Mapping):
            if not isinstance(whole, Tensor | np.ndarray | Image.Image):
                pixel_values(whole)  # which finds the words
            raise SampleError(f"{what} needs to be (images, labels), or a dict with both: got {describe_sample(whole)}")
        try:
            keys = image_key_of(whole, settings.image_key), label_key_of(whole, settings.label_key)
            if keys[1] is None:
                raise SampleError("no labels")
            for key in keys:
                part_of(whole, key)
        except SampleError as cause:
            raise SampleError(f"{what} needs images and labels: got {describe_sample(whole)}; {cause}") from None
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


# --------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------


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
            SampleError: It has no image or no label, or one that cannot be used.
        """
        fields = self._fields(index)
        image, label = fields.pair
        try:
            values = pixel_values(image, self.img_channels)
            check_dtype(values, normalized=self.settings.moments is not None)
            check_finite(values)
            as_it_is = isinstance(image, Tensor) and (image.shape, image.dtype) == (values.shape, values.dtype)
            return Sample(
                fields, image if as_it_is else values, read_label(label, multi_label=self.settings.multi_label)
            )
        except SampleError as cause:
            raise SampleError(f"sample {index}: {cause}") from None

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
            SampleError: Decoded images have another size than the data set's own.
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


# --------------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------------


def batch_of(given: Any, settings: MixSettings, img_channels: int) -> Any:
    """A batch: ``given`` itself, or made of a list of samples by ``default_collate``.

    That takes neither PIL images nor labels in lists: these become tensors first.

    Args:
        given: A batch, or a list of samples.
        settings: The wrapper's keywords.
        img_channels: Channels of the generator.

    Raises:
        SampleError: A sample has no image or no label, or one that cannot be used, or they differ in size.
    """
    if is_batch(given, settings.image_key):
        return given
    image, label = Fields.of(given[0], settings, "sample 0").pair
    if isinstance(image, Tensor) and not isinstance(label, tuple | list):
        try:
            return default_collate([*given])
        except (TypeError, ValueError, RuntimeError):
            pass  # below it is found which sample is to blame
    own = OwnSamples(given, settings, img_channels)
    read = [own.read(index) for index in range(len(given))]
    stacked_images([sample.image for sample in read])
    stacked_labels([sample.label for sample in read], range(len(read)))
    return default_collate([sample.fields.replaced(sample.image, sample.label) for sample in read])


def is_batch(given: Any, image_key: Key | None) -> bool:
    """Whether this is a batch, a mapping or ``(images, labels)`` of tensors or of lists, and not a list of samples."""
    if not isinstance(given, tuple | list) or not given:
        return True
    if all(isinstance(each, tuple | list | Mapping) for each in given):
        place = image_key if isinstance(image_key, int) else 0
        images = given[place] if place < len(given) else None
        return isinstance(images, tuple | list) and _are_images(images)
    if _are_images(given):
        return False  # samples without a label
    return any(isinstance(each, Tensor | np.ndarray) for each in given)


def _are_images(values: Sequence[Any]) -> bool:
    """Whether a list is one of images, as many axes each; PIL images have none."""
    axes = {0 if isinstance(value, Image.Image) else getattr(value, "ndim", -1) for value in values}
    return len(axes) == 1 and axes <= {0, 2, 3}


def read_batch(images: Any, labels: Any, settings: MixSettings, img_channels: int) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` and labels of a batch, each read as :meth:`OwnSamples.read` reads a sample's.

    Args:
        images: See :func:`latent_mixup.images.batch_values`; those on the CPU need to be finite.
        labels: See :func:`latent_mixup.labels.read_labels`. A list of tensors ``[B]``, one a class, is what
            ``default_collate`` makes of labels in lists.
        settings: The wrapper's keywords.
        img_channels: Channels of the generator.

    Raises:
        SampleError: They are not such images or labels.
    """
    values = batch_values(images, img_channels)
    check_dtype(values, normalized=settings.moments is not None)
    check_finite(values)
    if isinstance(labels, list | tuple) and not isinstance(images, list | tuple) and _are_columns(labels, len(values)):
        labels = torch.stack([*labels], 1)
    return values, read_labels(labels, multi_label=settings.multi_label)


def _are_columns(labels: Sequence[Any], count: int) -> bool:
    return bool(labels) and all(isinstance(each, Tensor) and each.shape == (count,) for each in labels)
