"""Networks as folders: ``config.json`` and ``model.safetensors``, read strictly, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latent_mixup import hub

if TYPE_CHECKING:
    from latent_mixup.generators.base import Generator

FORMAT_VERSION = 1
CONFIG_FILE = hub.MAIN_FILE["generator"]
WEIGHTS_FILE = "model.safetensors"
FIELDS = {"format_version": int, "architecture": str, "arguments": dict, "metadata": dict}

G = TypeVar("G", bound="Generator")
N = TypeVar("N", bound=nn.Module)


def save_generator(generator: Generator, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write ``config.json`` and ``model.safetensors``; an older generator in the folder is replaced whole.

    Args:
        generator: One of latent_mixup's own.
        folder: Made where it is missing.
        dtype: Of the stored weights: float32, or float16 for half the size. They are read as float32.

    Raises:
        ValueError: ``dtype`` is another one, or a weight is not finite in it.
        NotImplementedError: The generator is somebody else's (:func:`wrap`).
    """
    return write_network(
        generator, folder, {"arguments": generator.arguments(), "metadata": generator.metadata}, dtype=dtype
    )


def write_network(network: nn.Module, folder: str | Path, fields: Mapping[str, Any], *, dtype: torch.dtype) -> Path:
    """Write a network's tensors and a config of its class's name and ``fields``: see :func:`save_generator`."""
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype needs to be torch.float32 or torch.float16: got {dtype}")
    tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has a value that is not finite in {dtype}: save with dtype=torch.float32")
    config = {"format_version": FORMAT_VERSION, "architecture": type(network).__name__, **fields}
    return hub.write_folder(
        folder,
        {
            WEIGHTS_FILE: lambda path: hub.save_tensors(path, tensors),
            CONFIG_FILE: (json.dumps(config, indent=2, allow_nan=False) + "\n").encode(),
        },
    )


def read_generator(folder: Path, architectures: dict[str, type[G]]) -> G:
    """Read what :func:`save_generator` wrote. The file's shapes are compared before anything is allocated.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        architectures: The classes it may name.

    Raises:
        FileNotFoundError: A file is missing.
        FormatError: A file does not hold what its format says; the message names file and field.
    """
    config = read_config(folder / CONFIG_FILE, architectures, FIELDS)
    generator = read_network(folder, partial(architectures[config["architecture"]], **config["arguments"]))
    generator.metadata = config["metadata"]
    generator.freeze()
    return generator


def read_network(folder: Path, build: Callable[[], N]) -> N:
    """Build a network without allocating it, and give it the weights in ``folder``: see :func:`read_generator`."""
    try:
        with torch.device("meta"):
            network = build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
        raise hub.FormatError(f"{folder / CONFIG_FILE}: field 'arguments' is not understood: {cause}") from cause
    weights = _read_weights(hub.safe_path(folder, WEIGHTS_FILE), network.state_dict())
    network.load_state_dict(weights, strict=True, assign=True)
    return network


def read_config(path: Path, architectures: Mapping[str, type[nn.Module]], fields: Mapping[str, type]) -> dict[str, Any]:
    """The config of a network: exactly ``fields``, each of its type, and one of the ``architectures``.

    Raises:
        FileNotFoundError: The file is missing.
        FormatError: It holds something else; the message names file and field.
    """
    config = hub.read_json(path)
    version = config.get("format_version")
    if not hub.is_count(version):
        raise hub.FormatError(
            f"{path}: field 'format_version' needs an integer up to {FORMAT_VERSION}, found {version!r:.100}"
        )
    if version > FORMAT_VERSION:
        raise hub.FormatError(
            f"{path} has format_version {version}, this version reads up to {FORMAT_VERSION}: upgrade latent-mixup"
        )
    if set(config) != set(fields):
        raise hub.FormatError(f"{path} needs the fields {', '.join(fields)}: found {', '.join(config) or 'none'}")
    for field, kind in fields.items():
        if not isinstance(config[field], kind):
            raise hub.FormatError(f"{path}: field {field!r} needs a {kind.__name__}, found {config[field]!r:.100}")
    if config["architecture"] not in architectures:
        raise hub.FormatError(
            f"{path}: field 'architecture' needs one of {', '.join(architectures)}: "
            f"found {config['architecture']!r:.100}"
        )
    return config


def _read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, as float32, after names and shapes were found to be the expected ones."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(set(expected) ^ set(file.keys())):
                problem = "is missing" if name in expected else "is unknown"
                raise hub.FormatError(f"{path}: tensor {name!r} {problem}: it does not belong to {CONFIG_FILE}")
            for name, tensor in expected.items():
                found = file.get_slice(name).get_shape()
                if found != list(tensor.shape):
                    raise hub.FormatError(f"{path}: tensor {name!r} needs {list(tensor.shape)}, found {found}")
            weights = {name: file.get_tensor(name).float() for name in expected}
    except SafetensorError as cause:
        raise hub.FormatError(f"{path} is not a whole safetensors file: {cause}") from cause
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise hub.FormatError(f"{path}: tensor {name!r} has a value that is not finite: get the file again")
    return weights
