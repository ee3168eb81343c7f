"""Stopping and going on: what a run of training writes, and when it takes it up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from tqdm import tqdm

from latent_mixup import files

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.json"
# what torch makes of a file that is cut, overwritten or no checkpoint at all
BROKEN = (RuntimeError, EOFError, UnpicklingError, LookupError, TypeError, ValueError, AttributeError)


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state a run in ``folder`` left behind, or None where there is none.

    Args:
        folder: Of the run.
        identity: What decides the result of the run; the checkpoint's key ``"identity"`` has to be the same.

    Raises:
        ValueError: The file is broken, no checkpoint of this module's, or of another run.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as cause:
        problem = f"{type(cause).__name__}: {cause}"
        raise ValueError(f"{path} is no whole checkpoint: remove it to start again ({problem})") from cause
    found = state.get("identity") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not say what run it is of: choose another folder, or remove it to start again")
    wrong = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
    if wrong:
        raise ValueError(
            f"the checkpoint in {folder} was made with another {' and '.join(wrong)}: expected "
            f"{[identity.get(key) for key in wrong]}, found {[found.get(key) for key in wrong]}; "
            "choose another folder, or the same settings"
        )
    return state


def write_checkpoint(folder: Path, state: dict[str, Any], sheet: bytes) -> None:
    """Write a run's state, its sheet ``sheet-STEP.png`` and, where it keeps one, its log; all of them or none.

    Args:
        folder: Of the run.
        state: With ``"identity"``, as :func:`read_checkpoint` compares it, ``"step"``, and perhaps ``"log"``.
        sheet: A PNG.
    """
    log = {LOG_FILE: (json.dumps(state["log"], indent=1) + "\n").encode()} if "log" in state else {}
    sheets = {f"sheet-{state['step']:06d}.png": sheet}
    files.write_folder(folder, {**sheets, **log, CHECKPOINT_FILE: lambda path: torch.save(state, path)})


class Stepping(Protocol):
    """A run that knows how many steps it has taken."""

    step: int


def checkpoints_due(
    training: Stepping, steps: int, advance: Callable[[], dict[str, float]], *, every: int, progress: bool
) -> Iterator[tuple[dict[str, float], Any]]:
    """Take a run to its last step under a progress bar, and stop wherever a checkpoint is due.

    Args:
        training: Says where the run is; ``advance`` moves it on.
        steps: The last.
        advance: Takes one step and gives its losses.
        every: Steps between two checkpoints; the last step has one as well.
        progress: Show the bar.

    Yields:
        The losses of the step, and the bar, for a postfix.
    """
    with tqdm(initial=training.step, total=steps, desc="train", unit="step", disable=None if progress else True) as bar:
        while training.step < steps:
            losses = advance()
            bar.update()
            if training.step % every == 0 or training.step == steps:
                yield losses, bar
