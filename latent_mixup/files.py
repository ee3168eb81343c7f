"""Local files: JSON read with limits, paths that stay inside a folder, hashes, folders written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

Writer: TypeAlias = Callable[[Path], None]

MAX_JSON_BYTES = 64 * 1024**2
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_STAGING = ".latent-mixup-"
_STALE_AFTER = 24 * 3600.0  # seconds


class FormatError(ValueError):
    """A file is not what its format says; the message names file, field, expected and found."""


def read_json(path: Path, error: type[FormatError] = FormatError) -> dict[str, Any]:
    """Read a JSON object; no NaN, no repeated key, at most 64 MiB.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is not a JSON object (or ``error``, a subclass).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise error(f"{path} is {path.stat().st_size} bytes: expected at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not valid JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{path} needs to hold a JSON object: got {type(value).__name__}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def safe_path(folder: Path, name: object, error: type[FormatError] = FormatError) -> Path:
    """The path of a file that an index or config names, which must lie in ``folder`` itself.

    A link that leaves the folder is refused, except the Hub client's own into its blobs.

    Raises:
        FormatError: The name is not a plain file name (or ``error``, a subclass).
    """
    if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name)):
        raise error(f"{folder} names a file {name!r:.100}: expected a plain file name inside the folder")
    path = folder / name
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as cause:  # a loop of links
        raise error(f"{path} cannot be resolved: expected a file inside the folder") from cause
    if not any(target.is_relative_to(root) for root in roots_of(folder)):
        raise error(f"{path} is a link that leaves its folder: expected the file itself, copy it there")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1024**2):
            sha.update(block)
    return sha.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in the order of the names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        sha.update(f"{name}{tuple(values.shape)}".encode())
        sha.update(values.numpy().tobytes())
    return sha.hexdigest()


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value from a file is an integer from 1 (JSON's ``true`` is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def roots_of(folder: Path) -> list[Path]:
    """Where a link in a folder may lead: into it; in one of the Hub client's also into its blobs.

    Those of the repository, and those that it shares between the repositories of a cache.
    """
    resolved, snapshot = folder.resolve(), snapshot_of(folder)
    if snapshot is None:
        return [resolved]
    repository = snapshot.resolve().parent.parent
    return [resolved, repository / "blobs", repository.parent / "blobs"]


def snapshot_of(folder: Path) -> Path | None:
    """The folder of a commit that a folder is or lies in."""
    folder = folder.absolute()
    found = (f for f in (folder, *folder.parents) if f.parent.name == "snapshots" and COMMIT.fullmatch(f.name))
    return next(found, None)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: object = None) -> None:
    """Write a safetensors file; for a folder of files, call it inside a writer of :func:`write_folder`.

    Args:
        path: The file; an older one is replaced.
        tensors: Copied to the CPU and made contiguous.
        metadata: Anything JSON can say, under the header's one key ``"latent_mixup"``. (One key, because
            safetensors writes several in no fixed order, and equal content should give equal bytes.)

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    header = None if metadata is None else {"latent_mixup": json.dumps(metadata, allow_nan=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=header)
    except SafetensorError as cause:
        raise OSError(f"cannot write {path.name} into {path.parent}: {cause}") from cause


def write_folder(folder: str | Path, files: Mapping[str, bytes | Writer], *, owns: str | None = None) -> Path:
    """Write files into a folder so that a reader sees all of the old ones or all of the new ones.

    Everything is first written next to the targets, in a hidden folder, and synced; then each file is
    renamed into place in the order given, so **the file that makes the others count comes last** (the index,
    the config). When anything fails, what was there is put back and nothing temporary stays. What a killed
    process left behind is swept by the next write, or, on a file system without locks, by a write a day later.
    An open (or mmapped) older file is not touched.

    Args:
        folder: Made where it is missing.
        files: Name => content, or a function that writes it to the path it is given. The functions are called
            in order, so a later one may describe the files of the earlier ones.
        owns: Glob of the files that belong to this kind of folder: those not in ``files`` go at the end.
    """
    folder = Path(folder)
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder) as alone, _staging(folder, alone) as staging:
            _stage(staging, files)
            _swap_in(folder, staging, list(files))
            for path in folder.glob(owns) if owns else ():
                if path.name not in files:
                    path.unlink(missing_ok=True)
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return folder


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder, as the next write would; no error where that cannot be."""
    with contextlib.suppress(OSError), _locked(folder) as alone:
        _sweep(folder, alone)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """One writer per folder at a time, where the system has ``flock``: whether it is so; the lock is on the folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor, alone = os.open(folder, os.O_RDONLY), False
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        if alone:  # a child that was forked meanwhile holds a copy of the descriptor, which would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextlib.contextmanager
def _staging(folder: Path, alone: bool) -> Iterator[Path]:
    """A hidden folder inside ``folder``, gone afterwards; older ones, left by a kill, go as well."""
    _sweep(folder, alone)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(folder: Path, alone: bool) -> None:
    """Remove older hidden folders; where there may be other writers, those that none can still be at work in."""
    for stale in folder.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):
            if alone or time.time() - stale.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(stale, ignore_errors=True)


def _stage(staging: Path, files: Mapping[str, bytes | Writer]) -> None:
    for name, content in files.items():
        path = safe_path(staging, name)
        path.touch()
        mode = path.stat().st_mode & 0o777  # what the umask gives; safetensors would leave 0600
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        path.chmod(mode)
        _sync(path)


def _swap_in(folder: Path, staging: Path, names: list[str]) -> None:
    """Rename the staged files into place, in order; on a failure put the older ones back."""
    backup = staging / "older"
    backup.mkdir()
    done: list[str] = []
    try:
        for name in names:
            if (folder / name).exists():
                _link_or_copy(folder / name, backup / name)
            done.append(name)
            os.replace(staging / name, folder / name)
        _sync(folder)
    except BaseException:
        for name in reversed(done):
            if (backup / name).exists():
                os.rename(backup / name, folder / name)
            elif not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    """Push a file or a folder to the disk; a system that cannot open folders has nothing to push."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
