"""Which image of a data set each code is of, told by the images alone, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.bank.datasets import read_images, standardised, without_transform
from latent_mixup.labels import Key, random_states_kept

SIDE = 8  # px that images are compared at
CHUNK = 1_000  # images read and compared at a time
SURE = 0.25  # the squared distance of an image from its own decode is at most so much of the next image's


def rows_by_image(dataset: Any, decodes: Iterable[Tensor], image_key: Key | None = None) -> Tensor:
    """The row that each image is the nearest to, where that is beyond doubt: ``[len(dataset)]`` int64, -1 elsewhere.

    Images and decodes are compared at 8 px, whatever their range, contrast and brightness. A row is an image's where
    each is nearest to the other, and the next one of either is twice as far.

    Args:
        dataset: Without its ``transform``, where it has one.
        decodes: All rows' images in order, in batches ``[B, C, H, W]``.
        image_key: Place of the image in a sample; None: the usual one.

    Raises:
        ValueError: An image cannot be read, or has another size.
    """
    batches = list(decodes)
    size = batches[0].shape[1:]
    made = torch.cat([_small(batch) for batch in batches])
    best_of_row = made.new_full((len(made), 2), -1.0)
    image_of_row = torch.zeros(len(made), dtype=torch.int64, device="cpu")
    best_of_image, row_of_image = [], []
    plain = without_transform(dataset)
    for start in range(0, len(dataset), CHUNK):
        with random_states_kept():
            images = read_images(plain, list(range(start, min(start + CHUNK, len(dataset)))), size, image_key)
        if images is None:
            raise ValueError(
                f"the codes of this bank are matched to images, and not all of images {start} to "
                f"{min(start + CHUNK, len(dataset)) - 1} are {size[1]} x {size[2]} px with {size[0]} channels: pass a "
                "data set whose images are"
            )
        likeness = made @ _small(images).T
        highest, rows = _padded(likeness.T).topk(2)
        best_of_image.append(highest)
        row_of_image.append(rows[:, 0])
        highest, columns = _padded(likeness).topk(2)
        image_of_row = torch.where(highest[:, 0] > best_of_row[:, 0], columns[:, 0] + start, image_of_row)
        best_of_row = torch.cat([best_of_row, highest], 1).topk(2).values
    found = torch.cat(row_of_image)
    sure = _clear(torch.cat(best_of_image)) & _clear(best_of_row)[found]
    mutual = image_of_row[found] == torch.arange(len(dataset), device="cpu")
    return torch.where(sure & mutual, found, -1)


def _clear(likeness: Tensor) -> Tensor:
    """Whether the first of two is so much nearer than the second; ``[N, 2]`` to ``[N]`` bool."""
    return 1 - likeness[:, 0] <= SURE * (1 - likeness[:, 1])


def _padded(likeness: Tensor) -> Tensor:
    """Two columns or more."""
    return F.pad(likeness, (0, max(0, 2 - likeness.shape[1])), value=-1.0)


def _small(images: Tensor) -> Tensor:
    """Each image at 8 px as a float32 vector of mean 0 and length 1."""
    return standardised(F.adaptive_avg_pool2d(images.float(), SIDE)).float()
