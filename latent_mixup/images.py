"""Ranges of images: one line per conversion, and noticing when two batches do not share one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

MIN_IMAGES = 8  # fewer say too little about a range
END_QUANTILES = (0.005, 0.995)
MAX_END_SHIFT = 1 / 3  # of the wider range. Measured: see range_mismatch
INSIDE, OUTSIDE = 1.02, 1.25  # greatest absolute value of images in [-1, 1], and of others
MAX_VALUES = 100_000  # looked at per channel
KNOWN_RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))


class RangeMismatchWarning(UserWarning):
    """Decoded images and the data set's own differ in range or normalisation."""


def from_uint8(images_uint8: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images_uint8.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 in [0, 255], rounded; what lies outside is clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (images + 1) / 2


def check_size(real: Tensor, decoded: Tensor) -> None:
    """Raise ``ValueError`` unless two batches ``[n, C, H, W]`` agree in channels, height and width."""
    if real.shape[1:] == decoded.shape[1:]:
        return
    *_, height, width = real.shape
    mend = f"transform=v2.Resize(({height}, {width}))"
    if real.ndim == 4 and real.shape[1] != decoded.shape[1]:
        mend += f" and v2.Grayscale({real.shape[1]})" if real.shape[1] in (1, 3) else ""
    raise ValueError(
        f"decoded images need the size of the data set's own: got [C, H, W] = {list(decoded.shape[1:])} "
        f"for {list(real.shape[1:])}; a transform can mend it, such as {mend}"
    )


def range_mismatch(real: Tensor, decoded: Tensor) -> str | None:
    """Say whether decoded images lie in another range than real ones, and what would mend it.

    The ends of the two ranges are compared (0.5 % and 99.5 % quantiles, averaged over channels). They differ
    where an end has moved by more than a third of the wider range, or where one batch keeps to [-1, 1] and
    the other goes well beyond it. Means and deviations are in the message but do not decide: in batches of
    eight they vary as much between batches as between conventions. Measured on batches of eight of
    Fashion-MNIST, MNIST and CIFAR-10 against blurred pixel-wise mixes: in the same range the ends moved by at
    most 0.28, against [0, 1] by at least 0.40; images in [0, 255], or normalised by the mean and standard
    deviation of their own set or of ImageNet, always went beyond.

    Args:
        real: Images as the classifier gets them, ``[n, C, H, W]``, float in any range.
        decoded: Decoded images after the transform, ``[m, C, H, W]``, float.

    Returns:
        None where the ranges agree, else a message with both means and deviations and the ``transform``.

    Raises:
        ValueError: They differ in channels, height or width.

    Example:
        >>> range_mismatch(torch.rand(8, 1, 28, 28), torch.rand(8, 1, 28, 28) * 2 - 1) is None
        False
    """
    check_size(real, decoded)
    real, decoded = (images.detach().float().transpose(0, 1).flatten(1) for images in (real, decoded))
    decoded = decoded.to(real.device)
    if _same_range(_ends(real), _ends(decoded)):
        return None
    return (
        f"decoded images and the data set's own are not in one range: "
        f"the data set's have mean {_show(real.mean(1))} and std {_show(real.std(1))}, "
        f"decoded ones have mean {_show(decoded.mean(1))} and std {_show(decoded.std(1))}; "
        f"to mend it: {_mending_transform(real)}"
    )


def _same_range(real: Tensor, decoded: Tensor) -> bool:
    """Whether the ends ``[2, C]`` of two batches may be those of one convention."""
    reaches = [float(ends.abs().amax(0).mean()) for ends in (real, decoded)]
    if min(reaches) <= INSIDE and max(reaches) > OUTSIDE:
        return False
    wider = torch.maximum(real[1] - real[0], decoded[1] - decoded[0]).clamp_min(1e-12)
    shift = (real - decoded).abs().amax(0) / wider
    return bool(shift.mean() <= MAX_END_SHIFT)


def _ends(values: Tensor) -> Tensor:
    """Low and high end of each channel: ``[C, n]`` to ``[2, C]``, without outliers."""
    step = max(1, values.shape[1] // MAX_VALUES)
    return torch.quantile(values[:, ::step], values.new_tensor(END_QUANTILES), dim=1)


def _mending_transform(real: Tensor) -> str:
    """``v2.Normalize`` that takes -1 and 1 to the ends of each channel of ``real``, ``[C, n]``."""
    low, high = _known_range(real)
    std = 2 / (high - low).clamp_min(1e-6)
    return f"transform=v2.Normalize(mean={_show(-1 - low * std)}, std={_show(std)})"


def _known_range(real: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel; of the convention, where a batch nearly fills a known one."""
    low, high = real.amin(1), real.amax(1)
    for start, end in KNOWN_RANGES:
        close = 0.15 * (end - start)
        inside = low.min() >= start and high.max() <= end
        if inside and low.min() - start <= close and end - high.max() <= close:
            return torch.full_like(low, start), torch.full_like(high, end)
    return low, high


def _show(values: Tensor) -> str:
    return "[" + ", ".join(f"{round(value, 6) + 0.0:.4g}" for value in values.tolist()) + "]"


def as_images(samples: Sequence[object]) -> Tensor:
    """A data set's images as one batch ``[B, C, H, W]``, float32 in [-1, 1].

    PIL images and uint8 tensors ``[C, H, W]`` are converted exactly; float tensors have to be in [-1, 1].

    Args:
        samples: Images of one size, at least one.

    Raises:
        TypeError: A sample is no image.
        ValueError: Sizes differ, or float values do not span [-1, 1].
    """
    tensors = [_as_tensor(sample) for sample in samples]
    sizes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(sizes) > 1 or len(sizes[0]) != 3:
        raise ValueError(f"images need one size [C, H, W]: got {', '.join(map(str, map(list, sizes)))}")
    images = torch.stack(tensors)
    if images.dtype == torch.uint8:
        return from_uint8(images)
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.01 and high <= 1.01) or (low >= 0 and len(tensors) >= MIN_IMAGES):
        raise ValueError(
            f"float images need to be in [-1, 1], black at -1: got values from {low:.4g} to {high:.4g}; "
            "end the data set's transform with v2.Normalize(mean=[0.5], std=[0.5]), or give uint8 or PIL images"
        )
    return images.float()


def _as_tensor(sample: object) -> Tensor:
    if isinstance(sample, Tensor) and (sample.dtype == torch.uint8 or sample.is_floating_point()):
        return sample
    if isinstance(sample, Image.Image) and sample.mode in ("L", "RGB"):
        flat = torch.frombuffer(bytearray(sample.tobytes()), dtype=torch.uint8)
        return flat.view(sample.height, sample.width, -1).permute(2, 0, 1)
    raise TypeError(
        f"an image needs to be a uint8 or float tensor [C, H, W] or an 8-bit PIL image: got {sample!r:.100}"
    )
