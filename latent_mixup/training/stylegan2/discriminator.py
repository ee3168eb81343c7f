"""The discriminator of StyleGAN2 (residual), with and without classes.

References: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), its residual
discriminator; the standard deviation over the batch of Karras et al., "Progressive Growing of GANs" (2018); classes as
in Miyato and Koyama, "cGANs with Projection Discriminator" (2018).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.generators.stylegan2 import GAIN, SLOPE, EqualLinear, binomial_kernel

STD_GROUP = 4  # images that share one standard deviation


class EqualConv(nn.Module):
    """A convolution whose weight is stored with unit variance and scaled when it is used; at half the size if ``down``.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        size: Height and width of the kernel, 1 or 3.
        down: Low-pass with ``[1, 3, 3, 1]`` and take every other pixel.
        activate: Bias and leaky ReLU after the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, down: bool = False, activate: bool = True):
        super().__init__()
        self.scale, self.size, self.down = 1 / math.sqrt(in_channels * size**2), size, down
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activate else None
        self.kernel: Tensor
        self.register_buffer("kernel", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, R, R]`` to ``[B, out_channels, R, R]``, or to half that R."""
        weight = self.weight * self.scale
        if not self.down:
            x = F.conv2d(x, weight, self.bias, padding=self.size // 2)
        elif self.size == 1:
            x = F.conv2d(self.low_pass(x, padding=1, stride=2), weight, self.bias)
        else:
            x = F.conv2d(self.low_pass(x, padding=2), weight, self.bias, stride=2)
        return x if self.bias is None else F.leaky_relu(x, SLOPE) * GAIN

    def low_pass(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """The 4x4 filter on each channel."""
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, 1, 4, 4), padding=padding, stride=stride, groups=channels)


class DownBlock(nn.Module):
    """Two convolutions to half the resolution beside a 1x1 one; their sum at the variance of its parts."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(in_channels, in_channels, 3)
        self.conv1 = EqualConv(in_channels, out_channels, 3, down=True)
        self.skip = EqualConv(in_channels, out_channels, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, R, R]`` to ``[B, out_channels, R / 2, R / 2]``."""
        total: Tensor = self.conv1(self.conv0(x)) + self.skip(x)
        return total * math.sqrt(0.5)


def with_batch_deviation(x: Tensor) -> Tensor:
    """Add a channel: the mean standard deviation of the features within groups of four images.

    Images i, i + B / 4, i + B / 2, ... are one group (a batch that 4 does not divide is one group).
    """
    n = len(x)
    group = STD_GROUP if n % STD_GROUP == 0 else n
    deviation = (x.unflatten(0, (group, -1)).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(n, 1, *x.shape[2:])], 1)


class Discriminator(nn.Module):
    """Images, and classes for a conditional network, to one score each: above 0 for real.

    Args:
        img_resolution: Height and width in pixels, a power of two from 8.
        img_channels: Channels of an image.
        c_dim: Classes; 0 for none.
        channel_base: A layer at resolution r has ``min(channel_base / r, channel_max)`` channels.
        channel_max: The most channels of a layer.
    """

    def __init__(
        self, img_resolution: int, img_channels: int, c_dim: int = 0, channel_base: int = 32768, channel_max: int = 512
    ) -> None:
        super().__init__()
        sizes = [2**i for i in range(img_resolution.bit_length() - 1, 1, -1)]
        channels = [min(channel_base // size, channel_max) for size in sizes]
        self.from_rgb = EqualConv(img_channels, channels[0], 1)
        self.blocks = nn.Sequential(*map(DownBlock, channels[:-1], channels[1:]))
        last = channels[-1]
        self.conv = EqualConv(last + 1, last, 3)
        self.fc = EqualLinear(last * 4 * 4, last)
        self.out = EqualLinear(last, 1)
        self.embed = EqualLinear(c_dim, last) if c_dim else None

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """``[B, C, R, R]`` and one-hot or mixed rows ``[B, c_dim]`` to scores ``[B]``."""
        x = self.conv(with_batch_deviation(self.blocks(self.from_rgb(images))))
        x = F.leaky_relu(self.fc(x.flatten(1)), SLOPE) * GAIN
        scores: Tensor = self.out(x)[:, 0]
        if self.embed is None:
            return scores
        belonging: Tensor = (self.embed(c) * x).sum(1)
        return scores + belonging / math.sqrt(x.shape[1])
