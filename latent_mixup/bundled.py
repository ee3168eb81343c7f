"""The real images that come with the package, so that the main job runs without a data hub."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latent_mixup import files, hub
from latent_mixup.bank import LatentBank
from latent_mixup.images import from_uint8

IDX_UINT8 = 0x08


class BundledImages(Dataset[tuple[Any, int]]):
    """Real images and labels that come with the package; ``dataset[i] -> (image, int label)``.

    For training, the images that the bundled bank of the same name has codes of, row for row: drawn at random, as many
    of each class. For testing, the first test images. There are 10,000 and 2,000 of ``"fashion-mnist"``, 5,000 and
    1,000 of ``"mnist"``; of ``"cifar10"``, which comes without a licence, none. Terms: see NOTICE.

    Args:
        name: One of :func:`bundled_image_names`.
        train: Training or test images.
        transform: What happens to an image, a float32 tensor ``[1, 28, 28]`` in [-1, 1]; None: nothing.

    Attributes:
        data: ``[N, 1, 28, 28]`` uint8.
        targets: ``[N]`` int64.

    Raises:
        FileNotFoundError: No images of that name come with the package.

    Example:
        >>> BundledImages("fashion-mnist", train=False)[0][0].shape
        torch.Size([1, 28, 28])
    """

    def __init__(
        self, name: str = "fashion-mnist", *, train: bool = True, transform: Callable[[Tensor], Any] | None = None
    ) -> None:
        if name not in (names := bundled_image_names()):
            raise FileNotFoundError(
                f"no images called {name!r} come with latent-mixup: expected {' or '.join(map(repr, names)) or 'none'}"
            )
        folder = _assets() / name / "data"
        prefix = "train" if train else "t10k"
        self.data = read_idx(folder / f"{prefix}-images-idx3-ubyte.xz")[:, None]
        self.targets = read_idx(folder / f"{prefix}-labels-idx1-ubyte.xz").long()
        self.transform = transform
        self._bank = folder.parent / "bank" if train else None

    @cached_property
    def source_index(self) -> Tensor | None:
        """Each training image's index in all 60,000, by which the bundled bank knows it, ``[N]``; None for testing."""
        return None if self._bank is None else LatentBank.from_pretrained(self._bank).source_index

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = from_uint8(self.data[index])
        return (image if self.transform is None else self.transform(image)), int(self.targets[index])


def bundled_image_names() -> list[str]:
    """The data sets of which images come with the package, sorted."""
    return [name for name in hub.bundled_names() if (_assets() / name / "data").is_dir()]


def _assets() -> Path:
    return Path(str(resources.files("latent_mixup"))) / "assets"


def read_idx(path: Path) -> Tensor:
    """A uint8 array in the MNIST family's own format (idx), xz-compressed: a tensor of its shape.

    Raises:
        FormatError: The file holds something else.
    """
    try:
        content = lzma.decompress(path.read_bytes())
        zeros, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[4 + 4 * ndim :]
        if (zeros, kind) != (0, IDX_UINT8):
            raise ValueError(f"expected uint8 values (type 8), found type {kind}")
        return values.view(shape)
    except (lzma.LZMAError, EOFError, struct.error, ValueError, RuntimeError) as cause:
        raise files.FormatError(f"{path} is not an xz-compressed idx file: {cause}") from cause


def idx_bytes(values: Tensor) -> bytes:
    """What :func:`read_idx` reads: a uint8 tensor as an xz-compressed idx file."""
    header = struct.pack(f">HBB{values.ndim}I", 0, IDX_UINT8, values.ndim, *values.shape)
    return lzma.compress(header + values.to(torch.uint8).contiguous().numpy().tobytes(), preset=9)
