"""Files as other people's programs write them, made without those programs.

Stand-ins for ``torch_utils.persistence`` and ``dnnlib`` give the same pickle streams as theirs: the same names,
the same reductions, and torch's own way of pickling tensors. What a file refers to cannot be called here either.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import math
import pickle
import pickletools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from latent_mixup.generators.stylegan2 import StyleGAN2

SOURCE = "raise SystemExit('this source text must never run')\n"
MODULES = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util", "dnnlib.tflib", "dnnlib.tflib.network")


def tiny(seed: int = 0, **sizes: Any) -> StyleGAN2:
    """A small StyleGAN2 in which every tensor is random and no two numbers that matter are alike."""
    arguments = {"z_dim": 6, "w_dim": 8, "img_resolution": 16, "channel_base": 64, "channel_max": 8} | sizes
    generator = StyleGAN2(**arguments)
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in generator.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
    return generator


# --------------------------------------------------------------------------------------------------
# Stand-ins
# --------------------------------------------------------------------------------------------------


def _reconstruct_persistent_obj(meta: Any) -> None:
    raise AssertionError("the real one executes meta.module_src")


class EasyDict(dict):  # type: ignore[type-arg]
    """Pickles as ``dnnlib.util.EasyDict``."""


class Network:
    """Pickles as ``dnnlib.tflib.network.Network``."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("the real one executes build_module_src")


class Persistent:
    """Pickles as an object of a class that ``torch_utils.persistence.persistent_class`` decorates."""

    def __init__(self, class_name: str, source: str = SOURCE, **state: Any) -> None:
        self.class_name, self.source, self.state = class_name, source, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": self.class_name,
            "state": self.state,
        }
        return _reconstruct_persistent_obj, (meta,), None, None, None


class Raw:
    """Pickles as a tensor with just this offset, size and stride, whether or not its storage has them."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def storage_of(*numbers: float) -> Any:
    """A storage of float32, which pickles once however many tensors share it."""
    return torch.tensor(numbers)._typed_storage()


for _kind, _module, _name in (
    (_reconstruct_persistent_obj, "torch_utils.persistence", "_reconstruct_persistent_obj"),
    (EasyDict, "dnnlib.util", "EasyDict"),
    (Network, "dnnlib.tflib.network", "Network"),
):
    _kind.__module__, _kind.__qualname__ = _module, _name


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """The names can be imported while a file is written, and not afterwards."""
    for name in MODULES:
        assert name not in sys.modules
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules["dnnlib.util"].EasyDict = EasyDict
    sys.modules["dnnlib.tflib.network"].Network = Network
    try:
        yield
    finally:
        for name in MODULES:
            del sys.modules[name]


def dump(value: Any, protocol: int = 4, numpy: int = 2) -> bytes:
    """``pickle.dumps`` under the stand-ins, with the module names of numpy 1 or 2."""
    with stand_ins():
        data = pickle.dumps(value, protocol=protocol)
    return data if numpy == 2 else with_numpy_1_names(data)


def with_numpy_1_names(data: bytes) -> bytes:
    """The same pickle with ``numpy.core`` for ``numpy._core``; frames are left out."""
    ops = list(pickletools.genops(data))
    ends = [position for _, _, position in ops[1:]] + [len(data)]
    out = []
    for (op, argument, start), end in zip(ops, ends, strict=True):
        if op.name == "GLOBAL":
            out.append(data[start:end].replace(b"cnumpy._core.", b"cnumpy.core."))
        elif op.name == "SHORT_BINUNICODE" and argument.startswith("numpy._core."):
            text = argument.replace("numpy._core.", "numpy.core.").encode()
            out.append(b"\x8c" + bytes([len(text)]) + text)
        elif op.name != "FRAME":
            out.append(data[start:end])
    return b"".join(out)


# --------------------------------------------------------------------------------------------------
# stylegan2-ada-pytorch, stylegan3
# --------------------------------------------------------------------------------------------------

CLASSES = {
    "": "Generator",
    "mapping": "MappingNetwork",
    "synthesis": "SynthesisNetwork",
    "b": "SynthesisBlock",
    "conv0": "SynthesisLayer",
    "conv1": "SynthesisLayer",
    "torgb": "ToRGBLayer",
}


def release_network(generator: StyleGAN2, release: str = "ada", dtype: torch.dtype = torch.float32) -> Persistent:
    """``G_ema`` as the ``"ada"`` or the ``"sg3"`` release holds it."""
    flat = {"channel_base": generator.channel_base, "channel_max": generator.channel_max}
    sizes = {name: getattr(generator, name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")}
    mapping = EasyDict(num_layers=generator.mapping.num_layers)
    if release == "ada":
        clamped = EasyDict(**flat, num_fp16_res=4, conv_clamp=generator.conv_clamp)
        arguments = {**sizes, "mapping_kwargs": mapping, "synthesis_kwargs": clamped}
    else:
        arguments = {**sizes, "mapping_kwargs": mapping, **flat, "fused_modconv_default": "inference_only"}
    root = _persistent(generator, "", generator, dtype)
    root.state |= {**sizes, "num_ws": generator.num_ws, "_init_args": (), "_init_kwargs": arguments}
    return root


def _persistent(module: torch.nn.Module, name: str, generator: StyleGAN2, dtype: torch.dtype) -> Persistent:
    leaf = name.rpartition(".")[2]
    kind = CLASSES.get("b" if leaf.startswith("b") else leaf, "FullyConnectedLayer")
    return Persistent(
        kind,
        training=False,
        _parameters=collections.OrderedDict(
            {key: torch.nn.Parameter(value.to(dtype), False) for key, value in module._parameters.items()}
        ),
        _buffers=collections.OrderedDict({key: value.to(dtype) for key, value in module._buffers.items()}),
        _non_persistent_buffers_set=set(),
        _backward_hooks=collections.OrderedDict(),
        _is_full_backward_hook=None,
        _forward_hooks=collections.OrderedDict(),
        _modules=collections.OrderedDict(
            {
                key: _persistent(child, f"{name}.{key}".removeprefix("."), generator, dtype)
                for key, child in module.named_children()
            }
        ),
        **_details(kind, name, module, generator),
    )


def _details(kind: str, name: str, module: Any, generator: StyleGAN2) -> dict[str, Any]:
    """What such a module keeps beside its tensors; gains are numpy scalars, as ``1 / np.sqrt(n)`` gives them."""
    if kind == "FullyConnectedLayer":
        lr = 0.01 if ".fc" in name else 1
        gain = np.float64(lr / math.sqrt(module.weight.shape[1]))
        return {"activation": "lrelu" if ".fc" in name else "linear", "weight_gain": gain, "bias_gain": lr}
    if kind == "SynthesisLayer":
        return {
            "activation": "lrelu",
            "use_noise": generator.use_noise,
            "up": 1 + module.up,
            "conv_clamp": generator.conv_clamp,
            "act_gain": np.float64(math.sqrt(2)),
        }
    if kind == "ToRGBLayer":
        return {"conv_clamp": generator.conv_clamp, "weight_gain": np.float64(module.scale)}
    if kind == "SynthesisBlock":
        return {"architecture": "skip", "use_fp16": True, "is_last": name.endswith(str(generator.img_resolution))}
    if kind == "MappingNetwork":
        return {"num_layers": generator.mapping.num_layers, "w_avg_beta": 0.995}
    return {}


def release_pickle(
    generator: StyleGAN2,
    release: str = "ada",
    *,
    protocol: int = 4,
    numpy: int = 2,
    dtype: torch.dtype = torch.float32,
    other: StyleGAN2 | None = None,
    change: Callable[[Persistent], object] = lambda network: None,
) -> bytes:
    """The ``.pkl`` of a release.

    Args:
        generator: Becomes ``G_ema``.
        release: ``"ada"`` or ``"sg3"``.
        protocol: Of the pickle.
        numpy: 1 or 2.
        dtype: Of the tensors.
        other: Becomes ``G``; None: the same.
        change: Changes ``G_ema`` before it is written.
    """
    network = release_network(generator, release, dtype)
    change(network)
    discriminator = Persistent(
        "Discriminator", _parameters=collections.OrderedDict(b=torch.nn.Parameter(torch.ones(3)))
    )
    content = {
        "G": release_network(other or generator, release, dtype),
        "D": discriminator,
        "G_ema": network,
        "training_set_kwargs": EasyDict(path="data.zip", use_labels=bool(generator.c_dim), xflip=True),
        "augment_pipe": None,
    }
    return dump(content, protocol, numpy)


# --------------------------------------------------------------------------------------------------
# TensorFlow
# --------------------------------------------------------------------------------------------------


def tf_network(generator: StyleGAN2, **arguments: Any) -> Network:
    """``Gs`` of the TensorFlow releases: the same weights, as that code keeps them."""
    state = {name: tensor.numpy() for name, tensor in generator.state_dict().items()}
    mapping: list[tuple[str, Any]] = []
    for layer, theirs in [(f"fc{i}", f"Dense{i}") for i in range(generator.mapping.num_layers)] + [
        ("embed", "LabelEmbed")
    ]:
        if f"mapping.{layer}.weight" in state:
            mapping.append((f"{theirs}/weight", np.ascontiguousarray(state[f"mapping.{layer}.weight"].T)))
            mapping.append((f"{theirs}/bias", state[f"mapping.{layer}.bias"]))
    synthesis: list[tuple[str, Any]] = [("4x4/Const/const", state["synthesis.b4.const"][None])]
    layers = 0
    for resolution in generator.synthesis.resolutions:
        names = {"conv1": "Conv"} if resolution == 4 else {"conv0": "Conv0_up", "conv1": "Conv1"}
        for layer, theirs in [*names.items(), ("torgb", "ToRGB")]:
            ours = f"synthesis.b{resolution}.{layer}"
            theirs = f"{resolution}x{resolution}/{theirs}"
            weight = state[f"{ours}.weight"].transpose(2, 3, 1, 0)
            weight = weight[::-1, ::-1] if layer == "conv0" else weight
            synthesis.append((f"{theirs}/weight", np.ascontiguousarray(weight)))
            synthesis.append((f"{theirs}/bias", state[f"{ours}.bias"]))
            synthesis.append((f"{theirs}/mod_weight", np.ascontiguousarray(state[f"{ours}.affine.weight"].T)))
            synthesis.append((f"{theirs}/mod_bias", state[f"{ours}.affine.bias"] - 1))
            if layer != "torgb":
                synthesis.append((f"{theirs}/noise_strength", np.float32(state[f"{ours}.noise_strength"])))
                synthesis.append((f"noise{layers}", state[f"{ours}.noise_const"][None, None]))
                layers += 1
    given = {
        "num_channels": generator.img_channels,
        "resolution": generator.img_resolution,
        "label_size": generator.c_dim,
        "latent_size": generator.z_dim,
        "dlatent_size": generator.w_dim,
        "mapping_layers": generator.mapping.num_layers,
        "fmap_base": generator.channel_base // 2,
        "fmap_max": generator.channel_max,
        "conv_clamp": generator.conv_clamp,
        **arguments,
    }
    parts = EasyDict(synthesis=_tf(synthesis, "G_synthesis", given), mapping=_tf(mapping, "G_mapping", given))
    return _tf([("dlatent_avg", state["mapping.w_avg"])], "G_main", given, parts)


def _tf(variables: list[tuple[str, Any]], name: str, arguments: dict[str, Any], parts: Any = None) -> Network:
    network = Network()
    network.__dict__.update(
        version=4,
        name=name,
        static_kwargs=EasyDict(arguments),
        components=EasyDict() if parts is None else parts,
        build_module_src=SOURCE,
        build_func_name=name,
        variables=variables,
    )
    return network


def tf_pickle(generator: StyleGAN2, *, protocol: int = 4, numpy: int = 2, **arguments: Any) -> bytes:
    """The ``.pkl`` of a TensorFlow release: ``(G, D, Gs)``."""
    small = _tf([("bias", np.zeros(2, "f4"))], "D_stylegan2", {})
    return dump((small, small, tf_network(generator, **arguments)), protocol, numpy)


# --------------------------------------------------------------------------------------------------
# rosinality
# --------------------------------------------------------------------------------------------------


def rosinality_state(generator: StyleGAN2) -> dict[str, torch.Tensor]:
    """The state dict of that repository's ``Generator`` with the same weights."""
    state = generator.state_dict()
    kernel = state["synthesis.b4.resample_filter"] * 4
    theirs = collections.OrderedDict()
    for i in range(generator.mapping.num_layers):
        theirs[f"style.{i + 1}.weight"] = state[f"mapping.fc{i}.weight"]
        theirs[f"style.{i + 1}.bias"] = state[f"mapping.fc{i}.bias"]
    theirs["input.input"] = state["synthesis.b4.const"][None]
    for block, resolution in enumerate(generator.synthesis.resolutions):
        for number, layer in enumerate(["conv1"] if block == 0 else ["conv0", "conv1"]):
            ours = f"synthesis.b{resolution}.{layer}"
            name = "conv1" if block == 0 else f"convs.{2 * block - 2 + number}"
            theirs[f"{name}.conv.weight"] = state[f"{ours}.weight"][None]
            theirs[f"{name}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
            theirs[f"{name}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]
            theirs[f"{name}.noise.weight"] = state[f"{ours}.noise_strength"].reshape(1)
            theirs[f"{name}.activate.bias"] = state[f"{ours}.bias"]
            noise = "noises.noise_0" if block == 0 else f"noises.noise_{2 * block - 1 + number}"
            theirs[noise] = state[f"{ours}.noise_const"][None, None]
            if layer == "conv0":
                theirs[f"{name}.conv.blur.kernel"] = kernel.clone()
        ours, name = f"synthesis.b{resolution}.torgb", "to_rgb1" if block == 0 else f"to_rgbs.{block - 1}"
        theirs[f"{name}.conv.weight"] = state[f"{ours}.weight"][None]
        theirs[f"{name}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
        theirs[f"{name}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]
        theirs[f"{name}.bias"] = state[f"{ours}.bias"].reshape(1, -1, 1, 1)
        if block:
            theirs[f"{name}.upsample.kernel"] = kernel.clone()
    theirs._metadata = collections.OrderedDict({"": {"version": 1}})
    return theirs


def rosinality_file(
    generator: StyleGAN2, *, zipped: bool = True, average: bool = True, change: Callable[[Any], object] = lambda c: None
) -> bytes:
    """The ``.pt`` of that repository: of its converter (with the average) or of its training (without)."""
    content: dict[str, Any] = {"g_ema": rosinality_state(generator)}
    if average:
        content["latent_avg"] = generator.mapping.w_avg
    else:
        content["g_optim"] = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.002}]}
        content["args"] = argparse.Namespace(size=16, path="data")
    change(content)
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


# --------------------------------------------------------------------------------------------------
# Latents
# --------------------------------------------------------------------------------------------------


def latents_npy(codes: Any, *, protocol: int = 4, numpy: int = 2) -> bytes:
    """``np.save`` of a dict: a 0-d object array with a pickle inside."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    inner = np.array(codes, dtype=object)
    return start + dump(inner, protocol, numpy)
