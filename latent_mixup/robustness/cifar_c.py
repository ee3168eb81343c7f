"""The official files of CIFAR-10-C and CIFAR-100-C, as a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

ROWS_PER_SEVERITY = 10_000
SIZE = (32, 32, 3)
LABELS = "labels"


class CorruptedCIFAR(Dataset[tuple[Any, int]]):
    """One corruption at one severity, read from the folder that the official archive unpacks to.

    Like torchvision's ``CIFAR10``: ``dataset[i]`` is ``(transform(PIL image), int label)``, in the order of the test
    set. Rows are read when they are asked for, nothing in the files is executed, and workers open their own.

    Args:
        folder: Holds ``labels.npy`` and a file for each corruption, such as ``gaussian_noise.npy``.
        name: Of the corruption.
        severity: From 1 to 5.
        transform: Applied to the PIL image; None: the image itself.

    Attributes:
        targets: Labels, ``[10000]`` int64.

    Raises:
        FileNotFoundError: ``folder`` has no such file.
        ValueError: A file is not a NumPy array of the published shape and type, the labels differ between
            severities, or ``severity`` is out of range.

    Reference: Hendrycks and Dietterich, ICLR 2019; the README of the archives: the first 10,000 rows are severity 1,
    the last 10,000 severity 5.

    Example:
        ``CorruptedCIFAR("data/CIFAR-10-C", "gaussian_noise", 3, transform=test_transform)``
    """

    def __init__(
        self, folder: str | Path, name: str, severity: int, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        if severity not in range(1, 6):
            raise ValueError(f"severity must be from 1 to 5: got {severity}")
        self.folder, self.name, self.severity, self.transform = Path(folder), name, severity, transform
        self._images: NDArray[Any] | None = None
        _opened_images(self._path(name))
        labels = _opened_labels(self._path(LABELS))
        self.targets = torch.from_numpy(labels[(severity - 1) * ROWS_PER_SEVERITY :][:ROWS_PER_SEVERITY])

    def __len__(self) -> int:
        return ROWS_PER_SEVERITY

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -ROWS_PER_SEVERITY <= index < ROWS_PER_SEVERITY:
            raise IndexError(f"index {index} is out of range for {ROWS_PER_SEVERITY} images")
        if self._images is None:
            self._images = _opened_images(self._path(self.name))
        row = (self.severity - 1) * ROWS_PER_SEVERITY + index % ROWS_PER_SEVERITY
        image = Image.fromarray(np.array(self._images[row]))
        return (image if self.transform is None else self.transform(image)), int(self.targets[index])

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which would be copied in whole."""
        return {**self.__dict__, "_images": None}

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            there = ", ".join(cifar_c_names(self.folder)) or "none"
            raise FileNotFoundError(f"no {path.name} in {self.folder}: the corruptions found there are: {there}")
        return path


def cifar_c_names(folder: str | Path) -> tuple[str, ...]:
    """The corruptions that a folder of CIFAR-10-C or CIFAR-100-C has files of, sorted."""
    return tuple(sorted(path.stem for path in Path(folder).glob("*.npy") if path.stem != LABELS))


def _opened_images(path: Path) -> NDArray[Any]:
    images = _opened(path)
    wanted = (5 * ROWS_PER_SEVERITY, *SIZE)
    if images.dtype != np.uint8 or images.shape != wanted:
        raise ValueError(f"{path} must hold uint8 {list(wanted)}: got {images.dtype} {list(images.shape)}")
    return images


def _opened_labels(path: Path) -> NDArray[np.int64]:
    labels = _opened(path)
    if labels.dtype.kind not in "iu" or labels.shape != (5 * ROWS_PER_SEVERITY,):
        raise ValueError(
            f"{path} must hold integers [{5 * ROWS_PER_SEVERITY}]: got {labels.dtype} {list(labels.shape)}"
        )
    classes = np.array(labels, dtype=np.int64)
    if not 0 <= classes.min() <= classes.max() < 100:
        raise ValueError(f"{path} must hold labels in [0, 100): got {classes.min()} to {classes.max()}")
    if (classes.reshape(5, -1) != classes[:ROWS_PER_SEVERITY]).any():
        raise ValueError(f"{path} must hold the same {ROWS_PER_SEVERITY} labels for each severity: they differ")
    return classes


def _opened(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no complete NumPy array: {error}; unpack the archive again") from error
    return array
