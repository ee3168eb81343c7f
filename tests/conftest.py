"""A tiny generator that is linear and exactly invertible, and data to go with it."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import signal
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from loopback_hub import LoopbackHub, connect
from torch import Tensor
from torch.utils.data import TensorDataset

from latent_mixup.bank import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.generators.base import Generator

torch.set_num_threads(1)  # the tests are small and may run beside each other
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # processes that they start compute alike
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)  # no clock, the same examples each time
hypothesis.settings.load_profile("suite")


# Draws from the global random state are the same in every run of a test, alone or among others in any order.


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Before a module is imported."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """Around a fixture that several tests share: the one that asks for it first goes on like the others."""
    if fixturedef.scope == "function":
        return (yield)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (yield)


RESOLUTION = 4
DIM = RESOLUTION * RESOLUTION


class LinearGenerator(Generator):
    """Decodes a code of 16 numbers by an orthogonal matrix; ``encode`` is its exact inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_shape = (DIM,)
        self.latent_space = "z"
        self.img_channels = 1
        self.img_resolution = RESOLUTION
        self.preferred_path = "lerp"
        matrix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(5))
        self.register_buffer("basis", torch.linalg.qr(matrix).Q)
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        return (latents @ self.basis).view(-1, 1, RESOLUTION, RESOLUTION)

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.basis.T

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.encode(torch.rand(n, 1, RESOLUTION, RESOLUTION, generator=generator) * 2 - 1)

    def mean_latent(self) -> Tensor:
        return torch.zeros(DIM)


@pytest.fixture
def linear_generator() -> LinearGenerator:
    return LinearGenerator()


@pytest.fixture
def toy_dataset() -> TensorDataset:
    """Fifty 4x4 grey images in [-1, 1] of three classes; ``dataset[i] -> (image, int label)``."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(50, 1, RESOLUTION, RESOLUTION, generator=draw) * 2 - 1
    return LabelledImages(images, torch.arange(50) % 3)


class LabelledImages(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self.images):
            raise IndexError(index)
        return self.images[index], int(self.labels[index])


class Killer:
    """Counts events, and sends this process a signal at one of them.

    Args:
        at: Which; None: it only counts.
        number: Of the signal.
    """

    def __init__(self, at: int | None, number: int = 0) -> None:
        self.at, self.number, self.happened = at, number, 0

    def event(self) -> None:
        self.happened += 1
        if self.happened == self.at:
            signal.raise_signal(self.number)

    @contextlib.contextmanager
    def watching_files(self) -> Iterator[None]:
        """Inside, a renamed file is two events: before it is in its place, and after."""
        replace = os.replace

        def watched(source: Any, target: Any) -> None:
            self.event()
            replace(source, target)
            self.event()

        os.replace = watched  # type: ignore[assignment]
        try:
            yield
        finally:
            os.replace = replace


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: a job in the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SoftImages(LabelledImages):
    """The same with soft labels, ``[N, num_classes]``."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if index >= len(self.images):
            raise IndexError(index)
        return self.images[index], self.labels[index]


def with_labels(bank: LatentBank, labels: Tensor) -> LatentBank:
    """The codes of a bank with other labels."""
    return LatentBank(bank[:][0], labels, source_index=bank.source_index)


def one_hot_bank(bank: LatentBank) -> LatentBank:
    """The same classes, said by soft labels."""
    return with_labels(bank, F.one_hot(bank.labels, bank.num_classes).float())


@pytest.fixture
def soft_dataset(toy_dataset: LabelledImages) -> SoftImages:
    """The images of ``toy_dataset`` with soft labels of three classes."""
    return SoftImages(toy_dataset.images, torch.randn(50, 3, generator=torch.Generator().manual_seed(2)).softmax(1))


@pytest.fixture
def soft_bank(toy_bank: LatentBank, soft_dataset: SoftImages) -> LatentBank:
    """The exact codes of ``soft_dataset``."""
    return with_labels(toy_bank, soft_dataset.labels)


@pytest.fixture
def unlabelled_bank(toy_bank: LatentBank) -> LatentBank:
    """The codes of ``toy_dataset``, of which rows 7 and 9 have no label."""
    missing = torch.tensor([7, 9])
    return with_labels(toy_bank, toy_bank.labels.index_fill(0, missing, -1))


@pytest.fixture
def toy_bank(linear_generator: LinearGenerator, toy_dataset: LabelledImages) -> LatentBank:
    """The exact codes of ``toy_dataset``."""
    return LatentBank(linear_generator.encode(toy_dataset.images), toy_dataset.labels, source_index=torch.arange(50))


@pytest.fixture
def bundled_root(tmp_path: Path) -> Path:
    """A folder with the bundled images of Fashion-MNIST as torchvision lays them out."""
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (Path(str(resources.files("latent_mixup"))) / "assets/fashion-mnist/data").glob("*.xz"):
        (raw / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return tmp_path / "root"


@pytest.fixture
def bundled_bank(tmp_path: Path) -> Path:
    """The bundled bank of Fashion-MNIST, its rows numbered as the images of ``bundled_root`` are."""
    bank = LatentBank.from_pretrained("fashion-mnist")
    numbered = LatentBank(*bank[:], source_index=torch.arange(len(bank)), metadata=bank.metadata)
    numbered.save_pretrained(tmp_path / "bundled-bank")
    return tmp_path / "bundled-bank"


@pytest.fixture
def hub_server(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub on the loopback device, which the real client talks to; large files lie on another host."""
    with LoopbackHub("localhost") as elsewhere, LoopbackHub() as server:
        server.elsewhere = elsewhere
        connect(server, tmp_path / "home", monkeypatch)
        yield server


@pytest.fixture
def data_root(tmp_path) -> Path:
    """Sixty real images where torchvision looks for Fashion-MNIST."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    source = BundledImages("fashion-mnist", train=False)
    for prefix, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        images, labels = source.data[rows, 0], source.targets[rows].to(torch.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + values.numpy().tobytes())
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(b""))
    return tmp_path / "data"
