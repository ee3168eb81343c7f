"""Pixels as codes: mixup of images by the same machinery, the control without a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator, sides


class Identity(Generator):
    """A code is the image itself: ``decode`` and ``encode`` change nothing, and mixes are those of pixel mixup.

    ``latent_mixup.invert(dataset, Identity(3, 32))`` gives a bank of the images. ``sample_latents`` draws pixels
    uniform in [-1, 1], which is noise: this is no model of images.

    Args:
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels, one number for both or ``(height, width)``.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), equation 1.

    Example:
        >>> Identity(3, (96, 160)).decode(torch.zeros(2, 3, 96, 160)).shape
        torch.Size([2, 3, 96, 160])
    """

    preferred_inversion: ClassVar[Mapping[str, Any]] = {"loss": "pixels", "steps": 0, "restarts": 0}

    def __init__(self, img_channels: int = 1, img_resolution: int | tuple[int, int] = 28) -> None:
        super().__init__()
        self.img_channels, self.img_size = img_channels, sides(img_resolution)
        self.latent_shape, self.latent_space, self.preferred_path = self.image_shape, "vae", "lerp"
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(self.latent_shape))  # has the device, and a digest of the size
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, C, H, W]`` as they are; a copy, in float32."""
        self.check_latents(latents)
        return latents.float().clone()

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` as they are; a copy, in float32."""
        self.check_latents(images)
        return images.float().clone()

    def mean_latent(self) -> Tensor:
        """A grey image, ``[C, H, W]``."""
        return self.centre.float()

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise, ``[n, C, H, W]`` float32, uniform in [-1, 1]."""
        return torch.erf(self.noise(n, *self.latent_shape, generator=generator) / 2**0.5)
