"""The finished chunks of an inversion, and the settings they were made with: what a killed run resumes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latent_mixup import hub

RUN_FILE = "inversion.json"
COLUMNS = {"latents", "labels", "source_index", "mse", "status"}
ERRORS = "errors"  # JSON, as bytes


@dataclass(frozen=True)
class Chunk:
    """What became of some consecutive samples.

    Attributes:
        columns: A bank's columns, a row for each image that could be read.
        errors: Index to one line, of the images that could not.
    """

    columns: dict[str, Tensor]
    errors: dict[int, str]


class ChunkFolder:
    """One file a chunk of consecutive samples, each written whole or not at all.

    Args:
        folder: Of the run.
        facts: What decides the result; a run that resumes has to agree with the earlier one.
        chunks: The indices of each chunk.
        resume: Keep what is there.

    Raises:
        ValueError: The folder holds a run with other facts.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], chunks: list[range], *, resume: bool) -> None:
        self.folder, self.chunks = folder, chunks
        if resume and (folder / RUN_FILE).is_file():
            self._agree(json.loads(json.dumps(facts)))
        else:
            self._start(facts)

    def _start(self, facts: dict[str, Any]) -> None:
        for stale in (self.folder / "chunks").glob("chunk-*.safetensors"):
            stale.unlink(missing_ok=True)
        hub.write_folder(self.folder, {RUN_FILE: (json.dumps(facts, indent=2) + "\n").encode()})

    def _agree(self, facts: dict[str, Any]) -> None:
        earlier = hub.read_json(self.folder / RUN_FILE)
        wrong = differences(earlier, facts)
        if wrong:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({'; '.join(wrong)}): choose another out=, "
                "or resume=False to start again"
            )

    def read(self, number: int) -> Chunk | None:
        """A finished chunk; None where there is none, or a broken one that has to be done again."""
        try:
            columns = load_file(self._path(number)) if self._path(number).is_file() else {}
            said = json.loads(bytes(columns.pop(ERRORS, torch.empty(0)).tolist()) or b"{}")
            chunk = Chunk(columns, {int(index): error for index, error in said.items()})
        except (SafetensorError, ValueError, TypeError, AttributeError):
            return None
        if set(columns) != COLUMNS or len({len(column) for column in columns.values()}) != 1:
            return None
        done = sorted([*columns["source_index"].tolist(), *chunk.errors])
        return chunk if done == list(self.chunks[number]) else None

    def write(self, number: int, chunk: Chunk) -> None:
        """Write a chunk; a kill leaves it whole or absent."""
        path = self._path(number)
        columns = dict(chunk.columns)
        if chunk.errors:
            columns[ERRORS] = torch.tensor(list(json.dumps(chunk.errors).encode()), dtype=torch.uint8)
        hub.write_folder(path.parent, {path.name: lambda target: hub.save_tensors(target, columns)})

    def complete(self) -> bool:
        """Whether a file of every chunk is there, whoever wrote it."""
        return all(self._path(number).is_file() for number in range(len(self.chunks)))

    def read_all(self) -> list[Chunk]:
        """Every chunk, in order.

        Raises:
            ValueError: One of them is broken.
        """
        found = []
        for number in range(len(self.chunks)):
            chunk = self.read(number)
            if chunk is None:
                raise ValueError(f"{self._path(number)} is broken: run invert again, it does this chunk anew")
            found.append(chunk)
        return found

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
