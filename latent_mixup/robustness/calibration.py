"""Calibration: how well a classifier's confidence agrees with its accuracy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.robustness.classifier import warn_of_probabilities
from latent_mixup.robustness.shared import check_classes, class_indices, describe


def expected_calibration_error(logits: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by the images in them.

    Bin ``b`` of ``B`` holds the images whose likeliest class has a probability in ``(b / B, (b + 1) / B]``.

    Args:
        logits: Float ``[N, K]``.
        labels: Class indices ``[N]``.
        num_bins: Number of bins that divide [0, 1].

    Returns:
        A number in [0, 1]; 0 is calibrated.

    Raises:
        ValueError: ``logits`` are not finite floats ``[N, K]``, ``labels`` are not classes of them, or
            ``num_bins`` is below 1.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3; 15 bins.

    Example:
        >>> expected_calibration_error(torch.tensor([[20.0, -20.0], [20.0, -20.0]]), torch.tensor([0, 1]))
        0.5
    """
    logits, labels = _checked(logits, labels)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1: got {num_bins}")
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64, device="cpu").index_add(0, bins, right - confidence)
    return gaps.abs().sum().item() / len(labels)


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance, summed over the classes, between the probabilities and the labels; in [0, 2].

    Args:
        logits: Float ``[N, K]``.
        labels: Class indices ``[N]``.

    Raises:
        ValueError: As :func:`expected_calibration_error`.

    Reference: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    Example:
        >>> brier_score(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        0.5
    """
    logits, labels = _checked(logits, labels)
    return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).square().sum(dim=1).mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats.

    Args:
        logits: Float ``[N, K]``.
        labels: Class indices ``[N]``.

    Raises:
        ValueError: As :func:`expected_calibration_error`.

    Example:
        >>> round(negative_log_likelihood(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), 4)
        0.6931
    """
    return F.cross_entropy(*_checked(logits, labels)).item()


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 and int64, on the CPU."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point() or not logits.numel():
        raise ValueError(f"logits must be a float tensor [N, K]: got {describe(logits)}")
    if not logits.isfinite().all():
        raise ValueError(f"logits must be finite: got {int((~logits.isfinite()).sum())} nan or inf numbers")
    if logits.shape[1] < 2:
        raise ValueError(f"logits must be of two classes or more: got {describe(logits)}; of one logit z pass [-z, z]")
    labels = class_indices(labels, len(logits))
    check_classes(labels, logits.shape[1])
    warn_of_probabilities(logits)
    return logits.cpu().double(), labels
