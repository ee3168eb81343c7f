"""Files that somebody else may have written: read with limits, and one clear error."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from latent_mixup.hub.cache import roots_of

MAX_JSON_BYTES = 64 * 1024**2
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class FormatError(ValueError):
    """A file is not what its format says; the message names file, field, expected and found."""


def read_json(path: Path, error: type[FormatError] = FormatError) -> dict[str, Any]:
    """Read a JSON object; no NaN, no repeated key, at most 64 MiB.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is not a JSON object (or ``error``, a subclass).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise error(f"{path} is {path.stat().st_size} bytes: expected at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not valid JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{path} needs to hold a JSON object: got {type(value).__name__}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def safe_path(folder: Path, name: object, error: type[FormatError] = FormatError) -> Path:
    """The path of a file that an index or config names, which must lie in ``folder`` itself.

    A link that leaves the folder is refused, except the Hub client's own into its blobs.

    Raises:
        FormatError: The name is not a plain file name (or ``error``, a subclass).
    """
    if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name)):
        raise error(f"{folder} names a file {name!r:.100}: expected a plain file name inside the folder")
    path = folder / name
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as cause:  # a loop of links
        raise error(f"{path} cannot be resolved: expected a file inside the folder") from cause
    if not any(target.is_relative_to(root) for root in roots_of(folder)):
        raise error(f"{path} is a link that leaves its folder: expected the file itself, copy it there")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1024**2):
            sha.update(block)
    return sha.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in the order of the names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        sha.update(f"{name}{tuple(values.shape)}".encode())
        sha.update(values.numpy().tobytes())
    return sha.hexdigest()


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value from a file is an integer from 1 (JSON's ``true`` is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
