"""What happens to a mix beside the mixing: noise on its code, truncation of it, a low-pass of its image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 3.0  # standard deviations that a low-pass' kernel extends to


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the code: a sample from the vicinity of it, with the label of it.

    Args:
        scale: Standard deviation, in units of the bank's own in each entry of a code; from 0.

    Raises:
        ValueError: ``scale`` is negative.

    Reference: vicinal risk, Chapelle et al. 2000, in the latent space.

    Example:
        >>> noise = Noise(0.3).draw(5, (512,), torch.ones(512), torch.Generator())
        >>> noise.shape
        torch.Size([5, 512])
    """

    scale: float = 0.3

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"the noise's scale needs to be from 0, and finite: got {self.scale}")

    def draw(self, k: int, latent_shape: tuple[int, ...], spread: Tensor, generator: torch.Generator) -> Tensor:
        """What is added to ``k`` codes: ``[k, *latent_shape]``; ``spread`` is the bank's, ``latent_shape``."""
        return self.scale * spread * torch.randn(k, *latent_shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Truncation:
    """Codes moved towards the bank's mean code: ``mean + psi * (code - mean)``.

    Args:
        psi: 1 changes nothing, 0 leaves the mean code alone.
        from_layer: The first layer of W+ that is moved; 0: all of the code. With ``psi=0`` the mean's fine layers take
            the place of the code's: its coarse layers alone say what is seen.

    Raises:
        ValueError: A setting is out of its range.

    Reference: the truncation trick, Karras et al. 2019 (arXiv 1812.04948), appendix B.

    Example:
        >>> Truncation(0.7)(torch.randn(5, 512), torch.zeros(512)).shape
        torch.Size([5, 512])
    """

    psi: float = 0.7
    from_layer: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.psi <= 1:
            raise ValueError(f"psi needs to be in [0, 1]: got {self.psi}")
        if self.from_layer < 0:
            raise ValueError(f"from_layer needs to be from 0: got {self.from_layer}")

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` where codes have no such layer."""
        if self.from_layer and (len(latent_shape) != 2 or self.from_layer >= latent_shape[0]):
            raise ValueError(
                f"from_layer={self.from_layer} needs codes of W+ with more layers: got {list(latent_shape)}"
            )

    def __call__(self, codes: Tensor, mean: Tensor) -> Tensor:
        """Codes ``[k, *latent_shape]`` and the mean, ``latent_shape``, to codes."""
        moved = torch.lerp(mean.to(codes).expand_as(codes), codes, self.psi)
        return torch.cat([codes[:, : self.from_layer], moved[:, self.from_layer :]], 1) if self.from_layer else moved


@dataclass(frozen=True)
class LowPass:
    """A Gaussian blur of the decoded image, of a width drawn for each: how coarse an image may be and keep its label.

    Args:
        low: Least standard deviation in pixels, from 0: no blur.
        high: Largest, from ``low``.

    Raises:
        ValueError: The numbers are not in this order.

    Example:
        >>> LowPass(0, 2)(torch.rand(5, 3, 32, 32), torch.linspace(0, 2, 5)).shape
        torch.Size([5, 3, 32, 32])
    """

    low: float = 0.0
    high: float = 1.5

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high and math.isfinite(self.high)):
            raise ValueError(f"LowPass needs 0 <= low <= high: got low={self.low}, high={self.high}")

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """Standard deviations ``[k]``, in pixels."""
        return self.low + (self.high - self.low) * torch.rand(k, generator=generator, device=generator.device)

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
    """A Gaussian each, ``[k, 2 * radius + 1]``, summing to 1; all of it in the middle for 0."""
    x = torch.arange(-radius, radius + 1).to(sigma)
    density = torch.exp(-0.5 * (x / sigma[:, None].clamp_min(1e-6)).square())
    return density / density.sum(1, keepdim=True)
