"""Names, sizes and tensors from elsewhere => our StyleGAN2, with every tensor used and none left over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_mixup.files import FormatError
from latent_mixup.generators.stylegan2 import StyleGAN2, binomial_kernel

_LIMITS = {
    "z_dim": (1, 65536),
    "c_dim": (0, 65536),
    "w_dim": (1, 65536),
    "img_resolution": (8, 1024),
    "img_channels": (1, 64),
    "mapping_num_layers": (1, 64),
    "channel_base": (1, 2**24),
    "channel_max": (1, 2**16),
}
_FILTER = ".resample_filter"


@dataclass(frozen=True)
class Source:
    """A tensor in the file: its shape as one of ours, its bytes in the file, and how to get it as one of ours."""

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Tensor]


def _check_filter(name: str, found: Tensor) -> None:
    """Refuse a network that resamples with another filter than ours."""
    if found.shape != (4, 4) or not torch.allclose(found.float(), binomial_kernel(), rtol=1e-4, atol=1e-6):
        raise FormatError(f"tensor {name!r} is another filter than [1, 3, 3, 1]: this network resamples differently")


def channel_arguments(channels: Mapping[int, int], said: tuple[object, object]) -> dict[str, int]:
    """``channel_base`` and ``channel_max`` of a network with so many channels at each resolution.

    Args:
        channels: Resolution => channels, from the weights.
        said: The two as the file says, taken where they fit (several may).

    Raises:
        FormatError: The channels do not follow ``min(channel_base / resolution, channel_max)``.
    """
    largest = max(channels.values(), default=0)
    narrow = [resolution for resolution in sorted(channels) if channels[resolution] < largest]
    found = (channels[narrow[0]] * narrow[0] if narrow else largest * max(channels, default=0), largest)
    for base, most in (said, found):
        if type(base) is not int or type(most) is not int:
            continue
        if all(count == min(base // resolution, most) for resolution, count in channels.items()):
            return {"channel_base": base, "channel_max": most}
    raise FormatError(f"its channels {channels!r:.200} do not follow min(channel_base / resolution, channel_max)")


def assemble(arguments: dict[str, Any], tensors: Mapping[str, Source], size: int) -> StyleGAN2:
    """A generator of these sizes with these weights; nothing is allocated until every name and shape is right.

    Args:
        arguments: Of :class:`StyleGAN2`.
        tensors: What the file has, under the names of NVIDIA's release. Filters may be left out.
        size: Bytes of the file; the tensors together have no more.

    Raises:
        FormatError: A size is out of range, or a tensor is missing, unknown, of another shape or not finite.
    """
    for name, (low, high) in _LIMITS.items():
        if type(arguments[name]) is not int or not low <= arguments[name] <= high:
            raise FormatError(f"its {name} needs to be an integer from {low} to {high}: found {brief(arguments[name])}")
    use_noise = any(name.endswith(".noise_const") for name in tensors)
    try:
        with torch.device("meta"):
            generator = StyleGAN2(**arguments, use_noise=use_noise)
    except (TypeError, ValueError) as cause:
        raise FormatError(f"it is no StyleGAN2 that latent_mixup has: {cause}") from cause
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    weights = {name: source for name, source in tensors.items() if not name.endswith(_FILTER)}
    _check_names({name for name in expected if not name.endswith(_FILTER)}, weights)
    for name, source in weights.items():
        if source.shape != expected[name]:
            raise FormatError(f"tensor {name!r} needs shape {expected[name]}: found {source.shape}")
    if sum(source.nbytes for source in tensors.values()) > size:
        raise FormatError("its tensors share their bytes: expected each to have its own")
    for name in tensors.keys() - weights.keys():
        _check_filter(name, tensors[name].read())
    state = {name: _finite(name, source.read()) for name, source in weights.items()}
    state |= {name: binomial_kernel() for name in expected if name.endswith(_FILTER)}
    generator.load_state_dict(state, strict=True, assign=True)
    return generator.freeze()


def _check_names(expected: Collection[str], found: Collection[str]) -> None:
    for name in sorted({*expected} ^ {*found}):
        problem = "is missing" if name in expected else "is left over: no layer of this network takes it"
        raise FormatError(f"tensor {name!r:.200} {problem}")


def _finite(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.float32).contiguous()
    if not tensor.isfinite().all():
        raise FormatError(f"tensor {name!r} has a value that is not finite")
    return tensor


def brief(value: object) -> str:
    """A short text for an error message; never the ``repr`` of something nested."""
    if isinstance(value, (list, tuple)) and len(value) <= 8 and all(type(part) in (int, float) for part in value):
        return repr(value)
    if isinstance(value, str):
        return repr(value[:100])
    return repr(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"
