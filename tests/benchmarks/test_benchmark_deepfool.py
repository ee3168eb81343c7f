"""The benchmark of DeepFool: its loop is the reference, and what it records."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from classifier import CLASSES, noisy_patterns, trained_cnn
from reference import deepfool_one_image
from torch import Tensor, nn

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "deepfool.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("benchmarks_deepfool", SCRIPT)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.NUM_CLASSES = CLASSES  # type: ignore[attr-defined]
    module.BLOCK = 5  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return noisy_patterns()


@pytest.fixture(scope="module")
def trained(data: tuple[Tensor, Tensor]) -> nn.Module:
    return trained_cnn(*data)


def test_its_loop_is_the_reference(benchmark: ModuleType, trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    images = data[0][:8]
    perturbations, steps = benchmark.one_by_one(trained, images)
    for image, perturbation, taken in zip(images, perturbations, steps, strict=True):
        expected, expected_steps = deepfool_one_image(trained, image, CLASSES)
        torch.testing.assert_close(perturbation, expected, atol=1e-9, rtol=0)
        assert int(taken) == expected_steps


def test_it_finds_the_three_to_agree(benchmark: ModuleType, trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    record = benchmark.measure(copy.deepcopy(trained).float(), data[0][:12].float())
    json.dumps(record, allow_nan=False)
    for precision, tolerance in (("float32", 1e-3), ("float64", 1e-6)):
        assert set(record[precision]) == {"batched", "foolbox"}
        for found in record[precision].values():
            assert found["largest_norm_difference"] < tolerance
            assert found["mean_norm"] > 1
    assert record["float64"]["batched"]["share_with_same_steps"] == 1
    assert record["float64"]["batched"]["largest_norm_difference"] < 1e-12
    assert record["speed"]["one_by_one"]["speed_up"] == 1
    for speed in record["speed"].values():
        least, greatest = speed["least_and_greatest_speed_up"]
        assert 0 < least <= speed["speed_up"] <= greatest


def test_disagreement_is_seen(benchmark: ModuleType) -> None:
    steps = torch.tensor([1, 2])
    own = torch.zeros(2, 1, 1, 2)
    own[:, 0, 0, 0] = 1.0
    other = own.clone()
    other[1, 0, 0] = torch.tensor([0.0, 0.5])
    found = benchmark.agreement((own, steps), (other, steps + torch.tensor([0, 1])))
    assert found == {
        "mean_norm": 0.75,
        "largest_norm_difference": 0.5,
        "largest_relative_norm_difference": 0.5,
        "largest_pixel_difference": 1.0,
        "share_with_same_steps": 0.5,
    }
