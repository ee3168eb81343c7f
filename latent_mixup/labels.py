"""Labels: class indices, -1 for a missing one; or soft labels, a probability for each class.

Labels of many samples are int64 ``[N]`` or float32 ``[N, num_classes]``. A class index equals its one-hot row. With
``multi_label`` a sample may have several classes or none: each number is in [0, 1], and a row has any sum.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Key: TypeAlias = str | int  # place of a part in a sample

MISSING = -1
MAX_CLASSES = 2**24
SUM_TOLERANCE = 1e-2  # soft labels of many classes in half precision pass
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "class", "cls")  # in samples that are mappings
SAME_TOLERANCE = 1e-4  # soft labels that were computed again are the same


class SampleError(TypeError, ValueError):
    """A sample, or a batch, whose image or label cannot be used: the one error of all that read samples.

    It is a ``TypeError`` as well as a ``ValueError``, since a data set gives values of any type.
    """


def as_labels(values: Any, num_rows: int, *, multi_label: bool = False) -> Tensor:
    """Labels in the form that a bank keeps.

    Args:
        values: Integers from 0, or -1 for none, ``[N]``; or soft: floats ``[N, num_classes]``, each row from 0 and
            summing to 1. A tensor, an array, or a list of either's rows.
        num_rows: N.
        multi_label: Take ``[N, num_classes]`` of any dtype, each number in [0, 1], and nothing else.

    Returns:
        int64 ``[N]``, or float32 ``[N, num_classes]``; on the CPU.

    Raises:
        ValueError: They are neither.

    Example:
        >>> as_labels([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], 2).shape
        torch.Size([2, 3])
    """
    labels = as_tensor(values)
    if multi_label:
        if labels.ndim != 2 or len(labels) != num_rows or not labels.numel():
            raise ValueError(f"multi-label labels need shape [{num_rows}, num_classes]: got {list(labels.shape)}")
        check_soft(labels, multi_label=True)
        return labels.float()
    if labels.ndim == 2 and len(labels) == num_rows and labels.numel():
        if not labels.is_floating_point():
            raise ValueError(f"soft labels need a float dtype: got {labels.dtype} {list(labels.shape)}")
        check_soft(labels)
        return labels.float()
    if labels.shape != (num_rows,):
        raise ValueError(
            f"labels needs one entry per row, [{num_rows}], or soft ones, [{num_rows}, num_classes]: "
            f"got {list(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels needs integers, or soft ones, [{num_rows}, num_classes]: got {labels.dtype}")
    labels = labels.long()
    if (labels < MISSING).any():
        row = int((labels < MISSING).nonzero()[0])
        raise ValueError(f"labels needs numbers from 0, or -1 for no label: row {row} has {int(labels[row])}")
    return labels


def on_cpu(values: Any) -> Tensor:
    """A tensor on the CPU, whatever torch's default device is."""
    return (values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")).detach().cpu()


def as_tensor(values: Any) -> Tensor:
    """A tensor on the CPU of a tensor, an array, a number, or a list of these.

    Of an array it is a copy, in the byte order of this machine: torch takes none that is read-only.
    """
    if isinstance(values, list | tuple) and values and getattr(values[0], "ndim", None):
        values = torch.stack([as_tensor(row) for row in values])  # torch takes no list of rows
    if isinstance(values, np.ndarray):
        values = np.array(values, dtype=values.dtype.newbyteorder("="))
    return on_cpu(values)


def check_labels(labels: Tensor, num_classes: int, *, multi_label: bool = False) -> None:
    """Raise ``SampleError`` unless each is in ``[0, num_classes)``, or they are soft, ``[B, num_classes]``.

    With ``multi_label`` they need to be ``[B, num_classes]``, and rows need not sum to 1.
    """
    if labels.is_floating_point() or multi_label:
        if labels.ndim != 2 or labels.shape[1] != num_classes:
            kind = "multi-label" if multi_label else "soft"
            raise SampleError(f"{kind} labels need shape [B, {num_classes}]: got {labels.dtype} {list(labels.shape)}")
        check_soft(labels, multi_label=multi_label)
        return
    if labels.ndim != 1 or labels.dtype == torch.bool:
        raise SampleError(
            f"labels need to be integers [B] or soft labels [B, {num_classes}]: got {labels.dtype} {list(labels.shape)}"
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        label = int(outside[0])
        if label < MISSING:
            raise SampleError(_no_class(label))
        mend = f"labels need to be in [0, {num_classes}), or num_classes larger"
        if label == MISSING:
            mend = (
                "it says that there is no label, leave such samples out, such as by "
                "sampler=SubsetRandomSampler(labelled_indices)"
            )
        raise SampleError(f"label {label} is outside num_classes={num_classes}: {mend}")


def _no_class(label: int) -> str:
    return f"a class needs an integer from 0, or {MISSING} for none: got {label}"


def check_soft(labels: Tensor, *, multi_label: bool = False) -> None:
    """Raise ``SampleError`` unless each row of ``[B, num_classes]`` is finite, from 0, and sums to 1.

    With ``multi_label``: unless each number is in [0, 1].
    """
    fault = _fault(labels, multi_label)
    if fault is not None:
        kind, rule = _MULTI_LABEL if multi_label else _SOFT
        raise SampleError(f"{kind} labels need {rule} in each row: row {fault[0]} {fault[1]}")


_SOFT, _MULTI_LABEL = ("soft", "numbers from 0 that sum to 1"), ("multi-label", "numbers in [0, 1]")


def _fault(labels: Tensor, multi_label: bool) -> tuple[int, str] | None:
    """The first row that is not a distribution, or has a number outside of [0, 1], and what is wrong with it."""
    rows = labels.detach().float()
    sums, (least, most) = rows.sum(1), rows.aminmax(dim=1)
    fits = most <= 1 if multi_label else (sums - 1).abs() <= SUM_TOLERANCE
    wrong = ~((least >= 0) & fits)  # NaN and infinity are wrong as well
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    if multi_label or not least[row] >= 0:
        return row, f"has {float(most[row] if least[row] >= 0 else least[row]):.4g}"
    hint = "; where a sample may have several classes or none, say multi_label=True" if most[row] <= 1 else ""
    return row, f"sums to {float(sums[row]):.4g}{hint}"


def count_classes(labels: Tensor, stated: object = None, names: Sequence[str] | None = None) -> int:
    """The number of classes: as stated, as named, or up to the largest label, whichever is most; 0 where none is known.

    Args:
        labels: ``[N]``, or soft ``[N, num_classes]``, whose width it is.
        stated: The number, where it is known.
        names: A name for each class, where they are known.

    Raises:
        ValueError: ``stated`` is not such a number, or does not fit the labels; or there are more than ``MAX_CLASSES``.
    """
    soft = labels.is_floating_point()
    found = labels.shape[1] if soft else int(labels.max()) + 1
    if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 0):
        raise ValueError(f"num_classes needs to be an integer from 0: got {stated!r}")
    if max(found, stated or 0) > MAX_CLASSES:
        raise ValueError(f"num_classes needs to be at most {MAX_CLASSES}: got {max(found, stated or 0)}")
    if stated is not None and soft and found != stated:
        raise ValueError(f"soft labels need shape [N, {stated}] for num_classes={stated}: got {list(labels.shape)}")
    if stated is not None and found > stated:
        raise ValueError(f"labels need to be below num_classes={stated}: got {found - 1}")
    return found if soft else max(found, stated or 0, len(names or ()))


def hard_labels(labels: Tensor) -> Tensor:
    """The class of each row, ``[N]`` integers, -1 for none; of soft labels the first of the most probable."""
    return labels.argmax(1) if labels.is_floating_point() else labels


def differing(labels: Tensor, others: Tensor) -> Tensor:
    """Where two sets of labels of the same samples differ, ``[N]`` bool; soft ones have one width."""
    if not labels.is_floating_point() and not others.is_floating_point():
        return labels != others
    num_classes = (labels if labels.is_floating_point() else others).shape[1]
    one, two = (label_rows(each, num_classes) for each in (labels, others))
    return (one - two).abs().amax(1) > SAME_TOLERANCE


def label_rows(labels: Tensor, num_classes: int) -> Tensor:
    """Soft labels as they are, class indices as one-hot rows, a row of zeros for an index out of range."""
    return (
        labels
        if labels.is_floating_point()
        else (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    )


def describe_label(label: Tensor) -> str:
    """One label as an error message shows it."""
    if label.ndim:
        return f"[{', '.join(f'{share:.3g}' for share in label[:4].tolist())}{', ...' if len(label) > 4 else ''}]"
    return "none" if label == MISSING else str(int(label))


# --------------------------------------------------------------------------------------------------
# The labels of a data set
# --------------------------------------------------------------------------------------------------


def read_label(label: Any, *, multi_label: bool = False) -> Tensor:
    """The label of one sample: an int64 scalar, -1 for None, or soft: float32 ``[num_classes]``; on the CPU.

    Args:
        label: An integer, or numbers of any dtype, ``[num_classes]``.
        multi_label: Take ``[num_classes]`` numbers in [0, 1] alone, of any sum.

    Raises:
        SampleError: It is none of these, a soft label is no distribution, or a number is outside of [0, 1].

    Example:
        >>> read_label([0.5, 0.5, 0.0]).shape
        torch.Size([3])
    """
    if label is None:
        return torch.tensor(MISSING, device="cpu")
    number = None
    if not multi_label:
        with contextlib.suppress(TypeError):
            number = operator.index(label)
    if number is not None:
        return _class(number)
    try:
        values = as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if not multi_label and values.numel() == 1 and not values.is_floating_point() and not values.is_complex():
        return _class(int(values))
    if values.ndim != 1 or not len(values) or values.is_complex():
        raise _no_label(type(label).__name__, multi_label)
    if (fault := _fault(values[None], multi_label)) is not None:
        kind, rule = _MULTI_LABEL if multi_label else _SOFT
        raise SampleError(f"a {kind} label needs {rule}: it {fault[1]}")
    return values.float()


def read_labels(labels: Any, *, multi_label: bool = False) -> Tensor:
    """The labels of a batch, as :func:`read_label` reads each: integers ``[B]``, or soft, float ``[B, num_classes]``.

    Args:
        labels: A tensor or an array ``[B]``, ``[B, 1]`` (of integers, unless ``multi_label``) or ``[B, num_classes]``
            of any dtype; or a list of labels.
        multi_label: See :func:`read_label`.

    Returns:
        Of a tensor the same one, or another on its device; else one on the CPU. Neither sums nor the number of classes
        are checked: see :func:`check_labels`.

    Raises:
        SampleError: They are none of these, or of several kinds.

    Example:
        >>> read_labels([[0, 1], [1, 0]]).shape
        torch.Size([2, 2])
    """
    if isinstance(labels, list | tuple):
        rows = [read_label(label, multi_label=multi_label) for label in labels]
        return stacked_labels(rows, range(len(rows)))
    try:
        values = labels if isinstance(labels, Tensor) else as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise _no_label(type(labels).__name__, multi_label) from None
    soft = values.is_floating_point()
    if values.ndim == 1 and not (soft or multi_label or values.is_complex()):
        return values.long() if values.dtype == torch.bool else values
    if values.ndim != 2 or values.is_complex():
        raise _no_label(f"{values.dtype} {list(values.shape)}", multi_label)
    if soft:
        return values
    return values[:, 0] if values.shape[1] == 1 and not multi_label else values.float()


def stacked_labels(labels: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Labels of some samples as one tensor, ``[B]`` or ``[B, num_classes]``; ``indices`` are for the error.

    Raises:
        SampleError: They are of several kinds.
    """
    for index, label in zip(indices, labels, strict=True):
        if label.shape != labels[0].shape:
            raise SampleError(
                f"the data set needs labels of one kind: sample {indices[0]} has {describe_label(labels[0])}, "
                f"sample {index} has {describe_label(label)}"
            )
    return torch.stack([*labels])


def _class(label: int) -> Tensor:
    if label < MISSING:
        raise SampleError(_no_class(label))
    return torch.tensor(label, device="cpu")


def _no_label(found: str, multi_label: bool) -> SampleError:
    wanted = "[num_classes] numbers in [0, 1]" if multi_label else "an int, or soft, [num_classes] floats"
    return SampleError(f"a label needs to be {wanted}: got {found}")


def label_of(sample: Any, index: int, key: str | int | None = None, *, multi_label: bool = False) -> Tensor:
    """The label of sample ``index`` as :func:`read_label` gives it; -1 for an image alone.

    Args:
        sample: ``(image, label, ...)``, a mapping with one of ``LABEL_KEYS``, or an image.
        index: For the error.
        key: Where the label is, if it is there; before the usual places.
        multi_label: See :func:`read_label`.

    Raises:
        SampleError: It is no such sample.
    """
    if isinstance(sample, Tensor | np.ndarray | Image.Image):
        return read_label(None)
    try:
        if not isinstance(sample, tuple | list | Mapping) or not len(names_of(sample)):
            raise TypeError("expected an image")
        is_there = (
            key in names_of(sample) if isinstance(sample, Mapping) else isinstance(key, int) and key < len(sample)
        )
        place = key if is_there else label_key_of(sample)
        return read_label(None if place is None else part_of(sample, place), multi_label=multi_label)
    except (TypeError, ValueError) as cause:
        raise SampleError(
            f"the data set needs to give (image, label): item {index} is {describe_sample(sample)}; {cause}"
        ) from None


def label_key_of(sample: Any, key: Key | None = None) -> Key | None:
    """The place of the label in a sample: ``key`` where it is given, else the usual one; None for an image alone.

    Raises:
        SampleError: It is a mapping with none of ``LABEL_KEYS``, or an image alone although a key is given.
    """
    if key is not None:
        if not isinstance(sample, tuple | list | Mapping):
            raise SampleError(f"image_key and label_key need samples with parts: got {describe_sample(sample)}")
        return key
    if isinstance(sample, tuple | list):
        return 1 if len(sample) > 1 else None
    if not isinstance(sample, Mapping) or len(names_of(sample)) == 1:
        return None
    if (found := next((name for name in LABEL_KEYS if name in sample), None)) is None:
        raise SampleError(
            f"no label among {names_of(sample)}: expected one of the names {', '.join(LABEL_KEYS)}; pass label_key=, "
            "or leave the image alone in the data set if there are no labels, such as by select_columns"
        )
    return found


def part_of(sample: Any, key: Key | None) -> Any:
    """``sample[key]``, or the sample itself where ``key`` is None.

    Raises:
        SampleError: The sample has no such part.
    """
    if key is None:
        return sample
    try:
        return sample[key]
    except (KeyError, IndexError, TypeError, RuntimeError) as error:  # the last of a TensorDict
        raise SampleError(f"no {key!r} in the sample: got {describe_sample(sample)}") from error


def names_of(sample: Any) -> list[Key]:
    """The keys of a sample's parts. A TensorDict is a mapping whose length and iterator are those of its rows."""
    return [*sample.keys()] if isinstance(sample, Mapping) else [*range(len(sample))]


def describe_sample(sample: Any) -> str:
    """A sample as an error message shows it: its type, and the names or types of its parts."""
    if isinstance(sample, Mapping):
        return f"a {type(sample).__name__} of {names_of(sample)!r:.100}"
    if isinstance(sample, tuple | list):
        return f"a {type(sample).__name__} of {', '.join(type(part).__name__ for part in sample)[:100]}"
    return f"a {type(sample).__name__}"


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """A look at samples whose augmentation may draw numbers: torch's, NumPy's and Python's are as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that augmentations use
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def labels_of(dataset: Any, indices: list[int], key: str | int | None = None, *, multi_label: bool = False) -> Tensor:
    """The labels of a few samples, ``[B]`` or ``[B, num_classes]``; no global random state changes.

    Args:
        dataset: Its samples are as in :func:`label_of`.
        indices: Of the samples.
        key: Where the label is, if it is there; before the usual places.
        multi_label: See :func:`read_label`.

    Raises:
        SampleError: A sample is not ``(image, label)``, or they have labels of several kinds.
    """
    with random_states_kept():
        labels = [label_of(dataset[index], index, key, multi_label=multi_label) for index in indices]
    return stacked_labels(labels, indices)


def targets_of(dataset: Any, *, multi_label: bool = False) -> Tensor | None:
    """``dataset.targets`` as :func:`as_labels` gives them, where they are labels and it hands them out unchanged."""
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        return as_labels(targets, len(dataset), multi_label=multi_label).contiguous()
    except (TypeError, ValueError, RuntimeError):
        return None
