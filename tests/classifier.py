"""A small classifier and the images that it was trained on, for the tests of robustness."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 6


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * 5 * 5, CLASSES),
    )


def noisy_patterns(*, limit: float = torch.inf, mislabelled: slice = slice(0)) -> tuple[Tensor, Tensor]:
    """Noisy copies of six patterns: 48 images of 12x12, clamped to [-limit, limit], and their labels, some wrong.

    In float64, so that no rounding decides on which side of a ReLU's kink an image lies.
    """
    draw = torch.Generator().manual_seed(1)
    patterns = torch.randn(CLASSES, 1, 12, 12, generator=draw)
    labels = torch.arange(48) % CLASSES
    images = 0.5 * patterns[labels] + 0.5 * torch.randn(48, 1, 12, 12, generator=draw)
    labels[mislabelled] = (labels[mislabelled] + 1) % CLASSES
    return images.double().clamp(-limit, limit), labels


def trained_cnn(images: Tensor, labels: Tensor) -> nn.Module:
    """The small CNN after sixty steps, so that its logits are not noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = small_cnn().double()
        adam = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            adam.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            adam.step()
    return net.eval()


class Sees(nn.Module):
    """A classifier whose images are changed by a function first."""

    def __init__(self, change: Callable[[Tensor], Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.change, self.inner = change, inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.change(images))


def loader_of(data: tuple[Tensor, Tensor], batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data), batch_size=batch_size)
