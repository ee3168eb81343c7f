"""Accuracy, clean and blurred, by its laws; loaders that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from classifier import CLASSES, loader_of
from torch import Tensor

from latent_mixup.robustness import accuracy, blur_sweep, blurred, blurred_accuracy, deepfool_score, logits_of


def test_bad_loaders_are_refused(linear):
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"must give \(images, labels\): got float32 \[2, 3, 4, 4\]"):
        accuracy(linear, [images])
    with pytest.raises(ValueError, match=r"labels must be class indices \[2\]: got float32 \[2, 4\]"):
        deepfool_score(linear, [(images, torch.zeros(2, 4))], num_classes=4)
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        deepfool_score(linear, images, max_images=0)
    for score in (accuracy, blurred_accuracy, deepfool_score):
        with pytest.raises(ValueError, match="at least one image: the loader gave none"):
            score(linear, [])
    sizes = [(torch.zeros(2, 3, *size), torch.zeros(2).long()) for size in ((4, 4), (2, 8))]
    with pytest.raises(ValueError, match=r"one size: got \[\(3, 2, 8\), \(3, 4, 4\)\]"):
        deepfool_score(linear, sizes, num_classes=4)


def test_accuracy_is_the_share_of_right_predictions(trained, data):
    images, labels = data
    right = int((trained(images).argmax(1) == labels).sum())
    for batch_size in (1, 7, 48):
        assert accuracy(trained, loader_of(data, batch_size)) == right / 48
    wrong = labels.clone()
    wrong[:12] = (trained(images[:12]).argmax(1) + 1) % CLASSES
    assert accuracy(trained, [(images, wrong)]) <= 0.75


def test_a_narrow_blur_changes_nothing_and_a_wide_one_does(trained, data):
    plain = accuracy(trained, [data])
    assert blurred_accuracy(trained, [data], sigma=1e-3) == plain
    assert blurred_accuracy(trained, [data]) < plain
    assert len({blurred_accuracy(trained, loader_of(data, size)) for size in (1, 7, 48)}) == 1


def test_a_sweep_is_the_blurred_accuracy_at_each_sigma(trained, data):
    swept = blur_sweep(trained, [data], (5.0, 1e-3, 2.0))
    assert list(swept) == [5.0, 1e-3, 2.0]
    assert swept[1e-3] == accuracy(trained, [data])
    assert all(value == blurred_accuracy(trained, [data], sigma=sigma) for sigma, value in swept.items())
    assert len(set(swept.values())) == 3
    with pytest.raises(ValueError, match="the loader gave none"):
        blur_sweep(trained, iter([data]), (1.0, 5.0))


def test_logits_come_in_the_order_of_the_loader(trained, data):
    logits, labels = logits_of(trained, loader_of(data, 7))
    torch.testing.assert_close(logits, trained(data[0]).detach())
    assert torch.equal(labels, data[1])


def test_the_blur_is_an_average_of_neighbours():
    dot, flat = torch.zeros(1, 1, 9, 9), torch.full((1, 1, 9, 9), -0.7)
    dot[..., 4, 4] = 1
    spread, still_flat = blurred(torch.cat([dot, flat]))
    torch.testing.assert_close(still_flat, flat[0])
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    weights = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * 5.0**2))
    weights = weights / weights.sum()
    torch.testing.assert_close(spread[0, 2:7, 2:7], torch.outer(weights, weights))


@pytest.mark.parametrize(
    ("kernel_size", "sigma", "message"),
    [
        (4, 5.0, "kernel_size must be an odd number of pixels: got 4"),
        (5, 0.0, "sigma must be a positive number of pixels: got 0.0"),
        (9, 5.0, "kernel_size 9 is too large for images of 4x4"),
    ],
)
def test_bad_blurs_are_refused(kernel_size, sigma, message, linear):
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(2, 3, 4, 4), torch.zeros(2).long()

    with pytest.raises(ValueError, match=message):
        blurred_accuracy(linear, batches(), kernel_size, sigma)
