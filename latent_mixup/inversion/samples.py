"""Samples of any data set as images in [-1, 1] and labels, or a clear error."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from latent_mixup.generators.base import Generator, check_generator
from latent_mixup.images import (
    ColoursError,
    ImageFormat,
    Moments,
    check_loader,
    detect_format,
    image_key_of,
    pixel_values,
)
from latent_mixup.labels import Key, SampleError, label_key_of, names_of, part_of, read_label

NUM_PROBES = 16
MAX_TEXT = 300  # characters of an image's error
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE}  # not the image's fault


@dataclass(frozen=True)
class SampleFormat:
    """The form of the samples of one data set, found once and used for each of them.

    Attributes:
        images: How pixel values become [-1, 1].
        image_key: Place of the image in a sample; None: the sample is the image.
        label_key: Place of the label; None: there is none.
        num_classes: Entries of a soft label; None: labels are integers, or missing.
        multi_label: Whether a sample may have several classes or none, so that its label need not sum to 1.
    """

    images: ImageFormat
    image_key: Key | None = None
    label_key: Key | None = None
    num_classes: int | None = None
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values; :meth:`from_dict` reads them."""
        keys = {"image_key": self.image_key, "label_key": self.label_key, "num_classes": self.num_classes}
        return {"images": self.images.to_dict(), **keys} | ({"multi_label": True} if self.multi_label else {})

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> SampleFormat:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**stated, "images": ImageFormat(**stated["images"])})


@dataclass(frozen=True)
class Samples:
    """The readable ones of some samples, and the errors of the others.

    Attributes:
        images: ``[B, C, H, W]`` float32 in [-1, 1], on the generator's device.
        labels: ``[B]`` int64, -1 where there is none; or soft, ``[B, num_classes]`` float32.
        index: Index of each in the data set, ``[B]`` int64.
        errors: Index to one line, for each image that is set aside.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    errors: dict[int, str] = field(default_factory=dict)


def probe(
    dataset: Any,
    generator: Generator,
    *,
    num_images: int = NUM_PROBES,
    mean: Moments | None = None,
    std: Moments | None = None,
    image_key: Key | None = None,
    label_key: Key | None = None,
    multi_label: bool = False,
) -> tuple[SampleFormat, Samples]:
    """Find the form of a data set by its first samples, and whether they can be used, before anything is written.

    A sample is a mapping, with image and label under one of their usual names; a tuple or list
    ``(image, label, ...)``; or an image alone. Torch's global random state stays as it is.

    Args:
        dataset: Has ``len(dataset)`` and ``dataset[i]``.
        generator: Determines channels and size of the images.
        num_images: Number of samples to look at.
        mean: See :func:`latent_mixup.images.detect_format`, as for ``std``.
        std: Standard deviation.
        image_key: Place of the image in a sample: a name, or a number in a tuple; None: found.
        label_key: Place of the label, likewise.
        multi_label: Whether labels are ``[num_classes]`` numbers in [0, 1] of any sum.

    Returns:
        The form of the samples, and the first of them.

    Raises:
        TypeError: One of the arguments is something else, such as a ``DataLoader``.
        SampleError: None of the images can be used, one has colours and the generator none, or a label is not a class.
        ValueError: The range of the images cannot be told.
    """
    check_arguments(dataset, generator)
    if num_images < 1:
        raise ValueError(f"num_images needs to be at least 1: got {num_images}")
    held: dict[int, Any] = {}
    errors: dict[int, str] = {}
    with torch.random.fork_rng(devices=[]):
        for index in range(min(num_images, len(dataset))):
            try:
                held[index] = dataset[index]
            except Exception as error:
                errors[index] = one_line(error)
    if not held:
        raise _unusable(errors)
    structures = [_structure(sample) for sample in held.values()]
    typical = list(held.values())[structures.index(mode(structures))]
    image_key, label_key = image_key_of(typical, image_key), label_key_of(typical, label_key)
    values: dict[int, Tensor] = {}
    for index, sample in held.items():
        try:
            check_loader(dataset, index)
            values[index] = pixel_values(part_of(sample, image_key), generator.img_channels)
        except Exception as error:
            _raise_unless_of_image(error)
    images = detect_format(values.values(), mean, std, img_channels=generator.img_channels) if values else ImageFormat()
    first = next(iter(values or held))
    label = _label(_label_part(held[first], label_key, first), first, multi_label)
    format = SampleFormat(images, image_key, label_key, len(label) if label.ndim else None, multi_label)
    samples = read_samples(held, list(held), generator, format, probed=dataset)
    errors.update(samples.errors)
    if not len(samples.index):
        raise _unusable(errors)
    return format, replace(samples, errors=errors)


def stated_format(metadata: Mapping[str, Any], dataset: Any, generator: Generator) -> SampleFormat:
    """The form of a bank's data set: ``bank.metadata["samples"]``, or else found by its first samples.

    Raises:
        ValueError: The metadata are not those of :func:`latent_mixup.invert`, or as for :func:`probe`.
    """
    if (stated := metadata.get("samples")) is None:
        return probe(dataset, generator, multi_label=metadata.get("multi_label", False))[0]
    try:
        return SampleFormat.from_dict(stated)
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise ValueError(
            f"metadata['samples'] of the bank needs the form that invert writes: got {stated!r:.100}; remove it, and "
            "the samples are read as they look"
        ) from cause


def read_samples(
    dataset: Any, indices: Iterable[int], generator: Generator, format: SampleFormat, *, probed: Any = None
) -> Samples:
    """Read some samples; an image that cannot be used is set aside with its error.

    The result for a sample depends on itself and the format alone. Errors that are not the image's fault, such as
    too little memory or too many open files, are raised.

    Args:
        dataset: Has ``dataset[i]``.
        indices: Samples to read.
        generator: Determines channels, size and device of the images.
        format: Form of the samples.
        probed: The data set itself, where ``dataset`` holds its first samples. A colour image among them for a grey
            generator is an error: all would be set aside.

    Raises:
        SampleError: A label is not a class, or of another kind than the format says; with its index.
    """
    size = generator.image_shape
    images, labels, read = [], [], []
    errors: dict[int, str] = {}
    for index in indices:
        try:
            sample = dataset[index]
            check_loader(dataset if probed is None else probed, index)
            image = format.images.convert(part_of(sample, format.image_key), size)
        except Exception as error:
            if probed is not None and isinstance(error, ColoursError):
                raise SampleError(f"image {index}: {error}") from None
            errors[index] = one_line(error)
            continue
        label = _label(_label_part(sample, format.label_key, index), index, format.multi_label)
        found = len(label) if label.ndim else None
        if found != format.num_classes:
            raise SampleError(
                f"the data set needs labels of one kind, here {_kind(format.num_classes)}: "
                f"got {_kind(found)} at index {index}"
            )
        images.append(image)
        labels.append(label)
        read.append(index)
    no_images = torch.empty(0, *size, dtype=torch.float32, device="cpu")
    none = torch.empty(0, dtype=torch.int64, device="cpu")
    if format.num_classes is not None:
        none = torch.empty(0, format.num_classes, dtype=torch.float32, device="cpu")
    return Samples(
        images=(torch.stack(images) if images else no_images).to(generator.device),
        labels=torch.stack(labels) if labels else none,
        index=torch.tensor(read, dtype=torch.int64, device="cpu"),
        errors=errors,
    )


def class_names(dataset: Any, format: SampleFormat) -> list[str] | None:
    """The names of the classes, where the data set has them: torchvision's ``classes``, a Hub data set's features.

    A ``Subset`` or ``ConcatDataset`` has those of what it is made of; a ``target_transform`` makes classes of its own.
    """
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset, format)
    if isinstance(dataset, ConcatDataset):
        parts = [class_names(part, format) for part in dataset.datasets]
        return parts[0] if all(part == parts[0] for part in parts) else None
    names = getattr(dataset, "classes", None)
    if names is None and isinstance(features := getattr(dataset, "features", None), Mapping):
        names = getattr(features.get(format.label_key), "names", None)
    if not names or getattr(dataset, "target_transform", None) is not None:
        return None
    return [str(name) for name in names]


def check_arguments(dataset: Any, generator: Any) -> None:
    """Raise if a data set or a generator is something else, with what to pass instead.

    Raises:
        TypeError: One of them has another type.
        ValueError: The data set is empty, or several in a dict.
    """
    if isinstance(dataset, Generator) and not isinstance(generator, Generator):
        raise TypeError(
            f"the data set comes before the generator, such as invert(dataset, generator): got "
            f"({type(dataset).__name__}, {type(generator).__name__})"
        )
    check_generator(generator)
    if isinstance(dataset, Mapping):
        raise ValueError(f"one data set is needed: got a dict of {list(dataset.keys())!r:.100}, choose one of them")
    if isinstance(dataset, str | Path):
        raise TypeError(
            f"a data set is needed: got {type(dataset).__name__} {str(dataset)!r:.100}; open it first, such as "
            "latent_mixup.images.open_folder(path)"
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"a data set needs len(dataset) and dataset[i]: got {type(dataset).__name__}; "
            "for a DataLoader pass loader.dataset, for a stream a list"
        )
    if not len(dataset):
        raise ValueError("the data set is empty: there is nothing to invert")


# --------------------------------------------------------------------------------------------------
# One sample
# --------------------------------------------------------------------------------------------------


def _structure(sample: Any) -> tuple[Any, ...] | int | None:
    """The keys of a mapping, or the number of parts; None for an image alone."""
    if isinstance(sample, Mapping):
        return tuple(names_of(sample))
    return len(sample) if isinstance(sample, tuple | list) else None


def _label_part(sample: Any, key: Key | None, index: int) -> Any:
    try:
        return None if key is None else part_of(sample, key)
    except SampleError as error:
        raise SampleError(f"the label of sample {index}: {error}") from error


def _label(value: Any, index: int, multi_label: bool) -> Tensor:
    """A class as int64 ``[]``, -1 for None; a soft label as float32 ``[num_classes]``."""
    try:
        return read_label(value, multi_label=multi_label)
    except SampleError as error:
        raise SampleError(f"{error}; the label {value!r:.100} at index {index}") from None


def _kind(num_classes: int | None) -> str:
    return "integers (-1 or None: missing)" if num_classes is None else f"soft ones of {num_classes} classes"


def _unusable(errors: Mapping[int, str]) -> SampleError:
    index = min(errors)
    return SampleError(f"none of the first {len(errors)} images can be used; image {index}: {errors[index]}")


def one_line(error: Exception) -> str:
    """The text of an image's error; an error that is not the image's fault is raised."""
    _raise_unless_of_image(error)
    text = " ".join(str(error).split())[:MAX_TEXT]
    return text if text and isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"


def _raise_unless_of_image(error: Exception) -> None:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        raise error
