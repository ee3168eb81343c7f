"""Reading what is to be inverted: images in [-1, 1] and labels, or a clear error."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator
from latent_mixup.images import as_images


def read_samples(dataset: Any, indices: Sequence[int], generator: Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, R, R]`` in [-1, 1] on the generator's device, and labels ``[B]``.

    Raises:
        ValueError: An image has another size or range, or a label is not an integer from 0.
    """
    samples = [dataset[index] for index in indices]
    images = as_images([sample[0] for sample in samples])
    size = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    if tuple(images.shape[1:]) != size:
        raise ValueError(
            f"images need the generator's size {list(size)}: got {list(images.shape[1:])} at index {indices[0]}; "
            f"resize them in the data set, e.g. v2.Resize({size[1:]})"
        )
    labels = torch.tensor([_label(sample, index) for sample, index in zip(samples, indices, strict=True)])
    return images.to(generator.device), labels


def _label(sample: Any, index: int) -> int:
    try:
        label = operator.index(sample[1])
    except TypeError:
        label = -1
    if label < 0:
        raise ValueError(
            f"dataset[i] needs to be (image, int label), labels from 0: got label {sample[1]!r:.100} at index {index}"
        )
    return label
