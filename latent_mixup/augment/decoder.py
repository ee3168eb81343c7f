"""A generator's decode as the wrappers call it: without gradients, on its device, faster where an option says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latent_mixup.generators.base import Generator

AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


class Decoder:
    """Decodes without gradients, on the generator's device.

    Each option changes images by rounding alone, and its speed by as much as the device has to gain.

    Args:
        generator: Decodes.
        autocast: ``torch.bfloat16`` or ``torch.float16``: run it under ``torch.autocast``; None: in float32.
        channels_last: Keep its weights and its images in ``torch.channels_last``; changes the generator in place.
        compile: Run it through ``torch.compile``; the first decode then takes seconds.

    Raises:
        ValueError: ``autocast`` is another dtype.

    Example:
        >>> Decoder(generator)(torch.randn(2, 128)).shape  # doctest: +SKIP
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        generator: Generator,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        if autocast is not None and autocast not in AUTOCAST_DTYPES:
            raise ValueError(f"autocast needs to be torch.bfloat16, torch.float16 or None: got {autocast}")
        self.generator, self.autocast, self.channels_last, self.compile = generator, autocast, channels_last, compile
        if channels_last:
            generator.to(memory_format=torch.channels_last)
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        """Codes ``[k, *latent_shape]`` on any device to images ``[k, C, R, R]``, float32 in [-1, 1]."""
        device = self.generator.device
        enabled = self.autocast is not None
        with torch.no_grad(), torch.autocast(device.type, dtype=self.autocast, enabled=enabled):
            images = self._decode(latents.to(device)).float()
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def __getstate__(self) -> dict[str, Any]:
        """What was compiled stays in its process."""
        return {**self.__dict__, "_compiled": None}

    def _decode(self, latents: Tensor) -> Tensor:
        if not self.compile:
            return self.generator.decode(latents)
        if self._compiled is None:
            self._compiled = torch.compile(self.generator.decode)
        return self._compiled(latents)
