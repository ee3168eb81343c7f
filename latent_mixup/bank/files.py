"""The files of a bank: what its folder holds, how it is read and checked, and how it is written.

A bank is a folder: row shards ``bank-00000-of-00003.safetensors``, each with the same columns and (but for
the last) the same number of rows, and ``bank.index.json``, which names them with size and SHA-256.

Format version 1: every row has a class index. Version 2, written only where it is needed: labels may be missing, -1,
or soft, and ``label_dtype`` and ``label_shape`` describe one row's label. Version 3, written only where many images
were set aside: ``set_aside`` names a file of its own with their source indices and errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from latent_mixup import files, hub
from latent_mixup.bank.columns import (
    CHUNK_ROWS,
    COLUMN_DTYPES,
    STORED_DTYPES,
    Columns,
    check_columns,
    check_finite,
    check_metadata,
)
from latent_mixup.files import Field, FileEntry, is_count
from latent_mixup.labels import MAX_CLASSES, count_classes

FORMAT_VERSION = 3
INDEX_FILE = hub.MAIN_FILE["bank"]
_LABEL_DTYPES = {"int64": torch.int64, "float32": torch.float32}
_OWN_GLOB = "bank-*.safetensors"
_SET_ASIDE_FILE = "bank-set-aside.safetensors"
_MANY_SET_ASIDE = 10_000  # images; more are not kept in the index


class BankFormatError(files.FormatError):
    """A bank's folder is not as the format requires; the message names the file and the field."""


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """A check that a file fails raises ``BankFormatError`` with the file's name in the place of ``ValueError``."""
    try:
        yield
    except BankFormatError:
        raise
    except ValueError as cause:
        raise BankFormatError(f"{path}: {cause}") from cause


@dataclass(frozen=True)
class Content:
    """What a bank's digest covers: its columns, and its codes, which are read a few rows at a time.

    Args:
        latent_shape: Shape of one code.
        columns: Everything but the codes.
        read: A slice of rows => their codes, ``[B, *latent_shape]`` float32.
    """

    latent_shape: tuple[int, ...]
    columns: Columns
    read: Callable[[slice], Tensor]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.columns["labels"])

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All codes in order, some at a time, each time with the row they start at."""
        for start in range(0, self.num_rows, CHUNK_ROWS):
            yield start, self.read(slice(start, start + CHUNK_ROWS))


def digest_of(content: Content, dtype: torch.dtype) -> str:
    """SHA-256 over shape, columns and codes, the codes rounded to ``dtype``."""
    sha = hashlib.sha256(str(content.latent_shape).encode())
    for name, column in sorted(content.columns.items()):
        sha.update((name if column.ndim == 1 else f"{name} {list(column.shape)}").encode())
        sha.update(column.contiguous().numpy().data)
    for _, latents in content.chunks():
        sha.update(latents.to(dtype).float().contiguous().numpy().data)
    return sha.hexdigest()


def _least_version(labels: Tensor) -> int:
    """The first format version that can hold these labels."""
    return 2 if labels.is_floating_point() or bool((labels < 0).any()) else 1


# --------------------------------------------------------------------------------------------------
# The index
# --------------------------------------------------------------------------------------------------


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def _are_columns(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name in COLUMN_DTYPES for name in value)
        and len(set(value)) == len(value)
        and {"labels", "source_index"} <= set(value)
    )


_FIELDS = {
    "digest": Field(files.is_sha256, "64 hexadecimal digits"),
    "num_rows": Field(lambda v: is_count(v) and v < 2**48, "a positive integer"),
    "latent_shape": Field(lambda v: _are_counts(v) and 1 <= len(v) <= 8 and max(v) < 2**32, "1 to 8 positive integers"),
    "dtype": Field(lambda v: isinstance(v, str) and v in STORED_DTYPES, " or ".join(STORED_DTYPES)),
    "columns": Field(_are_columns, f"labels, source_index and some of {', '.join(COLUMN_DTYPES)}"),
    "label_dtype": Field(lambda v: isinstance(v, str) and v in _LABEL_DTYPES, " or ".join(_LABEL_DTYPES), since=2),
    "label_shape": Field(_are_counts, "[] or [num_classes]", since=2),
    "num_classes": Field(
        lambda v: v is not False and (v == 0 or is_count(v)) and v <= MAX_CLASSES, f"an integer from 0 to {MAX_CLASSES}"
    ),
    "rows_per_shard": Field(lambda v: is_count(v) and v < 2**48, "a positive integer"),
    "files": Field(lambda v: isinstance(v, list) and bool(v), "a list of files"),
    "set_aside": Field(lambda v: isinstance(v, dict), "name, size and sha256", since=3),
    "metadata": Field(lambda v: isinstance(v, dict), "an object"),
}


@dataclass(frozen=True, kw_only=True)
class Index:
    """``bank.index.json``, checked: its fields, in the order they are written, if they belong to its version."""

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
    files: tuple[FileEntry, ...]
    set_aside: FileEntry | None = None
    metadata: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> Index:
        """Read and check the index of a folder.

        Raises:
            BankFormatError: A field is missing, unknown or wrong, or the version is a later one.
        """
        wrote, error = "LatentBank.save_pretrained wrote", BankFormatError
        found = files.read_index(folder, INDEX_FILE, _FIELDS, FORMAT_VERSION, wrote=wrote, error=error, missing=error)
        path = folder / INDEX_FILE
        entries = tuple(FileEntry.read(path, f"files[{i}]", entry, error) for i, entry in enumerate(found["files"]))
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        with _faults_of(path):
            metadata = check_metadata(found["metadata"])
        aside = FileEntry.read(path, "set_aside", found["set_aside"], error) if "set_aside" in found else None
        index = Index(**{**found, **lists, "files": entries, "set_aside": aside, "metadata": metadata})
        index.check(path)
        return index

    def check(self, path: Path) -> None:
        """Raise ``BankFormatError`` where fields contradict each other."""
        label_shape = (self.num_classes,) if self.label_dtype == "float32" else ()
        if self.label_shape != label_shape:
            what = f"{list(label_shape)} for {self.label_dtype} and {self.num_classes} classes"
            raise files.wrong_field(path, "label_shape", what, list(self.label_shape), BankFormatError)
        if len(self.files) != self.num_shards:
            what = f"{self.num_shards} for {self.num_rows} rows by {self.rows_per_shard}"
            raise files.wrong_field(path, "files", what, len(self.files), BankFormatError)
        if len({file.name for file in self.all_files}) != len(self.all_files):
            raise files.wrong_field(path, "files", "each name once", "a name twice", BankFormatError)
        row_bytes = prod(self.latent_shape) * STORED_DTYPES[self.dtype].itemsize
        for number, file in enumerate(self.files):
            least = self.rows_in(number) * row_bytes
            if file.size < least:
                raise files.wrong_field(path, f"files[{number}].size", f"at least {least}", file.size, BankFormatError)
            if not file.name.endswith(".safetensors"):
                raise files.wrong_field(
                    path, f"files[{number}].name", "a .safetensors file", file.name, BankFormatError
                )

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """The files that the index names."""
        return self.files if self.set_aside is None else (*self.files, self.set_aside)

    @property
    def num_shards(self) -> int:
        """Number of files that hold all rows."""
        return -(-self.num_rows // self.rows_per_shard)

    def rows_in(self, number: int) -> int:
        """Rows of shard ``number``: all shards have as many, but for the last."""
        return min(self.rows_per_shard, self.num_rows - number * self.rows_per_shard)

    def label_of(self, number: int) -> dict[str, Any]:
        """The header of shard ``number``, by which shards of other banks or places are noticed."""
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
        since = {name: field.since for name, field in _FIELDS.items()}
        names = [field.name for field in fields(Index) if since.get(field.name, 1) <= self.format_version]
        values = asdict(self)
        return (json.dumps({name: values[name] for name in names}, indent=2, allow_nan=False) + "\n").encode()


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def needed_shards(index: Path) -> list[hub.Needed]:
    """What a bank needs beside its index, before any of it is downloaded.

    Raises:
        BankFormatError: The index is not as the format requires.
    """
    return [hub.Needed(file.name, file.size, file.sha256) for file in Index.read(index.parent).all_files]


class Shards:
    """The files of a bank's folder, mmapped; pickles as the folder, and opens it again when first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index.read(folder)

    @staticmethod
    def open(folder: Path, *, verify: bool = False) -> Shards:
        """Open and check a folder, also while another process replaces the bank in it.

        Args:
            folder: With an index and the shards it names.
            verify: Read every byte: compare each file's SHA-256 and look for NaN.

        Raises:
            BankFormatError: It holds no bank that this version reads.
        """

        def read() -> Shards:
            shards = Shards(folder)
            if verify:
                shards.verify()
            shards.columns, shards.metadata  # noqa: B018 - opens and checks every file
            return shards

        return files.settled(folder / INDEX_FILE, read)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.index.digest, self.index.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all codes, ``[N, *latent_shape]``."""
        return (self.index.num_rows, *self.index.latent_shape)

    @property
    def dtype(self) -> torch.dtype:
        """How the codes are stored."""
        return STORED_DTYPES[self.index.dtype]

    @cached_property
    def columns(self) -> Columns:
        """Everything but the codes, in memory, checked."""
        joined = {name: torch.cat([part[name] for part in self.parts]) for name in self.index.columns}
        with _faults_of(self.folder):
            columns = check_columns(joined, self.index.num_rows, self.index.metadata)
            if (needed := _least_version(columns["labels"])) > self.index.format_version:
                row = int((columns["labels"] < 0).nonzero()[0])
                raise ValueError(f"labels needs numbers from 0 before format_version {needed}: row {row} has -1")
            count_classes(columns["labels"], self.index.num_classes)
        return columns

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The bank's metadata, checked, with the images that were set aside."""
        if (file := self.index.set_aside) is None:
            return self.index.metadata
        path = files.part_path(self.folder, file, INDEX_FILE, BankFormatError)
        with _faults_of(path), files.open_tensors(path, BankFormatError) as opened:
            return check_metadata({**self.index.metadata, "set_aside": _read_errors(opened)})

    @cached_property
    def parts(self) -> list[Columns]:
        """The tensors of all shards, mmapped, after sizes and headers were compared with the index."""
        return files.settled(
            self.folder / INDEX_FILE, lambda: [self._open(number) for number in range(len(self.index.files))]
        )

    def latents(self, rows: Tensor) -> Tensor:
        """Codes of the rows ``[B]``: ``[B, *latent_shape]`` float32."""
        sizes = [self.index.rows_in(number) for number in range(len(self.parts))]
        return _gather(rows, sizes, self.index.latent_shape, lambda number: self.parts[number]["latents"])

    def verify(self) -> None:
        """Read every byte: SHA-256 of each file, finite codes."""
        paths = [
            files.part_path(self.folder, file, INDEX_FILE, BankFormatError, verify=True)
            for file in self.index.all_files
        ]
        for path, part in zip(paths, self.parts, strict=False):
            with _faults_of(path):
                check_finite(part["latents"])

    def _open(self, number: int) -> Columns:
        path = files.part_path(self.folder, self.index.files[number], INDEX_FILE, BankFormatError)
        tensors, label = self.index.tensors_in(number), self.index.label_of(number)
        try:
            with files.open_tensors(path, BankFormatError) as opened:
                files.check_tensors(path, opened, tensors, BankFormatError)
                found = (opened.metadata() or {}).get("latent_mixup")
                if found != json.dumps(label):
                    raise BankFormatError(
                        f"{path} is not shard {number} of this bank: expected {label} in its header, found "
                        f"{found!r:.200}: the files were swapped or mixed with another bank's"
                    )
                return {name: opened.get_tensor(name) for name in tensors}
        except OSError as cause:
            raise BankFormatError(f"{path} cannot be read: {cause}") from cause


def _error_tensors(errors: Mapping[str, str]) -> dict[str, Tensor]:
    """Images set aside, as a file holds them: source indices, the ends of their errors, and these as UTF-8."""
    texts = [error.encode() for error in errors.values()]
    return {
        "source_index": torch.tensor(list(map(int, errors)), device="cpu"),
        "ends": torch.tensor(list(map(len, texts)), device="cpu").cumsum(0),
        "errors": torch.frombuffer(bytearray(b"".join(texts)) or bytearray(b"\n"), dtype=torch.uint8),
    }


def _read_errors(opened: Any) -> dict[str, str]:
    """The way back; raises ``ValueError`` where the tensors do not fit."""
    if set(opened.keys()) != {"source_index", "ends", "errors"}:
        raise ValueError(f"expected the tensors source_index, ends and errors: found {sorted(opened.keys())!r:.200}")
    index, ends, text = (opened.get_tensor(name) for name in ("source_index", "ends", "errors"))
    if index.dtype != torch.int64 or ends.dtype != torch.int64 or text.dtype != torch.uint8:
        raise ValueError("source_index and ends need int64, errors uint8")
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]) if ends.ndim == 1 else ends
    if index.ndim != 1 or index.shape != ends.shape or text.ndim != 1 or (ends < starts).any() or ends[-1] > len(text):
        raise ValueError("ends need one position in errors for each source_index, ascending")
    content = text.numpy().tobytes()
    texts = [content[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return dict(zip(map(str, index.tolist()), texts, strict=True))


@dataclass(frozen=True)
class CodeFiles:
    """Codes that lie in several safetensors files, as ``latents`` in each; opened when rows of them are asked for.

    Args:
        files: In the order of their rows.
        rows: Number of rows of each.
        latent_shape: Shape of one code.
        columns: Everything but the codes, of all files together.
    """

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    latent_shape: tuple[int, ...]
    columns: Columns

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.files[0].parent

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all codes, ``[N, *latent_shape]``."""
        return (sum(self.rows), *self.latent_shape)

    @property
    def dtype(self) -> torch.dtype:
        """How the codes are handed out."""
        return torch.float32

    def latents(self, rows: Tensor) -> Tensor:
        """Codes of the rows ``[B]``: ``[B, *latent_shape]`` float32."""
        return _gather(rows, self.rows, self.latent_shape, self._read)

    def _read(self, number: int) -> Tensor:
        with files.open_tensors(self.files[number]) as opened:
            return cast(Tensor, opened.get_tensor("latents"))


def _gather(
    rows: Tensor, sizes: Sequence[int], latent_shape: tuple[int, ...], codes_of: Callable[[int], Tensor]
) -> Tensor:
    """Codes of the rows ``[B]`` in float32, out of files of so many rows each."""
    if len(sizes) == 1:
        return codes_of(0)[rows].float()
    ends = torch.tensor(sizes, device="cpu").cumsum(0)
    file = torch.searchsorted(ends, rows, right=True)
    found = torch.empty(len(rows), *latent_shape, dtype=torch.float32, device="cpu")
    for number in torch.bincount(file).nonzero()[:, 0].tolist():
        here = file == number
        found[here] = codes_of(number)[rows[here] - (ends[number] - sizes[number])].float()
    return found


def _reopen(folder: Path, digest: str, dtype: str) -> Shards:
    shards = Shards(folder)
    if (shards.index.digest, shards.index.dtype) != (digest, dtype):
        raise BankFormatError(
            f"{folder / INDEX_FILE} was replaced by another bank since this one was opened: open it again"
        )
    return shards


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
        metadata: JSON values.
        dtype: One of ``STORED_DTYPES``.
        max_shard_bytes: Codes and soft labels are split into files of at most this size (one row at least).
        beside: Files that are no part of the bank, such as its card: name => content.

    Raises:
        ValueError: A code does not fit in float16, or the format cannot hold the bank; nothing was written.
    """
    if dtype == torch.float16:
        _check_float16(content)
    set_aside: dict[str, str] = {}
    if len(metadata.get("set_aside", {})) > _MANY_SET_ASIDE:
        metadata = metadata.copy()
        set_aside = metadata.pop("set_aside")
    index = _index_of(content, num_classes, metadata, dtype, max_shard_bytes)
    if set_aside:
        index = replace(index, format_version=3)

    def write_shard(number: int, path: Path) -> None:
        rows = slice(start := number * index.rows_per_shard, start + index.rows_in(number))
        columns = {name: content.columns[name][rows].clone() for name in index.columns}
        files.save_tensors(path, {"latents": content.read(rows).to(dtype), **columns}, index.label_of(number))

    def described(entries: tuple[FileEntry, ...]) -> Index:
        shards = entries[: index.num_shards]
        return replace(index, files=shards, set_aside=entries[-1] if set_aside else None)

    names = [f"bank-{number:05d}-of-{index.num_shards:05d}.safetensors" for number in range(index.num_shards)]
    parts: dict[str, files.Writer] = {name: partial(write_shard, number) for number, name in enumerate(names)}
    if set_aside:
        parts[_SET_ASIDE_FILE] = lambda path: files.save_tensors(path, _error_tensors(set_aside))
    _check_readable(described(tuple(FileEntry(name, 2**62, "0" * 64) for name in parts)))
    files.write_indexed(
        folder, parts, INDEX_FILE, lambda entries: described(entries).to_bytes(), beside=beside, owns=_OWN_GLOB
    )


def _check_readable(index: Index) -> None:
    """Raise ``ValueError`` where no index like this could be read again."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / INDEX_FILE).write_bytes(index.to_bytes())
        try:
            Index.read(Path(folder))
        except BankFormatError as cause:
            wrong = str(cause).replace(str(Path(folder) / INDEX_FILE), INDEX_FILE)
            raise ValueError(f"a bank's folder cannot hold this bank: {wrong}") from None


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
    """The index without its files, whose entries are known once they are written."""
    labels = content.columns["labels"]
    row_bytes = prod(content.latent_shape) * dtype.itemsize + (labels[0].nbytes if labels.ndim == 2 else 0)
    return Index(
        format_version=_least_version(labels),
        digest=digest_of(content, dtype),
        num_rows=content.num_rows,
        latent_shape=content.latent_shape,
        dtype=str(dtype).removeprefix("torch."),
        columns=tuple(name for name in COLUMN_DTYPES if name in content.columns),
        label_dtype=str(labels.dtype).removeprefix("torch."),
        label_shape=tuple(labels.shape[1:]),
        num_classes=num_classes,
        rows_per_shard=min(content.num_rows, max(1, max_shard_bytes // row_bytes)),
        files=(),
        metadata=metadata,
    )
