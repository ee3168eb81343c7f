"""ReStyle-pSp: a ResNet that sees an image and its reconstruction, and corrects the code in a few passes.

**Backbone.** A ResNet of timm with random weights, since ImageNet's are not for two images side by side. timm's stem,
7x7 with stride 2 and a max-pool, is for 224 px, and would leave the last stage one pixel of a 32 px image. Here the
stem is one 3x3 convolution with the largest stride (4: 2 and a max-pool) that leaves the last stage at least 4x4
pixels: 1 below 64 px, 2 below 128 px, 4 from there. GroupNorm of one group replaces BatchNorm: the passes see different
reconstructions, which running statistics would average, and an image's code must not depend on its batch.

**Head.** pSp maps a style for each layer of the generator from a feature pyramid; ReStyle takes all of them from the
last stage, since several passes make up for it. Here the last stage is averaged over a grid of at most 4x4 pixels, and
one hidden layer gives all ``num_ws`` codes of W+, or the one of W. The last layer starts from zero: an encoder without
training gives the mean code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.encoders.base import MAX_LAYERS, Encoder, counts
from latent_mixup.generators.base import Generator

GRID = 4
HIDDEN = 512
STEM_STRIDES = (1, 2, 4)


class ReStyleEncoder(Encoder):
    """Codes in ``passes`` corrections from the mean code: ``w_{t+1} = w_t + E([x, G(w_t)])``.

    Args:
        generator: The one to invert; decodes between the passes.
        backbone: A ResNet of timm (``timm.list_models(module="resnet")``).
        passes: Number of corrections. The attribute ``passes`` of a trained encoder may be set to another number.
        channels: Channels of the backbone's four stages; None: timm's.
        layers: Blocks of the four stages; None: timm's.
        stem_stride: Stride of the stem, 1, 2 or 4; None: by the shorter side, see above.

    Raises:
        ValueError: timm has no such ResNet, or a size cannot be.

    Reference: Alaluf, Patashnik and Cohen-Or, "ReStyle: A Residual-Based StyleGAN Encoder via Iterative Refinement"
    (2021), section 3; Richardson et al., "Encoding in Style" (pSp, 2021).

    Example:
        >>> generator = CompactGenerator(z_dim=8)
        >>> ReStyleEncoder(generator, channels=(8, 8, 8, 8))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        generator: Generator,
        backbone: str = "resnet18",
        passes: int = 3,
        channels: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        stem_stride: int | None = None,
    ) -> None:
        super().__init__(generator)
        if not (files.is_count(passes) and passes <= MAX_LAYERS):
            raise ValueError(f"passes needs an integer from 1 to {MAX_LAYERS}: got {passes!r:.100}")
        if stem_stride not in (None, *STEM_STRIDES):
            raise ValueError(f"stem_stride needs to be 1, 2, 4 or None: got {stem_stride!r}")
        self.backbone_name, self.passes = backbone, passes
        given = {"channels": channels, "layers": layers}
        self.sizes = {name: list(counts(name, values)) for name, values in given.items() if values is not None}
        if max(self.sizes.get("layers", [1])) > MAX_LAYERS:
            raise ValueError(f"layers needs integers up to {MAX_LAYERS}: got {self.sizes['layers']!r:.100}")
        self.stem_stride = stem_stride or stride_for(min(generator.img_size))
        network = resnet(backbone, 2 * generator.img_channels, self.stem_stride, self.sizes)
        self.backbone: nn.Module = network
        grid = [min(GRID, math.ceil(side / (8 * self.stem_stride))) for side in generator.img_size]
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d((grid[0], grid[1])),
            nn.Flatten(),
            nn.Linear(network.num_features * math.prod(grid), HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, math.prod(self.latent_shape)),
            nn.Unflatten(1, self.latent_shape),
        )
        for parameter in self.head[-2].parameters():
            nn.init.zeros_(parameter)
        self.freeze()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments beside the generator."""
        return {
            "backbone": self.backbone_name,
            "passes": self.passes,
            "channels": self.sizes.get("channels"),
            "layers": self.sizes.get("layers"),
            "stem_stride": self.stem_stride,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] to the codes after the last pass, ``[B, *latent_shape]``."""
        return self.trajectory(images)[-1]

    def trajectory(self, images: Tensor) -> list[Tensor]:
        """The codes after 0, 1, ..., ``passes`` passes, each ``[B, *latent_shape]``; at first the mean code."""
        self.check_images(images)
        codes, decoded = self.start(len(images))
        found = [codes]
        for number in range(self.passes):
            decoded = self.generator.decode(codes) if number else decoded
            codes = codes + self.residual(images, decoded)
            found.append(codes)
        return found

    def start(self, n: int) -> tuple[Tensor, Tensor]:
        """The mean code and its decode, for each of ``n`` images; decoded once."""
        mean = self.generator.mean_latent()[None]
        decoded = self.generator.decode(mean)
        return mean.expand(n, *self.latent_shape), decoded.expand(n, *self.image_shape)

    def residual(self, images: Tensor, decoded: Tensor) -> Tensor:
        """The correction of codes whose decodes are ``decoded``: ``E([x, G(w_t)])``, ``[B, *latent_shape]``.

        Reference: ReStyle, section 3.
        """
        residual: Tensor = self.head(self.backbone(torch.cat([images.float(), decoded], 1)))
        return residual


def stride_for(side: int) -> int:
    """The largest stride of the stem that leaves the last stage, 1/8 of what the stem gives, at least 4x4 pixels."""
    return max([1, *(stride for stride in STEM_STRIDES if side >= 8 * GRID * stride)])


def resnet(name: str, in_channels: int, stem_stride: int, sizes: Mapping[str, Sequence[int]]) -> Any:
    """A ResNet of timm with new weights, GroupNorm, the stem described above, and a feature map as its output.

    Args:
        name: Of timm's ``resnet`` module.
        in_channels: Channels of its input.
        stem_stride: 1, 2, or 4 (2, and a max-pool).
        sizes: ``"channels"`` and ``"layers"`` (blocks) of the four stages; timm's where they are missing.

    Raises:
        ValueError: timm has no such ResNet, it keeps filters outside its weights, or there are not four stages.
    """
    import timm

    known = timm.list_models(module="resnet")
    if name not in known:
        raise ValueError(f"backbone needs a ResNet of timm {timm.__version__}, such as 'resnet18': got {name!r:.100}")
    for key, value in sizes.items():
        if len(value) != 4:
            raise ValueError(f"{key} needs one integer for each of four stages: got {value}")
    network: Any = timm.create_model(
        name, in_chans=in_channels, num_classes=0, global_pool="", stem_type="", norm_layer="groupnorm1", **sizes
    )
    if any(True for _ in network.buffers()):
        raise ValueError(f"backbone {name!r} keeps filters outside its weights: choose another, such as 'resnet18'")
    stride = min(stem_stride, 2)
    network.conv1 = nn.Conv2d(in_channels, network.conv1.out_channels, 3, stride=stride, padding=1, bias=False)
    if stem_stride < 4:
        network.maxpool = nn.Identity()
    return network
