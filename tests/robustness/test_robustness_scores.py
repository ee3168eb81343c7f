"""Calibration against a slow reference, AutoAttack's adapter, and everything in one call."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from classifier import CLASSES, noisy_patterns, trained_cnn
from torch import Tensor, nn

from latent_mixup.robustness import (
    accuracy,
    autoattack,
    blurred_accuracy,
    brier_score,
    corruption_accuracy,
    corruption_names,
    deepfool_score,
    evaluate,
    expected_calibration_error,
    logits_of,
    negative_log_likelihood,
    pgd_accuracy,
)

BOUNDS = (-2.0, 2.0)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Three of the images have a wrong label."""
    images, labels = noisy_patterns()
    labels = labels.clone()
    labels[:3] = (labels[:3] + 1) % CLASSES
    return images.clamp(*BOUNDS), labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return trained_cnn(*noisy_patterns())


def calibration_error_slowly(logits: Tensor, labels: Tensor, num_bins: int) -> float:
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = []
        for row, label in zip(logits.double(), labels, strict=True):
            probabilities = row.exp() / row.exp().sum()
            if low < float(probabilities.max()) <= high:
                inside.append((float(probabilities.max()), int(probabilities.argmax()) == int(label)))
        if inside:
            confidence = sum(value for value, _ in inside) / len(inside)
            right = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(labels) * abs(right - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_calibration_error_equals_the_slow_one(num_bins: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(300, 4, generator=draw), torch.randint(4, (300,), generator=draw)
    found = expected_calibration_error(logits, labels, num_bins)
    assert found == pytest.approx(calibration_error_slowly(logits, labels, num_bins), abs=1e-12)
    assert found > 0.1


def test_calibration_error_of_known_cases() -> None:
    sure = torch.tensor([[1000.0, 0.0]]).expand(10, 2)
    assert expected_calibration_error(sure, torch.zeros(10).long()) == 0
    assert expected_calibration_error(sure, torch.ones(10).long()) == 1
    halves = torch.zeros(10, 2), torch.arange(10) % 2  # a confidence of 0.5, right in half of the cases
    assert expected_calibration_error(*halves) == pytest.approx(0)
    assert brier_score(*halves) == pytest.approx(0.5)
    assert negative_log_likelihood(*halves) == pytest.approx(math.log(2))
    assert brier_score(sure, torch.ones(10).long()) == pytest.approx(2)


def test_the_labels_own_distribution_is_calibrated_and_scores_best() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=draw)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    for score in (expected_calibration_error, brier_score, negative_log_likelihood):
        own, overconfident, shy = (score(factor * logits, labels) for factor in (1.0, 1.5, 0.6))
        assert own < min(overconfident, shy)
    assert expected_calibration_error(logits, labels) < 0.01


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2), torch.zeros(2).long(), r"logits must be a float tensor \[N, K\]: got float32 \[2\]"),
        (torch.zeros(0, 3), torch.zeros(0).long(), r"got float32 \[0, 3\]"),
        (torch.full((2, 3), math.nan), torch.zeros(2).long(), "logits must be finite: got 6 nan or inf numbers"),
        (torch.zeros(2, 3), torch.zeros(3).long(), r"labels must be class indices \[2\]: got int64 \[3\]"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels must be in \[0, 3\), the logits' classes: got 0 to 3"),
    ],
)
def test_bad_logits_are_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    for score in (expected_calibration_error, brier_score, negative_log_likelihood):
        with pytest.raises(ValueError, match=message):
            score(logits, labels)
    with pytest.raises(ValueError, match="num_bins must be at least 1: got 0"):
        expected_calibration_error(torch.zeros(1, 2), torch.zeros(1).long(), 0)


# --- AutoAttack -------------------------------------------------------------------------------------------


class InUnits(nn.Module):
    """The trained classifier for images in [0, 1], in float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        low, high = BOUNDS
        logits: Tensor = self.inner((images * (high - low) + low).double())
        return logits


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 2.5)])
def test_autoattack_stays_within_eps_and_is_no_weaker_than_pgd(
    norm: Any, eps: float, trained: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    pytest.importorskip("pyautoattack")
    images, labels = data[0][:12], data[1][:12]
    state = torch.get_rng_state()
    found = autoattack(trained, images, labels, bounds=BOUNDS, eps=eps, norm=norm, attacks=["apgd-ce"])
    assert torch.equal(torch.get_rng_state(), state)
    moved = (found - images).flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert 0.9 * eps < moved.max() <= eps * (1 + 1e-5)
    assert BOUNDS[0] - 1e-6 <= found.min() <= found.max() <= BOUNDS[1] + 1e-6
    assert torch.equal(found[:3], images[:3])  # wrong already
    loader = [(images, labels)]
    standing = accuracy(trained, [(found, labels)])
    assert standing <= pgd_accuracy(trained, loader, bounds=BOUNDS, eps=eps, norm=norm) < accuracy(trained, loader)


def test_autoattack_sees_images_in_0_1(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("pyautoattack")
    images, labels = data[0][:8], data[1][:8]
    unit = (images - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    how = {"norm": "linf", "attacks": ["apgd-ce"], "batch_size": 5}
    own = autoattack(trained, images, labels, bounds=BOUNDS, eps=0.4, **how)
    there = autoattack(InUnits(trained), unit.float(), labels, bounds=(0, 1), eps=0.1, **how)
    found = (own.float() - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    torch.testing.assert_close(found, there, atol=1e-5, rtol=0)


def test_autoattack_refuses_too_few_classes(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("pyautoattack")
    with pytest.raises(ValueError, match="targeted attacks apgd-t, fab-t need 10 classes: got 6 logits; pass attacks="):
        autoattack(trained, *data, bounds=BOUNDS, eps=0.1)
    with pytest.raises(ValueError, match="eps must be a positive length"):
        autoattack(trained, *data, bounds=BOUNDS, eps=0)


def test_autoattack_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch, trained: nn.Module) -> None:
    original: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pyautoattack":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'AutoAttack needs pyautoattack: pip install "latent-mixup\[robust\]"'):
        autoattack(trained, torch.zeros(1, 1, 12, 12), torch.zeros(1).long(), bounds=(0, 1), eps=0.1)


# --- Everything in one call -------------------------------------------------------------------------------


def test_evaluate_collects_what_the_parts_say(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    found = evaluate(
        trained,
        *data,
        bounds=BOUNDS,
        deepfool_images=20,
        sigmas=(1.0, 2.0),
        pgd_images=10,
        pgd_steps=4,
        linf_eps=0.055,
        l2_eps=0.5,
        corruption_images=12,
        severities=(2, 5),
        seed=3,
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    loader = [data]
    assert found["accuracy"] == accuracy(trained, loader) == 45 / 48
    assert found["blurred_accuracy"] == blurred_accuracy(trained, loader)
    sweep = [blurred_accuracy(trained, loader, sigma=sigma) for sigma in (1.0, 2.0)]
    assert found["blur_sweep"] == {"kernel_size": 5, "sigmas": [1.0, 2.0], "accuracy": sweep}

    score = deepfool_score(trained, loader, num_classes=CLASSES, max_images=20)
    deepfool = found["deepfool"]
    assert found["deepfool_score"] == deepfool["score"] == pytest.approx(score.score, abs=1e-9)
    assert deepfool["score_unit_range"] == pytest.approx(score.score / 4)
    assert deepfool["score_correct_unit_range"] == pytest.approx(score.score_correct / 4)
    assert (deepfool["n_images"], deepfool["n_correct"], deepfool["units"]) == (20, 17, "[-2, 2]")
    assert (deepfool["fooled_fraction"], deepfool["max_iter_hits"], deepfool["input_size"]) == (1.0, 0, [1, 12, 12])

    for norm, eps in (("linf", 0.055), ("l2", 0.5)):
        expected = pgd_accuracy(trained, loader, bounds=BOUNDS, eps=4 * eps, norm=norm, steps=4, seed=3, max_images=10)
        assert found["pgd"][norm] == {"eps_unit_range": eps, "accuracy": expected}
    assert (found["pgd"]["n_images"], found["pgd"]["steps"]) == (10, 4)

    by_name = corruption_accuracy(trained, loader, bounds=BOUNDS, severities=(2, 5), seed=3, max_images=12)
    corruptions = found["corruptions"]
    assert corruptions["accuracy"] == by_name
    assert set(by_name) == set(corruption_names(1))
    assert corruptions["mean_accuracy"] == pytest.approx(sum(map(sum, by_name.values())) / (2 * len(by_name)))
    assert (corruptions["n_images"], corruptions["severities"], corruptions["seed"]) == (12, [2, 5], 3)

    logits, labels = logits_of(trained, loader)
    assert found["calibration"] == {
        "expected_calibration_error": pytest.approx(expected_calibration_error(logits, labels)),
        "num_bins": 15,
        "brier_score": pytest.approx(brier_score(logits, labels)),
        "negative_log_likelihood": pytest.approx(negative_log_likelihood(logits, labels)),
    }
    assert set(found["seconds"]) == {"accuracy", "blur", "deepfool", "pgd", "corruptions"}


def test_each_part_can_be_left_out(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    off: dict[str, Any] = {"deepfool_images": 0, "sigmas": (), "pgd_images": 0, "corruption_images": 0}
    bare = evaluate(trained, *data, bounds=BOUNDS, **off)
    assert set(bare) == {"test_images", "bounds", "accuracy", "blurred_accuracy", "calibration", "seconds"}
    for switch, value, parts in (
        ("deepfool_images", 2, {"deepfool", "deepfool_score"}),
        ("sigmas", (1.0,), {"blur_sweep"}),
        ("pgd_images", 2, {"pgd"}),
        ("corruption_images", 2, {"corruptions"}),
    ):
        assert set(evaluate(trained, *data, bounds=BOUNDS, **{**off, switch: value})) - set(bare) == parts


def test_a_mean_over_no_image_is_null(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    images, labels = data
    found = evaluate(trained, images[:3], labels[:3], bounds=BOUNDS, pgd_images=0, corruption_images=0)
    assert found["deepfool"]["score_correct"] is None
    assert found["deepfool"]["score_correct_unit_range"] is None
    assert found["deepfool"]["n_correct"] == 0
    json.dumps(found, allow_nan=False)


def test_evaluate_refuses_images_of_another_range(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"images must keep to bounds=\(-1.0, 1.0\): got values from -2 to 2"):
        evaluate(trained, *data)
    with pytest.raises(ValueError, match=r"labels must be class indices \[48\]: got int64 \[2\]"):
        evaluate(trained, data[0], data[1][:2], bounds=BOUNDS)
    with pytest.raises(ValueError, match="deepfool_images must be at least 0: got -1"):
        evaluate(trained, *data, bounds=BOUNDS, deepfool_images=-1)
