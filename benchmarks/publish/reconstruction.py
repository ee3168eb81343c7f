"""Quality of the codes of a data set: MSE, and the accuracy that a classifier of real images keeps on decoded ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latent_mixup import LatentBank
from latent_mixup.classifiers import PaperCNN
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.training import shuffled_batches, train_classifier


def reference_classifier(images: Tensor, labels: Tensor, epochs: int = 5) -> PaperCNN:
    """The paper's classifier, trained on real images; it judges the reconstructions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN()
        per_epoch = len(images) // 64
        batches = shuffled_batches(images, labels, 64, epochs * per_epoch, seed=0)
        train_classifier(model, batches, decay_every=per_epoch)
    return model


@torch.no_grad()
def predictions(model: PaperCNN, images: Tensor) -> Tensor:
    """Predicted classes, ``[N]``."""
    return torch.cat([model(chunk).argmax(1) for chunk in images.split(500)])


@torch.no_grad()
def decode_all(generator: Generator, bank: LatentBank) -> Tensor:
    """Every row's image, in order."""
    return torch.cat([generator.decode(bank[row : row + 1000][0]) for row in range(0, len(bank), 1000)])


def quantiles(mse: Tensor) -> dict[str, float]:
    """Mean, median and 95th percentile, in units of [-1, 1] squared."""
    return {
        "mean": round(float(mse.mean()), 5),
        "median": round(float(mse.median()), 5),
        "p95": round(float(mse.quantile(0.95)), 5),
    }


def pca_mse(images: Tensor, numbers: int) -> float:
    """MSE of a PCA with ``numbers`` components, fitted to the same images."""
    flat = images.flatten(1).double()
    centred = flat - flat.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -numbers:]
    return round(float((centred - centred @ axes @ axes.T).square().mean()), 5)


def measure(
    generator: Generator,
    bank: LatentBank,
    test_bank: LatentBank,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    epochs: int,
) -> dict[str, Any]:
    """The record of one data set.

    Args:
        generator: Decodes the codes.
        bank: Codes of the training images.
        test_bank: Codes of the test images, in their order.
        train: Training images ``[N, 1, 28, 28]`` uint8 and labels ``[N]``.
        test: Test images and labels.
        epochs: Training epochs of the judge.
    """
    assert bank.mse is not None
    assert test_bank.mse is not None
    images = from_uint8(train[0])
    judge = reference_classifier(images, train[1], epochs)
    on_real, on_rebuilt = predictions(judge, from_uint8(test[0])), predictions(judge, decode_all(generator, test_bank))
    accuracy, rebuilt_accuracy = (float((found == test[1]).float().mean()) for found in (on_real, on_rebuilt))
    return {
        "train_mse": quantiles(bank.mse),
        "test_mse": quantiles(test_bank.mse),
        "pca_mse_of_as_many_numbers": pca_mse(images, generator.latent_shape[0]),
        "classifier_accuracy_on_real_test_images": round(accuracy, 4),
        "classifier_accuracy_on_reconstructions": round(rebuilt_accuracy, 4),
        "share_of_accuracy_kept": round(rebuilt_accuracy / accuracy, 4),
        "same_prediction": round(float((on_real == on_rebuilt).float().mean()), 4),
        "generator_digest": generator.digest(),
        "bank_digest": bank.digest(),
        "inversion": bank.metadata["inversion"],
    }
