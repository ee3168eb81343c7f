"""The Hub client's cache: which commit of which repository a folder of it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_mixup.files import snapshot_of

ORIGIN = "hub"
_REPOSITORY = re.compile(r"(?:models|datasets)--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)


def commit_of(folder: Path) -> str | None:
    """The commit hash of a folder that the Hub client downloaded; None for any other folder."""
    snapshot = snapshot_of(folder)
    return snapshot.name if snapshot else None


def origin_of(folder: Path) -> dict[str, str] | None:
    """Repository and commit of a folder that the Hub client downloaded; None for any other folder.

    Example:
        >>> origin_of(Path(f"models--org--gan/snapshots/{'0' * 40}"))["repo"]
        'org/gan'
    """
    snapshot = snapshot_of(folder)
    match = _REPOSITORY.fullmatch(snapshot.parent.parent.name) if snapshot else None
    return {"repo": f"{match['owner']}/{match['name']}", "commit": snapshot.name} if snapshot and match else None


def with_origin(metadata: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a file says of itself; of a folder from the Hub also ``"hub"``, its repository and commit."""
    origin = origin_of(folder)
    return {**metadata, ORIGIN: origin} if origin else dict(metadata)


def stated_origin(metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """Repository and commit that metadata name under ``"hub"``; None where they name none."""
    origin = metadata.get(ORIGIN)
    if not isinstance(origin, dict):
        return None
    repo, commit = origin.get("repo"), origin.get("commit")
    return {"repo": repo, "commit": commit} if isinstance(repo, str) and isinstance(commit, str) else None
