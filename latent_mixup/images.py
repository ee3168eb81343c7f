"""Ranges of images: one line per conversion, any image to [-1, 1], and a check that two batches share one range."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from latent_mixup.labels import MISSING, Key, SampleError, describe_sample, names_of

IMAGE_KEYS = ("image", "img", "pixel_values", "images", "jpg", "jpeg", "png", "webp")  # in samples that are mappings
MIN_IMAGES = 8  # fewer say too little about a range
END_QUANTILES = (0.005, 0.995)
MAX_END_SHIFT = 1 / 3  # of the wider range. Measured: see range_mismatch
INSIDE, OUTSIDE = 1.02, 1.25  # greatest absolute value of images in [-1, 1], and of others
MAX_VALUES = 100_000  # looked at per channel
KNOWN_RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
SAME_GREY = 1e-5  # channels that differ by less are one; a step of 16 bits is 3e-5
NEGATIVE_SHARE = 0.2  # of the contrast. Measured: bicubic resizes of binary noise in [0, 1] go to 0.18 below 0
MIN_CONTRAST = 0.05  # less is black, or was divided by 255 twice
UNIT_LOW, UNIT_HIGH = (-0.01, 0.25), 0.5  # range of the darkest value of images in [0, 1], least brightest value
BIT_DEPTHS = (10, 12, 14, 16)  # of images in uint16
DARK = 16  # of 255: 8-bit images that are darker were probably not scaled

Moments: TypeAlias = float | Sequence[float] | Tensor
Ends: TypeAlias = tuple[float, float]  # least and greatest value


class RangeMismatchWarning(UserWarning):
    """Decoded images and the data set's own differ in range or normalisation."""


def from_uint8(images_uint8: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images_uint8.float() / 127.5 - 1


def from_uint16(images_uint16: Tensor, bits: int = 16) -> Tensor:
    """uint16 in [0, 2**bits - 1] to float32 in [-1, 1]; of 16 bits, ``257 * v`` becomes what ``v`` is in 8 bits."""
    half = float(2**bits - 1) / 2
    return images_uint16.float() / half - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 in [0, 255], rounded; what lies outside is clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (images + 1) / 2


def normalized(images: Tensor, moments: ImageFormat) -> Tensor:
    """[-1, 1] to the result of ``v2.Normalize(mean, std)`` on the same images in [0, 1], in one step.

    Args:
        images: ``[B, C, H, W]`` float.
        moments: Mean and std: one number, or one per channel.

    Raises:
        ValueError: The moments are for another number of channels.
    """
    if moments.mean is None or moments.std is None or len(moments.mean) not in (1, images.shape[1]):
        raise ValueError(
            f"mean and std need one number, or one a channel: got {moments.mean} and {moments.std} "
            f"for {images.shape[1]} channels"
        )
    mean, std = (images.new_tensor(values)[:, None, None] for values in (moments.mean, moments.std))
    return torch.addcmul((0.5 - mean) / std, images, 0.5 / std)


def check_size(real: Tensor, decoded: Tensor) -> None:
    """Raise ``SampleError`` unless two batches ``[n, C, H, W]`` agree in channels, height and width."""
    if real.shape[1:] == decoded.shape[1:]:
        return
    *_, height, width = real.shape
    mend = f"transform=v2.Resize(({height}, {width}))"
    if real.ndim == 4 and real.shape[1] != decoded.shape[1]:
        mend += f" and v2.Grayscale({real.shape[1]})" if real.shape[1] in (1, 3) else ""
    raise SampleError(
        f"decoded images need the size of the data set's own: got [C, H, W] = {list(decoded.shape[1:])} "
        f"for {list(real.shape[1:])}; a transform can mend it, such as {mend}"
    )


def range_mismatch(real: Tensor, decoded: Tensor) -> str | None:
    """A message if decoded images lie in another range than real ones, with the transform that mends it.

    The ends of the two ranges are compared (0.5 % and 99.5 % quantiles, averaged over channels). They differ
    if an end has moved by more than a third of the wider range, or if one batch stays in [-1, 1] and the other
    goes well beyond it. Means and deviations are in the message but do not decide: in batches of eight they vary
    as much between batches as between conventions. Measured on batches of eight of Fashion-MNIST, MNIST and
    CIFAR-10 against blurred pixel-wise mixes: in the same range the ends moved by at most 0.28, against [0, 1]
    by at least 0.40; images in [0, 255], or normalised by the mean and standard deviation of their own set or of
    ImageNet, always went beyond.

    Args:
        real: Images as the classifier gets them, ``[n, C, H, W]``, float in any range.
        decoded: Decoded images after the transform, ``[m, C, H, W]``, float.

    Returns:
        None if the ranges agree, else a message with both means and deviations and the ``transform``.

    Raises:
        SampleError: They differ in channels, height or width.

    Example:
        >>> range_mismatch(torch.rand(8, 1, 28, 28), torch.rand(8, 1, 28, 28) * 2 - 1) is None
        False
    """
    check_size(real, decoded)
    real, decoded = (images.detach().float().transpose(0, 1).flatten(1) for images in (real, decoded))
    decoded = decoded.to(real.device)
    if _same_range(_ends(real), _ends(decoded)):
        return None
    low, high = _known_range(real)
    std = 2 / (high - low).clamp_min(1e-6)
    return (
        f"decoded images and the data set's own are not in one range: "
        f"the data set's have mean {_show(real.mean(1))} and std {_show(real.std(1))}, "
        f"decoded ones have mean {_show(decoded.mean(1))} and std {_show(decoded.std(1))}; "
        f"to mend it: transform=v2.Normalize(mean={_show(-1 - low * std)}, std={_show(std)})"
    )


def _same_range(real: Tensor, decoded: Tensor) -> bool:
    """Whether two batches with the ends ``[2, C]`` may share one convention."""
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


def _known_range(real: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the known range that a batch ``[C, n]`` nearly fills, else its own, for each channel."""
    low, high = real.amin(1), real.amax(1)
    for start, end in KNOWN_RANGES:
        close = 0.15 * (end - start)
        inside = low.min() >= start and high.max() <= end
        if inside and low.min() - start <= close and end - high.max() <= close:
            return torch.full_like(low, start), torch.full_like(high, end)
    return low, high


def _show(values: Tensor) -> str:
    return "[" + ", ".join(f"{round(value, 6) + 0.0:.4g}" for value in values.tolist()) + "]"


# --------------------------------------------------------------------------------------------------
# Images of any kind
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFormat:
    """How the images of one data set become float32 ``[C, H, W]`` in [-1, 1], each of them the same way.

    8-bit integers end at 255, images in uint16 at ``2**bits - 1``. A float ``x`` becomes ``x * std + mean`` in [0, 1]:
    mean 0 and std 1 for images in [0, 1], 0.5 and 0.5 for [-1, 1].

    Attributes:
        mean: One number, or one per channel; None: the data set had no float images to tell the range by.
        std: As many numbers, above 0.
        bits: Bit depth of images in uint16: 10, 12, 14 or 16.

    Raises:
        ValueError: A value is not of this form.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bits: int = 16

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = None if value is None else tuple(float(n) for n in np.asarray(value, dtype=float).reshape(-1))
            object.__setattr__(self, name, numbers)
        both = [*(self.mean or ()), *(self.std or ())]
        alike = (self.mean is None) == (self.std is None) and len(self.mean or ()) == len(self.std or ())
        if not alike or not all(map(math.isfinite, both)) or min(self.std or (1.0,)) <= 0:
            raise ValueError(f"mean and std need as many finite numbers, std above 0: got {self.mean} and {self.std}")
        if self.bits not in BIT_DEPTHS:
            raise ValueError(f"bits needs one of {BIT_DEPTHS}: got {self.bits}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``ImageFormat(**...)`` reads them."""
        moments = {
            name: None if value is None else [*value] for name, value in (("mean", self.mean), ("std", self.std))
        }
        return moments | ({} if self.bits == 16 else {"bits": self.bits})

    def convert(self, image: object, size: tuple[int, int, int], *, resize: bool = False) -> Tensor:
        """One image as float32 ``[C, H, W]`` in [-1, 1], on the CPU.

        A grey image is repeated for an RGB generator. For a grey generator, three equal channels become one.

        Args:
            image: See :func:`pixel_values`.
            size: ``(C, H, W)`` of the generator.
            resize: Bring an image of another size to this one: :func:`resized`.

        Raises:
            SampleError: It is not an image, or has another size, NaN, values outside of the range, or colours for a
                grey generator.
        """
        values = pixel_values(image, size[0])
        fits = tuple(values.shape[1:]) == size[1:]
        if not (fits or resize):
            raise SampleError(_another_size(values, size))
        images = self._signed(values)
        if images.abs().max() > (INSIDE if values.is_floating_point() else 1) or not images.isfinite().all():
            low, high = _finite_ends(values)
            raise SampleError(f"an image has values from {low:.6g} to {high:.6g}: {self._expected(values)}")
        return _of_channels(images if fits else resized(images, size[1:]), size)

    def _signed(self, values: Tensor) -> Tensor:
        """Pixel values ``[C, H, W]`` to float32, in [-1, 1] if they follow this format."""
        if values.dtype == torch.uint8:
            return from_uint8(values)
        if values.dtype == torch.uint16:
            return from_uint16(values, self.bits)
        if self.mean is None or self.std is None:
            raise SampleError("a float image in a data set of integers: its range is not known, give integers here too")
        if len(self.mean) not in (1, len(values)):
            raise SampleError(f"mean and std have {len(self.mean)} numbers for an image of {len(values)} channels")
        mean, std = (torch.tensor(m, dtype=torch.float32, device="cpu")[:, None, None] for m in (self.mean, self.std))
        return values.float() * (2 * std) + (2 * mean - 1)

    def _expected(self, values: Tensor) -> str:
        if not values.is_floating_point():
            return f"the first images of this data set had {self.bits} bits; give all of them as uint8, or as float"
        known = {((0.0,), (1.0,)): "0, 1", ((0.5,), (0.5,)): "-1, 1"}.get((self.mean, self.std))  # type: ignore[arg-type]
        if known is None:
            return f"x * std + mean needs to be in [0, 1] with mean={self.mean} and std={self.std}"
        return f"this data set's are in [{known}]; clamp them there where a resize went beyond, x.clamp({known})"


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """One image ``[C, H, W]``, scaled to cover ``size``, height and width (bilinear, antialiased), and its middle.

    Example:
        >>> resized(torch.zeros(3, 60, 40), (28, 28)).shape
        torch.Size([3, 28, 28])
    """
    whole = covering(image.shape[1:], size)
    scaled = F.interpolate(image[None], size=whole, mode="bilinear", antialias=True)[0]
    top, left = ((side - wanted) // 2 for side, wanted in zip(whole, size, strict=True))
    return scaled[:, top : top + size[0], left : left + size[1]]


def covering(sides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image of these ``sides``, scaled so that it just covers another ``size``.

    Example:
        >>> covering((60, 40), (28, 28))
        (42, 28)
    """
    share = max(size[0] / sides[0], size[1] / sides[1])
    return max(size[0], round(sides[0] * share)), max(size[1], round(sides[1] * share))


def moments_of(normalize: tuple[Moments, Moments]) -> ImageFormat:
    """The user's ``normalize=(mean, std)`` in the form that :func:`normalized` takes.

    Raises:
        ValueError: It is not such a pair, or std is not above 0.
    """
    if not isinstance(normalize, tuple | list) or len(normalize) != 2:
        raise ValueError(f"normalize needs to be (mean, std): got {normalize!r:.100}")
    return ImageFormat(normalize[0], normalize[1])  # type: ignore[arg-type]  # it makes tuples of all numbers


UNIT, SIGNED = ImageFormat((0.0,), (1.0,)), ImageFormat((0.5,), (0.5,))  # images in [0, 1], and in [-1, 1]


def detect_format(
    images: Iterable[object], mean: Moments | None = None, std: Moments | None = None, *, img_channels: int = 3
) -> ImageFormat:
    """Tell from the first images of a data set how its values become [-1, 1].

    Float images that go well below 0 are in [-1, 1]. Other float images are in [0, 1] if the darkest value is near 0,
    the brightest above 0.5, and there are at least eight: fewer may be bright images in [-1, 1]. Otherwise the range
    cannot be told, and ``mean`` and ``std`` are needed. Images in uint16 have the least bit depth that holds all of
    them. Non-images and a minority in another range are ignored here; :meth:`ImageFormat.convert` rejects them.

    Args:
        images: Images of any size; see :func:`pixel_values`.
        mean: Mean that float images were normalised with, in [0, 1]: one number, or one per channel. 0 for images in
            [0, 1].
        std: Standard deviation, likewise. 1 for images in [0, 1].
        img_channels: Channels of the generator.

    Raises:
        ValueError: The range cannot be told, or does not agree with ``mean`` and ``std``.
        TypeError: None of them is an image.

    Warns:
        UserWarning: Images in uint16 are taken to have fewer than 16 bits, or 8-bit images are nearly black.

    Example:
        >>> detect_format(torch.rand(8, 3, 32, 32)).to_dict()
        {'mean': [0.0], 'std': [1.0]}
    """
    given = ImageFormat(mean, std)  # type: ignore[arg-type]  # it makes tuples of all numbers
    floats: list[Ends] = []  # of each float image; in [-1, 1] where mean and std are given
    largest: dict[torch.dtype, float] = {}  # value of each integer type
    failure: TypeError | ValueError | None = None
    for image in images:
        try:
            values = pixel_values(image, img_channels)
            if values.is_floating_point():
                floats.append(_finite_ends(values if given.mean is None else given._signed(values)))
            else:
                largest[values.dtype] = max(_finite_ends(values)[1], largest.get(values.dtype, 0))
        except (TypeError, ValueError) as error:
            failure = failure or error
    if failure and not floats and not largest:
        raise failure
    bits = _bit_depth(largest.get(torch.uint16, 0))
    if 0 < (white := largest.get(torch.uint8, 0)) <= DARK:
        warnings.warn(
            f"8-bit images whose largest value is {white:.0f} are nearly black, white is 255; if {white:.0f} is white, "
            "multiply them, or give them as bool or as float in [0, 1]",
            stacklevel=2,
        )
    if given.mean is None:
        found = _float_format(floats) if floats else given
        return ImageFormat(found.mean, found.std, bits)
    if not floats:
        raise ValueError(
            "mean and std say how float images were normalised, and these are integers: leave mean and std out"
        )
    if _inside(floats) is None:
        low, high = ((end + 1) / 2 for end in _reach(floats))
        raise ValueError(
            f"mean={given.mean} and std={given.std} do not fit: x * std + mean needs to be in [0, 1], "
            f"and goes from {low:.4g} to {high:.4g}; where a resize went beyond, clamp them there"
        )
    return ImageFormat(given.mean, given.std, bits)


def _bit_depth(largest: float) -> int:
    """The least bit depth of uint16 images whose largest value is this."""
    if 0 < largest <= 255:
        raise ValueError(f"16-bit images end at 65535, and these at {largest:.0f}: give 8-bit values as uint8")
    bits = next(bits for bits in BIT_DEPTHS if largest < 2**bits) if largest else 16
    if bits < 16:
        warnings.warn(
            f"images in uint16 whose largest value is {largest:.0f} are read as {bits} bits, white is {2**bits - 1}; "
            "if they are dark 16-bit images, give them as float, x / 65535, with mean=0, std=1",
            stacklevel=2,
        )
    return bits


def _float_format(ends: list[Ends]) -> ImageFormat:
    inside = _inside(ends)
    low, high = _reach(ends if inside is None else inside)
    found = f"got values from {low:.4g} to {high:.4g}"
    if inside is None:
        raise ValueError(
            f"float images need to be in [0, 1] or [-1, 1]: {found}; pass the mean= and std= they were normalised "
            "with, clamp them where a resize went beyond, or give images in [0, 255] as uint8"
        )
    if high - low >= MIN_CONTRAST and -low > NEGATIVE_SHARE * (high - low):
        return SIGNED
    if UNIT_LOW[0] <= low <= UNIT_LOW[1] and high >= UNIT_HIGH and len(inside) >= MIN_IMAGES:
        return UNIT
    raise ValueError(
        f"float images may be in [0, 1] or in [-1, 1]: {found} in {len(inside)} images; "
        "pass mean=0, std=1 where black is 0, mean=0.5, std=0.5 where black is -1, or give uint8"
    )


def _inside(ends: list[Ends]) -> list[Ends] | None:
    """The ends in [-1, 1]; None if most are not."""
    inside = [(low, high) for low, high in ends if max(-low, high) <= INSIDE]
    return inside if 2 * len(inside) >= len(ends) else None


def _reach(ends: list[Ends]) -> Ends:
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)


def _finite_ends(values: Tensor) -> Ends:
    low, high = (float(end) for end in (values if values.is_floating_point() else values.float()).aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SampleError("an image needs finite numbers: got NaN or infinity")
    return low, high


def check_finite(images: Tensor) -> None:
    """Raise ``SampleError`` where float images on the CPU have NaN or infinity; another device is not waited for."""
    if images.is_floating_point() and images.device.type == "cpu" and images.numel():
        _finite_ends(images)


def pixel_values(image: object, img_channels: int = 3) -> Tensor:
    """The values of one image as they are: uint8, uint16 or floating ``[C, H, W]``, on the CPU.

    Args:
        image: A PIL image of any mode, or an array or tensor ``[H, W]``, ``[C, H, W]`` or ``[H, W, C]`` of bool,
            uint8, uint16 or floats. An axis of 1, 3 or ``img_channels`` is the channels; the first if both may be.
            PIL's palettes, CMYK and the like become RGB; its mode ``I`` holds 16 bits; alpha is dropped, as
            torchvision's own loader does.
        img_channels: Channels of the generator.

    Raises:
        SampleError: It is not an image, has another shape, or values that 16 bits do not hold.
    """
    values = _tensor(_pil_array(image)) if isinstance(image, Image.Image) else _values(image).cpu()
    return _channels_first(_numbers(values), img_channels, 0)


def batch_values(images: object, img_channels: int = 3) -> Tensor:
    """The values of a batch of images, ``[B, C, H, W]``, each read as :func:`pixel_values` reads one image.

    Args:
        images: A list of images; or an array or tensor ``[B, H, W]``, ``[B, C, H, W]`` or ``[B, H, W, C]``.
        img_channels: Channels of the generator.

    Returns:
        Of a tensor ``[B, C, H, W]`` itself, else a new one; on its device.

    Raises:
        SampleError: One of them is not an image, or they differ in size.
    """
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] in (1, 3, img_channels):
        return _numbers(images)
    if isinstance(images, list | tuple):
        return stacked_images([pixel_values(image, img_channels) for image in images])
    return _channels_first(_numbers(_values(images)), img_channels, 1)


def stacked_images(images: Sequence[Tensor]) -> Tensor:
    """Images ``[C, H, W]`` of one size as a batch.

    Raises:
        SampleError: They differ in size.
    """
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise SampleError(
                f"images of a batch need one size: image 0 has {list(images[0].shape)}, image {index} has "
                f"{list(image.shape)}; resize them in the data set, e.g. v2.Resize({tuple(images[0].shape[1:])})"
            )
    return torch.stack([*images])


def _values(image: object) -> Tensor:
    """A tensor without its gradient, or a copy of an array."""
    if isinstance(image, Tensor):
        return image.detach().as_subclass(Tensor)
    if hasattr(image, "__array__"):
        return _tensor(np.asarray(image))
    raise SampleError(f"an image needs to be a PIL image, an array or a tensor: got {image!r:.100}")


def _numbers(values: Tensor) -> Tensor:
    """uint8, uint16 or floats as they are; of bools black and white."""
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    if values.dtype not in (torch.uint8, torch.uint16) and not values.is_floating_point():
        raise SampleError(f"an image needs uint8, uint16 or float values: got {values.dtype}, convert them to uint8")
    return values


def _channels_first(values: Tensor, img_channels: int, at: int) -> Tensor:
    """Images with their channels as axis ``at``; before it are those of the batch."""
    shape, counts = list(values.shape[at:]), (1, 3, img_channels)
    if all(shape) and len(shape) == 2:
        return values.unsqueeze(at)
    if all(shape) and len(shape) == 3 and shape[0] in counts:
        return values
    if all(shape) and len(shape) == 3 and shape[2] in counts:
        return values.movedim(-1, at)
    mend = ", without alpha (image[..., :3] of RGBA)" if 4 in (shape[:1] + shape[-1:]) else ""
    raise SampleError(f"an image needs to be [H, W], [C, H, W] or [H, W, C] with 1 or 3 channels{mend}: got {shape}")


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy, in the byte order of this machine."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _pil_array(image: Image.Image) -> NDArray[Any]:
    """``[H, W]`` or ``[H, W, 3]``; uint8, uint16 or float32."""
    if image.mode == "F" or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise SampleError(f"an image of mode I needs 16 bits: got values from {array.min()} to {array.max()}")
        return array.astype(np.uint16)
    if image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _another_size(values: Tensor, size: tuple[int, int, int]) -> str:
    """The message for ``[C, H, W]`` values of another size, with a transform that mends it."""
    (height, width), (wanted_height, wanted_width) = values.shape[1:], size[1:]
    mend = f"v2.Resize({size[1:]})"
    if height * wanted_width != width * wanted_height:
        square = wanted_height == wanted_width
        steps = (wanted_height, wanted_height) if square else (covering((height, width), size[1:]), size[1:])
        mend = f"v2.Resize({steps[0]}) and v2.CenterCrop({steps[1]})"
    missing = wanted_height - height
    if missing == wanted_width - width and missing % 2 == 0 and 0 < missing <= min(size[1:]) // 4:
        mend += f", or v2.Pad({missing // 2})"
    return (
        f"images need the generator's size {list(size)}: got {list(values.shape)}; "
        f"resize them in the data set, e.g. {mend}"
    )


def _of_channels(images: Tensor, size: tuple[int, int, int]) -> Tensor:
    """One image ``[C, H, W]`` in the generator's channels, if that does not change the picture."""
    if len(images) == size[0]:
        return images
    if len(images) == 1:
        return images.repeat(size[0], 1, 1)
    if size[0] != 1:
        raise SampleError(f"images need the generator's size {list(size)}: got {list(images.shape)}")
    if (images - images[:1]).abs().max() > SAME_GREY:
        raise ColoursError(
            f"images need the generator's size {list(size)}: got {list(images.shape)} with colours; "
            "make them grey in the data set, e.g. v2.Grayscale()"
        )
    return images[:1]


class ColoursError(SampleError):
    """A colour image for a grey generator."""


# --------------------------------------------------------------------------------------------------
# Where an image comes from
# --------------------------------------------------------------------------------------------------


def image_key_of(sample: Any, key: Key | None = None) -> Key | None:
    """The place of the image in a sample: ``key`` where it is given, else the usual one; None for an image alone.

    Raises:
        SampleError: It is a mapping with none of ``IMAGE_KEYS``, or an image alone although a key is given.
    """
    if not isinstance(sample, tuple | list | Mapping):
        if key is not None:
            raise SampleError(f"image_key and label_key need samples with parts: got {describe_sample(sample)}")
        return None
    if key is not None or not isinstance(sample, Mapping):
        return 0 if key is None else key
    if (found := next((name for name in IMAGE_KEYS if name in sample), None)) is None:
        raise SampleError(f"no image among {names_of(sample)}: pass image_key=")
    return found


def open_image(path: str | Path) -> Image.Image:
    """An image file in its own mode and bit depth: the ``loader=`` for torchvision's ``ImageFolder``.

    Torchvision's default loader makes every file 8-bit RGB, which turns 16-bit and float files white or black.

    Example:
        >>> ImageFolder("photos", loader=open_image)  # doctest: +SKIP
    """
    with Image.open(path) as file:
        image: Image.Image = file.copy()  # reads it
    return image


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """Image files: ``dataset[i] -> (image, label)``; made by :func:`open_folder` and :func:`open_csv`.

    Attributes:
        paths: The files, in the order of the samples.
        targets: Their labels, -1 for none; None: none has one.
        classes: The names of the classes; None: they have none.
    """

    def __init__(
        self, paths: Sequence[Path], targets: list[int] | None = None, classes: list[str] | None = None
    ) -> None:
        self.paths, self.targets, self.classes = [*paths], targets, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.paths[index]), MISSING if self.targets is None else self.targets[index]


def open_csv(path: str | Path, *, image_key: str = "path", label_key: str | None = "label") -> ImageFiles:
    """The data set of a CSV file of ``path,label`` lines, or of one with a heading and more columns.

    Args:
        path: The file, in UTF-8. Its paths start at its own folder. Labels are class indices, where all are numbers, or
            names, numbered in their sorted order as in torchvision's ``ImageFolder``; an empty one is missing. A first
            line that has the two columns is a heading; without one they are the first and only two.
        image_key: The heading of the column of paths, in any case.
        label_key: That of the column of labels; None: there are none.

    Raises:
        FileNotFoundError: It, or an image that it names, is not there.
        ValueError: It has no lines, no such columns, a line of another length, or a negative label.

    Example:
        >>> open_csv("photos.csv")[0]  # doctest: +SKIP
        (<PIL.Image.Image image mode=RGB size=32x32>, 0)
    """
    file = Path(path)
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    wanted = [image_key] if label_key is None else [image_key, label_key]
    heading = [cell.lower() for cell in rows[0][1]] if rows else []
    if {name.lower() for name in wanted} <= {*heading}:
        places = [heading.index(name.lower()) for name in wanted]
        del rows[0]
    elif rows and wanted != ["path", "label"]:
        raise ValueError(
            f"{file} needs a heading with {' and '.join(wanted)}: its first line is {','.join(rows[0][1])}"
        )
    else:
        heading, places = ["path", "label"], [0, 1]
    if not rows:
        raise ValueError(f"{file} has no lines: expected one path,label for each image")
    found = list[tuple[str, str]]()
    for line, row in rows:
        chosen = [row[place] for place in places] if len(row) == len(heading) else []
        if not chosen or chosen[-1].startswith("-"):
            raise ValueError(
                f"{file}, line {line}: expected {','.join(heading)} with a class index or name, got {','.join(row)}"
            )
        if not (file.parent / chosen[0]).is_file():
            raise FileNotFoundError(f"{file}, line {line}: there is no image {file.parent / chosen[0]}")
        found.append((chosen[0], "" if label_key is None else chosen[1]))
    labels = [label for _, label in found]
    present, names = {label for label in labels if label}, None
    number = {label: int(label) for label in present if label.isdecimal()}
    if len(number) < len(present):
        names = sorted(present)
        number = {name: index for index, name in enumerate(names)}
    targets = [number.get(label, MISSING) for label in labels]
    return ImageFiles([file.parent / name for name, _ in found], targets if present else None, names)


def open_folder(path: str | Path) -> Any:
    """The data set of a folder of images: with a folder of images per class, or images alone.

    Files that are not images, such as a README, are passed over.

    Args:
        path: The folder.

    Returns:
        ``dataset[i] -> (image, label)`` with PIL images as :func:`open_image` reads them. With a folder per class
        torchvision's ``ImageFolder``, which has ``classes``; with images alone :class:`ImageFiles`, sorted by name,
        whose labels are -1.

    Raises:
        FileNotFoundError: There is no such folder, or it has no images, or a class has none.
        NotADirectoryError: It is a file.
        ValueError: It has images and folders, or hidden ones, which nobody means to train on.

    Example:
        >>> open_folder("photos")[0]  # doctest: +SKIP
        (<PIL.Image.Image image mode=RGB size=32x32>, 0)
    """
    from torchvision.datasets import ImageFolder

    folder = Path(path)
    if not folder.is_dir():
        wrong = NotADirectoryError if folder.exists() else FileNotFoundError
        raise wrong(f"a folder of images is needed: {folder} is {'a file' if folder.exists() else 'not there'}")
    inside = sorted(folder.iterdir(), key=lambda path: path.name)  # paths of Windows ignore case
    images = [each for each in inside if each.is_file() and _is_image(each)]
    folders = [each for each in inside if each.is_dir()]
    _refuse_hidden(folder, [*images, *folders])
    if images and folders:
        raise ValueError(
            f"{folder} has images ({_some_names(images)}) and folders ({_some_names(folders)}): expected images "
            "alone, or a folder of images per class; move one of the two"
        )
    if images:
        return ImageFiles(images)
    if not folders:
        found = f"other files alone ({_some_names(inside)})" if inside else "nothing"
        raise FileNotFoundError(f"{folder} has {found}: expected images, or a folder of images per class")
    dataset = ImageFolder(folder, loader=open_image)
    _refuse_hidden(folder, [Path(name) for name, _ in dataset.samples])
    return dataset


def _is_image(path: Path) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return path.name.lower().endswith(IMG_EXTENSIONS)


def _refuse_hidden(folder: Path, paths: Iterable[Path]) -> None:
    """Raise ``ValueError`` where images or folders inside a folder have a name that begins with a dot."""
    names = [path.relative_to(folder) for path in paths]
    hidden = [name for name in names if any(part.startswith(".") for part in name.parts)]
    if hidden:
        raise ValueError(
            f"{folder} has hidden images or folders, {len(hidden)} in all, such as {str(hidden[0])!r}, which a program "
            "left there: remove them"
        )


def _some_names(paths: Sequence[Path]) -> str:
    """The number of paths and the names of the first ones."""
    names = ", ".join(path.name for path in paths[:3])
    return f"{len(paths):,}: {names}{', ...' if len(paths) > 3 else ''}"


def check_loader(dataset: Any, index: int) -> None:
    """Raise ``ValueError`` if sample ``index`` of an image folder is a file that torchvision's own loader spoils.

    Other data sets pass; a ``Subset`` is looked through.
    """
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    loader, samples = getattr(dataset, "loader", None), getattr(dataset, "samples", None)
    if getattr(loader, "__module__", "") != "torchvision.datasets.folder" or not isinstance(samples, list):
        return
    with Image.open(samples[index][0]) as image:  # reads the header alone
        mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        raise ValueError(
            f"a file of mode {mode} has more than 8 bits, which ImageFolder's own loader clips: "
            "pass loader=latent_mixup.images.open_image to it"
        )
