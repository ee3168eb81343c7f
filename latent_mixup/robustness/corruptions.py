"""Corruptions in the style of CIFAR-10-C ("C-style"), at its strengths for 32-pixel images.

They are written from the published strengths for any size and one or three channels, each image has its own random
stream, and results are not rounded to 8 bits. So scores are not comparable with CIFAR-10-C, whose own files
:class:`~latent_mixup.robustness.CorruptedCIFAR` reads. Frost, snow, fog, spatter, elastic, and the glass, motion and
zoom blurs are not included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from latent_mixup.robustness.classifier import device_of, scored
from latent_mixup.robustness.ranges import Bounds, Range
from latent_mixup.robustness.shared import FLOAT32, Loader, batches, check_images, check_list
from latent_mixup.sampling import keyed_generator

SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 3  # pixels; the widest kernel reaches two beyond the border, mirrored
GAUSSIAN_REACH = 4  # standard deviations at which a Gaussian kernel ends

Draws: TypeAlias = Sequence[torch.Generator]  # one an image


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    bounds: Bounds | None = None,
    seed: int = 0,
    first_index: int = 0,
) -> Tensor:
    """Corrupt images by noise, blur, another brightness, contrast or saturation, pixelation or compression.

    Noise is drawn from (``seed``, index of the image, ``name``, ``severity``), so an image's result does not
    depend on its batch. ``"pixelate"`` and ``"jpeg_compression"`` round to 8 bits.

    Args:
        images: Float ``[B, C, H, W]`` within ``bounds``, of 3x3 pixels at least; one or three channels.
        name: One of :func:`corruption_names`.
        severity: From 1 to 5.
        bounds: The values of black and white in ``images``, such as ``(0, 1)``, or two lists with a number per channel;
            None: ``(-1, 1)``, refused where no value is below 0.
        seed: Seed of the noise.
        first_index: Index of the first image in the data set; the others follow it.

    Returns:
        Corrupted images within ``bounds``; shape, dtype and device of ``images``.

    Raises:
        ValueError: There is no such corruption for images of these channels, no such severity, or the images are
            too small, not finite floats or not within ``bounds``.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019; strengths of the script that made CIFAR-10-C.

    Example:
        >>> corrupt(torch.rand(5, 1, 28, 28), "gaussian_noise", 3, bounds=(0, 1)).shape
        torch.Size([5, 1, 28, 28])
    """
    check_images(images)
    span = Range.of(bounds, images)
    _check_what(images, [name], [severity])
    corruption = CORRUPTIONS[name]
    named = int.from_bytes(name.encode(), "big")
    indices = range(first_index, first_index + len(images)) if corruption.random else ()
    draws = [keyed_generator("corruption", seed, index, named, severity) for index in indices]
    unit = span.to_unit(images.detach()).float().clamp(0, 1)
    corrupted = corruption.apply(unit, corruption.strengths[int(severity) - 1], draws)
    return span.from_unit(corrupted.clamp(0, 1)).to(images)


def corruption_names(img_channels: int) -> tuple[str, ...]:
    """Names of the corruptions for images with ``img_channels`` channels; ``"saturate"`` needs three."""
    return tuple(name for name, corruption in CORRUPTIONS.items() if img_channels in corruption.img_channels)


def corruption_accuracy(
    model: nn.Module,
    loader: Loader,
    *,
    bounds: Bounds | None = None,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    max_images: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Accuracy on C-style corrupted images; see :func:`corrupt`.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``, float ``[B, C, H, W]`` within ``bounds`` and int ``[B]``.
        bounds: As in :func:`corrupt`.
        names: Some of :func:`corruption_names`; None: all of them.
        severities: From 1 to 5 each.
        seed: Seed of the noise.
        max_images: Stop after this many images; None: all.
        device: Where corrupted images are moved to; None: the device of the model's parameters.
        progress: Show a progress bar.

    Returns:
        By name, the accuracy in [0, 1] at each of ``severities``; the same for any batch size.

    Raises:
        ValueError: No image came, or what :func:`corrupt` refuses.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> found = corruption_accuracy(net, [(torch.rand(5, 3, 4, 4), torch.arange(5))], bounds=(0, 1))
        >>> len(found["contrast"])
        5
    """
    right: dict[str, list[int]] = {}
    count = 0
    with scored(model) as classifier:
        on, title = device_of(model, device), progress and "corruptions"
        for images, labels in batches(loader, limit=max_images, progress=title):
            names = corruption_names(images.shape[1]) if names is None else names
            check_list("names", names)
            check_list("severities", severities)
            _check_what(images, names, severities)
            for name in names:
                found = right.setdefault(name, [0] * len(severities))
                for i, severity in enumerate(severities):
                    seen = corrupt(images, name, severity, bounds=bounds, seed=seed, first_index=count)
                    predicted = classifier.logits(seen.to(on), labels).argmax(dim=1)
                    found[i] += int((predicted.cpu() == labels).sum())
            count += len(images)
    return {name: [n / count for n in found] for name, found in right.items()}


# Each function takes images [B, C, H, W] in [0, 1], a strength and a random stream for each image; the result is
# clipped to [0, 1].


def _gaussian_noise(images: Tensor, deviation: float, draws: Draws) -> Tensor:
    return images + deviation * _normal(images, draws)


def _shot_noise(images: Tensor, photons: float, draws: Draws) -> Tensor:
    rates = (images * photons).cpu()
    counts = torch.stack([torch.poisson(rate, generator=draw) for rate, draw in zip(rates, draws, strict=True)])
    return counts.to(images) / photons


def _impulse_noise(images: Tensor, share: float, draws: Draws) -> Tensor:
    """Each number becomes black or white with probability ``share / 2`` each."""
    toss = torch.stack([torch.rand(images.shape[1:], generator=draw, **FLOAT32) for draw in draws]).to(images)
    return images.masked_fill(toss < share, 1.0).masked_fill(toss < share / 2, 0.0)


def _speckle_noise(images: Tensor, deviation: float, draws: Draws) -> Tensor:
    return images + images * deviation * _normal(images, draws)


def _gaussian_blur(images: Tensor, sigma: float, draws: Draws) -> Tensor:
    """The border is replicated."""
    return _filtered(images, _gaussian(sigma, int(GAUSSIAN_REACH * sigma + 0.5)), "replicate")


def _defocus_blur(images: Tensor, lens: tuple[float, float], draws: Draws) -> Tensor:
    """A disk of pixels, softened by a Gaussian of 3x3 pixels; the border is mirrored."""
    radius, softness = lens
    reach = math.floor(radius) + 1
    offset = torch.arange(-reach, reach + 1, device="cpu")
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).float()
    soft = F.conv2d(disk[None, None], _gaussian(softness, 1)[None, None], padding=1)[0, 0]
    return _filtered(images, soft / disk.sum(), "reflect")


def _brightness(images: Tensor, more: float, draws: Draws) -> Tensor:
    """HSV: the value rises, hue and saturation stay."""
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + more).clamp(0, 1)
    return torch.where(value > 0, images * brighter / value, brighter)


def _contrast(images: Tensor, share: float, draws: Draws) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + share * (images - mean)


def _saturate(images: Tensor, change: tuple[float, float], draws: Draws) -> Tensor:
    """HSV: the saturation is scaled and shifted, hue and value stay; the hue of grey is red."""
    factor, shift = change
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    saturation = torch.where(value > 0, (value - least) / value, 0)
    wanted = (saturation * factor + shift).clamp(0, 1)
    coloured = value - (value - images) * wanted / saturation
    red = images.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    return torch.where(saturation > 0, coloured, value * (1 - wanted * red))


def _pixelate(images: Tensor, share: float, draws: Draws) -> Tensor:
    def smaller(picture: Image.Image) -> Image.Image:
        size = int(picture.width * share), int(picture.height * share)
        return picture.resize(size, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)

    return _each_picture(images, smaller)


def _jpeg_compression(images: Tensor, quality: int, draws: Draws) -> Tensor:
    def compressed(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each_picture(images, compressed)


@dataclass(frozen=True)
class _Corruption:
    """A corruption and its strength at each of the five severities."""

    apply: Callable[..., Tensor]
    strengths: tuple[float, ...] | tuple[tuple[float, float], ...]
    random: bool = False
    img_channels: tuple[int, ...] = (1, 3)


CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), random=True),
    "shot_noise": _Corruption(_shot_noise, (500, 250, 100, 75, 50), random=True),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), random=True),
    "speckle_noise": _Corruption(_speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20), random=True),
    "gaussian_blur": _Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": _Corruption(_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "brightness": _Corruption(_brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": _Corruption(_contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "saturate": _Corruption(_saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)), img_channels=(3,)),
    "pixelate": _Corruption(_pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "jpeg_compression": _Corruption(_jpeg_compression, (80, 65, 58, 50, 40)),
}


def _normal(images: Tensor, draws: Draws) -> Tensor:
    return torch.stack([torch.randn(images.shape[1:], generator=draw, **FLOAT32) for draw in draws]).to(images)


def _gaussian(sigma: float, reach: int) -> Tensor:
    """A kernel ``[2 * reach + 1, 2 * reach + 1]`` of sum 1."""
    line = torch.exp(-(torch.arange(-reach, reach + 1, **FLOAT32).square()) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def _filtered(images: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Each channel convolved with a kernel ``[k, k]``."""
    reach, channels = len(kernel) // 2, images.shape[1]
    weight = kernel.to(images).expand(channels, 1, *kernel.shape)
    return F.conv2d(F.pad(images, [reach] * 4, mode=border), weight, groups=channels)


def _each_picture(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """``change`` on each image as an 8-bit picture, grey or RGB."""
    pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = [
        np.array(change(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)))
        for pixels in pictures
    ]
    return torch.from_numpy(np.stack(changed)).view(pictures.shape).permute(0, 3, 1, 2).to(images) / 255


def _check_what(images: Tensor, names: Sequence[str], severities: Sequence[int]) -> None:
    channels, height, width = images.shape[1:]
    possible = corruption_names(channels)
    if not possible:
        raise ValueError(f"corruptions need images of 1 or 3 channels: got {channels}")
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"corruptions need images of {LEAST_SIDE}x{LEAST_SIDE} pixels or more: got {height}x{width}")
    for name in names:
        if name not in possible:
            raise ValueError(f"no corruption {name!r} for {channels} channels: choose from {', '.join(possible)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be from 1 to 5: got {severity!r}")
