"""Variational autoencoders: the paper's VAE-MIXUP, with a loss and a range that agree with the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.generators.base import Generator, check_square


class VAE(Generator):
    """A variational autoencoder; a code is the mean of the encoder's distribution, of ``z_dim`` numbers.

    Without ``channels`` encoder and decoder are MLPs on the pixels, as for MNIST; with them, convolutions of stride 2
    stand before the encoder's MLP and after the decoder's, as for CIFAR-10. The paper's were fitted to targets in
    [-1, 1] by a loss for [0, 1] and decoded to another range than the classifier's; here both are [-1, 1].

    Args:
        z_dim: Numbers in a code; the prior is a standard normal distribution.
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels, a multiple of ``2 ** len(channels)``.
        hidden: Widths of the MLP, from pixels to code; the decoder's are the same backwards.
        channels: Of the convolutions, from the image inwards; empty for none.
        sharpen: Strength of the sharpening filter on a decoded image; 0 for none, 1 as in the paper. See
            :func:`sharpened`.

    Raises:
        ValueError: ``img_resolution`` cannot be halved so often.

    Reference: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, section 3; Latent-Mixup, section 2.2.

    Example:
        >>> VAE(z_dim=4, hidden=(16,)).decode(torch.randn(2, 4)).shape
        torch.Size([2, 1, 28, 28])
    """

    img_resolution: int

    def __init__(
        self,
        z_dim: int = 32,
        img_channels: int = 1,
        img_resolution: int = 28,
        hidden: Sequence[int] = (512, 256),
        channels: Sequence[int] = (),
        sharpen: float = 0.0,
    ) -> None:
        super().__init__()
        check_square(img_resolution, type(self).__name__)
        small, rest = divmod(img_resolution, 2 ** len(channels))
        if rest or small < 1:
            raise ValueError(
                f"img_resolution needs to be a multiple of {2 ** len(channels)} for {len(channels)} convolutions: "
                f"got {img_resolution}"
            )
        if not (math.isfinite(sharpen) and sharpen >= 0):
            raise ValueError(f"sharpen needs to be a finite strength from 0: got {sharpen}")
        self.latent_shape, self.latent_space, self.preferred_path = (z_dim,), "vae", "lerp"
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.z_dim, self.hidden, self.channels, self.sharpen = z_dim, tuple(hidden), tuple(channels), float(sharpen)
        maps = (img_channels, *channels)
        corner = (maps[-1], small, small)
        sizes = (math.prod(corner), *hidden)
        down = [
            nn.Sequential(nn.Conv2d(*pair, kernel_size=4, stride=2, padding=1), nn.ReLU()) for pair in pairwise(maps)
        ]
        up = [
            nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(*pair, kernel_size=4, stride=2, padding=1))
            for pair in pairwise(maps[::-1])
        ]
        self.encoder = nn.Sequential(*down, nn.Flatten(), *_mlp(sizes), nn.Linear(sizes[-1], 2 * z_dim))
        self.decoder = nn.Sequential(*_mlp((z_dim, *sizes[:0:-1])), nn.Linear(sizes[1] if hidden else z_dim, sizes[0]))
        self.upsampler = nn.Sequential(nn.Unflatten(1, corner), *up)
        self.freeze()

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, R, R]`` in [-1, 1] to mean and logarithm of the variance, ``[B, z_dim]`` each."""
        mean, log_variance = self.encoder(images.to(self.dtype)).float().chunk(2, dim=1)
        return mean, log_variance

    def logits(self, latents: Tensor) -> Tensor:
        """Codes ``[B, z_dim]`` to ``[B, C, R, R]``, whose sigmoid is the image in [0, 1]."""
        out: Tensor = self.upsampler(self.decoder(latents.to(self.dtype))).float()
        return out

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, R, R]`` in [-1, 1] to the means of their distributions, ``[B, z_dim]``."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, z_dim]`` to images ``[B, C, R, R]`` in [-1, 1], sharpened where ``sharpen`` is above 0."""
        self.check_latents(latents)
        images = 2 * torch.sigmoid(self.logits(latents)) - 1
        return sharpened(images, self.sharpen) if self.sharpen else images


def sharpened(images: Tensor, strength: float) -> Tensor:
    """Images plus ``strength`` times their negative Laplacian, kept in [-1, 1].

    With strength 1 the filter is ``[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]``; an edge continues its last pixel.

    Args:
        images: ``[B, C, H, W]`` in [-1, 1].
        strength: From 0, which changes nothing.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    neighbours = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return (images + strength * (4 * images - neighbours)).clamp(-1, 1)


def _mlp(sizes: Sequence[int]) -> list[nn.Module]:
    return [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
