"""The files of a pool of decoded mixes: what its folder holds, and how it is read and checked.

A pool is a folder of three files. ``pool.images`` holds nothing but the images, one after the other, uint8
``[N, C, R, R]``. ``pool.safetensors`` holds ``labels_a`` and ``labels_b``, int64 ``[N]`` or soft, float32
``[N, num_classes]``; ``lam``, float32 ``[N]``, the weight of ``labels_a``; and the bank rows that were mixed,
``sources``, int64 ``[N, num_sources]``. ``pool.index.json`` names the two with size and SHA-256; in ``made_with`` it
says what decided the images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latent_mixup import files

FORMAT_VERSION = 1
INDEX_FILE, IMAGES_FILE, COLUMNS_FILE = "pool.index.json", "pool.images", "pool.safetensors"
LABEL_DTYPES = {"int64": torch.int64, "float32": torch.float32}
MADE_WITH = {"seed", "policy", "path", "autocast", "generator", "bank"}
DTYPES = {torch.int64: "I64", torch.float32: "F32"}


class PoolFormatError(files.FormatError):
    """A pool's folder is not what the format says; the message names the file and the field."""


@dataclass(frozen=True)
class PoolIndex:
    """``pool.index.json``, checked.

    Attributes:
        num_images: How many mixes there are.
        img_shape: ``[C, R, R]``.
        num_classes: Of the bank.
        label_dtype: ``"int64"``, or ``"float32"`` where bank or policy has soft labels.
        num_sources: How many bank rows a mix is made of.
        made_with: ``seed``, ``policy``, ``path``, ``autocast``, and the digests of ``generator`` and ``bank``.
        files: Size and SHA-256 of the two other files.
        versions: Of what made it.
    """

    format_version: int
    num_images: int
    img_shape: tuple[int, int, int]
    num_classes: int
    label_dtype: str
    num_sources: int
    made_with: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> PoolIndex:
        """Read and check the index of a folder.

        Raises:
            FileNotFoundError: There is none.
            PoolFormatError: A field is missing, unknown or wrong, or the version is a later one.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: expected a folder that latent-mixup render has finished")
        files.safe_path(folder, INDEX_FILE, PoolFormatError)
        found = files.read_json(path, PoolFormatError)
        _check_fields(path, found)
        index = PoolIndex(**{**found, "img_shape": tuple(found["img_shape"])})
        expected = index.num_images * prod(index.img_shape)
        if index.files[IMAGES_FILE]["size"] != expected:
            size = index.files[IMAGES_FILE]["size"]
            raise _wrong(path, f"files.{IMAGES_FILE}.size", f"{expected} for {index.num_images} images", size)
        return index

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=2, allow_nan=False) + "\n").encode()

    @property
    def columns(self) -> dict[str, tuple[torch.dtype, list[int]]]:
        """Name => dtype and shape of each tensor in ``pool.safetensors``."""
        n, label_dtype = self.num_images, LABEL_DTYPES[self.label_dtype]
        label = (label_dtype, [n, self.num_classes] if label_dtype == torch.float32 else [n])
        sources = (torch.int64, [n, self.num_sources])
        return {"labels_a": label, "labels_b": label, "lam": (torch.float32, [n]), "sources": sources}


def _wrong(path: Path, field: str, expected: str, found: object) -> PoolFormatError:
    return PoolFormatError(f"{path}: field {field!r} needs {expected}, found {found!r:.200}")


def _is_file(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"size", "sha256"}
        and files.is_count(value["size"])
        and isinstance(value["sha256"], str)
        and len(value["sha256"]) == 64
    )


_FIELDS: dict[str, tuple[Any, str]] = {
    "num_images": (lambda v: files.is_count(v) and v < 2**40, "a positive integer"),
    "img_shape": (
        lambda v: isinstance(v, list) and len(v) == 3 and all(files.is_count(n) and n < 2**16 for n in v),
        "three positive integers",
    ),
    "num_classes": (lambda v: files.is_count(v) and v < 2**32, "a positive integer"),
    "label_dtype": (lambda v: isinstance(v, str) and v in LABEL_DTYPES, " or ".join(LABEL_DTYPES)),
    "num_sources": (lambda v: files.is_count(v) and v < 2**16, "a positive integer"),
    "made_with": (
        lambda v: isinstance(v, dict) and v.keys() == MADE_WITH,
        f"an object with {', '.join(sorted(MADE_WITH))}",
    ),
    "files": (
        lambda v: isinstance(v, dict) and v.keys() == {IMAGES_FILE, COLUMNS_FILE} and all(map(_is_file, v.values())),
        f"size and sha256 of {IMAGES_FILE} and {COLUMNS_FILE}",
    ),
    "versions": (lambda v: isinstance(v, dict), "an object"),
}


def _check_fields(path: Path, found: dict[str, Any]) -> None:
    version = found.get("format_version")
    if not files.is_count(version):
        raise _wrong(path, "format_version", f"an integer up to {FORMAT_VERSION}", version)
    if version > FORMAT_VERSION:
        raise PoolFormatError(
            f"{path} has format_version {version}, this version reads up to {FORMAT_VERSION}: upgrade latent-mixup"
        )
    names = [field.name for field in fields(PoolIndex)]
    for name in [*names, *found]:
        if name not in found or name not in names:
            problem = "is missing" if name not in found else "is unknown"
            raise PoolFormatError(f"{path}: field {name!r} {problem}, expected the fields {', '.join(names)}")
    for name, (test, expected) in _FIELDS.items():
        if not test(found[name]):
            raise _wrong(path, name, expected, found[name])


class Pool:
    """A finished pool, its images mmapped; pickles as its folder, and opens it again when first read.

    Args:
        folder: That ``latent-mixup render`` has finished.
        verify: Read everything once and compare SHA-256.

    Raises:
        FileNotFoundError: It is none.
        PoolFormatError: It is damaged.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.index = PoolIndex.read(folder)
        for name, said in self.index.files.items():
            _check_file(files.safe_path(folder, name, PoolFormatError), said, verify)
        self._images: Tensor | None = None
        self._columns: dict[str, Tensor] | None = None
        _ = self.columns

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.index)

    @property
    def images(self) -> Tensor:
        """``[N, C, R, R]`` uint8, read from the file when they are asked for; what is written to it stays in memory."""
        if self._images is None:
            path, shape = self.folder / IMAGES_FILE, (self.index.num_images, *self.index.img_shape)
            self._images = torch.from_file(str(path), shared=False, size=prod(shape), dtype=torch.uint8).view(shape)
        return self._images

    @property
    def columns(self) -> dict[str, Tensor]:
        """The tensors of ``pool.safetensors``."""
        if self._columns is None:
            self._columns = read_tensors(self.folder / COLUMNS_FILE, self.index.columns)
        return self._columns


def _reopened(folder: Path, index: PoolIndex) -> Pool:
    pool = Pool(folder)
    if pool.index != index:
        raise PoolFormatError(f"{folder / INDEX_FILE} was replaced since it was opened: open it again")
    return pool


def _check_file(path: Path, said: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise PoolFormatError(f"{path} is missing: {INDEX_FILE} names it, render it again")
    if (size := path.stat().st_size) != said["size"]:
        raise PoolFormatError(f"{path} is damaged: expected {said['size']} bytes, found {size}: render it again")
    if verify and (found := files.sha256(path)) != said["sha256"]:
        raise PoolFormatError(
            f"{path} is damaged: expected sha256 {said['sha256'][:12]}, found {found[:12]}: render it again"
        )


def read_tensors(path: Path, expected: dict[str, tuple[torch.dtype, list[int]]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mmapped, after names, dtypes and shapes were compared.

    Raises:
        PoolFormatError: It holds others.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            if set(opened.keys()) != set(expected):
                raise _wrong(path, "tensors", ", ".join(sorted(expected)), sorted(opened.keys()))
            for name, (dtype, shape) in expected.items():
                found = opened.get_slice(name)
                actual = f"{found.get_dtype()} {found.get_shape()}"
                if actual != f"{DTYPES[dtype]} {shape}":
                    raise _wrong(path, name, f"{DTYPES[dtype]} {shape}", actual)
            return {name: opened.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as cause:
        raise PoolFormatError(f"{path} is not a safetensors file: {cause}") from cause
