"""The images of any data set as one file of uint8 pixels of one size, mapped into memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latent_mixup import files
from latent_mixup.bank import fingerprint
from latent_mixup.images import (
    SAME_GREY,
    check_loader,
    detect_format,
    image_key_of,
    pixel_values,
    to_uint8,
)
from latent_mixup.inversion.chunks import errors_of, pack
from latent_mixup.inversion.samples import SampleFormat, class_names, one_line
from latent_mixup.labels import Key, describe_sample, label_key_of, part_of, read_label, targets_of
from latent_mixup.runs import Advance, ChunkFolder, Meter, Tensors, run_chunks

SIZES = (16, 28, 32, 48, 64, 96, 128)
LARGEST = 64  # unless a larger size is asked for: its decodes cost as much as a small classifier
MIN_IMAGES = 500
LOOKED_AT = 128  # samples by which channels, size and range are found
CHUNK = 2_048  # images in a chunk
MAX_UNREADABLE = 0.5  # share of the images
RUN_FILE, PIXELS_FILE, ROWS_FILE = "images.json", "images.u8", "rows.safetensors"


@dataclass(frozen=True)
class Look:
    """What the first look at a data set finds.

    Attributes:
        channels: 1 where every image looked at is grey, else 3.
        size: Height and width that the images get.
        shapes: Least and greatest height and width of those looked at.
        format: Form of the samples.
    """

    channels: int
    size: int
    shapes: tuple[int, int, int, int]
    format: SampleFormat

    @property
    def changes(self) -> bool:
        """Whether images are resized or cropped."""
        return self.shapes != (self.size,) * 4


def look(
    dataset: Any,
    size: int | None = None,
    *,
    image_key: Key | None = None,
    label_key: Key | None = None,
    multi_label: bool = False,
) -> Look:
    """Look at evenly spaced samples.

    Args:
        dataset: See :func:`latent_mixup.fitting.stages.fit`.
        size: Height and width wanted; None: the largest of ``SIZES`` that the shorter side of most images has, at
            most ``LARGEST``.
        image_key: Place of the image in a sample; None: found.
        label_key: Place of the label.
        multi_label: Whether labels need not sum to 1.

    Raises:
        ValueError: There are too few images, none of those looked at can be read, or the size is not one of ``SIZES``.
        TypeError: It is no data set.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"a data set needs len(dataset) and dataset[i]: got {type(dataset).__name__}")
    if len(dataset) < MIN_IMAGES:
        raise ValueError(
            f"a generator needs {MIN_IMAGES} images or more to learn from: got {len(dataset):,}; add unlabelled images "
            "of the same kind"
        )
    if size is not None and size not in SIZES:
        raise ValueError(f"size needs to be one of {', '.join(map(str, SIZES))}: got {size}")
    values, sample, first_error = list[Tensor](), None, ""
    for index in range(0, len(dataset), max(1, len(dataset) // LOOKED_AT)):
        try:
            found = dataset[index]
            check_loader(dataset, index)
            image = pixel_values(part_of(found, image_key_of(found, image_key)))
        except Exception as error:
            text = one_line(error)
            first_error = first_error or f"image {index}: {text}"
            continue
        values.append(image)
        sample = found if sample is None else sample
    if not values:
        raise ValueError(f"none of {min(LOOKED_AT, len(dataset))} images looked at can be read; {first_error}")
    heights, widths = ([value.shape[axis] for value in values] for axis in (1, 2))
    short = median(map(min, heights, widths))
    chosen = size or max([each for each in SIZES if each <= min(short, LARGEST)], default=SIZES[0])
    key = label_key_of(sample, label_key)
    label = None if key is None else read_label(part_of(sample, key), multi_label=multi_label)
    return Look(
        1 if all(map(_is_grey, values)) else 3,
        chosen,
        (min(heights), max(heights), min(widths), max(widths)),
        SampleFormat(
            detect_format(values),
            image_key_of(sample, image_key),
            key,
            len(label) if label is not None and label.ndim else None,
            multi_label,
        ),
    )


def _is_grey(values: Tensor) -> bool:
    if len(values) == 1:
        return True
    scale = 1.0 if values.is_floating_point() else 255.0
    return bool((values.float() - values[:1].float()).abs().max() <= SAME_GREY * scale)


class Prepared(Dataset[tuple[Tensor, Any]]):
    """A data set whose images have one size and lie in one file; sample ``i`` is that of the original.

    Attributes:
        images: Those that could be read, ``[N, C, R, R]`` uint8, mapped from the file.
        labels: Of each original sample: ``[len]`` int64, -1 for none, or soft ``[len, num_classes]``.
        errors: Index => one line, of each image that could not be read.
        classes: Names of the classes; None: the data set has none.
    """

    def __init__(
        self,
        dataset: Any,
        images: Tensor,
        labels: Tensor,
        errors: dict[int, str],
        classes: list[str] | None = None,
        multi_label: bool = False,
    ) -> None:
        self.dataset, self.images, self.labels, self.errors, self.classes = dataset, images, labels, errors, classes
        self.multi_label = multi_label
        readable = torch.ones(len(labels), dtype=torch.bool, device="cpu")
        readable[list(errors)] = False
        self._row = readable.cumsum(0) - 1

    @cached_property
    def targets(self) -> Tensor | None:
        """Those of the original data set, by which a bank knows it."""
        return targets_of(self.dataset, multi_label=self.multi_label)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index in self.errors:
            raise ValueError(self.errors[index])
        label = self.labels[index]
        return self.images[self._row[index]], label if label.ndim else int(label)


def prepare(dataset: Any, found: Look, out: Path, *, progress: bool = True) -> Prepared:
    """Read all images once, resize them, and keep them in ``out``; a killed run goes on where it stopped.

    Raises:
        ValueError: ``out`` holds other images, more than half cannot be read, or all have one colour.
        OSError: There is no room; what is read so far stays.

    Warns:
        UserWarning: Some images cannot be read.
    """
    chunks = [range(start, min(start + CHUNK, len(dataset))) for start in range(0, len(dataset), CHUNK)]
    size = (found.channels, found.size, found.size)
    facts = {
        "dataset": fingerprint(dataset, multi_label=found.format.multi_label),
        "first_image": _digest_of_first(dataset, found),
        "size": list(size),
        "samples": found.format.to_dict(),
    }
    store = ChunkFolder(out, facts, len(chunks), run_file=RUN_FILE)

    def make(number: int, advance: Advance) -> Tensors:
        return _read(dataset, chunks[number], found, advance)

    if not (out / ROWS_FILE).is_file():  # written last
        run_chunks(make, [*map(len, chunks)], store, meter=Meter(progress), desc="read")
        with store.saying_what_is_done():
            files.write_folder(
                out, {PIXELS_FILE: lambda path: _join(store, path), ROWS_FILE: lambda path: _rows(store, path)}
            )
    with files.open_tensors(out / ROWS_FILE) as rows:
        kept = {name: rows.get_tensor(name).clone() for name in rows.keys()}  # noqa: SIM118 - no mapping
    labels, errors = kept["labels"], errors_of(kept)
    store.remove_chunks()
    count = len(labels) - len(errors)
    if len(errors) > MAX_UNREADABLE * len(labels):
        raise ValueError(
            f"{_unreadable(errors, len(labels))}: more than half; repair the data set and choose another out="
        )
    if errors:
        warnings.warn(f"{_unreadable(errors, len(labels))}; they are left out", stacklevel=3)
    shape, numbers = (count, *size), count * size[0] * size[1] * size[2]
    images = torch.from_file(str(out / PIXELS_FILE), shared=False, size=numbers, dtype=torch.uint8).view(shape)
    low, high = images[:: max(1, count // 512)].aminmax()
    if low == high:
        raise ValueError(f"every image is of one colour, {int(low)} of 255: is this the right data set?")
    return Prepared(dataset, images, labels, errors, class_names(dataset, found.format), found.format.multi_label)


def _read(dataset: Any, indices: Iterable[int], found: Look, advance: Advance) -> Tensors:
    """The images of a chunk that can be read, the labels of all, and the errors of the others."""
    size, classes = (found.channels, found.size, found.size), found.format.num_classes
    images, labels, errors = list[Tensor](), list[Tensor](), dict[int, str]()
    missing = torch.tensor(-1) if classes is None else torch.full((classes,), 1 / classes)
    for index in indices:
        label = missing
        try:
            sample = dataset[index]
            check_loader(dataset, index)
            values = found.format.images.convert(part_of(sample, found.format.image_key), size, resize=True)
            images.append(to_uint8(values))
        except Exception as error:
            errors[index] = one_line(error)
        else:
            if found.format.label_key is not None:
                key = found.format.label_key
                label = read_label(part_of(sample, key), multi_label=found.format.multi_label)
            if label.shape != missing.shape:
                raise ValueError(f"labels need one form: sample {index} has {describe_sample(sample)}")
        labels.append(label)
        advance(1)
    pixels = torch.stack(images) if images else torch.empty(0, *size, dtype=torch.uint8)
    return pack({"images": pixels, "labels": torch.stack(labels)}, errors)


def _join(store: ChunkFolder, path: Path) -> None:
    """Write the pixels of all chunks into one file."""
    with path.open("wb") as file:
        for number in range(store.num_chunks):
            file.write(_chunk(store, number)["images"].contiguous().numpy().data)


def _rows(store: ChunkFolder, path: Path) -> None:
    """Write the labels and errors of all chunks into one file."""
    labels, errors = list[Tensor](), dict[int, str]()
    for number in range(store.num_chunks):
        chunk = _chunk(store, number)
        labels.append(chunk["labels"].clone())
        errors |= errors_of(chunk)
    files.save_tensors(path, pack({"labels": torch.cat(labels)}, errors))


def _chunk(store: ChunkFolder, number: int) -> Tensors:
    chunk = store.read(number)
    if chunk is None:
        raise ValueError(f"{store.path(number)} is broken: run it again, it reads these images anew")
    return chunk


def _digest_of_first(dataset: Any, found: Look) -> str:
    """SHA-256 of a few images as they are read: tells two data sets of one length apart."""
    step = max(1, len(dataset) // 16)
    return files.tensors_sha256(
        {"images": _read(dataset, range(0, len(dataset), step), found, lambda _: None)["images"]}
    )


def _unreadable(errors: dict[int, str], total: int) -> str:
    first = min(errors)
    return f"{len(errors):,} of {total:,} images cannot be read; the first, image {first}: {errors[first]}"
