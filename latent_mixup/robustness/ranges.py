"""The range of images: what ``bounds`` are, and the way to [0, 1] and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latent_mixup.images import Moments, moments_of
from latent_mixup.robustness.classifier import Classifier, check_model

End: TypeAlias = float | Sequence[float] | Tensor  # one number, or one per channel
Bounds: TypeAlias = tuple[End, End]  # the values of black and white

BEYOND = 1e-5  # share of the range by which rounding may take an image out of it


@dataclass(frozen=True, eq=False)
class Range:
    """The values of black and white: two numbers, or one pair per channel, ``[C, 1, 1]`` each."""

    low: float | Tensor
    high: float | Tensor

    @classmethod
    def of(cls, bounds: Bounds | None, images: Tensor) -> Range:
        """``bounds``, checked, for images ``[B, C, H, W]`` that keep to them; None: see :func:`assumed_bounds`.

        Raises:
            ValueError: ``bounds`` are no range of numbers, or an image leaves it; or they were not given, and no
                value is below 0.
        """
        if bounds is None:
            bounds = assumed_bounds(*map(float, images.aminmax()))
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
    """A model behind a conversion of images in [0, 1] to its own range and type.

    Args:
        model: Images within ``span`` to logits.
        span: Its range.
        dtype: Type of the images that it takes; None: that of its parameters.
    """

    def __init__(self, model: nn.Module, span: Range, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.span, self.dtype = model, span, dtype

    def forward(self, unit: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1] to logits ``[B, K]`` of the same type."""
        first = next(self.model.parameters(), unit)
        images = self.span.from_unit(unit.to(self.dtype or first.dtype))
        return Classifier(self.model).logits(images, finite=False).to(unit.dtype)


class Normalized(FromUnit):
    """A model that takes normalised images, as one that takes images in [0, 1].

    RobustBench, AutoAttack and foolbox attack such a model, and so do the scores here, with ``bounds=(0, 1)``: their
    lengths are then in the units of the literature. It returns the logits alone, whatever ``model`` returns.

    Args:
        model: ``(images - mean) / std`` to logits, of images in [0, 1]; differentiable for attacks.
        mean: That it was trained with: one number, or one per channel. 0.5 for images in [-1, 1].
        std: Standard deviation, as many numbers, above 0. 0.5 for images in [-1, 1].

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``mean`` and ``std`` are not as many finite numbers, or ``std`` is not above 0; in a call, they are
            for another number of channels.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> Normalized(net, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 10])
    """

    def __init__(self, model: nn.Module, mean: Moments, std: Moments) -> None:
        check_model(model)
        moments = moments_of((mean, std))
        float64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        centre, width = (torch.tensor(each, **float64)[:, None, None] for each in (moments.mean, moments.std))
        super().__init__(model, Range(-centre / width, (1 - centre) / width))
        self.mean, self.std = moments.mean, moments.std

    def forward(self, unit: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1] to logits ``[B, K]`` of the same type."""
        count = len(self.mean or ())
        if count not in (1, unit.shape[1]):
            raise ValueError(f"mean and std have {count} numbers for images of {unit.shape[1]} channels")
        return super().forward(unit)

    def extra_repr(self) -> str:
        """``mean`` and ``std``, in ``print(model)``."""
        return f"mean={self.mean}, std={self.std}"
