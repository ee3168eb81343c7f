"""Stopping and going on: what a run of training writes, and when it takes it up again."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

CHECKPOINT_FILE = "checkpoint.pt"


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state a run in ``folder`` left behind, or None where there is none.

    Args:
        folder: Of the run.
        identity: What decides the result of the run; the checkpoint's key ``"identity"`` has to be the same.

    Raises:
        ValueError: The file is broken, or of another run.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as cause:
        raise ValueError(f"{path} is no whole checkpoint: remove it to start again ({cause})") from cause
    found = state["identity"]
    if found != identity:
        wrong = [key for key, value in identity.items() if found.get(key) != value]
        raise ValueError(
            f"the checkpoint in {folder} was made with another {' and '.join(wrong)}: expected "
            f"{[identity[key] for key in wrong]}, found {[found.get(key) for key in wrong]}; "
            "choose another folder, or the same settings"
        )
    return state
