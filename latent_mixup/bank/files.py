"""The files of a bank: what its folder holds, how it is read and checked, and how it is written.

A bank is a folder: row shards ``bank-00000-of-00003.safetensors``, each with the same columns and (but for
the last) the same number of rows, and ``bank.index.json``, which names them with size and SHA-256.

Format version 1: every row has a class index. Version 2, written where that is not so: a label may be missing, -1, or
all are soft, and the index says which by ``label_dtype`` and ``label_shape``, those of one row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latent_mixup import files, hub

FORMAT_VERSION = 2
INDEX_FILE = hub.MAIN_FILE["bank"]
STORED_DTYPES = {"float16": torch.float16, "float32": torch.float32}
COLUMN_DTYPES = {
    "labels": torch.int64,
    "source_index": torch.int64,
    "mse": torch.float32,
    "lpips": torch.float32,
    "status": torch.uint8,
}
_LABEL_DTYPES = {"int64": torch.int64, "float32": torch.float32}
_SINCE_2 = ("label_dtype", "label_shape")
_SAFETENSORS_DTYPES = {
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_SHARD_GLOB = "bank-*.safetensors"
_CHUNK_ROWS = 4096

Columns: TypeAlias = dict[str, Tensor]


class BankFormatError(files.FormatError):
    """A bank's folder is not what the format says; the message names the file and the field."""


@dataclass(frozen=True)
class Content:
    """What a bank's digest covers: its columns, and its codes, which are read a few rows at a time.

    Args:
        latent_shape: Shape of one code.
        columns: Everything but the codes, each ``[N]``; soft labels ``[N, num_classes]``.
        read: A slice of rows => their codes, ``[B, *latent_shape]`` float32.
    """

    latent_shape: tuple[int, ...]
    columns: Columns
    read: Callable[[slice], Tensor]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.columns["labels"])

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All codes in order, some at a time, each time with the row they start at."""
        for start in range(0, self.num_rows, _CHUNK_ROWS):
            yield start, self.read(slice(start, start + _CHUNK_ROWS))


def digest_of(content: Content, dtype: torch.dtype) -> str:
    """SHA-256 of what a bank says once its codes are rounded to ``dtype``."""
    sha = hashlib.sha256(str(content.latent_shape).encode())
    for name, column in sorted(content.columns.items()):
        sha.update((name if column.ndim == 1 else f"{name} {list(column.shape)}").encode())
        sha.update(column.contiguous().numpy().data)
    for _, latents in content.chunks():
        sha.update(latents.to(dtype).float().contiguous().numpy().data)
    return sha.hexdigest()


def least_version(labels: Tensor) -> int:
    """The first format version that can say these labels."""
    return 2 if labels.is_floating_point() or bool((labels < 0).any()) else 1


def first_not_finite(latents: Tensor) -> int | None:
    """The first row with NaN or infinity; None: all are finite."""
    for start in range(0, len(latents), _CHUNK_ROWS):
        bad = ~torch.isfinite(latents[start : start + _CHUNK_ROWS]).flatten(1).all(1)
        if bad.any():
            return start + int(bad.nonzero()[0])
    return None


# --------------------------------------------------------------------------------------------------
# The index
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One shard as the index names it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """``bank.index.json``, checked: its fields, in the order they are written (version 1 has no ``label_*``)."""

    format_version: int
    digest: str
    num_rows: int
    latent_shape: tuple[int, ...]
    dtype: str
    columns: tuple[str, ...]
    label_dtype: str = "int64"
    label_shape: tuple[int, ...] = ()
    num_classes: int
    rows_per_shard: int
    files: tuple[File, ...]
    metadata: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> Index:
        """Read and check the index of a folder.

        Raises:
            BankFormatError: A field is missing, unknown or wrong, or the version is a later one.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            raise BankFormatError(f"{path} is missing: expected a folder that LatentBank.save_pretrained wrote")
        files.safe_path(folder, INDEX_FILE, BankFormatError)
        found = files.read_json(path, BankFormatError)
        _check_version(path, found)
        _check_fields(path, found)
        entries = tuple(_read_file(path, folder, number, entry) for number, entry in enumerate(found["files"]))
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        index = Index(**{**found, **lists, "files": entries})
        index._check_labels(path)
        index._check_files(path)
        return index

    def _check_labels(self, path: Path) -> None:
        expected = [self.num_classes] if self.label_dtype == "float32" else []
        if list(self.label_shape) != expected:
            what = f"{expected} for {self.label_dtype} and {self.num_classes} classes"
            raise _wrong(path, "label_shape", what, list(self.label_shape))

    def _check_files(self, path: Path) -> None:
        if len(self.files) != self.num_shards:
            raise _wrong(
                path,
                "files",
                f"{self.num_shards} for {self.num_rows} rows by {self.rows_per_shard}",
                len(self.files),
            )
        if len({file.name for file in self.files}) != len(self.files):
            raise _wrong(path, "files", "each name once", "a name twice")
        row_bytes = prod(self.latent_shape) * STORED_DTYPES[self.dtype].itemsize
        for number, file in enumerate(self.files):
            if file.size < self.rows_in(number) * row_bytes:
                raise _wrong(path, f"files[{number}].size", f"at least {self.rows_in(number) * row_bytes}", file.size)

    @property
    def num_shards(self) -> int:
        """How many files hold all rows."""
        return -(-self.num_rows // self.rows_per_shard)

    def rows_in(self, number: int) -> int:
        """Rows of shard ``number``: all shards have as many, but for the last."""
        return min(self.rows_per_shard, self.num_rows - number * self.rows_per_shard)

    def label_of(self, number: int) -> dict[str, Any]:
        """What the header of shard ``number`` says, so that shards of other banks or places are noticed."""
        return {
            "format_version": self.format_version,
            "digest": self.digest,
            "dtype": self.dtype,
            "rows_per_shard": self.rows_per_shard,
            "shard": number,
        }

    def tensors_in(self, number: int) -> dict[str, tuple[torch.dtype, list[int]]]:
        """Name => dtype and shape of each tensor in shard ``number``."""
        rows = self.rows_in(number)
        columns = {name: (COLUMN_DTYPES[name], [rows]) for name in self.columns}
        columns["labels"] = _LABEL_DTYPES[self.label_dtype], [rows, *self.label_shape]
        return {"latents": (STORED_DTYPES[self.dtype], [rows, *self.latent_shape]), **columns}

    def to_bytes(self) -> bytes:
        """The file's content."""
        said = {name: asdict(self)[name] for name in _field_names(self.format_version)}
        return (json.dumps(said, indent=2, allow_nan=False) + "\n").encode()


def _field_names(version: int) -> list[str]:
    return [field.name for field in fields(Index) if version >= 2 or field.name not in _SINCE_2]


def _is_columns(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name in COLUMN_DTYPES for name in value)
        and len(set(value)) == len(value)
        and {"labels", "source_index"} <= set(value)
    )


_FIELDS: dict[str, tuple[Any, str]] = {
    "digest": (lambda v: _is_sha256(v), "64 hexadecimal digits"),
    "num_rows": (lambda v: files.is_count(v) and v < 2**48, "a positive integer"),
    "latent_shape": (
        lambda v: isinstance(v, list) and 1 <= len(v) <= 8 and all(files.is_count(n) and n < 2**32 for n in v),
        "1 to 8 positive integers",
    ),
    "dtype": (lambda v: isinstance(v, str) and v in STORED_DTYPES, " or ".join(STORED_DTYPES)),
    "columns": (_is_columns, f"labels, source_index and some of {', '.join(COLUMN_DTYPES)}"),
    "label_dtype": (lambda v: isinstance(v, str) and v in _LABEL_DTYPES, " or ".join(_LABEL_DTYPES)),
    "label_shape": (lambda v: isinstance(v, list) and all(map(files.is_count, v)), "[] or [num_classes]"),
    "num_classes": (lambda v: _is_zero(v) or (files.is_count(v) and v < 2**48), "an integer from 0"),
    "rows_per_shard": (lambda v: files.is_count(v) and v < 2**48, "a positive integer"),
    "files": (lambda v: isinstance(v, list) and bool(v), "a list of files"),
    "metadata": (lambda v: isinstance(v, dict), "an object"),
}


def _is_zero(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 0


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _wrong(path: Path, field: str, expected: str, found: object) -> BankFormatError:
    return BankFormatError(f"{path}: field {field!r} needs {expected}, found {found!r:.200}")


def _check_version(path: Path, found: dict[str, Any]) -> None:
    version = found.get("format_version")
    if not files.is_count(version):
        raise _wrong(path, "format_version", f"an integer up to {FORMAT_VERSION}", version)
    if version > FORMAT_VERSION:
        raise BankFormatError(
            f"{path} has format_version {version}, this version reads up to {FORMAT_VERSION}: upgrade latent-mixup"
        )


def _check_fields(path: Path, found: dict[str, Any]) -> None:
    names = _field_names(found["format_version"])
    for name in [*names, *found]:
        if name not in found or name not in names:
            problem = "is missing" if name not in found else "is unknown"
            raise BankFormatError(f"{path}: field {name!r} {problem}, expected the fields {', '.join(names)}")
    for name, (test, expected) in _FIELDS.items():
        if name in found and not test(found[name]):
            raise _wrong(path, name, expected, found[name])


def _read_file(path: Path, folder: Path, number: int, entry: object) -> File:
    field = f"files[{number}]"
    if not isinstance(entry, dict) or entry.keys() != {"name", "size", "sha256"}:
        raise _wrong(path, field, "name, size and sha256", entry)
    if not files.is_count(entry["size"]):
        raise _wrong(path, f"{field}.size", "a positive integer", entry["size"])
    if not _is_sha256(entry["sha256"]):
        raise _wrong(path, f"{field}.sha256", "64 hexadecimal digits", entry["sha256"])
    if not files.safe_path(folder, entry["name"], BankFormatError).name.endswith(".safetensors"):
        raise _wrong(path, f"{field}.name", "a .safetensors file", entry["name"])
    return File(**entry)


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def needed_shards(index: Path) -> list[hub.Needed]:
    """What a bank needs beside its index, before any of it is downloaded.

    Raises:
        BankFormatError: The index is not what the format says.
    """
    return [hub.Needed(file.name, file.size, file.sha256) for file in Index.read(index.parent).files]


class Shards:
    """The files of a bank's folder, mmapped; pickles as the folder, and opens it again when first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index.read(folder)
        self._parts: list[Columns] | None = None
        self._cached: Columns | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.index.digest, self.index.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all codes, ``[N, *latent_shape]``."""
        return (self.index.num_rows, *self.index.latent_shape)

    @property
    def dtype(self) -> torch.dtype:
        """What the codes are kept in."""
        return STORED_DTYPES[self.index.dtype]

    @property
    def columns(self) -> Columns:
        """Everything but the codes, in memory."""
        if self._cached is None:
            parts = self.open()
            self._cached = {name: torch.cat([part[name] for part in parts]) for name in self.index.columns}
        return self._cached

    def latents(self, rows: Tensor) -> Tensor:
        """Codes of the rows ``[B]``: ``[B, *latent_shape]`` float32."""
        parts = self.open()
        if len(parts) == 1:
            return parts[0]["latents"][rows].float()
        shard = rows // self.index.rows_per_shard
        found = torch.empty(len(rows), *self.index.latent_shape)
        for number in torch.bincount(shard).nonzero()[:, 0].tolist():
            here = shard == number
            found[here] = parts[number]["latents"][rows[here] - number * self.index.rows_per_shard].float()
        return found

    def open(self) -> list[Columns]:
        """Mmap all shards, once per process, after comparing sizes and headers with the index."""
        if self._parts is None:
            self._refuse_extra()
            self._parts = [self._open(number) for number in range(len(self.index.files))]
        return self._parts

    def verify(self) -> None:
        """Read every byte: SHA-256 of each file, finite codes."""
        for number, (file, part) in enumerate(zip(self.index.files, self.open(), strict=True)):
            path = self.folder / file.name
            if (found := files.sha256(path)) != file.sha256:
                raise BankFormatError(
                    f"{path} is damaged: expected sha256 {file.sha256[:12]}, found {found[:12]}: get it again"
                )
            if (row := first_not_finite(part["latents"])) is not None:
                row += number * self.index.rows_per_shard
                raise BankFormatError(f"{path}: field 'latents' needs finite numbers, row {row} has NaN or infinity")

    def _open(self, number: int) -> Columns:
        file = self.index.files[number]
        path = self.folder / file.name
        if not path.is_file():
            raise BankFormatError(f"{path} is missing: {INDEX_FILE} names it, get it again")
        if (size := path.stat().st_size) != file.size:
            raise BankFormatError(f"{path} is damaged: expected {file.size} bytes, found {size}: get it again")
        try:
            with safe_open(path, framework="pt") as opened:
                self._check_header(path, number, opened)
                return {name: opened.get_tensor(name) for name in self.index.tensors_in(number)}
        except (SafetensorError, OSError) as cause:
            raise BankFormatError(f"{path} is not a safetensors file: {cause}") from cause

    def _check_header(self, path: Path, number: int, opened: Any) -> None:
        tensors = self.index.tensors_in(number)
        if set(opened.keys()) != set(tensors):
            raise _wrong(path, "tensors", ", ".join(sorted(tensors)), sorted(opened.keys()))
        for name, (dtype, shape) in tensors.items():
            found = opened.get_slice(name)
            expected = f"{_SAFETENSORS_DTYPES[dtype]} {shape}"
            if (actual := f"{found.get_dtype()} {found.get_shape()}") != expected:
                raise _wrong(path, name, expected, actual)
        if (label := _label_in(opened)) != self.index.label_of(number):
            raise BankFormatError(
                f"{path} is not shard {number} of this bank: expected {self.index.label_of(number)} in its "
                f"header, found {label!r:.200}: the files were swapped or mixed with another bank's"
            )

    def _refuse_extra(self) -> None:
        """Refuse a shard of this bank that the index does not name; an older bank's does no harm."""
        ours = {json.dumps(self.index.label_of(number)) for number in range(len(self.index.files))}
        named = {file.name for file in self.index.files}
        for path in sorted(self.folder.glob(_SHARD_GLOB)):
            if path.name not in named and json.dumps(_read_label(path)) in ours:
                raise BankFormatError(f"{path} is an extra shard: {INDEX_FILE} does not name it, remove it")


@dataclass(frozen=True)
class Parts:
    """Codes that lie in several safetensors files, as ``latents`` in each; opened when rows of them are asked for.

    Args:
        files: In the order of their rows.
        rows: How many each has.
        latent_shape: Shape of one code.
        columns: Everything but the codes, of all files together.
    """

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    latent_shape: tuple[int, ...]
    columns: Columns

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all codes, ``[N, *latent_shape]``."""
        return (sum(self.rows), *self.latent_shape)

    @property
    def dtype(self) -> torch.dtype:
        """What the codes are handed out as."""
        return torch.float32

    def latents(self, rows: Tensor) -> Tensor:
        """Codes of the rows ``[B]``: ``[B, *latent_shape]`` float32."""
        ends = torch.tensor(self.rows).cumsum(0)
        part = torch.searchsorted(ends, rows, right=True)
        found = torch.empty(len(rows), *self.latent_shape)
        for number in torch.bincount(part).nonzero()[:, 0].tolist():
            here = part == number
            with safe_open(self.files[number], framework="pt") as opened:
                found[here] = opened.get_tensor("latents")[rows[here] - (ends[number] - self.rows[number])].float()
        return found


def _reopen(folder: Path, digest: str, dtype: str) -> Shards:
    shards = Shards(folder)
    if (shards.index.digest, shards.index.dtype) != (digest, dtype):
        raise BankFormatError(
            f"{folder / INDEX_FILE} was replaced by another bank since this one was opened: open it again"
        )
    return shards


def _read_label(path: Path) -> object:
    """What the header of a shard says it is; None for any other file."""
    try:
        with safe_open(path, framework="pt") as opened:
            return _label_in(opened)
    except (SafetensorError, OSError):
        return None


def _label_in(opened: Any) -> object:
    try:
        return json.loads((opened.metadata() or {}).get("latent_mixup", "null"))
    except (ValueError, RecursionError):
        return None


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write_bank(
    folder: Path,
    content: Content,
    num_classes: int,
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
    beside: Mapping[str, bytes],
) -> None:
    """Write shards and index into a folder; what is there stays whole until the new bank is complete.

    Args:
        folder: Made where it is missing. ``content`` may read from it.
        content: Columns and codes.
        num_classes: Number of classes; 0 where no row has a label.
        metadata: What JSON can say.
        dtype: One of ``STORED_DTYPES``.
        max_shard_bytes: Codes and soft labels are split into files of at most this size (one row at least).
        beside: Files that are no part of the bank, such as its card: name => content.

    Raises:
        ValueError: A code does not fit in float16.
    """
    if dtype == torch.float16:
        _check_float16(content)
    index = _index_of(content, num_classes, metadata, dtype, max_shard_bytes)
    written: list[File] = []

    def write_shard(path: Path) -> None:
        number = len(written)
        start = number * index.rows_per_shard
        tensors = _shard(content, slice(start, start + index.rows_in(number)), index)
        files.save_tensors(path, tensors, index.label_of(number))
        written.append(File(path.name, path.stat().st_size, files.sha256(path)))

    def write_index(path: Path) -> None:
        path.write_bytes(replace(index, files=tuple(written)).to_bytes())

    shards = {_shard_name(folder, index, number): write_shard for number in range(index.num_shards)}
    files.write_folder(folder, {**beside, **shards, INDEX_FILE: write_index}, owns=_SHARD_GLOB)


def _check_float16(content: Content) -> None:
    largest = torch.finfo(torch.float16).max
    for start, latents in content.chunks():
        high = latents.abs().flatten(1).amax(1)
        if (high > largest).any():
            row = int((high > largest).nonzero()[0])
            raise ValueError(
                f"float16 holds up to {largest:.0f}: row {start + row} has {float(high[row]):.6g}, "
                "save with dtype=torch.float32"
            )


def _index_of(
    content: Content, num_classes: int, metadata: dict[str, Any], dtype: torch.dtype, max_shard_bytes: int
) -> Index:
    """The index but for its files, which are described once they are written."""
    labels = content.columns["labels"]
    row_bytes = prod(content.latent_shape) * dtype.itemsize + (labels[0].nbytes if labels.ndim == 2 else 0)
    return Index(
        format_version=least_version(labels),
        digest=digest_of(content, dtype),
        num_rows=content.num_rows,
        latent_shape=content.latent_shape,
        dtype=_name_of(dtype),
        columns=tuple(name for name in COLUMN_DTYPES if name in content.columns),
        label_dtype=_name_of(labels.dtype),
        label_shape=tuple(labels.shape[1:]),
        num_classes=num_classes,
        rows_per_shard=min(content.num_rows, max(1, max_shard_bytes // row_bytes)),
        files=(),
        metadata=metadata,
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shard(content: Content, rows: slice, index: Index) -> Columns:
    columns = {name: content.columns[name][rows].clone() for name in index.columns}
    return {"latents": content.read(rows).to(STORED_DTYPES[index.dtype]), **columns}


def _shard_name(folder: Path, index: Index, number: int) -> str:
    """The usual name, or a longer one where an older bank has it: its index stays true until ours is in."""
    name = f"bank-{number:05d}-of-{index.num_shards:05d}"
    path = folder / f"{name}.safetensors"
    if path.exists() and _read_label(path) != index.label_of(number):
        return f"{name}-{index.digest[:12]}.safetensors"
    return path.name
