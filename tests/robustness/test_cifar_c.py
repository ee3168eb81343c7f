"""The reader of the official files of CIFAR-10-C."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_mixup.robustness import CorruptedCIFAR, cifar_c_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the official shape, mostly holes: row ``i`` of ``fog`` has a first pixel that tells ``i``."""
    images = np.lib.format.open_memmap(tmp_path / "fog.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    for row in (0, 9_999, 10_000, 29_999, 49_999):
        images[row, 0, 0] = (row % 251, row // 251, 7)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10_000) % 10, 5).astype(np.uint8))
    return tmp_path


def test_rows_are_severity_major(folder):
    for severity, index, row in ((1, 0, 0), (1, 9_999, 9_999), (2, 0, 10_000), (3, -1, 29_999), (5, 9_999, 49_999)):
        data = CorruptedCIFAR(folder, "fog", severity)
        image, label = data[index]
        assert (image.size, image.mode) == ((32, 32), "RGB")
        assert image.getpixel((0, 0)) == (row % 251, row // 251, 7)
        assert (label, int(data.targets[index]), len(data)) == (row % 10, row % 10, 10_000)
    assert cifar_c_names(folder) == ("fog",)
    with pytest.raises(IndexError, match="index 10000 is out of range for 10000 images"):
        data[10_000]


def test_travels_to_workers_without_its_images(folder):
    data = CorruptedCIFAR(folder, "fog", 5, transform=lambda image: torch.from_numpy(np.array(image)[0, 0]))
    (pixel, label) = data[9_999]
    assert (pixel.tolist(), label) == ([49_999 % 251, 49_999 // 251, 7], 9)
    data.transform = None
    assert len(pickle.dumps(data)) < 200_000  # its labels; the images are 150 MB
    assert copy.deepcopy(data)[9_999][0].getpixel((0, 0)) == tuple(pixel.tolist())


def test_bad_files_are_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"no snow.npy in .*: the corruptions found there are: fog$"):
        CorruptedCIFAR(folder, "snow", 1)
    with pytest.raises(ValueError, match="severity must be from 1 to 5: got 6"):
        CorruptedCIFAR(folder, "fog", 6)
    np.save(folder / "short.npy", np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"short.npy must hold uint8 \[50000, 32, 32, 3\]: got uint8 \[10, 32, 32, 3\]"
    ):
        CorruptedCIFAR(folder, "short", 1)
    np.save(folder / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil.npy is no complete NumPy array: .*unpack the archive again"):
        CorruptedCIFAR(folder, "evil", 1)
    for length in (1000, 0):
        (folder / "cut.npy").write_bytes((folder / "fog.npy").read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cut.npy is no complete NumPy array"):
            CorruptedCIFAR(folder, "cut", 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(50_000, np.float32), r"must hold integers \[50000\]: got float32 \[50000\]"),
        (np.zeros(10_000, np.uint8), r"must hold integers \[50000\]: got uint8 \[10000\]"),
        (np.full(50_000, 100), r"must hold labels in \[0, 100\): got 100 to 100"),
        (np.arange(50_000) % 7, "must hold the same 10000 labels for each severity: they differ"),
    ],
)
def test_bad_labels_are_refused(labels, message, folder):
    np.save(folder / "labels.npy", labels)
    with pytest.raises(ValueError, match=message):
        CorruptedCIFAR(folder, "fog", 1)
