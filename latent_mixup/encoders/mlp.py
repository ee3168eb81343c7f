"""The paper's initialiser: an MLP from pixels to a code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latent_mixup.encoders.base import Encoder, counts
from latent_mixup.generators.base import Generator


class MLPEncoder(Encoder):
    """Fully connected layers with ReLU; before training, every image gets a code near the mean one.

    Args:
        generator: The one to invert.
        widths: Hidden layers. The default is the paper's for 28x28 pixels and a 1024-d z: 784-1024-1024-1024.

    Reference: Latent-Mixup, section 2.1.1.

    Example:
        >>> generator = CompactGenerator(z_dim=8)
        >>> MLPEncoder(generator)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """

    def __init__(self, generator: Generator, widths: Sequence[int] = (1024, 1024)) -> None:
        super().__init__(generator)
        self.widths = counts("widths", widths)
        sizes = (math.prod(self.image_shape), *self.widths, math.prod(self.latent_shape))
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            self.body.get_parameter(f"{len(self.body) - 1}.bias").copy_(generator.mean_latent().flatten())
        self.freeze()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments beside the generator."""
        return {"widths": list(self.widths)}

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] to codes ``[B, *latent_shape]``."""
        self.check_images(images)
        codes: Tensor = self.body(images.float().flatten(1)).unflatten(1, self.latent_shape)
        return codes
