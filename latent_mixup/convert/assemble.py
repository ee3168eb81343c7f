"""Names, sizes and tensors from elsewhere => our StyleGAN2, with every tensor used and none left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

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

Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """A tensor in the file: its shape as one of ours, its bytes in the file, and how to get it as one of ours."""

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Tensor]

    def changed(self, name: str, change: Change) -> Source:
        """The same behind a change of its layout; ``name`` is the file's, for an error."""
        try:
            shape = tuple(change(torch.empty(self.shape, device="meta")).shape)
        except (RuntimeError, IndexError) as cause:
            raise FormatError(f"tensor {brief(name)} has shape {self.shape}, which is not its layer's") from cause
        return Source(shape, self.nbytes, lambda: change(self.read()))


def renamed(found: Iterable[tuple[str, Source]], ours: Callable[[str], tuple[str, Change] | None]) -> dict[str, Source]:
    """A file's tensors under our names and in our layout.

    Args:
        found: Names and tensors in the file.
        ours: A name => our name and what is done to the tensor; None for one that has no place in ours.

    Raises:
        FormatError: A name has no place or the place of another, or a tensor has not its layer's dimensions.
    """
    tensors: dict[str, Source] = {}
    for name, source in found:
        place = ours(name)
        if place is None or place[0] in tensors:
            raise FormatError(f"tensor {brief(name)} is left over: no layer of latent_mixup's StyleGAN2 takes it")
        tensors[place[0]] = source.changed(name, place[1])
    return tensors


def _check_filter(name: str, found: Tensor) -> None:
    """Refuse a network that resamples with another filter than ours."""
    if found.shape != (4, 4) or not torch.allclose(found.float(), binomial_kernel(), rtol=1e-4, atol=1e-6):
        raise FormatError(f"tensor {name!r} is another filter than [1, 3, 3, 1]: this network resamples differently")


def channels_of(tensors: Mapping[str, Source]) -> dict[int, int]:
    """Output channels at each resolution, from the shapes of the weights."""
    names = (re.fullmatch(r"synthesis\.b(\d{1,8})\.conv1\.weight", name, re.ASCII) for name in tensors)
    shapes = {int(match[1]): tensors[match[0]].shape for match in names if match}
    return {resolution: shape[0] if shape else 0 for resolution, shape in shapes.items()}


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


def arguments_of(tensors: Mapping[str, Source], said: tuple[object, object]) -> dict[str, Any]:
    """The arguments of :class:`StyleGAN2` that the shapes of its weights tell.

    Args:
        tensors: Under our names.
        said: See :func:`channel_arguments`.

    Raises:
        FormatError: A weight that decides them is missing, or has another number of dimensions.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != dimensions:
            raise FormatError(f"tensor {name!r} is missing or has not {dimensions} dimensions: it is not a StyleGAN2")
        return tensors[name].shape

    w_dim, into_mapping = shape("mapping.fc0.weight", 2)
    c_dim = shape("mapping.embed.weight", 2)[1] if "mapping.embed.weight" in tensors else 0
    channels = channels_of(tensors)
    return {
        "z_dim": into_mapping - w_dim if c_dim else into_mapping,
        "c_dim": c_dim,
        "w_dim": w_dim,
        "img_resolution": max(channels, default=0),
        "img_channels": shape("synthesis.b4.torgb.weight", 4)[0],
        "mapping_num_layers": sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in tensors),
        **channel_arguments(channels, said),
    }


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
    for name in sorted({name for name in expected if not name.endswith(_FILTER)} ^ weights.keys()):
        problem = "is missing" if name in expected else "is left over: no layer of this network takes it"
        raise FormatError(f"tensor {name!r:.200} {problem}")
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
