"""The paper's GAN for MNIST and Fashion-MNIST: five transposed convolutions on a 1024-d Gaussian z."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from latent_mixup.generators.base import Generator, check_square

CANVAS = 32  # pixels: what the convolutions make, of which the middle is the image


class DCGAN(Generator):
    """Five transposed convolutions with BatchNorm and LeakyReLU, tanh, the middle of 32x32 pixels.

    Each doubles the size, from the code as one pixel. Kernels and widths, which the paper does not give, are ours.
    It was never put into eval mode there, so that a code's image depended on its batch; here it is, like every
    generator.

    Args:
        z_dim: Numbers in a code, from a standard normal distribution.
        channels: Output channels of the first four convolutions.
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels, at most 32.

    Raises:
        ValueError: ``channels`` is not four numbers, or an image is larger than 32 px.

    Reference: Latent-Mixup, section 2.1.1; Radford et al., "Unsupervised Representation Learning with Deep
    Convolutional GANs", 2016, figure 1.

    Example:
        >>> DCGAN(z_dim=16, channels=(8, 8, 4, 4)).decode(torch.randn(2, 16)).shape
        torch.Size([2, 1, 28, 28])
    """

    img_resolution: int

    def __init__(
        self,
        z_dim: int = 1024,
        channels: Sequence[int] = (128, 64, 32, 16),
        img_channels: int = 1,
        img_resolution: int = 28,
    ) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"channels needs four numbers, one a hidden layer: got {list(channels)}")
        check_square(img_resolution, type(self).__name__)
        if not 0 < img_resolution <= CANVAS:
            raise ValueError(f"img_resolution needs to be in [1, {CANVAS}]: got {img_resolution}")
        self.latent_shape, self.latent_space, self.preferred_path = (z_dim,), "z", "lerp"
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.z_dim, self.channels = z_dim, tuple(channels)
        layers = _block(OfOnePixel(z_dim, channels[0], 2, bias=False))  # no more taps would be used
        for fan_in, fan_out in pairwise(channels):
            layers += _block(nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1, bias=False))
        last = nn.ConvTranspose2d(channels[-1], img_channels, 4, stride=2, padding=1)
        self.network = nn.Sequential(*layers, last, nn.Tanh())
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, z_dim]`` to images ``[B, C, R, R]`` in [-1, 1]."""
        self.check_latents(latents)
        pixels: Tensor = self.network(latents.to(self.dtype)[:, :, None, None]).float()
        first = (CANVAS - self.img_resolution) // 2
        return pixels[..., first : first + self.img_resolution, first : first + self.img_resolution]


class OfOnePixel(nn.ConvTranspose2d):
    """A transposed convolution of an image of one pixel, without a bias: a matrix product, and faster as one.

    Example:
        >>> layer, z = OfOnePixel(4, 3, 2, bias=False), torch.randn(5, 4, 1, 1)
        >>> torch.testing.assert_close(layer(z), nn.ConvTranspose2d.forward(layer, z))
    """

    def forward(self, pixels: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[B, in_channels, 1, 1]`` to ``[B, out_channels, *kernel_size]``."""
        product = pixels.flatten(1) @ self.weight.flatten(1)
        return product.view(-1, *self.weight.shape[1:])


def _block(convolution: nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.LeakyReLU(0.2)]
