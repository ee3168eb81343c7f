"""The Fréchet distance of generated images from real ones, in a classifier's features.

The usual FID uses the features of an Inception network, which has to be downloaded. Here a small classifier is trained
on the data itself: distances compare the checkpoints of a run, and runs on the same data with the same seed. They are
not FIDs, and cannot be compared with any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from latent_mixup.classifiers import FeatureCNN
from latent_mixup.images import from_uint8
from latent_mixup.training.classifier import shuffled_batches, train_classifier
from latent_mixup.training.run import first_weights


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[F]`` and covariance ``[F, F]`` of ``[N, F]``, float64.

    Raises:
        ValueError: N is below 2.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs two images or more: got {len(features)}")
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet_distance(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """Squared Fréchet distance of two Gaussians, given as mean ``[F]`` and covariance ``[F, F]``.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the trace of the root is the sum of the singular values of
    ``C1^(1/2) C2^(1/2)``, which needs no root of a matrix that is not symmetric.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017).
    """
    (mean1, cov1), (mean2, cov2) = ours, theirs
    overlap = torch.linalg.matrix_norm(_root(cov1) @ _root(cov2), ord="nuc")
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


def train_judge(
    images_uint8: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int = 0,
    on_step: Callable[[], object] | None = None,
) -> tuple[FeatureCNN, float]:
    """A frozen classifier whose features compare sets of images, and its accuracy on the last fifth of the images.

    Args:
        images_uint8: ``[N, C, H, W]`` uint8. The last fifth, at most 2,000, is not trained on.
        labels: ``[N]`` int64 from 0.
        steps: Training steps, of 128 images each, or of all where there are fewer.
        seed: Decides the first weights and the order of the images.
        on_step: Called after each step, for a progress bar.
    """
    held_out = max(1, min(2_000, len(labels) // 5))
    shown, kept = len(labels) - held_out, labels[-held_out:]
    with first_weights(seed):
        model = FeatureCNN(images_uint8.shape[1], int(labels.max()) + 1)
        batches = shuffled_batches(images_uint8[:shown], labels[:shown], min(128, shown), steps, seed=seed)
        train_classifier(model, ((from_uint8(images), targets) for images, targets in batches), on_step=on_step)
    model.requires_grad_(False)
    guesses = torch.cat([model(from_uint8(part)).argmax(1) for part in images_uint8[-held_out:].split(500)])
    return model, float((guesses == kept).float().mean())


class FeatureDistance:
    """The Fréchet distance of images to those of a data set, in the features of a classifier trained on it.

    Args:
        images_uint8: ``[N, C, H, W]`` uint8; the distance is from the first 10,000.
        labels: ``[N]`` int64.
        steps: Training steps of the classifier, of 128 images each.
        seed: Decides the first weights and the order of the images.

    Attributes:
        accuracy: Accuracy of the classifier on the last images, which it was not trained on.
    """

    def __init__(self, images_uint8: Tensor, labels: Tensor, *, steps: int, seed: int = 0) -> None:
        self.model, self.accuracy = train_judge(images_uint8, labels, steps=steps, seed=seed)
        self.real = self.moments(from_uint8(part) for part in images_uint8[:10_000].split(500))

    def __call__(self, images: Iterable[Tensor]) -> float:
        """The distance of batches of images, ``[B, C, H, W]`` in [-1, 1], from the real ones."""
        return frechet_distance(self.moments(images), self.real)

    @torch.no_grad()
    def moments(self, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the features of all batches."""
        return moments(torch.cat([self.model.features(batch) for batch in images]))
