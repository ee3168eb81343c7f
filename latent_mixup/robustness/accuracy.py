"""Accuracy, and the logits that the scores of a whole data set are computed from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latent_mixup.robustness.classifier import device_of, scored
from latent_mixup.robustness.shared import Loader, batches


def accuracy(model: nn.Module, loader: Loader, *, device: torch.device | str | None = None) -> float:
    """Share of a loader's images whose likeliest class is their label.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``, float ``[B, C, H, W]`` and int ``[B]``.
        device: Where images are moved to; None: the device of the model's parameters.

    Returns:
        Accuracy in [0, 1]; the same for any batch size.

    Raises:
        ValueError: No image came, images are not a finite float batch, labels are not classes of the model, or it
            does not return finite logits ``[B, K]``.
        TypeError: ``model`` is not a module, or ``loader`` not a loader.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> 0 <= accuracy(net, [(torch.rand(5, 3, 2, 2), torch.arange(5))]) <= 1
        True
    """
    return share_right(*logits_of(model, loader, device=device))


def logits_of(
    model: nn.Module,
    loader: Loader,
    *,
    see: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits ``[N, K]`` and labels ``[N]`` of a loader's images, in their order, on the CPU.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``.
        see: Applied to each batch of images before the model; None: nothing.
        device: Where images are moved to; None: the device of the model's parameters.

    Raises:
        ValueError: As :func:`accuracy`.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> logits_of(net, [(torch.rand(5, 3, 2, 2), torch.arange(5))])[0].shape
        torch.Size([5, 10])
    """
    logits, labels = [], []
    with scored(model) as classifier:
        for images, own in batches(loader, device=device_of(model, device)):
            logits.append(classifier.logits(images if see is None else see(images), own).cpu())
            labels.append(own)
    return torch.cat(logits), torch.cat(labels)


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits ``[N, K]``."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)
