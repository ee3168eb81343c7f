"""Checkpoints of rosinality/stylegan2-pytorch: ``torch.save`` of a dict of state dicts.

They are read by our own reader of torch's files, whose cost is bounded by the file's size. ``torch.load(
weights_only=True)`` executes nothing either, but unpacks what is compressed: a file of 1 MB became 1 GB in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from latent_mixup.convert.assemble import Change, Source, arguments_of, assemble, brief, renamed
from latent_mixup.convert.pickles import Budget, Buildable, Maker
from latent_mixup.convert.tensors import StoredTensor
from latent_mixup.files import FormatError
from latent_mixup.generators.stylegan2 import StyleGAN2

FORMAT = "rosinality/stylegan2-pytorch"
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_MEAN_OF = 10_000  # codes that w_avg is the mean of, where the file has none


class Ignored(Buildable):
    """``argparse.Namespace``: the training script's options, which the weights do not depend on."""

    def __init__(self, budget: Budget) -> None:
        pass

    def build(self, state: Any) -> None:
        """Forget it."""


NAMES: dict[str, Maker | None] = {"argparse.Namespace": Ignored}


def begins(data: bytes) -> bool:
    """Whether these bytes begin as one of ``torch.save``'s two formats."""
    return data[:4] == b"PK\x03\x04" or data[: len(_LEGACY)] == _LEGACY


# --- Their names => ours. Linear and convolution weights are kept as we keep them, the latter behind a batch of 1.


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


def _quarter(tensor: Tensor) -> Tensor:
    return tensor / 4


_PARTS: dict[str, tuple[str, Change]] = {
    "conv.weight": ("weight", lambda tensor: tensor[0]),
    "conv.modulation.weight": ("affine.weight", _same),
    "conv.modulation.bias": ("affine.bias", _same),
    "noise.weight": ("noise_strength", lambda tensor: tensor.reshape(())),
    "activate.bias": ("bias", _flat),
    "bias": ("bias", _flat),
    "conv.blur.kernel": ("resample_filter", _quarter),  # theirs has the factor of 4 in it
    "upsample.kernel": ("resample_filter", _quarter),
}
_NUMBER = r"(\d{1,3})"


def our_name(name: str) -> tuple[str, Change] | None:
    """Our name of a tensor, and what is done to it; None for one that has no place in ours."""
    if match := re.fullmatch(rf"style\.{_NUMBER}\.(weight|bias)", name, re.ASCII):
        return (f"mapping.fc{int(match[1]) - 1}.{match[2]}", _same) if int(match[1]) else None
    if name == "input.input":
        return "synthesis.b4.const", lambda tensor: tensor[0]
    if match := re.fullmatch(rf"noises\.noise_{_NUMBER}", name, re.ASCII):
        return f"synthesis.{_styled(int(match[1]) - 1)}.noise_const", lambda tensor: tensor[0, 0]
    match = re.fullmatch(rf"(conv1|to_rgb1|convs\.{_NUMBER}|to_rgbs\.{_NUMBER})\.([a-z.]+)", name, re.ASCII)
    if match is None or match[4] not in _PARTS:
        return None
    if "rgb" in match[1]:
        layer = "b4.torgb" if match[3] is None else f"b{_resolution(int(match[3]))}.torgb"
    else:
        layer = _styled(-1 if match[2] is None else int(match[2]))
    ours, change = _PARTS[match[4]]
    return f"synthesis.{layer}.{ours}", change


def _styled(number: int) -> str:
    """Our name of ``convs[number]``; -1 is ``conv1``, the layer before them."""
    return "b4.conv1" if number < 0 else f"b{_resolution(number // 2)}.conv{number % 2}"


def _resolution(block: int) -> int:
    return int(8 << min(block, 20))


# --- Reading


def read(root: Any, size: int) -> tuple[StyleGAN2, dict[str, Any]]:
    """The averaged generator, ``g_ema``.

    Args:
        root: What the file holds, as inert values.
        size: Bytes of the file.

    Raises:
        FormatError: It is not a StyleGAN2, or has a tensor that ours has no place for.
    """
    if type(root) is not dict or type(root.get("g_ema")) is not dict:
        raise FormatError("it is a torch file without 'g_ema': expected a checkpoint of rosinality's StyleGAN2")
    tensors = renamed(_tensors(root["g_ema"]), our_name)
    arguments = {**arguments_of(tensors, (32768, 512)), "conv_clamp": None}
    facts: dict[str, Any] = {"format": FORMAT, "class_name": "Generator"}
    average, w_dim = root.get("latent_avg"), arguments["w_dim"]
    if type(average) is StoredTensor:
        tensors["mapping.w_avg"] = _source(average).changed("latent_avg", _flat)
        return assemble(arguments, tensors, size), facts
    tensors["mapping.w_avg"] = Source((w_dim,), 0, lambda: torch.zeros(w_dim))
    generator = assemble(arguments, tensors, size)
    _set_average(generator)
    return generator, {**facts, "w_avg": f"the mean of {_MEAN_OF} mapped codes: the file has no latent_avg"}


def _tensors(state: dict[Any, Any]) -> Iterator[tuple[str, Source]]:
    for name, tensor in state.items():
        if type(name) is not str or type(tensor) is not StoredTensor:
            raise FormatError(f"its g_ema has {brief(name)}, which is {brief(tensor)}: expected a tensor")
        yield name, _source(tensor)


def _source(tensor: StoredTensor) -> Source:
    return Source(tensor.shape, tensor.storage.nbytes, tensor.torch)


def _set_average(generator: StyleGAN2) -> None:
    """``w_avg`` as the training scripts estimate it: the mean of many mapped codes."""
    codes = torch.randn(_MEAN_OF, generator.mapping.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        generator.get_buffer("mapping.w_avg").copy_(generator.mapping(codes)[:, 0].mean(0))
