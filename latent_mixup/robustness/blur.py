"""Accuracy on blurred images: the paper's, and over a range of widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from latent_mixup.robustness.accuracy import logits_of, share_right
from latent_mixup.robustness.shared import Loader

SIGMAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # pixels; the last is the paper's


def blurred(images: Tensor, kernel_size: int = 5, sigma: float = 5.0) -> Tensor:
    """Images through a Gaussian blur, the border mirrored.

    Args:
        images: Float ``[B, C, H, W]`` in any range.
        kernel_size: Width of the kernel in pixels, odd. At the paper's sigma of 5 the kernel of 5 is
            close to a plain average of 5x5 pixels.
        sigma: Standard deviation of the kernel in pixels.

    Raises:
        ValueError: The kernel is even, too large for the images or its sigma not positive.

    Reference: Latent-Mixup, blurred accuracy: kernel 5, sigma 5.

    Example:
        >>> blurred(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 3, 4, 4])
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    _check_kernel(kernel_size, sigma)
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
    """Accuracy on images seen through a Gaussian blur, applied to the normalised input as in the paper.

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
    _check_kernel(kernel_size, sigma)
    return share_right(*logits_of(model, loader, see=_blur(kernel_size, sigma), device=device))


def blur_sweep(
    model: nn.Module,
    loader: Loader,
    sigmas: Sequence[float] = SIGMAS,
    *,
    kernel_size: int = 5,
    device: torch.device | str | None = None,
) -> dict[float, float]:
    """:func:`blurred_accuracy` at each of ``sigmas``, the kernel's size held fixed.

    A kernel of 5 pixels cuts a wide Gaussian off: from a sigma of about 3 on, little changes.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``; gone through once a sigma, so no iterator.
        sigmas: Standard deviations of the kernel in pixels.
        kernel_size: Width of the kernel in pixels, odd.
        device: Where images are moved to; None: the device of the model's parameters.

    Returns:
        Accuracy in [0, 1] by sigma, in the order of ``sigmas``.

    Raises:
        ValueError: What :func:`blurred_accuracy` refuses; an iterator, that the first sigma used up.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> list(blur_sweep(net, [(torch.rand(5, 3, 4, 4), torch.arange(5))], (1.0, 2.0)))
        [1.0, 2.0]
    """
    return {sigma: blurred_accuracy(model, loader, kernel_size, sigma, device=device) for sigma in sigmas}


def _blur(kernel_size: int, sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda images: blurred(images, kernel_size, sigma)


def _check_kernel(kernel_size: int, sigma: float) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd number of pixels: got {kernel_size}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number of pixels: got {sigma}")
