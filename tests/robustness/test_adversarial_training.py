"""Adversarial images to train on, and TRADES: the ball, exact answers on a linear model, and what stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from classifier import CLASSES, noisy_patterns, small_cnn, trained_cnn
from torch import nn

from latent_mixup.losses import trades
from latent_mixup.robustness import adversarial, pgd

BOUNDS = (-1, 1)


@pytest.fixture(scope="module")
def data():
    return noisy_patterns(limit=1)


@pytest.fixture(scope="module")
def trained(data):
    return trained_cnn(*data)


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES)).double()


def length(change: torch.Tensor, norm: str) -> torch.Tensor:
    return change.flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
@pytest.mark.parametrize("random_start", [True, False])
def test_images_stay_in_the_ball_and_the_bounds_and_the_loss_rises(data, trained, norm, eps, random_start):
    images, labels = data
    moved = adversarial(trained, images, labels, eps=eps, bounds=BOUNDS, norm=norm, random_start=random_start)
    assert moved.shape == images.shape
    assert not moved.requires_grad
    assert (length(moved - images, norm) <= eps * (1 + 1e-6)).all()
    assert moved.abs().max() <= 1
    before, after = (F.cross_entropy(trained(each), labels, reduction="none") for each in (images, moved))
    assert (after > before).double().mean() > 0.9


def test_one_step_on_a_linear_model_is_exact(data):
    images, labels = data
    model = linear()
    seen = images.clone().requires_grad_()
    F.cross_entropy(model(seen), labels, reduction="sum").backward()
    one = {"steps": 1, "random_start": False, "eps": 0.1, "step_size": 0.1}
    moved = adversarial(model, images, labels, bounds=BOUNDS, **one)
    torch.testing.assert_close(moved, (images + 0.1 * seen.grad.sign()).clamp(-1, 1))
    moved = adversarial(model, images, labels, bounds=(-9, 9), norm="l2", **one)
    unit = seen.grad / seen.grad.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(moved, images + 0.1 * unit)


def test_soft_targets_of_one_class_are_its_index(data, trained):
    images, labels = data
    found = [
        adversarial(trained, images, targets, eps=0.1, bounds=BOUNDS, generator=torch.Generator().manual_seed(0))
        for targets in (labels, F.one_hot(labels, CLASSES).double())
    ]
    torch.testing.assert_close(*found)


def test_it_fools_as_the_attack_that_scores_does(data, trained):
    images, labels = data
    moved = adversarial(trained, images, labels, eps=0.3, bounds=BOUNDS, steps=20)
    ours = trained(moved).argmax(1) != labels
    theirs = pgd(trained, images, labels, eps=0.3, bounds=BOUNDS, steps=20).fooled
    assert (ours == theirs).double().mean() > 0.9


def test_the_model_is_left_as_it_was(data):
    images, labels = data
    model = small_cnn().double().train()
    model[4].eval()
    before = copy.deepcopy(model.state_dict())
    adversarial(model, images, labels, eps=0.1, bounds=BOUNDS, steps=3)
    assert [module.training for module in model.children()] == [True, True, True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_starts_come_from_torchs_state_or_from_a_stream(data, trained):
    images, labels = data

    def moved(**settings):
        return adversarial(trained, images, labels, eps=0.1, bounds=BOUNDS, steps=1, **settings)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = moved(), moved()
        torch.manual_seed(3)
        assert torch.equal(moved(), first)
        assert not torch.equal(first, second)
        state = torch.get_rng_state()
        streams = [moved(generator=torch.Generator().manual_seed(5)) for _ in range(2)]
        assert torch.equal(*streams)
        moved(random_start=False)
        assert torch.equal(torch.get_rng_state(), state)


def test_trades_is_its_equation(data):
    images, labels = data
    model, beta = linear(), 2.5
    attack = {"eps": 0.1, "bounds": BOUNDS, "steps": 4}
    found = trades(model, images, labels, beta=beta, generator=torch.Generator().manual_seed(0), **attack)
    steady = model(images).softmax(1).detach()

    def divergence(logits, wanted):
        return (wanted * (wanted.log() - logits.log_softmax(1))).sum(1).mean()

    moved = adversarial(model, images, steady, loss=divergence, generator=torch.Generator().manual_seed(0), **attack)
    expected = F.cross_entropy(model(images), labels) + beta * divergence(model(moved), model(images).softmax(1))
    torch.testing.assert_close(found, expected)
    (ours, theirs) = (torch.autograd.grad(each, model[1].weight)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(trades(model, images, labels, beta=0, **attack), F.cross_entropy(model(images), labels))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eps": 0}, "eps must be a positive length"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"norm": "l1"}, 'norm must be "linf" or "l2"'),
        ({"bounds": (0, 1)}, "images must keep to bounds"),
    ],
)
def test_wrong_settings(data, trained, changes, said):
    images, labels = data
    with pytest.raises(ValueError, match=said):
        adversarial(trained, images, labels, **{"eps": 0.1, "bounds": BOUNDS, **changes})
    with pytest.raises(ValueError, match=said):
        trades(trained, images, labels, **{"eps": 0.1, "bounds": BOUNDS, **changes})


def test_targets_belong_to_images(data, trained):
    images, labels = data
    with pytest.raises(ValueError, match=r"targets must be \[48\] or \[48, K\]: got int64 \[47\]"):
        adversarial(trained, images, labels[1:], eps=0.1, bounds=BOUNDS)
    with pytest.raises(ValueError, match="beta needs to be from 0"):
        trades(trained, images, labels, eps=0.1, bounds=BOUNDS, beta=-1)
