"""A run's chunks as rows of a bank: how they are packed, counted, joined and saved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.bank.files import INDEX_FILE, BankFormatError, CodeFiles
from latent_mixup.runs import ChunkFolder, Chunks, Meter, Tensors, stoppable

RUN_FILE = "inversion.json"
OK, FAILED = 0, 1  # status of a row: 1 where no finite loss was found
ERRORS = "errors"  # JSON, as bytes
REQUIRED = {"latents", "labels", "source_index", "mse", "status"}
MIN_LOOKED_AT, MAX_SET_ASIDE = 64, 0.5  # after so many images, a greater share of unusable ones ends the run early
BANK_FILE_BYTES = 256 * 1024**2  # of a bank that is put together: so much of it is in memory at a time


@dataclass(frozen=True)
class Found:
    """The rows of several chunks, in order.

    Attributes:
        latents: ``[N, *latent_shape]``; or files, from which they are read when they are asked for.
        columns: The other columns.
        errors: Index to one line, of each image that could not be read.
    """

    latents: Tensor | CodeFiles
    columns: Tensors
    errors: dict[int, str]


def pack(columns: Tensors, errors: dict[int, str]) -> Tensors:
    """Columns of a bank, a row for each readable image by ascending source index, and the errors of the others."""
    text = torch.tensor(list(json.dumps(errors).encode()), dtype=torch.uint8, device="cpu")
    return {**columns, ERRORS: text} if errors else columns


def errors_of(chunk: Tensors) -> dict[int, str]:
    """The errors of a chunk's images, by index."""
    said = json.loads(bytes(chunk[ERRORS].tolist())) if ERRORS in chunk else {}
    return {int(index): error for index, error in said.items()}


def folder_of_run(out: Path, facts: dict[str, Any], chunks: Sequence[Sequence[int]], resume: bool) -> ChunkFolder:
    """The folder of a run whose chunks have these indices, ascending in each.

    Raises:
        ValueError: The folder holds a run with other settings, or a bank and no run.
        OSError: The folder cannot be written to.
    """

    def check(number: int, chunk: Tensors) -> bool:
        columns = {name: column for name, column in chunk.items() if name != ERRORS}
        if not columns.keys() >= REQUIRED or len({len(column) for column in columns.values()}) != 1:
            return False
        return sorted([*columns["source_index"].tolist(), *errors_of(chunk)]) == list(chunks[number])

    return ChunkFolder(out, facts, len(chunks), run_file=RUN_FILE, result_file=INDEX_FILE, resume=resume, check=check)


def join(store: Chunks, numbers: Sequence[int]) -> Found:
    """The rows of some finished chunks, in order; codes in a folder stay in their files until they are asked for.

    Raises:
        ValueError: A chunk is missing or broken.
    """
    codes: list[Tensor] = []
    parts: list[Tensors] = []
    errors: dict[int, str] = {}
    shape = torch.Size()
    for number in numbers:
        chunk = store.read(number)
        if chunk is None:
            assert isinstance(store, ChunkFolder)
            raise ValueError(f"{store.path(number)} is broken: run it again, it does this chunk anew")
        errors |= errors_of(chunk)
        shape = chunk["latents"].shape[1:]
        if not isinstance(store, ChunkFolder):
            codes.append(chunk["latents"])
        # copies, so that the mmapped file can be closed
        parts.append({name: column.clone() for name, column in chunk.items() if name not in ("latents", ERRORS)})
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not isinstance(store, ChunkFolder):
        return Found(torch.cat(codes), columns, errors)
    paths = tuple(store.path(number).absolute() for number in numbers)
    rows = tuple(len(part["source_index"]) for part in parts)
    return Found(CodeFiles(paths, rows, tuple(shape), columns), columns, errors)


class CodeMeter(Meter):
    """Counts what a run does, and shows images a second, the mean mse and the time left.

    Args:
        show: Show a bar on a terminal, elsewhere a line a minute.

    Attributes:
        images: Images of this shard that are done, with those of earlier runs.
        solved: Images that this run did.
        set_aside: Images that could not be used.
        seconds: Duration of this run.
    """

    def __init__(self, show: bool = True) -> None:
        super().__init__(show)
        self.set_aside = 0
        self._first_error: tuple[int, str] | None = None
        self._mse_sum, self._mse_rows = 0.0, 0

    def count(self, chunk: Tensors) -> None:
        """One more finished chunk."""
        mse, errors = chunk["mse"].double(), errors_of(chunk)
        mse = mse[mse.isfinite()]
        self._mse_sum += float(mse.sum())
        self._mse_rows += len(mse)
        self.set_aside += len(errors)
        if errors:
            self._first_error = min([*errors.items(), *([self._first_error] if self._first_error else [])])

    def note(self) -> str:
        """The mean mse; raises ``ValueError`` if most images so far could not be used."""
        if self.images >= MIN_LOOKED_AT:
            self.check()
        return f"mean mse {self.mean_mse:.4f}" if self.images > self.set_aside else ""

    def warn(self, consequence: str, stacklevel: int) -> None:
        """Warn once of the images that were set aside, if there are any."""
        if self._first_error:
            warnings.warn(f"{self._unused()}; {consequence}", stacklevel=stacklevel + 1)

    def check(self) -> None:
        """Raise ``ValueError`` if most images of this shard could not be used."""
        if self._first_error and self.set_aside > MAX_SET_ASIDE * self.images:
            raise ValueError(
                f"{self._unused()}; these are more than {MAX_SET_ASIDE:.0%}: repair the data set, then run it again"
            )

    def _unused(self) -> str:
        assert self._first_error
        index, error = self._first_error
        return f"{self.set_aside:,} of {self.images:,} images cannot be used; the first, image {index}: {error}"

    @property
    def mean_mse(self) -> float:
        """Mean mse of the rows so far, of the finite ones; NaN if there is none."""
        return self._mse_sum / self._mse_rows if self._mse_rows else float("nan")


def save_bank(bank: LatentBank, store: ChunkFolder) -> LatentBank:
    """Save the bank of a finished run in its folder, unless it is there already, and open it.

    Raises:
        OSError: The folder cannot be written to, or has no room; the chunks stay.
    """
    if not _holds(store.folder, bank):
        with stoppable(store.what_is_done), store.saying_what_is_done():
            bank.save_pretrained(store.folder, dtype=torch.float32, max_shard_bytes=BANK_FILE_BYTES)
    store.sweep()
    return LatentBank.from_pretrained(store.folder)


def _holds(folder: Path, bank: LatentBank) -> bool:
    """Whether a folder holds this bank whole: equal columns and metadata, except for versions and the command."""
    if not (folder / "README.md").exists():  # written last
        return False
    try:
        found = LatentBank.from_pretrained(folder)
    except (BankFormatError, OSError):
        return False
    for name in ("labels", "source_index", "mse", "lpips", "status"):
        first, second = getattr(found, name), getattr(bank, name)
        if first is not second and (first is None or second is None or not first.equal(second)):
            return False
    stated = [{k: v for k, v in b.metadata.items() if k not in ("versions", "command")} for b in (found, bank)]
    return stated[0] == stated[1]
