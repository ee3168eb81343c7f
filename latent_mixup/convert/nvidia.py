"""StyleGAN2 networks of NVIDIA's releases, and of rosinality's, read without running anything in them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_mixup.convert import rosinality, tensorflow
from latent_mixup.convert.assemble import Source, assemble, brief, channel_arguments, channels_of
from latent_mixup.convert.checks import Check, anything, check_values, clamp_of, is_filter, near, one_of
from latent_mixup.convert.pickles import PYTHON_NAMES, Budget, Maker, UnsafeCheckpointError, read_pickle, reading
from latent_mixup.convert.tensors import NUMPY_NAMES, TENSOR_NAMES, StoredTensor, load_from_bytes, read_torch_file
from latent_mixup.files import FormatError
from latent_mixup.generators.stylegan2 import StyleGAN2

NVIDIA_LICENCE = (
    "The weights come from a file in the format of NVIDIA's StyleGAN2 releases. NVIDIA licenses its own networks "
    "for non-commercial use only (NVIDIA Source Code License); the terms of whoever trained this network apply "
    "to this copy as well."
)
ROSINALITY_LICENCE = (
    "The weights come from a checkpoint in the format of rosinality/stylegan2-pytorch. The terms of whoever "
    "trained the network apply to this copy as well; networks converted from NVIDIA's are for non-commercial use only."
)


class PersistentObject:
    """What ``torch_utils.persistence`` stores: a class by name and source text, and the object's ``__dict__``."""

    def __init__(self, budget: Budget, meta: Any) -> None:
        if type(meta) is not dict or meta.get("type") != "class":
            raise UnsafeCheckpointError("it has a persistent object that is not described as a class")
        class_name, source, state = (meta.get(key) for key in ("class_name", "module_src", "state"))
        if type(class_name) is not str or type(source) is not str or type(state) is not dict:
            raise UnsafeCheckpointError("it has a persistent object without class_name, module_src and state")
        self.class_name: str = class_name
        self.source: str = source
        self.state: dict[Any, Any] = state

    def table(self, name: str) -> dict[str, Any]:
        """``_parameters``, ``_buffers`` or ``_modules``, but for entries that are None."""
        found = self.state.get(name)
        if type(found) is not dict or not all(type(key) is str and len(key) < 100 for key in found):
            raise FormatError(f"a {self.class_name:.100} has no {name}: it is not a torch module")
        return {key: value for key, value in found.items() if value is not None}


_NAMES: dict[str, Maker | None] = {
    **PYTHON_NAMES,
    **NUMPY_NAMES,
    **{name: maker for name, maker in TENSOR_NAMES.items() if maker is not None},
    **tensorflow.NAMES,
    "torch.storage._load_from_bytes": load_from_bytes,
    "torch_utils.persistence._reconstruct_persistent_obj": PersistentObject,
}


def read_nvidia(path: str | Path) -> StyleGAN2:
    """The averaged generator in somebody else's StyleGAN2 file; nothing in the file is executed.

    Args:
        path: A ``.pkl`` of stylegan2-ada-pytorch, of the stylegan3 release (its StyleGAN2 configuration), or
            of the TensorFlow releases; or a ``.pt`` of rosinality/stylegan2-pytorch. Its content decides.

    Returns:
        The generator; ``metadata`` holds the file's SHA-256, its class, and a note on its licence.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is not such a network, or one with an argument or a tensor that ours has no place for;
            as :class:`UnsafeCheckpointError`, it is damaged or holds what such a file does not.
    """
    with reading(path) as (data, source):
        generator, facts = _read(data)
    licence = ROSINALITY_LICENCE if facts["format"] == rosinality.FORMAT else NVIDIA_LICENCE
    generator.metadata = {"name": Path(path).stem, "source": source | facts, "licence": licence}
    return generator


def _read(data: bytes) -> tuple[StyleGAN2, dict[str, Any]]:
    if rosinality.begins(data):
        return rosinality.read(read_torch_file(data, rosinality.NAMES), len(data))
    root = read_pickle(memoryview(data), _NAMES, Budget(len(data)))
    if type(root) is tuple and len(root) == 3:
        return tensorflow.read(root[2], len(data))
    if type(root) is not dict or type(root.get("G_ema")) is not PersistentObject:
        raise FormatError("it is a pickle without 'G_ema': expected a network of a StyleGAN2 release")
    return _read_release(root["G_ema"], len(data))


# --- stylegan2-ada-pytorch and stylegan3


def _read_release(network: PersistentObject, size: int) -> tuple[StyleGAN2, dict[str, Any]]:
    modules = dict(_walk(network, ""))
    if "synthesis.b4" not in modules or "mapping" not in modules:
        raise FormatError(f"its G_ema is a {network.class_name:.100} without synthesis.b4: it is not a StyleGAN2")
    form, said = _check_arguments(network)
    for name, module in modules.items():
        _check_module(name, module)
    tensors = {
        f"{name}.{key}".removeprefix("."): _source(f"{name}.{key}", tensor)
        for name, module in modules.items()
        for table in ("_parameters", "_buffers")
        for key, tensor in module.table(table).items()
    }
    arguments = {
        **{name: network.state.get(name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")},
        "mapping_num_layers": sum(name.startswith("mapping.fc") for name in modules),
        **channel_arguments(channels_of(tensors), said),
        "conv_clamp": _conv_clamp(modules),
    }
    facts = {
        "format": form,
        "class_name": network.class_name[:100],
        "module_src_sha256": hashlib.sha256(network.source.encode("utf-8", "surrogatepass")).hexdigest(),
    }
    return assemble(arguments, tensors, size), facts


def _walk(module: PersistentObject, name: str, seen: set[int] | None = None) -> Iterator[tuple[str, PersistentObject]]:
    """Every module under its dotted name, each once: a tree, and not a deep one."""
    seen = set() if seen is None else seen
    if type(module) is not PersistentObject or id(module) in seen or name.count(".") > 8 or len(seen) > 1000:
        raise FormatError(f"its module {brief(name)} is not part of a plain tree of persistent modules")
    seen.add(id(module))
    yield name, module
    for key, child in module.table("_modules").items():
        yield from _walk(child, f"{name}.{key}".removeprefix("."), seen)


def _source(name: str, tensor: Any) -> Source:
    if type(tensor) is not StoredTensor:
        raise FormatError(f"its tensor {brief(name)} is {brief(tensor)}")
    return Source(tensor.shape, tensor.storage.nbytes, tensor.torch)


def _conv_clamp(modules: Mapping[str, PersistentObject]) -> float | None:
    """The one clamp of all layers that have one."""
    clamps = [module.state["conv_clamp"] for module in modules.values() if "conv_clamp" in module.state]
    if any(type(clamp) not in (int, float, type(None)) or clamp != clamps[0] for clamp in clamps):
        raise FormatError("its layers do not have one conv_clamp: expected the same number, or None, in all")
    return clamp_of(clamps[0] if clamps else None)


# --- What the arithmetic depends on beside the tensors

_SIZES = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")  # read from the state; in this order
_MAPPING_ARGUMENTS: dict[str, Check] = {
    "num_layers": anything,
    "embed_features": anything,  # the shapes say whether these are ours
    "layer_features": anything,
    "w_avg_beta": anything,  # training only
    "activation": one_of("lrelu"),
    "lr_multiplier": near(0.01),
}
_SYNTHESIS_ARGUMENTS: dict[str, Check] = {
    "channel_base": anything,  # read from the shapes
    "channel_max": anything,
    "conv_clamp": anything,  # read from the layers
    "num_fp16_res": anything,  # ours computes in float32
    "use_fp16": anything,
    "fp16_channels_last": anything,
    "channels_last": anything,
    "fused_modconv_default": anything,
    "architecture": one_of("skip"),
    "resample_filter": is_filter,
    "use_noise": one_of(True, False),
    "activation": one_of("lrelu"),
    "kernel_size": one_of(3),
}
_STATES: dict[str, dict[str, Check]] = {
    "SynthesisBlock": {"architecture": one_of("skip")},
    "SynthesisLayer": {"activation": one_of("lrelu"), "act_gain": near(math.sqrt(2))},
    "ToRGBLayer": {},
    "FullyConnectedLayer": {},
    "MappingNetwork": {},
    "SynthesisNetwork": {},
    "Generator": {},
}


def _check_arguments(network: PersistentObject) -> tuple[str, tuple[object, object]]:
    """Refuse by name what ours has no place for; which release the arguments look like, and its channels."""
    positional, given = network.state.get("_init_args", ()), network.state.get("_init_kwargs")
    plain = type(positional) is tuple and all(type(size) is int for size in positional)
    if not plain or len(positional) > len(_SIZES) or type(given) is not dict:
        raise FormatError("its G_ema does not say how it was constructed (_init_args, _init_kwargs)")
    nested = {name: given.get(name, {}) for name in ("mapping_kwargs", "synthesis_kwargs")}
    flat = {name: value for name, value in given.items() if name not in (*nested, *_SIZES)}
    for name, value in nested.items():
        if type(value) is not dict:
            raise FormatError(f"its constructor argument {name} is {brief(value)}: expected a dict")
    check_values("constructor argument", nested["mapping_kwargs"], _MAPPING_ARGUMENTS)
    check_values("constructor argument", nested["synthesis_kwargs"], _SYNTHESIS_ARGUMENTS)
    check_values("constructor argument", flat, _SYNTHESIS_ARGUMENTS)
    synthesis = {"channel_base": 32768, "channel_max": 512, **nested["synthesis_kwargs"], **flat}
    said = (synthesis["channel_base"], synthesis["channel_max"])
    return "stylegan2-ada-pytorch" if nested["synthesis_kwargs"] or not flat else "stylegan3", said


def _check_module(name: str, module: PersistentObject) -> None:
    """The class of a module, and what its state says of the arithmetic, where it says it."""
    kind = module.class_name
    if kind not in _STATES:
        raise FormatError(f"its module {brief(name)} is a {kind:.100}, which latent_mixup's StyleGAN2 does not have")
    checks = dict(_STATES[kind])
    if kind == "FullyConnectedLayer":
        mapping = name.startswith("mapping.fc")
        checks = {"activation": one_of("lrelu" if mapping else "linear"), "bias_gain": near(0.01 if mapping else 1.0)}
    check_values(name, {key: module.state[key] for key in checks if key in module.state}, checks)
