"""What happens to decoded images: the ``transform`` of the wrappers, once a batch where that is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latent_mixup.images import to_unit

Transform: TypeAlias = Callable[[Tensor], Tensor]

DRAW_NOTHING = frozenset(
    ("Normalize", "Resize", "CenterCrop", "Pad", "Grayscale", "RGB", "ToDtype", "ConvertImageDtype", "Identity")
)
"""Transforms of torchvision that do the same to every image."""


def takes_batches(transform: Any) -> bool:
    """Whether a transform does to a batch what it does to each image; others would draw once for the whole batch."""
    name, module = type(transform).__name__, type(transform).__module__
    if isinstance(transform, nn.Sequential):
        return all(map(takes_batches, transform))
    if not module.startswith("torchvision.transforms."):
        return transform is to_unit
    return all(map(takes_batches, transform.transforms)) if name == "Compose" else name in DRAW_NOTHING


def transformed(images: Tensor, transform: Transform) -> Tensor:
    """Images ``[k, C, H, W]`` after a transform, ``[k, C', H', W']``.

    Raises:
        ValueError: It does not return equal-sized float tensors.
    """
    if not takes_batches(transform):
        return _stacked([transform(image) for image in images])
    images = transform(images)
    _stacked([*images[:1]])  # which checks what it returns
    return images


def _stacked(images: list[Tensor]) -> Tensor:
    """The images that a transform returned, as a batch."""
    for image in images:
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"transform needs to return a float tensor [C, H, W]: got {found}")
        if image.shape != images[0].shape:
            raise ValueError(
                f"transform needs to return one size for all images: got {list(images[0].shape)} "
                f"and {list(image.shape)}; end it with v2.Resize((H, W))"
            )
    return torch.stack(images)
