"""Networks as folders and Hub repositories: ``config.json`` and ``model.safetensors``, read strictly, no pickle.

Format version 1: the config has the fields ``architecture``, ``arguments`` and ``metadata`` (an encoder's ``generator``
as well). Version 2 adds ``weights``, which names the file of weights with size and SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from latent_mixup import cards, files, hub

if TYPE_CHECKING:
    from typing_extensions import Unpack

FORMAT_VERSION = 2
CONFIG_FILE = hub.MAIN_FILE["generator"]
WEIGHTS_FILE = hub.WEIGHTS_FILE
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16}
MAX_ENTRIES = 64  # of a list of layers: more than that is a broken file, not a network

N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound="SavedNetwork")


def _fits(arguments: object) -> bool:
    return isinstance(arguments, dict) and not any(
        isinstance(value, list | dict | str) and len(value) > MAX_ENTRIES for value in arguments.values()
    )


FIELDS = {
    "architecture": files.Field(lambda value: isinstance(value, str), "a str"),
    "arguments": files.Field(_fits, f"a dict, with at most {MAX_ENTRIES} entries in each value"),
    "metadata": files.Field(lambda value: isinstance(value, dict), "a dict"),
    "weights": files.Field(lambda value: isinstance(value, dict), "name, size and sha256", since=2),
}


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


def best_device() -> str:
    """``"cuda"`` where there is one, else ``"cpu"``. Others have to be asked for: MPS and some XPUs have no float64."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class SavedNetwork(hub.Published, nn.Module):
    """A network that is saved into a folder or a Hub repository, and read from there, frozen and in eval mode.

    Attributes:
        metadata: How the network was made; kept in its ``config.json``. For a network from the Hub,
            ``metadata["hub"]`` names ``repo`` and ``commit``.
    """

    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this network again; only JSON values."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 over the names, shapes and float32 values of all tensors: the same weights, the same digest."""
        return files.tensors_sha256(self.state_dict())

    def describe(self, *, digest: str | None = None) -> cards.Facts:
        """The facts for the network's card.

        Args:
            digest: Digest of the weights as stored; None: ``self.digest()``.
        """
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a card, ``README.md``, in place of an older network.

        Readers and a kill at any moment see the older or the newer network. A card that a user edited stays.

        Args:
            folder: Folder, created if missing.
            dtype: Dtype of the stored weights: float32, or float16 for half the size. They are read as float32.

        Raises:
            ValueError: ``dtype`` is not one of these, or a weight is not finite in it.
            NotImplementedError: The network has no file format of ours.
        """
        return write_network(self, folder, {"arguments": self.arguments(), "metadata": self.metadata}, dtype=dtype)

    @classmethod
    def from_pretrained(cls: type[S], name: str | Path, *, verify: bool = True, **where: Unpack[hub.HubOptions]) -> S:
        """A network of this class from a folder, by its bundled name, or from the Hub, looked for in this order.

        Args:
            name: A folder; a bundled name such as ``"fashion-mnist"``; or ``org/repo[@revision]``.
            verify: Compare the SHA-256 of the weights with the one that the config, or the Hub's cache, names.
            where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`hub.HubOptions`.

        Raises:
            FileNotFoundError: There is nothing of that name.
            FormatError: What is there is not such a network, or it is damaged; the message names file and field.
            HubError: The Hub did not give it.
        """
        return load_network(name, cls.hub_kind, {cls.__name__: cls}, verify=verify, **where)


def load_network(
    name: str | Path,
    kind: hub.Kind,
    architectures: Mapping[str, type[S]],
    *given: Any,
    fields: Mapping[str, files.Field] = FIELDS,
    check: Callable[[Path, dict[str, Any]], None] | None = None,
    verify: bool = True,
    **where: Unpack[hub.HubOptions],
) -> S:
    """A network of one of the ``architectures``: see :meth:`SavedNetwork.from_pretrained`.

    Args:
        name: As there.
        kind: What it has to be.
        architectures: Name => class, as the config may name them.
        given: Arguments of their constructors that stand before those of the config.
        fields: Of the config.
        check: Raises where a config, ``(path, config)``, does not belong to what is given.
        verify: As there.
        where: As there.
    """

    def understood(main: Path) -> tuple[dict[str, Any], Callable[[], S]]:
        config = read_config(main, architectures, fields)
        if check is not None:
            check(main, config)
        return config, partial(architectures[config["architecture"]], *given, **config["arguments"])

    def needed(main: Path) -> list[hub.Needed]:
        config, build = understood(main)
        entry = _weights_entry(main, config)
        return [needed_weights(main, build, sha256=entry.sha256 if entry else None)]

    folder = hub.locate(name, kind, needed, **where)

    def read() -> S:
        main = files.safe_path(folder, CONFIG_FILE)
        config, build = understood(main)
        network = read_network(main, build, _weights_entry(main, config), verify=verify)
        network.metadata = hub.with_origin(config["metadata"], folder)
        return network

    return files.settled(folder / CONFIG_FILE, read).requires_grad_(False).eval()


def network_facts(
    network: SavedNetwork,
    what: str,
    summary: str,
    usage: str,
    facts: Mapping[str, str],
    *,
    digest: str | None,
    task: str = "image-feature-extraction",
    generator: str | None = None,
    generator_digest: str | None = None,
) -> cards.Facts:
    """What every network's card says, around what its class knows: see :class:`cards.Facts`.

    Args:
        network: The network.
        what: What it is, such as ``"a generator"``.
        summary: As in the card.
        usage: As in the card.
        facts: Of its class.
        digest: Of the weights as they are stored; None: as they are.
        task: The Hub's name of what it does.
        generator: As in the card.
        generator_digest: As in the card.
    """
    architecture = type(network).__name__
    return cards.Facts(
        kind="model",
        title=f"{network.metadata.get('name') or architecture}: {what} for latent-mixup",
        summary=summary,
        usage=usage,
        facts={
            "architecture": cards.code(architecture),
            **facts,
            "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
            "digest": f"`{digest or network.digest()}`",
        },
        metadata=network.metadata,
        header={"pipeline_tag": task},
        generator=generator,
        generator_digest=generator_digest,
    )


def image_size(image_shape: tuple[int, int, int]) -> str:
    """The size of images ``[C, H, W]``, for a card."""
    channels, height, width = image_shape
    return f"{height} x {width}, " + {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write_network(network: SavedNetwork, folder: str | Path, fields: Mapping[str, Any], *, dtype: torch.dtype) -> Path:
    """Write a network's tensors and a config of its class's name and ``fields``: see :class:`SavedNetwork`."""
    if dtype not in STORED_DTYPES.values():
        raise ValueError(f"dtype needs to be torch.float32 or torch.float16: got {dtype}")
    tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has a value that is not finite in {dtype}: save with dtype=torch.float32")

    def config(entries: tuple[files.FileEntry, ...]) -> bytes:
        said = {"format_version": FORMAT_VERSION, "architecture": type(network).__name__, **fields}
        return (json.dumps({**said, "weights": asdict(entries[0])}, indent=2, allow_nan=False) + "\n").encode()

    return files.write_indexed(
        folder,
        {WEIGHTS_FILE: lambda path: files.save_tensors(path, tensors)},
        CONFIG_FILE,
        config,
        beside=cards.card_file(folder, lambda: network.describe(digest=files.tensors_sha256(tensors))),
    )


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def read_config(
    path: Path, architectures: Mapping[str, type[nn.Module]], fields: Mapping[str, files.Field]
) -> dict[str, Any]:
    """The config of a network: exactly ``fields``, and one of the ``architectures``.

    Raises:
        FileNotFoundError: The file is missing.
        FormatError: It holds something else; the message names file and field.
    """
    config = files.read_json(path)
    if "_class_name" in config:
        raise files.FormatError(
            f"{path} is a {config['_class_name']!r:.100} of diffusers: an autoencoder of theirs is read by "
            "generators.DiffusersVAE.from_diffusers, or latent-mixup convert"
        )
    files.check_fields(path, config, fields, FORMAT_VERSION)
    if config["architecture"] not in architectures:
        raise files.wrong_field(path, "architecture", f"one of {', '.join(architectures)}", config["architecture"])
    return config


def _weights_entry(main: Path, config: Mapping[str, Any]) -> files.FileEntry | None:
    """The file of weights as a config names it; None in format version 1, which has but the name."""
    if "weights" not in config:
        return None
    entry = files.FileEntry.read(main, "weights", config["weights"])
    if entry.name != WEIGHTS_FILE:
        raise files.wrong_field(main, "weights.name", WEIGHTS_FILE, entry.name)
    return entry


def weights_path(folder: Path) -> Path:
    """Path of the file of weights of a network's folder."""
    main = files.safe_path(folder, CONFIG_FILE)
    entry = _weights_entry(main, files.read_json(main))
    return files.find_part(folder, entry) if entry else files.safe_path(folder, WEIGHTS_FILE)


def needed_weights(
    main: Path, build: Callable[[], nn.Module], file: str = WEIGHTS_FILE, sha256: str | None = None
) -> hub.Needed:
    """What the config ``main`` needs beside it: the file of weights, as large as the network that ``build`` makes."""
    numbers = sum(tensor.numel() for tensor in unallocated(main.parent, build).state_dict().values())
    return hub.Needed(file, numbers * torch.float32.itemsize + files.MAX_HEADER_BYTES, sha256)


def read_network(main: Path, build: Callable[[], N], entry: files.FileEntry | None, *, verify: bool) -> N:
    """Build a network without allocating it, and give it the weights that lie beside its config ``main``.

    The file's names, dtypes and shapes are compared with the network's before anything is allocated.

    Raises:
        FileNotFoundError: The weights are missing.
        FormatError: They are not the network's, or not finite; the message names file and tensor.
    """
    folder = main.parent
    network = unallocated(folder, build)
    path = files.find_part(folder, entry) if entry else files.safe_path(folder, WEIGHTS_FILE)
    weights = read_weights(path, network.state_dict())
    if verify:
        hub.check_cached(main)
        hub.check_cached(path)
        if entry:
            files.part_path(folder, entry, CONFIG_FILE, verify=True)
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
    with files.open_tensors(path) as file:
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
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise files.FormatError(f"{path}: tensor {name!r} has a value that is not finite: get the file again")
    return weights


def _present_name(name: str, former_names: Mapping[str, str]) -> str:
    for present, former in former_names.items():
        name = name.replace(f".{former}.", f".{present}.")
    return name
