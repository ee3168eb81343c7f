"""A convolutional autoencoder for images of any kind, with a learnt prior over its codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from latent_mixup.functional import on_sphere
from latent_mixup.generators.base import Generator, check_square
from latent_mixup.generators.flow import CodeFlow

GROUPS = 8  # of each normalisation
BASE = (4, 7)  # least and greatest height of the coarsest layer
FLOW_STEPS = 12  # of Heun's method, from pure noise to a code


def resolutions(img_resolution: int) -> list[int]:
    """The heights of the layers, from half the image's down to one in ``BASE``.

    Raises:
        ValueError: The image's height is not such a number times a power of two, or is below 16.

    Example:
        >>> resolutions(28), resolutions(128)
        ([14, 7], [64, 32, 16, 8, 4])
    """
    found, size = list[int](), img_resolution
    while size % 2 == 0 and size > BASE[1]:
        size //= 2
        found.append(size)
    if img_resolution < 16 or not BASE[0] <= size <= BASE[1]:
        raise ValueError(
            f"img_resolution needs to be 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, ...: got {img_resolution}"
        )
    return found


class ConvGenerator(Generator):
    """Decoder and encoder made of convolutions, for grey or RGB images from 16 to 128 px; its prior is a flow.

    A code is a direction: ``decode`` projects it onto the sphere of radius ``sqrt(z_dim)``, and codes are mixed along
    the sphere (``slerp``). Trained without labels by :func:`latent_mixup.training.train_conv`: codes of two views of
    an image are alike, so that distances between codes follow content more than pixels do.

    Args:
        z_dim: Numbers in a code.
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels: 4, 5, 6 or 7 times a power of two, from 16.
        width: Channels at half the resolution, a multiple of 8; each halving doubles them, up to four times.
        detail: Channels at the full resolution, before the last convolution.
        flow_width: Hidden numbers of the flow.

    Example:
        >>> ConvGenerator(z_dim=8, width=8).decode(torch.randn(2, 8)).shape
        torch.Size([2, 1, 28, 28])
    """

    img_resolution: int
    # more steps leave less of what the encoder knows for an error that hardly shows
    preferred_inversion: ClassVar[Mapping[str, Any]] = {"loss": "pixels", "steps": 4, "restarts": 0}

    def __init__(
        self,
        z_dim: int = 128,
        img_channels: int = 1,
        img_resolution: int = 28,
        width: int = 24,
        detail: int = 8,
        flow_width: int = 512,
    ) -> None:
        super().__init__()
        check_square(img_resolution, type(self).__name__)
        if width % GROUPS:
            raise ValueError(f"width needs to be a multiple of {GROUPS}: got {width}")
        self.latent_shape = (z_dim,)
        self.latent_space = "z"
        self.preferred_path = "slerp"
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.z_dim, self.width, self.detail, self.flow_width = z_dim, width, detail, flow_width
        sizes = resolutions(img_resolution)
        widths = [min(width << level, 4 * width) for level in range(len(sizes))]
        self.encoder = _encoder(img_channels, widths, sizes[-1], z_dim)
        self.decoder = _decoder(z_dim, sizes[-1], widths[::-1], detail, img_channels)
        self.flow = CodeFlow(z_dim, flow_width)
        self.latent_mean: Tensor
        self.register_buffer("latent_mean", torch.zeros(z_dim))
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, z_dim]`` of any length to images ``[B, C, R, R]`` in [-1, 1]."""
        if latents.shape[1:] != self.latent_shape:
            self.check_latents(latents)  # raises
        dtype = cast(Tensor, self.decoder[0].weight).dtype
        return torch.tanh(self.decoder(on_sphere(latents.float()).to(dtype))).float()

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, R, R]`` in [-1, 1] to codes ``[B, z_dim]`` on the sphere."""
        return on_sphere(self.encoder(images.to(self.dtype)).float())

    def mean_latent(self) -> Tensor:
        """The mean of the encoded training images, ``[z_dim]``."""
        return self.latent_mean.float()

    @torch.no_grad()
    def from_noise(self, noise: Tensor, targets: Tensor | None = None) -> Tensor:
        """The codes that the flow makes of noise ``[n, z_dim]``; float32, on the sphere."""
        noise = noise.to(self.dtype)
        return on_sphere(self.flow.denoise(noise, noise.new_ones(len(noise)), FLOW_STEPS).float())

    @torch.no_grad()
    def project(
        self,
        latents: Tensor,
        t: float | Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Codes ``[B, z_dim]`` noised to time ``t`` of the flow and denoised, on the sphere: see the base class."""
        self.check_latents(latents)
        times = torch.as_tensor(t, dtype=torch.float32).to(self.device).expand(len(latents))
        if len(times) and not (times.min() >= 0 and times.max() <= 1):
            raise ValueError(f"t needs to be in [0, 1]: got {t}")
        codes = on_sphere(latents.float())
        if not times.any():
            return codes
        noise = self.noise(*codes.shape, generator=generator) if noise is None else noise.to(codes)
        noisy = (torch.lerp(codes, noise, times[:, None])).to(self.dtype)
        steps = math.ceil(float(times.max()) * FLOW_STEPS)
        return on_sphere(self.flow.denoise(noisy, times.to(self.dtype), steps).float())


class _Residual(nn.Module):
    """``x + conv(act(norm(conv(act(norm(x))))))``; the last convolution starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (_norm(channels), nn.SiLU(), _conv(channels, channels))]
        self.body = nn.Sequential(*layers)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _encoder(img_channels: int, widths: Sequence[int], base: int, z_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(4 * img_channels, widths[0]), _Residual(widths[0])]
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [_conv(fan_in, fan_out, stride=2), _Residual(fan_out)]
    return nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(widths[-1] * base**2, z_dim))


def _decoder(z_dim: int, base: int, widths: Sequence[int], detail: int, img_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(z_dim, widths[0] * base**2), nn.Unflatten(1, (widths[0], base, base))]
    layers.append(_Residual(widths[0]))
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), _conv(fan_in, fan_out), _Residual(fan_out)]
    layers += [_norm(widths[-1]), nn.SiLU(), _conv(widths[-1], 4 * detail), nn.PixelShuffle(2), nn.SiLU()]
    return nn.Sequential(*layers, _conv(detail, img_channels))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


def _conv(fan_in: int, fan_out: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1)
