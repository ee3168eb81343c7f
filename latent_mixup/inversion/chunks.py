"""The finished chunks of a run, and the settings they were made with: what a killed run resumes from."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latent_mixup import files
from latent_mixup.bank.files import INDEX_FILE, Parts

RUN_FILE = "inversion.json"
COLUMNS = {"latents", "labels", "source_index", "mse", "status"}  # at least
OK, FAILED = 0, 1  # status of a row: 1 where no finite loss was found
ERRORS = "errors"  # JSON, as bytes


@dataclass(frozen=True)
class Chunk:
    """What became of some samples.

    Attributes:
        columns: A bank's columns, a row for each image that could be read, by ascending source index.
        errors: Index to one line, of the images that could not.
    """

    columns: dict[str, Tensor]
    errors: dict[int, str]


@dataclass(frozen=True)
class Found:
    """The rows of several chunks, in order.

    Attributes:
        latents: ``[N, *latent_shape]``; or files, from which they are read when they are asked for.
        columns: The other columns.
        errors: Of all chunks.
    """

    latents: Tensor | Parts
    columns: dict[str, Tensor]
    errors: dict[int, str]


def join(chunks: Sequence[Chunk]) -> Found:
    """The rows of chunks in memory."""
    columns, errors = _join_columns(chunks)
    return Found(torch.cat([chunk.columns["latents"] for chunk in chunks]), columns, errors)


class ChunkFolder:
    """One file a chunk, each written whole or not at all.

    Args:
        folder: Of the run.
        facts: What decides the result; a run that resumes has to agree with the earlier one.
        chunks: The indices of each chunk, ascending.
        resume: Keep what is there.

    Raises:
        ValueError: The folder holds a run with other facts, or a bank and no run.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], chunks: Sequence[Sequence[int]], *, resume: bool = True
    ) -> None:
        self.folder, self.chunks = folder, chunks
        self._run = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        if resume and (folder / RUN_FILE).is_file():
            self._agree(json.loads(json.dumps(facts)))
        else:
            self._start(facts, resume)

    def _start(self, facts: dict[str, Any], resume: bool) -> None:
        if resume and (self.folder / INDEX_FILE).exists():
            raise ValueError(
                f"{self.folder} holds a bank, but no run to go on with: choose another out=, "
                "or resume=False to replace it"
            )
        for stale in () if resume else (self.folder / "chunks").glob("chunk-*.safetensors"):
            stale.unlink(missing_ok=True)
        try:
            files.write_folder(self.folder, {RUN_FILE: (json.dumps(facts, indent=2) + "\n").encode()})
        except OSError as cause:
            raise OSError(f"cannot write into {self.folder}: {cause}; choose another out=") from cause

    def _agree(self, facts: dict[str, Any]) -> None:
        earlier = files.read_json(self.folder / RUN_FILE)
        wrong = differences(earlier, facts)
        if wrong:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({'; '.join(wrong)}): choose another out=, "
                "or resume=False to start again"
            )

    def check_writable(self) -> None:
        """Raise ``OSError`` where no chunk could be written; a run asks before its first step."""
        try:
            path = self._path(0).parent
            path.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"0")
        except OSError as cause:
            raise OSError(f"cannot write into {path}: {cause}; choose another out=") from cause

    def read(self, number: int) -> Chunk | None:
        """A finished chunk, mmapped; None where there is none, or one that has to be done again.

        That is a broken one, and one of another run.
        """
        path = self._path(number)
        try:
            with safe_open(path, framework="pt") as opened:
                if not self._is_ours(opened):
                    return None
                columns = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            said = json.loads(bytes(columns.pop(ERRORS, torch.empty(0)).tolist()) or b"{}")
            chunk = Chunk(columns, {int(index): error for index, error in said.items()})
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError):
            return None
        if not columns.keys() >= COLUMNS or len({len(column) for column in columns.values()}) != 1:
            return None
        done = sorted([*columns["source_index"].tolist(), *chunk.errors])
        return chunk if done == list(self.chunks[number]) else None

    def write(self, number: int, chunk: Chunk) -> None:
        """Write a chunk; a kill leaves it whole or absent.

        Raises:
            OSError: There is no room, or the folder cannot be written to.
        """
        path = self._path(number)
        columns = dict(chunk.columns)
        if chunk.errors:
            columns[ERRORS] = torch.tensor(list(json.dumps(chunk.errors).encode()), dtype=torch.uint8)
        files.write_folder(
            path.parent, {path.name: lambda target: files.save_tensors(target, columns, {"run": self._run})}
        )

    def finished(self) -> int:
        """How many chunks of this run are there, whoever wrote them, by the headers of their files."""
        return sum(self._is_there(number) for number in range(len(self.chunks)))

    def join(self, numbers: Iterable[int]) -> Found:
        """The rows of some chunks, in order; codes stay in the files until they are asked for.

        Raises:
            ValueError: One of them is missing or broken.
        """
        chunks, paths, shape = [], [], torch.Size()
        for number in numbers:
            chunk = self.read(number)
            if chunk is None:
                raise ValueError(f"{self._path(number)} is broken: run it again, it does this chunk anew")
            shape = chunk.columns["latents"].shape[1:]
            chunks.append(Chunk(_without_codes(chunk), chunk.errors))
            paths.append(self._path(number).absolute())
        columns, errors = _join_columns(chunks)
        rows = tuple(len(chunk.columns["source_index"]) for chunk in chunks)
        return Found(Parts(tuple(paths), rows, tuple(shape), columns), columns, errors)

    def sweep(self) -> None:
        """Remove what killed processes left."""
        for folder in (self.folder, self._path(0).parent):
            files.sweep(folder)

    def _is_there(self, number: int) -> bool:
        try:
            with safe_open(self._path(number), framework="pt") as opened:
                return self._is_ours(opened)
        except (SafetensorError, OSError):
            return False

    def _is_ours(self, opened: Any) -> bool:
        return bool((opened.metadata() or {}).get("latent_mixup") == json.dumps({"run": self._run}))

    def _path(self, number: int) -> Path:
        return self.folder / "chunks" / f"chunk-{number:05d}.safetensors"


def differences(earlier: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two nested settings differ, each as ``key: earlier there, now here``."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        old, new = earlier.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r:.80} there, {new!r:.80} here")
    return found


def _join_columns(chunks: Sequence[Chunk]) -> tuple[dict[str, Tensor], dict[int, str]]:
    """The columns of chunks but for their codes, and their errors."""
    columns = {name: torch.cat([chunk.columns[name] for chunk in chunks]) for name in _without_codes(chunks[0])}
    return columns, {index: error for chunk in chunks for index, error in chunk.errors.items()}


def _without_codes(chunk: Chunk) -> dict[str, Tensor]:
    """Copies, so that the file of an mmapped chunk can be closed."""
    return {name: column.clone() for name, column in chunk.columns.items() if name != "latents"}
