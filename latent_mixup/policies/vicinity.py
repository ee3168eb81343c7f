"""Changes to a mix beside the mixing: noise and truncation of its code, a low-pass of its image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.policies.settings import Between, Setting, Share

REACH = 3.0  # half width of a low-pass kernel, in standard deviations


@dataclass(frozen=True)
class Noise(Setting):
    """Gaussian noise on the mixed code; the label stays.

    Args:
        scale: Standard deviation, from 0, relative to the bank's own in each entry of a code.

    Raises:
        ValueError: ``scale`` is negative.

    Reference: vicinal risk, Chapelle et al. 2000, in the latent space.

    Example:
        >>> noise = Noise(0.3).draw(5, (512,), torch.ones(512), torch.Generator())
        >>> noise.shape
        torch.Size([5, 512])
    """

    scale: Annotated[float, Between(0)] = 0.3

    def draw(self, k: int, latent_shape: tuple[int, ...], spread: Tensor, generator: torch.Generator) -> Tensor:
        """Noise for ``k`` codes, ``[k, *latent_shape]``; ``spread`` is the bank's, ``latent_shape``."""
        noise = torch.randn(k, *latent_shape, generator=generator, device=generator.device, dtype=torch.float32)
        return self.scale * spread * noise


@dataclass(frozen=True)
class Truncation(Setting):
    """Codes moved towards the bank's mean code: ``mean + psi * (code - mean)``.

    Args:
        psi: In [0, 1]; 1 changes nothing, 0 gives the mean code.
        from_layer: First layer of W+ that is moved; 0: the whole code. With ``psi=0`` the fine layers are the mean's,
            and the coarse layers alone decide what is seen.

    Raises:
        ValueError: A setting is out of its range.

    Reference: the truncation trick, Karras et al. 2019 (arXiv 1812.04948), appendix B.

    Example:
        >>> Truncation(0.7)(torch.randn(5, 512), torch.zeros(512)).shape
        torch.Size([5, 512])
    """

    psi: Share = 0.7
    from_layer: Annotated[int, Between(0)] = 0

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` where codes do not have this layer."""
        if self.from_layer and (len(latent_shape) != 2 or self.from_layer >= latent_shape[0]):
            raise ValueError(
                f"from_layer={self.from_layer} needs codes of W+ with more layers: got {list(latent_shape)}"
            )

    def __call__(self, codes: Tensor, mean: Tensor) -> Tensor:
        """Codes ``[k, *latent_shape]`` and the mean, ``latent_shape``, to codes."""
        moved = torch.lerp(mean.to(codes).expand_as(codes), codes, self.psi)
        return torch.cat([codes[:, : self.from_layer], moved[:, self.from_layer :]], 1) if self.from_layer else moved


@dataclass(frozen=True)
class LowPass(Setting):
    """A Gaussian blur of the decoded image, its width drawn uniformly for each image.

    Args:
        low: Smallest standard deviation in pixels, from 0, which is no blur.
        high: Largest standard deviation in pixels, from ``low``.

    Raises:
        ValueError: The numbers are not in this order.

    Example:
        >>> LowPass(0, 2)(torch.rand(5, 3, 32, 32), torch.linspace(0, 2, 5)).shape
        torch.Size([5, 3, 32, 32])
    """

    low: float = 0.0
    high: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= self.high:
            raise ValueError(f"LowPass needs 0 <= low <= high: got low={self.low}, high={self.high}")

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """Standard deviations ``[k]``, in pixels."""
        u = torch.rand(k, generator=generator, device=generator.device, dtype=torch.float32)
        return self.low + (self.high - self.low) * u

    def __call__(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Images ``[k, C, H, W]``, each blurred with its own ``sigma`` ``[k]``, the border mirrored; 0: unchanged."""
        size = min(images.shape[2:])
        radius = min(math.ceil(REACH * self.high), size - 1)
        if not radius or not len(images):
            return images
        k, channels = images.shape[:2]
        kernel = _kernel(sigma.to(images), radius).repeat_interleave(channels, 0)
        flat = F.pad(images.reshape(1, k * channels, *images.shape[2:]), [radius] * 4, mode="reflect")
        down = F.conv2d(flat, kernel[:, None, :, None], groups=k * channels)
        return F.conv2d(down, kernel[:, None, None, :], groups=k * channels).view_as(images)


def _kernel(sigma: Tensor, radius: int) -> Tensor:
    """One Gaussian kernel a row, ``[k, 2 * radius + 1]``, summing to 1; for sigma 0 an impulse."""
    x = torch.arange(-radius, radius + 1, device=sigma.device).to(sigma)
    density = torch.exp(-0.5 * (x / sigma[:, None].clamp_min(1e-6)).square())
    return density / density.sum(1, keepdim=True)
