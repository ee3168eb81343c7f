"""The files of a pool of decoded mixes: an indexed folder, and how it is read and checked.

A pool is a folder of three files. ``pool.images`` holds nothing but the images, one after the other, uint8
``[N, C, H, W]``. ``pool.safetensors`` holds ``labels_a`` and ``labels_b``, int64 ``[N]`` or soft, float32
``[N, num_classes]``; ``lam``, float32 ``[N]``, the weight of ``labels_a``; and the bank rows that were mixed,
``sources``, int64 ``[N, num_sources]``. ``pool.index.json`` names the two with size and SHA-256, and holds in
``made_with`` the settings that decided the images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files
from latent_mixup.files import Field, FileEntry
from latent_mixup.functional import PATHS
from latent_mixup.labels import check_labels

FORMAT_VERSION = 1
INDEX_FILE, IMAGES_FILE, COLUMNS_FILE = "pool.index.json", "pool.images", "pool.safetensors"
LABEL_DTYPES = {"int64": torch.int64, "float32": torch.float32}
AUTOCAST = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PoolFormatError(files.FormatError):
    """A pool's folder does not follow the format; the message names the file and the field."""


def _is_count(below: int) -> Field:
    return Field(lambda v: files.is_count(v) and v < below, "a positive integer")


_MADE_WITH = {
    "seed": Field(lambda v: type(v) is int and abs(v) < 2**63, "an integer of 64 bits"),
    "policy": Field(lambda v: isinstance(v, dict), "an object"),
    "path": Field(lambda v: isinstance(v, str) and v in PATHS, " or ".join(PATHS)),
    "autocast": Field(lambda v: v is None or (isinstance(v, str) and v in AUTOCAST), "null, bfloat16 or float16"),
    "generator": Field(files.is_sha256, "64 hexadecimal digits"),
    "bank": Field(files.is_sha256, "64 hexadecimal digits"),
}
_FIELDS = {
    "num_images": _is_count(2**40),
    "img_shape": Field(
        lambda v: isinstance(v, list) and len(v) == 3 and all(files.is_count(n) and n < 2**16 for n in v),
        "three positive integers",
    ),
    "num_classes": _is_count(2**32),
    "label_dtype": Field(lambda v: isinstance(v, str) and v in LABEL_DTYPES, " or ".join(LABEL_DTYPES)),
    "num_sources": _is_count(2**16),
    "made_with": Field(
        lambda v: isinstance(v, dict) and v.keys() == _MADE_WITH.keys(),
        f"an object with {', '.join(sorted(_MADE_WITH))}",
    ),
    "files": Field(
        lambda v: isinstance(v, dict) and v.keys() == {IMAGES_FILE, COLUMNS_FILE},
        f"size and sha256 of {IMAGES_FILE} and {COLUMNS_FILE}",
    ),
    "versions": Field(lambda v: isinstance(v, dict), "an object"),
}


@dataclass(frozen=True)
class PoolIndex:
    """``pool.index.json``, checked.

    Attributes:
        num_images: Number of mixes.
        img_shape: ``[C, H, W]``.
        num_classes: Number of the bank's classes.
        label_dtype: ``"int64"``, or ``"float32"`` where bank or policy has soft labels.
        num_sources: Number of bank rows in a mix.
        made_with: ``seed``, ``policy``, ``path``, ``autocast``, and the digests of ``generator`` and ``bank``.
        files: Size and SHA-256 of the two other files.
        versions: Versions of the software that made it.
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
            FileNotFoundError: The folder has no index.
            PoolFormatError: A field is missing, unknown or wrong, or the version is a later one.
        """
        path = folder / INDEX_FILE
        found = files.read_index(
            folder, INDEX_FILE, _FIELDS, FORMAT_VERSION, wrote="latent-mixup render has finished", error=PoolFormatError
        )
        for name, field in _MADE_WITH.items():
            if not field.holds(value := found["made_with"][name]):
                raise files.wrong_field(path, f"made_with.{name}", field.expected, value, PoolFormatError)
        index = PoolIndex(**{**found, "img_shape": tuple(found["img_shape"])})
        size, expected = index.entry(path, IMAGES_FILE).size, index.num_images * prod(index.img_shape)
        if size != expected:
            wanted = f"{expected} for {index.num_images} images"
            raise files.wrong_field(path, f"files.{IMAGES_FILE}.size", wanted, size, PoolFormatError)
        index.entry(path, COLUMNS_FILE)
        return index

    def entry(self, path: Path, name: str) -> FileEntry:
        """One of the two other files; ``path`` is the index's, for an error."""
        held = self.files[name]
        return FileEntry.read(
            path, f"files.{name}", {"name": name, **held} if isinstance(held, dict) else held, PoolFormatError
        )

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


class Pool:
    """A finished pool; pickles as its folder, which is then opened again.

    Attributes:
        images: ``[N, C, H, W]`` uint8, mmapped; writes to it stay in memory.
        columns: The tensors of ``pool.safetensors``, mmapped.

    Args:
        folder: Folder that ``latent-mixup render`` has finished.
        verify: Read everything once and compare SHA-256.

    Raises:
        FileNotFoundError: The folder holds no finished pool.
        PoolFormatError: The pool is damaged.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.index, self.columns, self.images = files.settled(folder / INDEX_FILE, lambda: self._read(verify))

    def _read(self, verify: bool) -> tuple[PoolIndex, dict[str, Tensor], Tensor]:
        index = PoolIndex.read(self.folder)
        images, columns = (
            files.part_path(
                self.folder, index.entry(self.folder / INDEX_FILE, name), INDEX_FILE, PoolFormatError, verify=verify
            )
            for name in (IMAGES_FILE, COLUMNS_FILE)
        )
        with files.open_tensors(columns, PoolFormatError) as opened:
            files.check_tensors(columns, opened, index.columns, PoolFormatError)
            tensors = {name: opened.get_tensor(name) for name in index.columns}
        _check_columns(columns, tensors, index)
        size, shape = index.num_images * prod(index.img_shape), (index.num_images, *index.img_shape)
        flat = torch.from_file(str(images), shared=False, size=size, dtype=torch.uint8, device="cpu")
        return index, tensors, flat.view(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.index)


def _reopened(folder: Path, index: PoolIndex) -> Pool:
    pool = Pool(folder)
    if pool.index != index:
        raise PoolFormatError(f"{folder / INDEX_FILE} was replaced since it was opened: open it again")
    return pool


def _check_columns(path: Path, columns: dict[str, Tensor], index: PoolIndex) -> None:
    """Raise unless the numbers are what they have to be; a pool holds a few bytes of them a mix."""
    for name in ("labels_a", "labels_b"):
        try:
            check_labels(columns[name], index.num_classes)
        except ValueError as cause:
            raise PoolFormatError(f"{path}: {name}: {cause}; render it again") from cause
    lam, sources = columns["lam"], columns["sources"]
    wrong = ~((lam >= 0) & (lam <= 1))  # NaN as well
    if wrong.any():
        entry = int(wrong.nonzero()[0])
        raise PoolFormatError(f"{path}: lam needs to be in [0, 1]: got {lam[entry]} for mix {entry}; render it again")
    if sources.min() < 0:
        raise PoolFormatError(f"{path}: sources needs rows of a bank, from 0: got {sources.min()}; render it again")
