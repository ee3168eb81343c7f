"""A bank and a data set: which sample is which row, and whether labels and images are the bank's.

A sample is known by its source index: its index in the data set that the bank was made from.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from latent_mixup.images import image_key_of, pixel_values
from latent_mixup.labels import (
    Key,
    as_labels,
    describe_label,
    differing,
    hard_labels,
    labels_of,
    on_cpu,
    part_of,
    random_states_kept,
    read_label,
    targets_of,
)

_PROBES = 16  # evenly spaced samples, and one of each class beside them
_PROBED_CLASSES = 64
_MIN_IMAGES = 8  # fewer do not tell two sets of images apart
_ALIKE, _ALIKE_AUGMENTED = 0.75, 0.6  # 0.5 is chance
_OWN_LABELS = ("torchvision.datasets.", "latent_mixup.bundled")  # classes whose samples have the labels of `targets`
_PLAIN = (Subset, ConcatDataset)  # their samples are those of their parts


def fingerprint(dataset: Any, *, multi_label: bool = False) -> dict[str, Any]:
    """What a bank's metadata keep of its data set: ``length``, and ``labels``, the SHA-256 of its targets (or None).

    Soft targets are hashed in float32, as a bank keeps them, together with their shape.
    """
    targets = targets_of(dataset, multi_label=multi_label)
    if targets is None:
        return {"length": len(dataset), "labels": None}
    sha = hashlib.sha256(str(list(targets.shape)).encode() if targets.ndim == 2 else b"")
    sha.update(targets.numpy().data)
    return {"length": len(dataset), "labels": sha.hexdigest()}


@dataclass(frozen=True)
class Source:
    """What a bank knows of the data set it was made from.

    Attributes:
        index: The source index of each row, ``[N]`` int64.
        labels: The label of each row, ``[N]`` int64 or ``[N, num_classes]`` float32.
        length: Length of the data set; None: not stated.
        label_key: Place of the label in a sample; None: one of the usual ones.
        set_aside: The source indices of images that could not be used, int64.
        multi_label: Whether labels need not sum to 1.
    """

    index: Tensor
    labels: Tensor
    length: int | None = None
    label_key: Key | None = None
    set_aside: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    multi_label: bool = False

    @property
    def needed(self) -> int:
        """Least length of the data set."""
        return int(self.index.max()) + 1

    def check(self, dataset: Any) -> None:
        """Raise ``ValueError`` unless ``dataset[i]`` is the sample with source index ``i``, as far as labels tell."""
        if len(dataset) < self.needed:
            raise ValueError(
                f"the bank has codes of {self.needed} samples (its largest source_index is {self.needed - 1}), the "
                f"data set has {len(dataset)}: pass the data set the bank was made from"
            )
        if (wrong := self.label_fault(dataset, torch.arange(len(self.index), device="cpu"), self.index)) is not None:
            raise ValueError(wrong)

    def find(self, dataset: Any) -> Tensor | None:
        """The source index of each sample of a data set, ``[len(dataset)]``, -1 for another data set's.

        Returns:
            None where it cannot be told.

        Raises:
            TypeError: It is a loader.
            ValueError: It is the bank's data set with other labels, or another one of the same length.
        """
        if isinstance(dataset, DataLoader):
            raise TypeError("a data set is needed: got a DataLoader, pass loader.dataset")
        faults: list[str] = []
        found = self._find(dataset, faults)
        if found is None and faults:
            raise ValueError(faults[0])
        return found

    def _find(self, dataset: Any, faults: list[str]) -> Tensor | None:
        """See :meth:`find`; labels that are not the bank's are appended to ``faults``, in words."""
        if not _is_data(dataset):
            return None
        parts, join = _inside(dataset)
        everything = torch.arange(len(dataset) + len(self.set_aside), device="cpu")
        usable = everything[~torch.isin(everything, self.set_aside)]
        if self._may_be_whole(dataset, parts) and self._agrees(dataset, everything[: len(dataset)], faults):
            return everything[: len(dataset)]
        if len(everything) == self.length and len(usable) == len(dataset) and self._agrees(dataset, usable, []):
            return usable  # the unusable files were removed
        if (found := _stated_index(dataset)) is None:
            inner = [self._find(part, faults) for part in parts]
            if all(each is None for each in inner):
                return None
            none_of = [torch.full((len(part),), -1, device="cpu") for part in parts]
            found = join([n if each is None else each for n, each in zip(none_of, inner, strict=True)])
        return found if type(dataset) in _PLAIN or self._agrees(dataset, found, faults) else None

    def _may_be_whole(self, dataset: Any, parts: list[Any]) -> bool:
        """Whether a data set may be the one the bank was made from, by its length."""
        if self.length is not None:
            return len(dataset) == self.length
        return len(dataset) == self.needed or (len(dataset) > self.needed and not parts)

    def _agrees(self, dataset: Any, index: Tensor, faults: list[str]) -> bool:
        """Whether the labels of a data set, whose samples have these source indices, are the bank's."""
        rows = self.rows_of(index)
        coded = (rows >= 0).nonzero()[:, 0]
        try:
            fault = self.label_fault(dataset, rows[coded], coded, read=_readable_labels) if len(coded) else None
        except _UnreadableError:  # it cannot be told
            return False
        faults.extend([fault] if fault is not None else [])
        return fault is None

    def rows_of(self, index: Tensor) -> Tensor:
        """The row of each source index, ``[B]`` int64, -1 where there is none."""
        ordered, rows = self._lookup
        at = torch.searchsorted(ordered, index).clamp_(max=len(ordered) - 1)
        return torch.where(ordered[at] == index, rows[at], -1)

    @cached_property
    def _lookup(self) -> tuple[Tensor, Tensor]:
        ordered, rows = self.index.sort()
        return ordered, rows

    def label_fault(
        self, dataset: Any, rows: Tensor, samples: Tensor, *, read: Callable[..., Tensor] = labels_of
    ) -> str | None:
        """The first sample of a data set whose label is not that of its row, in words; None: all that were seen agree.

        Args:
            dataset: All labels are compared that it has in memory; where it has none, or a class of the user's may
                change them, those of some samples.
            rows: Rows of the bank, ``[B]``, at least one.
            samples: The index of each in the data set, ``[B]``.
            read: Gives the labels of a few samples, as ``labels_of`` does.
        """
        targets, certain = _labels_in_memory(dataset, self.multi_label)
        if targets is not None and (fault := self._differing(targets[samples], rows, samples)) is not None:
            return fault
        if targets is not None and certain:
            return None
        probes = _some_of_each_class(self.labels[rows])
        found = read(dataset, samples[probes].tolist(), self.label_key, multi_label=self.multi_label)
        return self._differing(found, rows[probes], samples[probes])

    def _differing(self, found: Tensor, rows: Tensor, samples: Tensor) -> str | None:
        labels = self.labels[rows]
        same = found.shape[1:] == labels.shape[1:] or 1 in (found.ndim, labels.ndim)
        if same and not differing(found, labels).any():  # one-hot rows are class indices
            return None
        if found.ndim == 2 and found.shape[1:] != labels.shape[1:]:
            return (
                f"the data set has {kind_of(found)}, the bank {kind_of(labels)}: invert the data set again, or keep "
                "the codes, LatentBank(bank[:][0], labels, source_index=bank.source_index)"
            )
        first = differing(found, labels).nonzero()[0, 0]
        return (
            f"sample {int(samples[first])} has label {describe_label(found[first])} in the data set and "
            f"{describe_label(labels[first])} in the bank: pass the data set the bank was made from, in its order, "
            "or a bank with these labels, LatentBank(bank[:][0], labels, source_index=bank.source_index)"
        )


def kind_of(labels: Tensor) -> str:
    """Class indices or soft labels, in the words of an error."""
    return f"soft labels of {labels.shape[1]} classes" if labels.ndim == 2 else "class indices"


# --------------------------------------------------------------------------------------------------
# Data sets that hold others
# --------------------------------------------------------------------------------------------------


def _inside(dataset: Any) -> tuple[list[Any], Callable[[list[Tensor]], Tensor]]:
    """The data sets that one is made of, and how an entry for each of their samples becomes one for each of its own."""
    parts, indices = getattr(dataset, "datasets", None), getattr(dataset, "indices", None)
    if isinstance(parts, list | tuple) and all(map(_is_data, parts)) and sum(map(len, parts)) == len(dataset):
        return list(parts), torch.cat
    if indices is not None and _is_data(inner := getattr(dataset, "dataset", None)) and len(indices) == len(dataset):
        chosen = on_cpu(indices).long()
        return [inner], lambda entries: entries[0][chosen]
    held = [value for value in getattr(dataset, "__dict__", {}).values() if isinstance(value, Dataset)]
    same: list[Any] = [value for value in held if _is_data(value) and len(cast(Sized, value)) == len(dataset)]
    return (same if len(same) == 1 else []), lambda entries: entries[0]


def _is_data(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _stated_index(dataset: Any) -> Tensor | None:
    """``dataset.source_index``, where it has an integer for each sample."""
    stated = getattr(dataset, "source_index", None)
    try:
        index = on_cpu(stated) if stated is not None else None
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = index is not None and index.shape == (len(dataset),) and not index.is_floating_point()
    return index.long() if index is not None and fits else None


# --------------------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------------------


class _UnreadableError(Exception):
    """A data set does not give a sample, or gives one of another form than ``(image, label)``."""


class _Guarded:
    """A data set whose own exceptions are told from ours."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as cause:  # the user's own code may raise anything
            raise _UnreadableError from cause


def _readable_labels(dataset: Any, indices: list[int], key: Key | None, *, multi_label: bool) -> Tensor:
    """``labels_of``, with one exception for every sample that cannot be read."""
    try:
        return labels_of(_Guarded(dataset), indices, key, multi_label=multi_label)
    except ValueError as cause:  # documented there: a sample of another form, or labels of several kinds
        raise _UnreadableError from cause


def _labels_in_memory(dataset: Any, multi_label: bool) -> tuple[Tensor | None, bool]:
    """All labels of a data set without a look at its images, or None; and whether its samples surely have these."""
    if type(dataset) in _PLAIN:
        parts, join = _inside(dataset)
        found = [_labels_in_memory(part, multi_label) for part in parts]
        labels = [each for each, _ in found if each is not None]
        if not labels or len(labels) < len(parts) or len({each.shape[1:] for each in labels}) > 1:
            return None, False
        return join(labels), all(certain for _, certain in found)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        try:
            return as_labels(dataset.tensors[1], len(dataset), multi_label=multi_label), True
        except (TypeError, ValueError):
            return None, False
    certain = getattr(type(dataset).__getitem__, "__module__", "").startswith(_OWN_LABELS)
    change = getattr(dataset, "target_transform", None)
    if change is None or not certain:
        return targets_of(dataset, multi_label=multi_label), certain
    return _changed_targets(dataset, change, multi_label), certain


def _changed_targets(dataset: Any, change: Callable[[int], Any], multi_label: bool) -> Tensor | None:
    """``dataset.targets`` after ``target_transform``, which is called once for each class."""
    try:
        classes, number = as_labels(dataset.targets, len(dataset)).unique(return_inverse=True)
        with random_states_kept():
            labels = [read_label(change(label), multi_label=multi_label) for label in classes.tolist()]
            return torch.stack(labels)[number]
    except Exception:  # it is the user's own function: the samples tell
        return None


def _some_of_each_class(labels: Tensor) -> Tensor:
    """Entries to look at: evenly spaced ones, and the first of each class, ascending."""
    order = hard_labels(labels).argsort(stable=True)
    classes = hard_labels(labels)[order]
    first = order[classes != classes.roll(1)] if classes[0] != classes[-1] else order[:1]
    chosen: Tensor = torch.cat([_spaced(len(labels), _PROBES), first[_spaced(len(first), _PROBED_CLASSES)]]).unique()
    return chosen


def _spaced(size: int, count: int) -> Tensor:
    """At most ``count`` evenly spaced entries of ``size``, int64."""
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64, device="cpu").long()


# --------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------


def image_probes(labels: Tensor) -> Tensor:
    """Entries whose images tell a data set from another: four of each of four classes, evenly spaced, ascending."""
    order: Tensor = hard_labels(labels).argsort(stable=True)
    starts = _spaced(max(1, len(labels) - 3), 4)
    chosen = (starts[:, None] + torch.arange(4, device="cpu")).flatten().unique()
    return order[chosen[chosen < len(labels)]].sort().values


def shows(dataset: Any, indices: list[int], decodes: Tensor, labels: Tensor, image_key: Key | None = None) -> bool:
    """Whether samples of a data set show the same pictures as some decodes; True where it cannot be told.

    Images that a ``transform`` changes at random are compared as they are without it.

    Args:
        dataset: The data set.
        indices: Of the samples, B.
        decodes: ``[B, C, H, W]``.
        labels: Of the samples.
        image_key: Place of the image in a sample; None: the usual one.
    """
    with random_states_kept():
        looks = [read_images(dataset, indices, decodes[0].shape, image_key) for _ in range(2)]
        if looks[0] is None or looks[1] is None:
            return True
        if torch.equal(looks[0], looks[1]):
            return same_images(looks[0], decodes, labels)
        plain = without_transform(dataset)
        bare = [read_images(plain, indices, decodes[0].shape, image_key) for _ in range(2)]
    if bare[0] is None or bare[1] is None or not torch.equal(bare[0], bare[1]):
        return True
    return same_images(bare[0], decodes, labels) or same_images(
        torch.stack(cast("list[Tensor]", looks)), decodes, labels
    )


def read_images(dataset: Any, indices: list[int], size: torch.Size, image_key: Key | None) -> Tensor | None:
    """Images of some samples, ``[B, C, H, W]`` float32 in whatever range; None where one cannot be used."""
    images = []
    for index in indices:
        try:
            sample = dataset[index]
        except Exception:  # the data set's own: whoever trains on it says what is wrong
            return None
        try:
            images.append(pixel_values(part_of(sample, image_key_of(sample, image_key)), size[0]).float())
        except (TypeError, ValueError):  # it is no image
            return None
    return torch.stack(images) if all(image.shape == size for image in images) else None


def without_transform(dataset: Any) -> Any:
    """A shallow copy of a data set, and of those inside it, whose ``transform`` changes nothing."""
    plain = copy.copy(dataset)
    for name, value in getattr(dataset, "__dict__", {}).items():
        if name in _TRANSFORMS and callable(value):
            setattr(plain, name, _TRANSFORMS[name])
        elif isinstance(value, Dataset):
            setattr(plain, name, without_transform(value))
        elif name == "datasets" and isinstance(value, list):
            plain.datasets = [without_transform(part) for part in value]
    return plain


_TRANSFORMS: dict[str, Callable[..., Any]] = {
    "transform": lambda image: image,
    "transforms": lambda image, target: (image, target),
}


def same_images(images: Tensor, decodes: Tensor, labels: Tensor | None = None) -> bool:
    """Whether images and the decodes of their own rows show the same pictures; True where it cannot be told.

    An image has to correlate better with its own decode than with those of others, of its own class where ``labels``
    are given; that holds in any range.

    Args:
        images: ``[B, C, H, W]`` in any range; or several looks at augmented ones, ``[looks, B, C, H, W]``, with a lower
            threshold.
        decodes: ``[B, C, H, W]``.
        labels: ``[B]`` int64, or soft, ``[B, num_classes]``; None: all are compared with all.
    """
    looks = images if images.ndim == 5 else images[None]
    count = len(decodes)
    if looks.shape[1:] != decodes.shape or count < _MIN_IMAGES:
        return True
    one, two = torch.stack([standardised(each) for each in looks]), standardised(decodes)
    others = ~torch.eye(count, dtype=torch.bool, device="cpu")
    if labels is not None:
        classes = hard_labels(labels.cpu())
        within = others & (classes[:, None] == classes)
        others = within if within.sum() >= count else others
    told = others & ((one[0][:, None] - one[0]).abs().amax(2) > 0) & one[0].any(1) & two.any(1)[:, None]
    if told.sum() < count:
        return True
    likeness = (two @ one.transpose(1, 2)).amax(0)  # [decode, image]
    better = likeness.diagonal()[:, None] > likeness
    return float(better[told].double().mean()) >= (_ALIKE if len(looks) == 1 else _ALIKE_AUGMENTED)


def standardised(images: Tensor) -> Tensor:
    """Each image as a float64 vector of mean 0 and length 1; a constant one becomes zero."""
    values = images.detach().cpu().double().flatten(1)
    values = values - values.mean(1, keepdim=True)
    return torch.nn.functional.normalize(values, dim=1) * (values.std(1, keepdim=True) > 1e-6)
