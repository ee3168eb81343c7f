"""The range of images: what ``bounds`` are, and the way to [0, 1] and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latent_mixup.robustness.classifier import Classifier

End: TypeAlias = float | Sequence[float] | Tensor  # one number, or one per channel
Bounds: TypeAlias = tuple[End, End]  # the values of black and white

BEYOND = 1e-5  # share of the range by which rounding may take an image out of it


@dataclass(frozen=True, eq=False)
class Range:
    """The values of black and white: two numbers, or one pair per channel, ``[C, 1, 1]`` each."""

    low: float | Tensor
    high: float | Tensor

    @classmethod
    def of(cls, bounds: Bounds, images: Tensor) -> Range:
        """``bounds``, checked, for images ``[B, C, H, W]`` that keep to them.

        Raises:
            ValueError: ``bounds`` are no range of numbers, or an image leaves it.
        """
        low, high = pair_of(bounds)
        sizes, channels = {low.numel(), high.numel()}, images.shape[1]
        if not sizes <= {1, channels}:
            raise ValueError(f"bounds must have one number for each of {channels} channels, or one: got {bounds}")
        beyond = BEYOND * (high - low)
        least, most = (end.cpu().double() for end in (images.amin((0, 2, 3)), images.amax((0, 2, 3))))
        if (least < low - beyond).any() or (most > high + beyond).any():
            raise ValueError(
                f"images must keep to bounds={bounds}: got values from {float(least.min()):.4g} to "
                f"{float(most.max()):.4g}; pass the range that the model takes"
            )
        if sizes == {1}:
            return cls(low.item(), high.item())
        return cls(*(end.expand(channels)[:, None, None].to(images.dtype).to(images.device) for end in (low, high)))

    def to_list(self) -> list[Any]:
        """For JSON."""
        return [end.flatten().tolist() if isinstance(end, Tensor) else end for end in (self.low, self.high)]

    def width(self) -> float:
        """White minus black.

        Raises:
            ValueError: It differs between channels.
        """
        low, high = (torch.as_tensor(end, device="cpu").double().flatten() for end in (self.low, self.high))
        width = high - low
        if (width - width[0]).abs().max() > BEYOND * width[0]:
            raise ValueError(
                "a length has no units where channels differ in width: score a model that takes images in [0, 1] and "
                f"normalises them itself, with bounds=(0, 1); got widths {width.tolist()}"
            )
        return float(width[0])

    def to_unit(self, images: Tensor) -> Tensor:
        """From the range to [0, 1]."""
        low, high = self.ends(images)
        return (images - low) / (high - low)

    def from_unit(self, images: Tensor) -> Tensor:
        """From [0, 1] to the range."""
        low, high = self.ends(images)
        return low + (high - low) * images

    def ends(self, images: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Black and white on the device of ``images``."""
        low, high = (end.to(images) if isinstance(end, Tensor) else end for end in (self.low, self.high))
        return low, high


def pair_of(bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Black and white, each ``[1]`` or ``[C]``, float64 on the CPU.

    Raises:
        ValueError: They are not finite numbers, rising.
    """
    try:
        low, high = (torch.as_tensor(end, dtype=torch.float64, device="cpu").flatten() for end in bounds)
        rising = bool((low < high).all() and (high - low).isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        rising = False
    if not rising:
        raise ValueError(
            f"bounds must be two finite numbers, the values of black and white: got {bounds}; "
            "for channels that differ, two lists with a number per channel"
        )
    return low, high


def assumed_bounds(least: float, most: float) -> Bounds:
    """The package's own range, (-1, 1), for images whose range nobody named.

    Raises:
        ValueError: No value is below 0: the images may be in [0, 1].
    """
    if least >= 0:
        white = 1 if most <= 1 else 255
        raise ValueError(
            f"the images lie between {least:.4g} and {most:.4g}, and bounds were not given: "
            f"pass bounds=(0, {white}) if black is 0, or bounds=(-1, 1) if it is -1"
        )
    return (-1.0, 1.0)


class FromUnit(nn.Module):
    """A model behind a conversion of images in [0, 1] to its own range and type."""

    def __init__(self, model: nn.Module, span: Range, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.span, self.dtype = model, span, dtype

    def forward(self, unit: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1] to logits ``[B, K]`` of the same type."""
        images = self.span.from_unit(unit.to(self.dtype))
        return Classifier(self.model).logits(images, finite=False).to(unit.dtype)
