"""Checkpoints: one file with everything that the next step of a training depends on.

Equal states give equal bytes, whether or not the training was interrupted on the way.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files
from latent_mixup.runs import differences

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.json"
FORMAT_VERSION = 2  # checkpoints of 0.1.0 have none; their random streams were others
# what torch.load raises for a file that is cut, overwritten or no checkpoint at all
BROKEN = (RuntimeError, OSError, EOFError, UnpicklingError, LookupError, TypeError, ValueError, AttributeError)


def read_checkpoint(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that a training left in ``folder``, or None where there is none.

    Args:
        folder: Folder of the run.
        identity: Everything that decides the result of the training; has to equal the checkpoint's ``"identity"``.

    Raises:
        ValueError: The file is broken, no checkpoint, of an older version, or of another training.
        OSError: The file cannot be read.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except BROKEN as cause:
        problem = f"{type(cause).__name__}: {cause}"
        raise ValueError(f"{path} is not a whole checkpoint: remove it to start again ({problem})") from cause
    found = state.get("identity") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not name its training: choose another folder, or remove it to start again")
    if state.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} needs format_version {FORMAT_VERSION}: got {state.get('format_version')!r:.40}, of another "
            "version of latent-mixup, which draws other random numbers; finish the training with that version, or "
            "remove the file to start again"
        )
    wrong = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
    if wrong:
        raise ValueError(
            f"the checkpoint in {folder} was made with another {' and '.join(wrong)} "
            f"({'; '.join(differences(found, identity)):.1000}): choose another folder, or the same settings"
        )
    return dict(state)


def write_checkpoint(
    folder: Path, state: Mapping[str, Any], sheet: bytes, log: Sequence[Mapping[str, float]] | None = None
) -> None:
    """Write a training's state, its sheet ``sheet-STEP.png`` and its log; all of them or none.

    Args:
        folder: Folder of the run.
        state: Holds ``"identity"``, see :func:`read_checkpoint`, and ``"step"``.
        sheet: PNG of what the networks do at this step.
        log: A row of numbers for each checkpoint. It lies in a file of its own, since its seconds are never the same.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the checkpoint before this one stays.
    """
    content = canonical({"format_version": FORMAT_VERSION, **state})

    def write(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(content, file)

    logs = {} if log is None else {LOG_FILE: (json.dumps(log, indent=1) + "\n").encode()}
    try:
        files.write_folder(folder, {f"sheet-{state['step']:06d}.png": sheet, **logs, CHECKPOINT_FILE: write})
    except (OSError, RuntimeError) as cause:  # torch makes a RuntimeError of a full disk
        raise OSError(
            f"cannot write the checkpoint of step {state['step']:,} into {folder} ({cause}): make room for it and "
            "start again, which goes on from the checkpoint before it"
        ) from cause


def check_writable(folder: Path) -> None:
    """Raise ``OSError`` if no checkpoint could be written, before the first step is taken; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise OSError(f"cannot write into {folder} ({cause}): choose another folder") from cause


def read_log(folder: Path, last_step: int) -> list[dict[str, float]]:
    """The rows of a training's log up to ``last_step``, the step of its checkpoint.

    Raises:
        ValueError: The file is not a log.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    try:
        return [{**row} for row in json.loads(path.read_bytes()) if row["step"] <= last_step]
    except (ValueError, TypeError, LookupError, RecursionError) as cause:
        raise ValueError(f"{path} is not a training's log ({cause}): remove it to go on without it") from cause


def canonical(value: Any) -> Any:
    """A copy in which equal strings are one object, and nothing else is shared: pickle writes shared objects once."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {canonical(key): canonical(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(canonical, value))
    return sys.intern(value) if isinstance(value, str) else value
