"""TRADES: a loss for classifiers that are right and stay so nearby."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.classifiers import logits_of_output
from latent_mixup.networks import eval_mode
from latent_mixup.robustness.adversarial_training import adversarial


def trades(model: nn.Module, images: Tensor, targets: Tensor, *, beta: float = 6.0, **attack: Any) -> Tensor:
    """Cross-entropy on the images, plus ``beta`` times how far predictions move within a small ball around them.

    The distance is the Kullback-Leibler divergence of the predictions on adversarial images from those on the images;
    the adversarial images are found by raising it. Start them at random: at the image itself it is 0, and so is its
    gradient.

    Args:
        model: Images to logits ``[B, K]``, in train mode.
        images: Float ``[B, C, H, W]``.
        targets: Class indices ``[B]``, or soft targets ``[B, K]``, such as those of mixes or of a teacher.
        beta: Weight of the second term, from 0.
        attack: ``eps``, ``bounds``, ``norm``, ``steps``, ``step_size`` and ``generator`` of
            :func:`latent_mixup.robustness.adversarial`.

    Returns:
        A scalar with a gradient for the model's parameters.

    Raises:
        ValueError: ``beta`` is negative, or what :func:`latent_mixup.robustness.adversarial` refuses.

    Reference: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy" (2019), equation 5.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> trades(net, torch.rand(5, 3, 2, 2), torch.arange(5), eps=0.1, bounds=(0, 1)).shape
        torch.Size([])
    """
    if not beta >= 0:
        raise ValueError(f"beta needs to be from 0: got {beta}")
    with eval_mode(model), torch.no_grad():
        steady = logits_of_output(model(images), len(images)).softmax(1)
    moved = adversarial(model, images, steady, loss=_divergence, **attack)
    logits = logits_of_output(model(torch.cat([images, moved])), 2 * len(images))
    clean, adverse = logits.chunk(2)
    return F.cross_entropy(clean, targets) + beta * _divergence(adverse, clean.softmax(1))


def _divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the logits' predictions from ``probabilities``, mean over images."""
    return F.kl_div(F.log_softmax(logits, 1), probabilities, reduction="batchmean")
