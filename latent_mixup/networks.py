"""Networks as folders and Hub repositories: ``config.json`` and ``model.safetensors``, read strictly, no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latent_mixup import cards, files, hub

FORMAT_VERSION = 1
CONFIG_FILE = hub.MAIN_FILE["generator"]
WEIGHTS_FILE = hub.WEIGHTS_FILE
FIELDS = {"format_version": int, "architecture": str, "arguments": dict, "metadata": dict}
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16}
MAX_ENTRIES = 64  # of a list of layers: more than that is a broken file, not a network
HEADER_BYTES = 1024**2  # more than the names and shapes of a file of weights take

N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound="SavedNetwork")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule is as it was, some frozen ones in eval mode included."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class SavedNetwork(hub.Published, nn.Module):
    """A network that is saved into a folder or a Hub repository, and read from there, frozen and in eval mode.

    Attributes:
        metadata: How the network came to be; kept in its ``config.json``. Read from the Hub, ``metadata["hub"]`` says
            of which ``repo`` and ``commit``.
    """

    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this network again; only JSON values."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 over the names, shapes and float32 values of all tensors: the same weights, the same digest."""
        return files.tensors_sha256(self.state_dict())

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a card; an older network in the folder is replaced whole.

        The card is ``README.md``; one that somebody wrote or edited stays.

        Args:
            folder: Made where it is missing.
            dtype: Of the stored weights: float32, or float16 for half the size. They are read as float32.

        Raises:
            ValueError: ``dtype`` is another one, or a weight is not finite in it.
            NotImplementedError: The network is somebody else's.
        """
        return write_network(self, folder, {"arguments": self.arguments(), "metadata": self.metadata}, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls: type[S],
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> S:
        """A network of this class from a folder, by its bundled name, or from the Hub, looked for in this order.

        Args:
            name: A folder; a bundled name such as ``"fashion-mnist"``; or ``org/repo[@revision]``.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Where the Hub client keeps its downloads.
            token: For private repositories.
            local_files_only: Do not go online.

        Raises:
            FileNotFoundError: There is nothing of that name.
            FormatError: What is there is not such a network; the message names file and field.
            HubError: The Hub did not give it.
        """
        return load_network(
            name,
            cls.hub_kind,
            {cls.__name__: cls},
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )


def load_network(
    name: str | Path,
    kind: hub.Kind,
    architectures: Mapping[str, type[S]],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> S:
    """A network of one of the ``architectures``: see :meth:`SavedNetwork.from_pretrained`."""
    folder = hub.locate(
        name,
        kind,
        lambda main: [needed_weights(main, _builder(read_config(main, architectures, FIELDS), architectures))],
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
    config = read_config(files.safe_path(folder, CONFIG_FILE), architectures, FIELDS)
    network = read_network(folder, _builder(config, architectures))
    network.metadata = hub.with_origin(config["metadata"], folder)
    return network.requires_grad_(False).eval()


def _builder(config: dict[str, Any], architectures: Mapping[str, type[S]]) -> Callable[[], S]:
    return partial(architectures[config["architecture"]], **config["arguments"])


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write_network(network: nn.Module, folder: str | Path, fields: Mapping[str, Any], *, dtype: torch.dtype) -> Path:
    """Write a network's tensors and a config of its class's name and ``fields``: see :class:`SavedNetwork`."""
    if dtype not in STORED_DTYPES.values():
        raise ValueError(f"dtype needs to be torch.float32 or torch.float16: got {dtype}")
    tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has a value that is not finite in {dtype}: save with dtype=torch.float32")
    config = {"format_version": FORMAT_VERSION, "architecture": type(network).__name__, **fields}
    return files.write_folder(
        folder,
        {
            **cards.card_file(folder, lambda: cards.card_of(network, digest=files.tensors_sha256(tensors))),
            WEIGHTS_FILE: lambda path: files.save_tensors(path, tensors),
            CONFIG_FILE: (json.dumps(config, indent=2, allow_nan=False) + "\n").encode(),
        },
    )


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def read_config(path: Path, architectures: Mapping[str, type[nn.Module]], fields: Mapping[str, type]) -> dict[str, Any]:
    """The config of a network: exactly ``fields``, each of its type, and one of the ``architectures``.

    Raises:
        FileNotFoundError: The file is missing.
        FormatError: It holds something else; the message names file and field.
    """
    config = files.read_json(path)
    version = config.get("format_version")
    if "_class_name" in config:
        raise files.FormatError(
            f"{path} is a {config['_class_name']!r:.100} of diffusers: an autoencoder of theirs is read by "
            "generators.DiffusersVAE.from_diffusers, or latent-mixup convert"
        )
    if not files.is_count(version):
        raise files.FormatError(
            f"{path}: field 'format_version' needs an integer up to {FORMAT_VERSION}, found {version!r:.100}"
        )
    if version > FORMAT_VERSION:
        raise files.FormatError(
            f"{path} has format_version {version}, this version reads up to {FORMAT_VERSION}: upgrade latent-mixup"
        )
    if set(config) != set(fields):
        raise files.FormatError(
            f"{path} needs the fields {', '.join(fields)}: found {', '.join(config) or 'none':.200}"
        )
    for field, kind in fields.items():
        if not isinstance(config[field], kind):
            raise files.FormatError(f"{path}: field {field!r} needs a {kind.__name__}, found {config[field]!r:.100}")
    for name, value in config["arguments"].items():
        if isinstance(value, list | dict | str) and len(value) > MAX_ENTRIES:
            raise files.FormatError(
                f"{path}: field 'arguments' needs at most {MAX_ENTRIES} entries in {name!r:.100}, found {len(value)}"
            )
    if config["architecture"] not in architectures:
        raise files.FormatError(
            f"{path}: field 'architecture' needs one of {', '.join(architectures)}: "
            f"found {config['architecture']!r:.100}"
        )
    return config


def needed_weights(main: Path, build: Callable[[], nn.Module], file: str = WEIGHTS_FILE) -> hub.Needed:
    """What the config ``main`` needs beside it: the file of weights, as large as the network that ``build`` makes."""
    numbers = sum(tensor.numel() for tensor in unallocated(main.parent, build).state_dict().values())
    return hub.Needed(file, at_most=numbers * torch.float32.itemsize + HEADER_BYTES)


def read_network(folder: Path, build: Callable[[], N]) -> N:
    """Build a network without allocating it, and give it the weights in ``folder``.

    The file's names, dtypes and shapes are compared with the network's before anything is allocated.

    Raises:
        FileNotFoundError: The weights are missing.
        FormatError: They are not the network's, or not finite; the message names file and tensor.
    """
    network = unallocated(folder, build)
    weights = read_weights(files.safe_path(folder, WEIGHTS_FILE), network.state_dict())
    network.load_state_dict(weights, strict=True, assign=True)
    return network


def unallocated(folder: Path, build: Callable[[], N]) -> N:
    """The network of a folder's config, without storage; raises ``FormatError`` where there can be none."""
    try:
        with torch.device("meta"):
            return build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
        raise files.FormatError(f"{folder / CONFIG_FILE}: field 'arguments' is not understood: {cause}") from cause


def read_weights(
    path: Path,
    expected: Mapping[str, Tensor],
    former_names: Mapping[str, str] | None = None,
    dtypes: Collection[str] = STORED_DTYPES.keys(),
) -> dict[str, Tensor]:
    """All tensors, as float32, after names, dtypes and shapes were found to be the expected ones.

    Args:
        path: A safetensors file.
        expected: Name => a tensor of that shape.
        former_names: Of modules, ``to_q`` => ``query``: a file may have these instead.
        dtypes: Which are read.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It holds other tensors, or one that is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            there = {_present_name(name, former_names or {}): name for name in names}
            if len(there) < len(names):
                raise files.FormatError(f"{path} has a tensor twice, under a former and its present name")
            for name in sorted(set(expected) ^ set(there)):
                problem = "is missing" if name in expected else "is unknown"
                raise files.FormatError(f"{path}: tensor {name!r:.100} {problem}: it does not belong to {CONFIG_FILE}")
            for name, tensor in expected.items():
                found = file.get_slice(there[name])
                if (shape := found.get_shape()) != list(tensor.shape):
                    raise files.FormatError(f"{path}: tensor {name!r} needs {list(tensor.shape)}, found {shape}")
                if (dtype := found.get_dtype()) not in dtypes:
                    raise files.FormatError(f"{path}: tensor {name!r} needs {' or '.join(dtypes)}, found {dtype}")
            weights = {name: file.get_tensor(there[name]).float() for name in expected}
    except SafetensorError as cause:
        raise files.FormatError(f"{path} is not a whole safetensors file: {cause}") from cause
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise files.FormatError(f"{path}: tensor {name!r} has a value that is not finite: get the file again")
    return weights


def _present_name(name: str, former_names: Mapping[str, str]) -> str:
    for present, former in former_names.items():
        name = name.replace(f".{former}.", f".{present}.")
    return name
