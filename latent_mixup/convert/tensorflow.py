"""StyleGAN2 of the TensorFlow releases: three ``dnnlib`` networks in a tuple, of numpy variables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_mixup.convert.assemble import Change, Source, arguments_of, assemble, brief, renamed
from latent_mixup.convert.checks import Check, anything, check_values, clamp_of, is_filter, one_of
from latent_mixup.convert.pickles import Budget, Buildable, Maker, UnsafeCheckpointError, mapping
from latent_mixup.convert.tensors import StoredArray
from latent_mixup.files import FormatError
from latent_mixup.generators.stylegan2 import StyleGAN2

FORMAT = "stylegan2 (TensorFlow)"


class StoredNetwork(Buildable):
    """``dnnlib.tflib.network.Network``: its state, as a dict."""

    def __init__(self, budget: Budget) -> None:
        self.state: dict[Any, Any] | None = None

    def build(self, state: Any) -> None:
        """Take the state, once."""
        if self.state is not None or type(state) is not dict:
            raise UnsafeCheckpointError("it has a network whose state is not a dict")
        self.state = state

    def part(self, name: str, kind: type[Any]) -> Any:
        """An entry of the state, which must be a ``kind``."""
        value = None if self.state is None else self.state.get(name)
        if type(value) is not kind:
            raise FormatError(f"its network has no {name}: expected a {kind.__name__}, found {brief(value)}")
        return value


NAMES: dict[str, Maker | None] = {"dnnlib.util.EasyDict": mapping, "dnnlib.tflib.network.Network": StoredNetwork}

# --- Variables => our tensors. TensorFlow keeps linear weights as [in, out], filters as [height, width, in, out],
# and the styles' biases without the 1 they start from.


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 0)


def _filter(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1)


def _flipped_filter(tensor: Tensor) -> Tensor:
    return _filter(tensor.flip(0, 1))


_LAYER: dict[str, tuple[str, Change]] = {
    "weight": ("weight", _filter),
    "bias": ("bias", _same),
    "noise_strength": ("noise_strength", _same),
    "mod_weight": ("affine.weight", _transposed),
    "mod_bias": ("affine.bias", lambda tensor: tensor + 1),
}
_LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}
_NUMBER = r"(\d{1,4})"


def our_name(name: str) -> tuple[str, Change] | None:
    """Our name of a variable, and what is done to it; None for one that has no place in ours."""
    if name == "dlatent_avg":
        return "mapping.w_avg", _same
    if match := re.fullmatch(rf"mapping/(Dense{_NUMBER}|LabelEmbed)/(weight|bias)", name, re.ASCII):
        layer = "embed" if match[1] == "LabelEmbed" else f"fc{int(match[2])}"
        return f"mapping.{layer}.{match[3]}", _transposed if match[3] == "weight" else _same
    if match := re.fullmatch(rf"synthesis/noise{_NUMBER}", name, re.ASCII):
        number = int(match[1])
        layer = f"b{8 << (number - 1) // 2}.conv{(number - 1) % 2}" if number else "b4.conv1"
        return (f"synthesis.{layer}.noise_const", lambda tensor: tensor[0, 0]) if number < 40 else None
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", lambda tensor: tensor[0]
    match = re.fullmatch(rf"synthesis/{_NUMBER}x\1/(\w+)/(\w+)", name, re.ASCII)
    if match is None or match[2] not in _LAYERS or match[3] not in _LAYER:
        return None
    ours, change = _LAYER[match[3]]
    if (match[2], match[3]) == ("Conv0_up", "weight"):
        change = _flipped_filter
    return f"synthesis.b{match[1]}.{_LAYERS[match[2]]}.{ours}", change


# --- Reading


def read(network: Any, size: int) -> tuple[StyleGAN2, dict[str, Any]]:
    """The network ``Gs`` of a pickle of ``(G, D, Gs)``.

    Args:
        network: The record of ``Gs``.
        size: Bytes of the file.

    Raises:
        FormatError: It is not a StyleGAN2, or has an argument or a variable that ours has no place for.
    """
    if type(network) is not StoredNetwork:
        raise FormatError("it is a tuple without dnnlib networks: expected (G, D, Gs) of a StyleGAN2 release")
    tensors = renamed(((name, _source(name, value)) for name, value in _variables(network, "")), our_name)
    given = network.part("static_kwargs", dict)
    base = given.get("fmap_base", 16384)
    arguments = arguments_of(tensors, (2 * base if type(base) is int else None, given.get("fmap_max", 512)))
    sizes = {theirs: one_of(arguments[ours]) for theirs, ours in _SIZES.items()}
    check_values("argument", given, {**_KNOWN, **sizes})
    arguments["conv_clamp"] = clamp_of(given.get("conv_clamp"))
    source = network.part("build_module_src", str).encode("utf-8", "surrogatepass")
    facts = {
        "format": FORMAT,
        "class_name": network.part("build_func_name", str)[:100],
        "module_src_sha256": hashlib.sha256(source).hexdigest(),
    }
    return assemble(arguments, tensors, size), facts


def _variables(network: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of a network's variables, then those of its components."""
    if type(network) is not StoredNetwork or depth > 2:
        raise FormatError(f"its component {brief(prefix)} is not a network")
    for pair in network.part("variables", list):
        if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not str or len(pair[0]) > 200:
            raise FormatError("its variables are not pairs of a name and a value")
        yield prefix + pair[0], pair[1]
    for name, component in network.part("components", dict).items():
        if name not in ("mapping", "synthesis"):
            raise FormatError(f"its component {brief(name)} is unknown: expected mapping and synthesis")
        yield from _variables(component, f"{prefix}{name}/", depth + 1)


def _source(name: str, value: Any) -> Source:
    """A variable: its shape now, its numbers later."""
    if type(value) in (int, float):
        return Source((), 0, lambda: torch.tensor(float(value)))
    if type(value) is not StoredArray:
        raise FormatError(f"variable {brief(name)} is {brief(value)}: expected an array")
    return Source(value.shape, value.nbytes, lambda: torch.from_numpy(np.array(value.numpy(), np.float32)))


_FREE = {  # what ours does not depend on, or reads from the shapes
    *("mapping_fmaps", "label_fmaps", "fmap_base", "fmap_decay", "fmap_min", "fmap_max", "num_fp16_res", "dtype"),
    *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val", "style_mixing_prob"),
    *("dlatent_avg_beta", "w_avg_beta", "randomize_noise", "fused_modconv", "structure", "synthesis_func"),
    *("mapping_func", "conv_clamp"),
}
_SIZES = {
    "latent_size": "z_dim",
    "label_size": "c_dim",
    "dlatent_size": "w_dim",
    "resolution": "img_resolution",
    "num_channels": "img_channels",
    "mapping_layers": "mapping_num_layers",
}
_KNOWN: dict[str, Check] = {
    **dict.fromkeys(_FREE, anything),
    "architecture": one_of("skip"),
    "nonlinearity": one_of("lrelu"),
    "mapping_nonlinearity": one_of("lrelu"),
    "mapping_lrmul": one_of(0.01),
    "use_noise": one_of(True, False),
    "normalize_latents": one_of(True),
    "resample_kernel": is_filter,
}
