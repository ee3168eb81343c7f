"""The Hub client's cache: which commit of which repository a folder in it holds, and whether a file was changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_mixup.files import FormatError, sha256, snapshot_of

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
    """The metadata of a file; for a folder from the Hub with ``"hub"``, its repository and commit."""
    origin = origin_of(folder)
    return {**metadata, ORIGIN: origin} if origin else dict(metadata)


def stated_origin(metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """Repository and commit in ``metadata["hub"]``; None without them."""
    origin = metadata.get(ORIGIN)
    if not isinstance(origin, dict):
        return None
    repo, commit = origin.get("repo"), origin.get("commit")
    return {"repo": repo, "commit": commit} if isinstance(repo, str) and isinstance(commit, str) else None


def check_cached(path: Path) -> None:
    """Raise ``FormatError`` if a file in the client's cache was changed: the cache names files by their hash.

    Files elsewhere pass, and those of a cache without links (on Windows).
    """
    expected = path.resolve().name
    if not (snapshot_of(path.parent) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected)):
        return
    if (found := hash_like(path, expected)) != expected:
        raise FormatError(
            f"{path} was changed since it was downloaded (hash {found[:12]}, expected {expected[:12]}): "
            "remove the file and load again, or pass verify=False"
        )


def hash_like(path: Path, expected: str) -> str:
    """The hash of a file as the Hub lists it: SHA-256 if ``expected`` has 64 digits, else git's SHA-1 (small files)."""
    if len(expected) == 64:
        return sha256(path)
    blob = b"blob %d\0" % path.stat().st_size + path.read_bytes()
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()
