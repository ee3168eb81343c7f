"""StyleGAN2 from plain torch: the skip generator with a mapping network, with or without classes.

**Names.** The ``state_dict`` keys are those of the published PyTorch files (``G_ema`` of stylegan2-ada-pytorch and
of stylegan3's StyleGAN2), letter for letter, with the same shapes and no transposition, so conversion is a copy::

    mapping.w_avg   mapping.embed.{weight,bias}   mapping.fc{i}.{weight,bias}
    synthesis.b4.const   synthesis.b{res}.resample_filter
    synthesis.b{res}.conv{0,1}.{weight,bias,noise_strength,noise_const,resample_filter}
    synthesis.b{res}.conv{0,1}.affine.{weight,bias}
    synthesis.b{res}.torgb.{weight,bias}   synthesis.b{res}.torgb.affine.{weight,bias}

``embed`` exists where ``c_dim > 0``, ``noise_*`` where ``use_noise``, ``conv0`` in every block but ``b4``. Weights are
stored without their equalised learning rate, as published. What a release says about its constructor and does not
change the result has no argument here: ``num_fp16_res`` (everything is float32), ``fused_modconv_default``,
``w_avg_beta``.

**Forms.** Modulation scales the activations before a convolution and its result after, instead of building weights for
each image: on a CPU 0.74 to 0.16 of the time (512 channels at 32 to 8 px, batch 4). The up-convolution is a transposed
convolution on a contiguous transposed weight, followed by the filter as a depthwise convolution: one 6x6 kernel, or
its four 3x3 phases, spend four times the multiplications and 4 times the time; four small convolutions in place of the
transposed one take 1.2 times as long. ToRGB is a matrix product with three rows an image. Bias, noise, demodulation
and the gain are one pass. On a CPU, images go through a few at a time (``CPU_BLOCK``): at batch 32 this takes 0.82 of
the time forward, 0.93 with gradients.

References: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), its weight
demodulation and skip generator; the mapping network of Karras et al., "A Style-Based Generator Architecture" (2019);
classes and the clamp of Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), its
implementation details.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.generators.base import Generator, LatentSpace, check_square

NoiseMode: TypeAlias = Literal["const", "random", "none"]

GAIN = math.sqrt(2)  # keeps the variance through a leaky ReLU
SLOPE = 0.2
MAPPING_LR = 0.01
CPU_BLOCK = 2**24  # bytes of the largest activation: glibc takes each block above 32 MB from the system, page by page
WITH_AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # to ask torch 2.6 for it breaks the graph of a compiled decode
MAX_LAYERS = 64  # more layers than this are a broken file, not a network


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for a few lines: styles and the picture itself stay as exact as their weights."""
    kind = like.device.type
    known = kind in WITH_AUTOCAST or torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def is_number(value: object) -> bool:
    """Whether it is an int or float (True is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def normalise(x: Tensor) -> Tensor:
    """Scale ``[B, F]`` to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """The factor of each output channel that brings its styled weights ``[O, I, k, k]`` to norm 1: ``[B, O]``.

    Reference: StyleGAN2, weight demodulation. (The sum over the kernel is left to the matrix product: half the time of
    summing it first.)
    """
    squares = style.square().repeat_interleave(weight[0, 0].numel(), 1)
    return (squares @ weight.flatten(1).square().t() + 1e-8).rsqrt()


def up_convolve(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
    """Convolve ``[B, I, R, R]`` with ``[O, I, 3, 3]`` at twice the resolution, then low-pass: ``[B, O, 2R, 2R]``."""
    # contiguous(): what oneDNN loses on a transposed view is 2 to 5 times what the copy takes
    x = F.conv_transpose2d(x, weight.transpose(0, 1).contiguous(), stride=2)
    channels = x.shape[1]
    taps = 4 * kernel.flip(0, 1).expand(channels, 1, 4, 4)
    return F.conv2d(x, taps, padding=1, groups=channels)


def upsample(image: Tensor, kernel: Tensor) -> Tensor:
    """Twice the resolution: zeros between the pixels, then the 4x4 low-pass ``kernel``."""
    channels = image.shape[1]
    return F.conv_transpose2d(image, 4 * kernel.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


def binomial_kernel() -> Tensor:
    """The low-pass filter ``[1, 3, 3, 1] x [1, 3, 3, 1] / 64``."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return row.outer(row) / 64


class EqualLinear(nn.Module):
    """A linear layer whose weight is stored with unit variance and scaled when it is used.

    Args:
        fan_in: Numbers in.
        fan_out: Numbers out.
        bias: What the biases start from.
        lr: Learning rate multiplier; the stored numbers are ``1 / lr`` times larger.
    """

    def __init__(self, fan_in: int, fan_out: int, bias: float = 0.0, lr: float = 1.0) -> None:
        super().__init__()
        self.scale, self.lr = lr / math.sqrt(fan_in), lr
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / lr)
        self.bias = nn.Parameter(torch.full((fan_out,), bias / lr))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, fan_in]`` to ``[B, fan_out]``."""
        return F.linear(x * self.scale, self.weight, self.bias * self.lr)


class Mapping(nn.Module):
    """The mapping network: z, and a class where there are classes, to w.

    Attributes:
        w_avg: The mean of w, ``[w_dim]``, that truncation pulls towards.
    """

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int, num_layers: int) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws, self.num_layers = z_dim, c_dim, num_ws, num_layers
        if c_dim:
            self.embed = EqualLinear(c_dim, w_dim)
        for i in range(num_layers):
            fan_in = w_dim if i else z_dim + (w_dim if c_dim else 0)
            self.add_module(f"fc{i}", EqualLinear(fan_in, w_dim, lr=MAPPING_LR))
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> Tensor:
        """Gaussian codes to W+.

        Args:
            z: ``[B, z_dim]``.
            c: Classes, where the network has any: integers ``[B]``, or one-hot or mixed rows ``[B, c_dim]``.
            truncation_psi: 1 leaves w as it is, 0 makes it ``w_avg``.
            truncation_cutoff: Truncate only the first so many of the ``num_ws`` layers; None: all.

        Returns:
            ``[B, num_ws, w_dim]``: the same w for each layer, but for a truncation with a cutoff.

        Raises:
            ValueError: ``z`` or ``c`` has another shape, or the network needs classes, or has none.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z needs shape [B, {self.z_dim}]: got {list(z.shape)}")
        conditions = self.conditions(c, len(z))
        with full_precision(z):
            x = normalise(z.to(self.w_avg.dtype))
            if conditions is not None:
                x = torch.cat([x, normalise(self.embed(conditions))], 1)
            for i in range(self.num_layers):
                x = F.leaky_relu(getattr(self, f"fc{i}")(x), SLOPE) * GAIN
            ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)
            truncated = self.w_avg + truncation_psi * (ws - self.w_avg)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([truncated[:, :cutoff], ws[:, cutoff:]], 1)

    def conditions(self, c: Tensor | None, n: int) -> Tensor | None:
        """Classes as float rows ``[n, c_dim]``; None for a network without classes."""
        if c is None:
            if self.c_dim:
                raise ValueError(
                    f"this network has {self.c_dim} classes and needs labels: pass integers [{n}], "
                    f"or one-hot or mixed rows [{n}, {self.c_dim}]"
                )
            return None
        if c.shape == (n, self.c_dim):
            return c.to(self.w_avg) if self.c_dim else None
        if not self.c_dim:
            raise ValueError(f"this network has no classes (c_dim=0): got labels {list(c.shape)}, leave them out")
        if c.shape != (n,) or c.is_floating_point() or c.dtype == torch.bool:
            raise ValueError(
                f"labels need integers [{n}], or one-hot or mixed rows [{n}, {self.c_dim}]: "
                f"got {c.dtype} {list(c.shape)}"
            )
        if n and not 0 <= int(c.min()) <= int(c.max()) < self.c_dim:
            raise ValueError(f"labels need to be in [0, {self.c_dim}): got {int(c.min())} to {int(c.max())}")
        return F.one_hot(c.long(), self.c_dim).to(self.w_avg)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, at twice the resolution where ``up``; noise, bias, leaky ReLU, clamp."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: bool,
        conv_clamp: float | None,
        use_noise: bool,
    ) -> None:
        super().__init__()
        self.up, self.use_noise = up, use_noise
        self.limit = None if conv_clamp is None else conv_clamp * GAIN
        self.affine = EqualLinear(w_dim, in_channels, bias=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", binomial_kernel())
        if use_noise:
            self.noise_const: Tensor
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: NoiseMode = "const", generator: torch.Generator | None = None
    ) -> Tensor:
        """``[B, in_channels, R, R]`` and ``[B, w_dim]`` to ``[B, out_channels, R, R]``, or twice that R."""
        with full_precision(w):
            style = self.affine(w)
            demod = demodulation(self.weight, style)
            # a power of two moved from one factor to the other changes nothing, and under float16 autocast
            # keeps the sums of the convolution finite
            level = demod.detach().mean(1, keepdim=True).log2().round().exp2()
            style, demod = style * level, demod * (GAIN / level)
            shift = self.bias[:, None, None] * GAIN
            if self.use_noise and noise_mode != "none":
                shift = shift + self.noise(noise_mode, len(w), generator) * (self.noise_strength * GAIN)
        x = x * style[:, :, None, None]
        x = up_convolve(x, self.weight, self.resample_filter) if self.up else F.conv2d(x, self.weight, padding=1)
        x = F.leaky_relu_(torch.addcmul(shift, x, demod[:, :, None, None]), SLOPE)
        return x if self.limit is None else x.clamp(-self.limit, self.limit)

    def noise(self, noise_mode: NoiseMode, n: int, generator: torch.Generator | None) -> Tensor:
        """The stored noise ``[R, R]``, or one of each image's own, ``[n, 1, R, R]``."""
        if noise_mode == "const":
            return self.noise_const
        return torch.randn(n, 1, *self.noise_const.shape, generator=generator).to(self.noise_const)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the channels of an image, without demodulation or activation."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, conv_clamp: float | None) -> None:
        super().__init__()
        self.limit = conv_clamp
        self.scale = 1 / math.sqrt(in_channels)
        self.affine = EqualLinear(w_dim, in_channels, bias=1)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``[B, in_channels, R, R]`` and ``[B, w_dim]`` to ``[B, img_channels, R, R]``."""
        with full_precision(w):
            style = self.affine(w) * self.scale
            rgb: Tensor = (self.weight.flatten(1) * style.unsqueeze(1)) @ x.flatten(2) + self.bias[:, None]
            rgb = rgb.unflatten(2, x.shape[2:])
        return rgb if self.limit is None else rgb.clamp(-self.limit, self.limit)


class Block(nn.Module):
    """One resolution: one or two convolutions, and their picture added to the one so far."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        conv_clamp: float | None,
        use_noise: bool,
    ) -> None:
        super().__init__()
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", binomial_kernel())
        if in_channels:
            self.conv0 = StyledConv(in_channels, out_channels, w_dim, resolution, True, conv_clamp, use_noise)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = StyledConv(out_channels, out_channels, w_dim, resolution, False, conv_clamp, use_noise)
        self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp)

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        ws: Tensor,
        noise_mode: NoiseMode,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Activations and image, both None in the first block, and a w for each convolution and one for ToRGB."""
        x = self.const if x is None else self.conv0(x, ws[:, 0], noise_mode, generator)
        x = self.conv1(x, ws[:, -2], noise_mode, generator)
        rgb: Tensor = self.torgb(x, ws[:, -1])
        if image is not None:
            with full_precision(rgb):
                rgb = rgb + upsample(image, self.resample_filter)
        return x, rgb


class Synthesis(nn.Module):
    """The synthesis network: W+ to images."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        conv_clamp: float | None,
        use_noise: bool,
    ) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.resolutions = [2**i for i in range(2, img_resolution.bit_length())]
        self.num_ws = 2 * len(self.resolutions)
        in_channels, largest = 0, 0
        for resolution in self.resolutions:
            channels = min(channel_base // resolution, channel_max)
            block = Block(in_channels, channels, w_dim, resolution, img_channels, conv_clamp, use_noise)
            self.add_module(f"b{resolution}", block)
            in_channels, largest = channels, max(largest, 4 * channels * resolution**2)
        self.images_at_once = max(1, CPU_BLOCK // largest)

    def forward(self, ws: Tensor, noise_mode: NoiseMode = "const", generator: torch.Generator | None = None) -> Tensor:
        """W+ to images.

        Args:
            ws: ``[B, num_ws, w_dim]``.
            noise_mode: ``"const"``: the noise stored with the network; ``"random"``: new noise for each image, as in
                training; ``"none"``: without noise.
            generator: What random noise is drawn from, on the CPU.

        Returns:
            ``[B, img_channels, R, R]`` in the weights' dtype, roughly in [-1, 1], not clamped.

        Raises:
            ValueError: ``ws`` has another shape, or the noise mode is unknown.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws need shape [B, {self.num_ws}, {self.w_dim}]: got {list(ws.shape)}")
        if noise_mode not in ("const", "random", "none"):
            raise ValueError(f"noise_mode needs to be 'const', 'random' or 'none': got {noise_mode!r}")
        ws = ws.to(self.get_parameter("b4.const").dtype)
        if ws.device.type != "cpu" or len(ws) <= self.images_at_once or torch.compiler.is_compiling():
            return self.synthesise(ws, noise_mode, generator)
        parts = ws.split(self.images_at_once)
        return torch.cat([self.synthesise(part, noise_mode, generator) for part in parts])

    def synthesise(self, ws: Tensor, noise_mode: NoiseMode, generator: torch.Generator | None) -> Tensor:
        """What ``forward`` does, all images at once."""
        x: Tensor
        image: Tensor
        x, image = self.get_submodule("b4")(None, None, ws[:, :2], noise_mode, generator)
        for i, resolution in enumerate(self.resolutions[1:]):
            # a block's ToRGB shares its w with the next block's first convolution
            block = self.get_submodule(f"b{resolution}")
            x, image = block(x, image, ws[:, 2 * i + 1 : 2 * i + 4], noise_mode, generator)
        return image


class StyleGAN2(Generator):
    """StyleGAN2 (configuration F, skip generator), with and without classes; codes are mixed straight (``lerp``).

    ``generator.mapping(z, c)`` and ``generator.synthesis(ws)`` are the two networks; ``decode`` is the second one on
    codes of ``latent_space``, with the stored noise. The defaults are the published CIFAR-10 network's.

    Args:
        z_dim: Numbers in a Gaussian code.
        w_dim: Numbers in a w.
        c_dim: Classes; 0 for a network without.
        img_resolution: Height and width in pixels, a power of two from 8 to 1024.
        img_channels: Channels of an image, 1 or 3.
        mapping_num_layers: Layers of the mapping network.
        channel_base: A layer at resolution r has ``min(channel_base / r, channel_max)`` channels.
        channel_max: The most channels of a layer.
        conv_clamp: Activations are clamped to this, times sqrt(2) after a convolution; None: not at all.
        latent_space: What ``decode`` takes: ``"w+"``, ``[B, num_ws, w_dim]``, or ``"w"``, ``[B, w_dim]``.
        use_noise: Whether the layers have noise of their own.
        architecture: ``"skip"``; the other two of the paper are refused by name.

    Raises:
        ValueError: A size cannot be, or the architecture is another one.

    Example:
        >>> generator = StyleGAN2(channel_max=8)
        >>> generator.decode(generator.sample_latents(2)).shape
        torch.Size([2, 3, 32, 32])
    """

    img_resolution: int

    def __init__(
        self,
        z_dim: int = 512,
        w_dim: int = 512,
        c_dim: int = 0,
        img_resolution: int = 32,
        img_channels: int = 3,
        mapping_num_layers: int = 2,
        channel_base: int = 32768,
        channel_max: int = 512,
        conv_clamp: float | None = 256,
        latent_space: LatentSpace = "w+",
        use_noise: bool = True,
        architecture: str = "skip",
    ) -> None:
        super().__init__()
        if architecture != "skip":
            raise ValueError(f"architecture needs to be 'skip', the published generators': got {architecture!r}")
        if latent_space not in ("w", "w+"):
            raise ValueError(f"latent_space needs to be 'w' or 'w+': got {latent_space!r}")
        sizes = {"z_dim": z_dim, "w_dim": w_dim, "img_channels": img_channels, "channel_max": channel_max}
        sizes |= {"mapping_num_layers": mapping_num_layers, "channel_base": channel_base}
        for name, size in sizes.items():
            if not files.is_count(size):
                raise ValueError(f"{name} needs an integer from 1: got {size!r}")
        if not isinstance(c_dim, int) or isinstance(c_dim, bool) or c_dim < 0:
            raise ValueError(f"c_dim needs an integer from 0: got {c_dim!r}")
        check_square(img_resolution, type(self).__name__)
        if not files.is_count(img_resolution) or img_resolution not in [2**i for i in range(3, 11)]:
            raise ValueError(f"img_resolution needs a power of two from 8 to 1024: got {img_resolution!r}")
        if img_channels not in (1, 3):
            raise ValueError(f"img_channels needs to be 1 or 3: got {img_channels}")
        if mapping_num_layers > MAX_LAYERS:
            raise ValueError(f"mapping_num_layers needs to be at most {MAX_LAYERS}: got {mapping_num_layers}")
        if channel_base < img_resolution:
            raise ValueError(
                f"channel_base needs to be at least img_resolution ({img_resolution}), "
                f"or the last layers have no channels: got {channel_base}"
            )
        if conv_clamp is not None and not (is_number(conv_clamp) and 0 < conv_clamp < math.inf):
            raise ValueError(f"conv_clamp needs a number above 0, or None for no clamp: got {conv_clamp!r}")
        if not isinstance(use_noise, bool):
            raise ValueError(f"use_noise needs to be True or False: got {use_noise!r}")
        self.latent_space = latent_space
        self.img_channels = img_channels
        self.img_resolution = img_resolution
        self.preferred_path = "lerp"
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, c_dim
        self.mapping_num_layers, self.architecture = mapping_num_layers, architecture
        self.channel_base, self.channel_max = channel_base, channel_max
        self.conv_clamp, self.use_noise = conv_clamp, use_noise
        self.synthesis = Synthesis(
            w_dim, img_resolution, img_channels, channel_base, channel_max, conv_clamp, use_noise
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws, mapping_num_layers)
        self.latent_shape = (w_dim,) if latent_space == "w" else (self.num_ws, w_dim)
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        """Codes to images, float32, with the stored noise.

        As the network gives them: what falls outside [-1, 1] is not clamped, so that it keeps its gradient.
        """
        self.check_latents(latents)
        images: Tensor = self.synthesis(self.to_ws(latents))
        return images.float()

    def to_ws(self, latents: Tensor) -> Tensor:
        """Codes ``[B, *latent_shape]`` as ``[B, num_ws, w_dim]``: a w goes to every layer."""
        return latents.unsqueeze(1).expand(-1, self.num_ws, -1) if self.latent_space == "w" else latents

    def sample_latents(self, n: int, generator: torch.Generator | None = None, labels: Tensor | None = None) -> Tensor:
        """Codes of Gaussian z, through the mapping network without truncation.

        Args:
            n: How many.
            generator: What z is drawn from, and then, where none are given, the labels, evenly.
            labels: Classes: integers ``[n]``, or one-hot or mixed rows ``[n, c_dim]``.

        Returns:
            ``[n, *latent_shape]``, float32.

        Raises:
            ValueError: The labels have another shape, or the network has no classes.
        """
        z = self.noise(n, self.z_dim, generator=generator)
        if labels is None and self.c_dim:
            source = "cpu" if generator is None else generator.device
            labels = torch.randint(self.c_dim, (n,), generator=generator, device=source)
        return self.from_noise(z, labels)

    def from_noise(self, noise: Tensor, targets: Tensor | None = None) -> Tensor:
        """Noise z ``[n, z_dim]``, and classes as in :meth:`sample_latents`, to codes; float32."""
        ws: Tensor = self.mapping(noise, targets if targets is None else targets.to(self.device))
        return (ws[:, 0] if self.latent_space == "w" else ws).float()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of z."""
        return (self.z_dim,)

    def mean_latent(self) -> Tensor:
        """``w_avg``; in W+ once for each layer, ``[num_ws, w_dim]``."""
        w_avg = self.mapping.w_avg.float()
        return w_avg.clone() if self.latent_space == "w" else w_avg.repeat(self.num_ws, 1)
