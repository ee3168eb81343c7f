"""Calibration against a slow reference and by known cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latent_mixup.robustness import brier_score, expected_calibration_error, negative_log_likelihood


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
def test_calibration_error_equals_the_slow_one(num_bins):
    draw = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(300, 4, generator=draw), torch.randint(4, (300,), generator=draw)
    found = expected_calibration_error(logits, labels, num_bins)
    assert found == pytest.approx(calibration_error_slowly(logits, labels, num_bins), abs=1e-12)
    assert found > 0.1


def test_calibration_error_of_known_cases():
    sure = torch.tensor([[1000.0, 0.0]]).expand(10, 2)
    assert expected_calibration_error(sure, torch.zeros(10).long()) == 0
    assert expected_calibration_error(sure, torch.ones(10).long()) == 1
    halves = torch.zeros(10, 2), torch.arange(10) % 2  # a confidence of 0.5, right in half of the cases
    assert expected_calibration_error(*halves) == pytest.approx(0)
    assert brier_score(*halves) == pytest.approx(0.5)
    assert negative_log_likelihood(*halves) == pytest.approx(math.log(2))
    assert brier_score(sure, torch.ones(10).long()) == pytest.approx(2)


def test_the_labels_own_distribution_is_calibrated_and_scores_best():
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
def test_bad_logits_are_refused(logits, labels, message):
    for score in (expected_calibration_error, brier_score, negative_log_likelihood):
        with pytest.raises(ValueError, match=message):
            score(logits, labels)
    with pytest.raises(ValueError, match="num_bins must be at least 1: got 0"):
        expected_calibration_error(torch.zeros(1, 2), torch.zeros(1).long(), 0)
