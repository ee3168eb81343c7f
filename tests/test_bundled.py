"""The idx format, and images that come with the package."""

from __future__ import annotations

import lzma
from importlib import resources

import pytest
import torch

from latent_mixup import LatentBank, files
from latent_mixup.bundled import BundledImages, bundled_image_names, idx_bytes, read_idx
from latent_mixup.images import from_uint8


def counted(*shape: int) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 251).to(torch.uint8).view(shape)


@pytest.mark.parametrize("shape", [(7,), (5, 4, 3), (1, 1, 1), (0, 28, 28), (2, 3, 4, 5)])
def test_a_round_trip(tmp_path, shape):
    (tmp_path / "values").write_bytes(idx_bytes(counted(*shape)))
    read = read_idx(tmp_path / "values")
    assert read.dtype == torch.uint8
    assert read.equal(counted(*shape))


def test_what_is_written_is_the_mnist_familys_format():
    content = lzma.decompress(idx_bytes(counted(2, 3).T))
    assert content == bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes([0, 3, 1, 4, 2, 5])


HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no xz",
        HEADER + bytes(6),
        idx_bytes(counted(2, 3))[:-1],
        idx_bytes(counted(2, 3))[:20],
        *map(
            lzma.compress,
            [
                b"",
                HEADER[:3],
                HEADER[:7],
                HEADER,
                HEADER + bytes(5),
                HEADER + bytes(7),
                bytes([0, 0, 13]) + HEADER[3:] + bytes(6),
                bytes([1, 0]) + HEADER[2:] + bytes(6),
                bytes([0, 0, 8, 4]) + b"\xff" * 16 + bytes(6),
            ],
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "t10k-images").write_bytes(content)
    with pytest.raises(files.FormatError, match=r"t10k-images is not an xz-compressed idx file: "):
        read_idx(tmp_path / "t10k-images")


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A package with images called "toy": five to train on and three to test on."""
    folder = tmp_path / "assets" / "toy"
    (folder / "bank").mkdir(parents=True)
    (folder / "bank" / "bank.index.json").write_text("{}")
    (folder / "data").mkdir()
    for prefix, n in ("train", 5), ("t10k", 3):
        (folder / "data" / f"{prefix}-images-idx3-ubyte.xz").write_bytes(idx_bytes(counted(n, 28, 28)))
        (folder / "data" / f"{prefix}-labels-idx1-ubyte.xz").write_bytes(idx_bytes(torch.arange(n)))
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    return folder


@pytest.mark.parametrize(("train", "n"), [(True, 5), (False, 3)])
def test_images_and_labels(assets, train, n):
    dataset = BundledImages("toy", train=train)
    assert len(dataset) == n
    assert dataset.data.equal(counted(n, 1, 28, 28))
    assert dataset.targets.equal(torch.arange(n))
    image, label = dataset[2]
    assert image.equal(from_uint8(counted(n, 1, 28, 28)[2]))
    assert (label, type(label)) == (2, int)
    changed = BundledImages("toy", train=train, transform=lambda image: image.sum().item())
    assert changed[1] == (from_uint8(dataset.data[1]).sum().item(), 1)


def test_a_damaged_asset_is_named(assets):
    (assets / "data" / "train-images-idx3-ubyte.xz").write_bytes(b"")
    with pytest.raises(files.FormatError, match=r"train-images-idx3-ubyte.xz is not"):
        BundledImages("toy")


@pytest.mark.parametrize("name", ["cifar-10", "", "..", "toy/../toy", "/", "x\0y"])
def test_an_unknown_name(assets, name):
    with pytest.raises(FileNotFoundError, match=r"no images called .* come with latent-mixup: expected 'toy'$"):
        BundledImages(name)


def test_a_name_without_images(assets):
    for path in (assets / "data").iterdir():
        path.unlink()
    (assets / "data").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no images called 'toy' come with latent-mixup: expected none$"):
        BundledImages("toy")


def test_every_data_set_that_ships_is_served():
    assert "fashion-mnist" in bundled_image_names()
    for name in bundled_image_names():
        assert len(BundledImages(name)) == len(LatentBank.from_pretrained(name))
