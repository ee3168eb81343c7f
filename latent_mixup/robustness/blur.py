"""Accuracy on blurred images, at the paper's width and over a range of widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from latent_mixup.robustness.accuracy import logits_of, share_right
from latent_mixup.robustness.shared import Loader, check_list

SIGMAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # pixels; the last is the paper's


def blurred(images: Tensor, kernel_size: int = 5, sigma: float = 5.0) -> Tensor:
    """Gaussian blur with a mirrored border.

    Args:
        images: Float ``[B, C, H, W]`` in any range.
        kernel_size: Width of the kernel in pixels, odd. At the paper's sigma of 5 the kernel of 5 is
            close to a plain average of 5x5 pixels.
        sigma: Standard deviation of the kernel in pixels.

    Raises:
        ValueError: ``kernel_size`` is even or too large for the images, or ``sigma`` is not positive.

    Reference: Latent-Mixup, blurred accuracy: kernel 5, sigma 5.

    Example:
        >>> blurred(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 3, 4, 4])
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd number of pixels: got {kernel_size}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number of pixels: got {sigma}")
    height, width = images.shape[-2:]
    if kernel_size // 2 >= min(height, width):
        raise ValueError(f"kernel_size {kernel_size} is too large for images of {height}x{width}")
    result: Tensor = gaussian_blur(images, [kernel_size, kernel_size], [sigma, sigma])
    return result


def blurred_accuracy(
    model: nn.Module,
    loader: Loader,
    kernel_size: int = 5,
    sigma: float = 5.0,
    *,
    device: torch.device | str | None = None,
) -> float:
    """Accuracy on Gaussian-blurred images; the normalised input is blurred, as in the paper.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``, float ``[B, C, H, W]`` and int ``[B]``.
        kernel_size: As in :func:`blurred`.
        sigma: As in :func:`blurred`.
        device: Where images are moved to; None: the device of the model's parameters.

    Returns:
        Accuracy in [0, 1]; the same for any batch size.

    Raises:
        ValueError: What :func:`blurred` or :func:`accuracy` refuses.

    Reference: Latent-Mixup, blurred accuracy: kernel 5, sigma 5.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> 0 <= blurred_accuracy(net, [(torch.rand(5, 3, 4, 4), torch.arange(5))]) <= 1
        True
    """
    see = partial(blurred, kernel_size=kernel_size, sigma=sigma)
    return share_right(*logits_of(model, loader, see=see, device=device))


def blur_sweep(
    model: nn.Module,
    loader: Loader,
    sigmas: Sequence[float] = SIGMAS,
    *,
    kernel_size: int = 5,
    device: torch.device | str | None = None,
) -> dict[float, float]:
    """:func:`blurred_accuracy` at each of ``sigmas``, the kernel's size held fixed.

    A kernel of 5 pixels truncates a wide Gaussian: above a sigma of about 3 little changes.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``; iterated once for each sigma, so not an iterator.
        sigmas: Standard deviations of the kernel in pixels.
        kernel_size: Width of the kernel in pixels, odd.
        device: Where images are moved to; None: the device of the model's parameters.

    Returns:
        Accuracy in [0, 1] by sigma, in the order of ``sigmas``.

    Raises:
        ValueError: What :func:`blurred_accuracy` refuses, or ``loader`` is an iterator, exhausted by the first sigma.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> list(blur_sweep(net, [(torch.rand(5, 3, 4, 4), torch.arange(5))], (1.0, 2.0)))
        [1.0, 2.0]
    """
    check_list("sigmas", sigmas, may_be_empty=True)
    return {sigma: blurred_accuracy(model, loader, kernel_size, sigma, device=device) for sigma in sigmas}
