"""Reading what is to be inverted: samples of any data set as images in [-1, 1] and labels, or a clear error."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import mode
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.images import ImageFormat, Moments, detect_format, pixel_values
from latent_mixup.labels import LABEL_KEYS, MISSING, read_label

NUM_PROBES = 16
IMAGE_KEYS = ("image", "img", "pixel_values", "images", "jpg", "jpeg", "png", "webp")
MAX_TEXT = 300  # of an image's error
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE}  # no image's fault

Key: TypeAlias = str | int


@dataclass(frozen=True)
class SampleFormat:
    """What the samples of one data set are: told once, then used for each of them.

    Attributes:
        images: How pixel values become [-1, 1].
        image_key: Where the image is in a sample; None: the sample is the image.
        label_key: Where the label is; None: there is none.
        num_classes: Entries of a soft label; None: labels are integers, or missing.
    """

    images: ImageFormat
    image_key: Key | None = None
    label_key: Key | None = None
    num_classes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        keys = {"image_key": self.image_key, "label_key": self.label_key, "num_classes": self.num_classes}
        return {"images": self.images.to_dict(), **keys}

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> SampleFormat:
        """The way back from :meth:`to_dict`."""
        return cls(**{**stated, "images": ImageFormat(**stated["images"])})


@dataclass(frozen=True)
class Samples:
    """Samples that could be read, and what was wrong with the others.

    Attributes:
        images: ``[B, C, R, R]`` float32 in [-1, 1], on the generator's device.
        labels: ``[B]`` int64, -1 where there is none; or soft, ``[B, num_classes]`` float32.
        index: Of each in the data set, ``[B]`` int64.
        errors: Index to one line, of each image that is set aside.
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
) -> tuple[SampleFormat, Samples]:
    """Look at a data set's first samples, before anything is written: what are they, and can they be used?

    A sample is a mapping, whose image and label are found by their usual names; a tuple or list
    ``(image, label, ...)``; or an image alone. No random number is drawn from torch's global state.

    Args:
        dataset: Has ``len(dataset)`` and ``dataset[i]``.
        generator: Says the images' channels and size.
        num_images: How many samples to look at.
        mean: See :func:`latent_mixup.images.detect_format`.
        std: The same.
        image_key: Where in a sample the image is: a name, or a number in a tuple; None: found.
        label_key: The same of the label.

    Returns:
        What the samples are, and the first of them.

    Raises:
        TypeError: There is no data set.
        ValueError: None of the images can be used, their range cannot be told, or a label is none.
    """
    _check_dataset(dataset, num_images)
    with torch.random.fork_rng(devices=[]):
        held, errors = _hold(dataset, range(min(num_images, len(dataset))))
    if not held:
        raise _unusable(errors)
    image_key, label_key = _keys(_typical(list(held.values())), image_key, label_key)
    values = _readable(held, image_key, generator)
    images = detect_format(values.values(), mean, std, img_channels=generator.img_channels) if values else ImageFormat()
    first = next(iter(values or held))
    num_classes = _num_classes(_label_of(held[first], label_key, first), first)
    format = SampleFormat(images, image_key, label_key, num_classes)
    samples = read_samples(held, list(held), generator, format)
    errors.update(samples.errors)
    if not len(samples.index):
        raise _unusable(errors)
    return format, replace(samples, errors=errors)


def stated_format(stated: Mapping[str, Any] | None, dataset: Any, generator: Generator) -> SampleFormat:
    """How the samples of a bank's data set are read: as ``bank.metadata["samples"]`` says, else as they look."""
    return probe(dataset, generator)[0] if stated is None else SampleFormat.from_dict(stated)


def read_samples(dataset: Any, indices: Iterable[int], generator: Generator, format: SampleFormat) -> Samples:
    """Read some samples; an image that cannot be used is set aside with its error.

    What becomes of a sample depends on itself and the format alone. Errors that are no image's fault, such as
    too little memory or too many open files, are raised.

    Raises:
        ValueError: A label is no class, or of another kind than the format says; with its index.
    """
    size = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    images, labels, read = [], [], []
    errors: dict[int, str] = {}
    for index in indices:
        try:
            sample = dataset[index]
            image = format.images.convert(_part(sample, format.image_key), size)
        except Exception as error:
            errors[index] = _one_line(error)
            continue
        images.append(image)
        labels.append(_label_of_kind(_label_of(sample, format.label_key, index), index, format.num_classes))
        read.append(index)
    no_labels = torch.empty(0, dtype=torch.int64) if format.num_classes is None else torch.empty(0, format.num_classes)
    return Samples(
        images=(torch.stack(images) if images else torch.empty(0, *size)).to(generator.device),
        labels=torch.stack(labels) if labels else no_labels,
        index=torch.tensor(read, dtype=torch.int64),
        errors=errors,
    )


def class_names(dataset: Any, format: SampleFormat) -> list[str] | None:
    """The names of the classes, where the data set has them: torchvision's ``classes``, a Hub data set's features."""
    names = getattr(dataset, "classes", None)
    if names is None and isinstance(features := getattr(dataset, "features", None), Mapping):
        names = getattr(features.get(format.label_key), "names", None)
    return None if names is None else [str(name) for name in names]


# --------------------------------------------------------------------------------------------------
# Looking at the first samples
# --------------------------------------------------------------------------------------------------


def _check_dataset(dataset: Any, num_images: int) -> None:
    if isinstance(dataset, Mapping):
        raise ValueError(f"one data set is needed: got a dict of {list(dataset)!r:.100}, choose one of them")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"a data set needs len(dataset) and dataset[i]: got {type(dataset).__name__}; "
            "of a DataLoader give loader.dataset, of a stream make a list"
        )
    if not len(dataset):
        raise ValueError("the data set is empty: there is nothing to invert")
    if num_images < 1:
        raise ValueError(f"num_images needs to be at least 1: got {num_images}")


def _hold(dataset: Any, indices: Iterable[int]) -> tuple[dict[int, Any], dict[int, str]]:
    """Samples as they are, and the errors of those that cannot be read."""
    held: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for index in indices:
        try:
            held[index] = dataset[index]
        except Exception as error:
            errors[index] = _one_line(error)
    return held, errors


def _readable(held: Mapping[int, Any], image_key: Key | None, generator: Generator) -> dict[int, Tensor]:
    """The pixel values of those samples whose image can be read."""
    values: dict[int, Tensor] = {}
    for index, sample in held.items():
        try:
            values[index] = pixel_values(_part(sample, image_key), generator.img_channels)
        except Exception as error:
            _raise_unless_of_image(error)
    return values


def _unusable(errors: Mapping[int, str]) -> ValueError:
    index = min(errors)
    return ValueError(f"none of the first {len(errors)} images can be used; image {index}: {errors[index]}")


def _typical(samples: list[Any]) -> Any:
    """The first sample of the commonest structure."""
    structures = [_structure(sample) for sample in samples]
    return samples[structures.index(mode(structures))]


def _structure(sample: Any) -> tuple[Any, ...] | int | None:
    """The keys of a mapping, or how many parts; None for an image alone."""
    if isinstance(sample, Mapping):
        return tuple(sample)
    return len(sample) if isinstance(sample, tuple | list) else None


def _keys(sample: Any, image_key: Key | None, label_key: Key | None) -> tuple[Key | None, Key | None]:
    """Where image and label are in the samples; what is given stays."""
    if isinstance(sample, tuple | list):
        has_label = len(sample) > 1
        return (0 if image_key is None else image_key), (1 if label_key is None and has_label else label_key)
    if not isinstance(sample, Mapping):
        if image_key is not None or label_key is not None:
            raise ValueError(f"image_key and label_key need samples with parts: got {_describe(sample)}")
        return None, None
    if image_key is None:
        image_key = next((key for key in IMAGE_KEYS if key in sample), None)
        if image_key is None:
            raise ValueError(f"no image among {list(sample)}: pass image_key=")
    if label_key is None:
        label_key = next((key for key in LABEL_KEYS if key in sample), None)
        if label_key is None and len(sample) > 1:
            raise ValueError(
                f"no label among {list(sample)}: pass label_key=, or leave the image alone in the data set where "
                f"there are no labels, e.g. dataset.select_columns({image_key!r})"
            )
    return image_key, label_key


# --------------------------------------------------------------------------------------------------
# One sample
# --------------------------------------------------------------------------------------------------


def _part(sample: Any, key: Key | None) -> Any:
    if key is None:
        return sample
    try:
        return sample[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no {key!r} in the sample: got {_describe(sample)}") from error


def _label_of(sample: Any, key: Key | None, index: int) -> Any:
    """What a sample has as its label; None where the data set has no labels."""
    try:
        return None if key is None else _part(sample, key)
    except ValueError as error:
        raise ValueError(f"the label of sample {index}: {error}") from error


def _num_classes(value: Any, index: int) -> int | None:
    """Entries of a soft label; None for an integer and for a missing one."""
    label = _label(value, index)
    return len(label) if label.ndim else None


def _label_of_kind(value: Any, index: int, num_classes: int | None) -> Tensor:
    """int64 ``[]``, or float32 ``[num_classes]`` where that is given."""
    label = _label(value, index)
    found = len(label) if label.ndim else None
    if found != num_classes:
        raise ValueError(
            f"a data set needs labels of one kind, here {_kind(num_classes)}: got {_kind(found)} at index {index}"
        )
    return label


def _kind(num_classes: int | None) -> str:
    return "integers (-1 or None: missing)" if num_classes is None else f"soft ones of {num_classes} classes"


def _label(value: Any, index: int) -> Tensor:
    """A class as int64 ``[]``, -1 for None; a soft label as float32 ``[num_classes]``."""
    try:
        label = read_label(value)
        if not label.ndim and label < MISSING:
            raise ValueError("a class is an integer from 0, and -1 says that there is none")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; the label {value!r:.100} at index {index}") from None
    return label


def _one_line(error: Exception) -> str:
    """What is wrong with an image."""
    _raise_unless_of_image(error)
    text = " ".join(str(error).split())[:MAX_TEXT]
    return text if text and type(error) in (TypeError, ValueError) else f"{type(error).__name__}: {text}"


def _raise_unless_of_image(error: Exception) -> None:
    """Go on with the next image only where the error may be this one's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        raise error


def _describe(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return f"a {type(sample).__name__} of {list(sample)!r:.100}"
    if isinstance(sample, tuple | list):
        return f"a {type(sample).__name__} of {', '.join(type(part).__name__ for part in sample)[:100]}"
    return f"a {type(sample).__name__}"
