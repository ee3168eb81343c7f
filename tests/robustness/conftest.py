"""The small classifier, the images that it was trained on, and a linear one for any images of 48 numbers."""

from __future__ import annotations

import pytest
import torch
from classifier import noisy_patterns, trained_cnn
from torch import Tensor, nn


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return noisy_patterns()


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    return trained_cnn(*noisy_patterns())


@pytest.fixture
def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
