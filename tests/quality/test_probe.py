"""The linear probe against a slow optimum, in and out of the span of its rows, and its protocol."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latent_mixup.quality import probe as module
from latent_mixup.quality.probe import linear_accuracy, logistic_regression, probe


def blobs(per_class: int, classes: int = 3, size: int = 5, distance: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian blobs around random centres, the classes in turn."""
    draw = torch.Generator().manual_seed(3)
    centres = distance * torch.randn(classes, size, generator=draw, dtype=torch.float64)
    labels = torch.arange(per_class * classes) % classes
    return centres[labels] + torch.randn(len(labels), size, generator=draw, dtype=torch.float64), labels


@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
def test_the_fit_is_where_the_gradient_vanishes(l2):
    features, labels = blobs(20)
    weights = logistic_regression(features, labels, 3, l2).requires_grad_(True)
    loss = F.cross_entropy(features @ weights[:-1] + weights[-1], labels) + l2 / 2 * weights[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-4


def test_a_strong_penalty_leaves_the_shares_of_the_classes():
    features, labels = blobs(20)
    labels = torch.where(labels == 2, 1, labels)  # one third and two thirds
    weights = logistic_regression(features, labels, 2, 1e6)
    assert weights[:-1].abs().max() < 1e-4
    torch.testing.assert_close(
        weights[-1].softmax(0), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_in_the_span_of_the_rows_the_solution_is_the_same():
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 40, generator=draw, dtype=torch.float64)
    rows -= rows.mean(0)  # of rank 11
    coordinates, basis = module._in_their_span(rows)
    assert coordinates.shape == (12, 11)
    torch.testing.assert_close(coordinates @ basis.T, rows)
    labels = torch.arange(12) % 3
    inner, whole = (logistic_regression(each, labels, 3, 0.1) for each in (coordinates, rows))
    torch.testing.assert_close(basis @ inner[:-1], whole[:-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(inner[-1], whole[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [4, 300])  # fewer numbers than training rows, and more
def test_accuracy_is_that_of_the_rows_it_was_not_trained_on(size):
    features, labels = blobs(60, size=size, distance=6.0)
    train = torch.arange(60)
    assert linear_accuracy(features, labels, train, 3) == 1
    wrong = torch.where(torch.arange(180) >= 60, (labels + 1) % 3, labels)
    assert linear_accuracy(features, wrong, train, 3) == 0


@pytest.mark.parametrize("size", [4, 100])
def test_scale_shift_and_dtype_of_the_features_do_not_matter(size):
    features, labels = blobs(40, size=size, distance=0.5)
    expected = linear_accuracy(features, labels, torch.arange(60), 3)
    assert 1 / 3 < expected < 1
    for changed in (features * 7 + 3, features * 1e-3, features.float()):
        assert linear_accuracy(changed, labels, torch.arange(60), 3) == pytest.approx(expected, abs=0.02)
    with_constant = torch.cat([features, features.new_full((len(features), 2), 5.0)], 1)
    assert linear_accuracy(with_constant, labels, torch.arange(60), 3) == pytest.approx(expected, abs=0.05)


def test_the_draws_are_balanced_repeatable_and_paired(monkeypatch):
    _, labels = blobs(40)
    seen = []

    def watched(values, labels, train, num_classes):
        seen.append(train)
        return float(values[0, 0])

    monkeypatch.setattr(module, "linear_accuracy", watched)
    given = {"codes": torch.full((120, 2), 0.75), "pixels": torch.full((120, 2), 0.5)}
    before = torch.get_rng_state()
    found = probe(given, labels, draws=3, seed=1, progress=False)
    assert torch.get_rng_state().equal(before)
    assert set(found) == {"20"}  # 100 labels a class are not there
    assert found["20"]["codes_minus_pixels"] == {"mean": 0.25, "std": 0}
    for train in seen:
        assert torch.bincount(labels[train]).tolist() == [20, 20, 20]
        assert len(train.unique()) == 60
        assert (labels[train].view(20, 3) == labels[train][:3]).all()  # in turn
    assert seen[0].equal(seen[1])  # the same rows for both
    assert not seen[0].equal(seen[2])
    probe(given, labels, draws=1, seed=1, progress=False)
    probe(given, labels, draws=1, seed=2, progress=False)
    assert seen[6].equal(seen[0])
    assert not seen[8].equal(seen[0])


def test_too_few_labels_are_no_probe():
    features, labels = blobs(29)
    assert probe({"codes": features, "pixels": features}, labels, progress=False) is None
