"""Batches and chunks of images, and the checks of arguments that the scores share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from latent_mixup.runs import tqdm

Loader: TypeAlias = Iterable[Sequence[Tensor]]

CHUNK_IMAGES = 64  # images that one attack holds at most; on a CPU core 32 to 128 are alike
CHUNK_ELSEWHERE = 2048  # the same on a GPU
CHUNK_NUMBERS = 2**22  # the same in numbers (channels x pixels), for large images
FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # of draws, whatever the defaults are


def batches(
    loader: Loader | Tensor,
    *,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: str | Literal[False] = False,
    labelled: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked batches of the first images.

    Args:
        loader: Yields ``(images, labels)``; or images alone as a tensor, where ``labelled`` is False.
        limit: Stop after this many images; None: all.
        device: Where images are moved to; None: they stay.
        progress: Title of a progress bar that counts images; False: none.
        labelled: Refuse images alone.

    Yields:
        Images ``[B, C, H, W]`` and labels, int64 ``[B]`` on the CPU, -1 for images alone.

    Raises:
        ValueError: ``limit`` is below 1, a batch is no such pair, or no image came.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"max_images must be at least 1, or None for all: got {limit}")
    check_loader(loader)
    source, pairs = getattr(loader, "dataset", None), loader
    if isinstance(loader, Tensor):
        if labelled:
            raise ValueError("accuracy needs labels: pass a loader of (images, labels), not a tensor")
        source, pairs = loader, ((part, torch.full((len(part),), -1, device="cpu")) for part in chunks(loader))
    known = [n for n in (limit, len(source) if isinstance(source, Sized) else None) if n is not None]
    with tqdm(total=min(known, default=None), unit="image", desc=progress or None, disable=not progress) as bar:
        count = 0
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"the loader must give (images, labels): got {describe(pair)}")
            images, labels = pair
            check_images(images)
            labels = class_indices(labels, len(images))
            n = len(images) if limit is None else min(limit - count, len(images))
            yield images[:n].to(device), labels[:n]
            bar.update(n)
            count += n
            if count == limit:
                return
    if count == 0:
        raise ValueError("a score needs at least one image: the loader gave none")


def chunks(images: Tensor) -> tuple[Tensor, ...]:
    """``images`` in pieces that an attack can hold."""
    most = CHUNK_IMAGES if images.device.type == "cpu" else CHUNK_ELSEWHERE
    return torch.split(images, max(1, min(most, CHUNK_NUMBERS // images[0].numel())))


def l2_norms(images: Tensor) -> Tensor:
    """L2 norm of each image, ``[B]``."""
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return lengths


def per_image(values: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


# ---- checks ----------------------------------------------------------------------------------------


def check_loader(loader: object) -> None:
    """Raise ``TypeError`` unless this gives batches."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"a loader of batches is needed, got the data set {type(loader).__name__}: pass DataLoader(dataset, 128)"
        )
    if isinstance(loader, str) or not isinstance(loader, Iterable):
        raise TypeError(f"a loader of (images, labels) is needed: got {describe(loader)}")


def check_images(images: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` are float ``[B, C, H, W]``, finite, at least one."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be a float tensor [B, C, H, W]: got {describe(images)}")
    if images.numel() == 0:
        raise ValueError(f"images must not be empty: got {describe(images)}")
    if not images.isfinite().all():
        raise ValueError(f"images must be finite: got {int((~images.isfinite()).sum())} nan or inf numbers")


def class_indices(labels: object, num_images: int) -> Tensor:
    """Labels ``[num_images]`` of any integer type as int64 on the CPU.

    Raises:
        ValueError: They are no integers ``[num_images]``.
    """
    if isinstance(labels, list | tuple | np.ndarray):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            labels = torch.as_tensor(labels, device="cpu")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (num_images,):
        raise ValueError(f"labels must be class indices [{num_images}]: got {describe(labels)}")
    return labels.cpu().long()


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Raise ``ValueError`` unless the labels are in ``[0, num_classes)``."""
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= num_classes:
        advice = "pass a model of these classes"
        if least < 0:
            advice = "leave images without a label out"
        elif least == 1 and most == num_classes:
            advice = "they count from 1, pass labels - 1"
        raise ValueError(f"labels must be in [0, {num_classes}), the logits' classes: got {least} to {most}; {advice}")


def check_list(name: str, values: object, *, may_be_empty: bool = False) -> None:
    """Raise ``ValueError`` unless ``values`` are several, in a list or another sequence."""
    listed = isinstance(values, Sequence | np.ndarray | Tensor) and not isinstance(values, str)
    if not listed or not (len(values) or may_be_empty):  # type: ignore[arg-type]
        some = "" if may_be_empty else " with an entry at least"
        raise ValueError(f"{name} must be a list{some}: got {values!r:.100}")


def check_eps(eps: float, norm: str) -> None:
    """Raise ``ValueError`` unless ``eps`` is a positive number and ``norm`` one of two."""
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2": got {norm!r}')
    check_length("eps", eps)


def check_length(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is positive and finite."""
    if not isinstance(value, Real) or not (math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} must be a positive length in the units of the images: got {value!r}")


def describe(value: object) -> str:
    """Type and shape of a wrong argument, for its error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
