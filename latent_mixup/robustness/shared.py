"""What the scores share: eval mode, loaders, chunks, the range of images, and checks of what comes in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Loader: TypeAlias = Iterable[Sequence[Tensor]]
Bounds: TypeAlias = tuple[float, float]  # what black and white are

CHUNK_IMAGES = 64  # the most that one attack holds, in images; on a CPU core 32 to 128 are alike
CHUNK_ELSEWHERE = 2048  # the same on a GPU
CHUNK_NUMBERS = 2**22  # the same in numbers (channels x pixels), for large images
BEYOND = 1e-5  # share of the range by which rounding may take an image out of it

NO_GRADIENT = "the model's logits carry no gradient back to the images: is there a torch.no_grad or a detach inside?"


def device_of(model: nn.Module, device: torch.device | str | None = None) -> torch.device | str:
    """``device``, or where None that of the model's parameters."""
    if device is not None:
        return device
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None else parameter.device


def batches(loader: Loader | Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Checked batches ``(images, labels)``; labels are None where the loader is a tensor of images."""
    if isinstance(loader, Tensor):
        check_images(loader)
        yield from ((images, None) for images in chunks(loader))
        return
    for batch in loader:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise ValueError(f"the loader must give (images, labels): got {describe(batch)}")
        images, labels = batch
        check_images(images)
        check_labels(labels, len(images))
        yield images, labels


def first_images(
    loader: Loader | Tensor, limit: int | None, *, progress: str | Literal[False] = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Checked batches, as :func:`batches`, of the first images.

    Args:
        loader: Yields ``(images, labels)``; or images alone as a tensor.
        limit: Stop after this many images; None: all.
        progress: Title of a progress bar that counts images; False: none.

    Raises:
        ValueError: ``limit`` is below 1, or what comes is no such batch.
    """
    from tqdm import tqdm

    if limit is not None and limit < 1:
        raise ValueError(f"max_images must be at least 1, or None for all: got {limit}")
    left = math.inf if limit is None else limit
    source = loader if isinstance(loader, Tensor) else getattr(loader, "dataset", None)
    known = [n for n in (limit, len(source) if isinstance(source, Sized) else None) if n is not None]
    with tqdm(total=min(known, default=None), unit="image", desc=progress or None, disable=not progress) as bar:
        for images, labels in batches(loader):
            n = int(min(left, len(images)))
            yield images[:n], None if labels is None else labels[:n]
            bar.update(n)
            left -= n
            if left == 0:
                return


def chunks(images: Tensor) -> tuple[Tensor, ...]:
    """``images`` in pieces that an attack can hold."""
    most = CHUNK_IMAGES if images.device.type == "cpu" else CHUNK_ELSEWHERE
    return torch.split(images, max(1, min(most, CHUNK_NUMBERS // images[0].numel())))


def logits_with_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images as a leaf of the graph, and their logits ``[B, K]``.

    Raises:
        ValueError: The model gives something else, or logits without a gradient back to the images.
    """
    images = images.detach().requires_grad_()
    logits = model(images)
    check_logits(logits, len(images))
    if not logits.requires_grad:
        raise ValueError(NO_GRADIENT)
    return images, logits


def l2_norms(images: Tensor) -> Tensor:
    """L2 norm of each image, ``[B]``."""
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return lengths


def per_image(values: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


def to_unit(images: Tensor, bounds: Bounds) -> Tensor:
    """From ``bounds`` to [0, 1]."""
    low, high = bounds
    return (images - low) / (high - low)


def from_unit(images: Tensor, bounds: Bounds) -> Tensor:
    """From [0, 1] to ``bounds``."""
    low, high = bounds
    return low + (high - low) * images


def check_range(bounds: Bounds) -> None:
    """Raise ``ValueError`` unless ``bounds`` are two finite numbers, rising."""
    low, high = bounds
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(f"bounds need to be two finite numbers, what black and white are: got {bounds}")


def check_inside(images: Tensor, bounds: Bounds) -> None:
    """Raise ``ValueError`` unless ``bounds`` are a range and ``images`` keep to it."""
    check_range(bounds)
    low, high = bounds
    least, most = (float(end) for end in images.aminmax())
    beyond = BEYOND * (high - low)
    if least < low - beyond or most > high + beyond:
        raise ValueError(
            f"images must keep to bounds={bounds}: got values from {least:.4g} to {most:.4g}; "
            "pass the range that the model takes"
        )


def check_images(images: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` are float ``[B, C, H, W]``, finite, at least one."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be a float tensor [B, C, H, W]: got {describe(images)}")
    if images.numel() == 0:
        raise ValueError(f"images must not be empty: got {describe(images)}")
    if not images.isfinite().all():
        raise ValueError(f"images must be finite: got {int((~images.isfinite()).sum())} nan or inf numbers")


def check_labels(labels: Tensor, num_images: int) -> None:
    """Raise ``ValueError`` unless ``labels`` are integers ``[num_images]``."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (num_images,):
        raise ValueError(f"labels must be class indices [{num_images}]: got {describe(labels)}")


def check_logits(logits: object, num_images: int) -> None:
    """Raise ``ValueError`` unless ``logits`` are a tensor ``[num_images, K]``."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_images:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must give logits [B, K] for {num_images} images: got {got}")


def describe(value: object) -> str:
    """What came, for an error's message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
