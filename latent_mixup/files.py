"""Local files: JSON with limits, safe paths, hashes, atomic folders, and the indexed folders of banks and networks.

An indexed folder has one JSON file, its index, which names the other files with size and SHA-256. ``write_indexed`` and
``settled`` keep a reader beside a writer from seeing files of two versions: see :func:`write_indexed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from filelock import FileLock

Writer: TypeAlias = Callable[[Path], None]

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 1024**2
MAX_JSON_VALUES = 2**20  # about: more would cost hundreds of MB to parse
MAX_HEADER_BYTES = 1024**2  # of a safetensors file of ours: names and shapes of its tensors
STORED_AS = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_STAGING = ".latent-mixup-"
_LOCK = ".latent-mixup.lock"
_STALE_AFTER = 24 * 3600.0  # seconds
_SAY_SO_AFTER = 5.0  # seconds of waiting for a lock
_MAX_READS = 50  # of a folder that is replaced again and again

logger = logging.getLogger(__name__)


class FormatError(ValueError):
    """A file is not what its format says; the message names file, field, expected and found."""


def read_json(path: Path, error: type[FormatError] = FormatError) -> dict[str, Any]:
    """Read a JSON object; no NaN, no repeated key, at most 64 MiB and about a million values.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is not a JSON object (or ``error``, a subclass).
    """
    if not path.is_file():  # nor a pipe, whose reader would wait
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise error(f"{path} is {path.stat().st_size} bytes: expected at most {MAX_JSON_BYTES}")
    content = path.read_bytes()
    if (values := sum(map(content.count, (b",", b"[", b"{")))) > MAX_JSON_VALUES:
        raise error(f"{path} holds about {values} values: expected at most {MAX_JSON_VALUES}")
    try:
        value = json.loads(content, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
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


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether a value from a file is a SHA-256, 64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


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


@contextlib.contextmanager
def open_tensors(
    path: Path, error: type[FormatError] = FormatError, *, at_most: int = MAX_HEADER_BYTES
) -> Iterator[Any]:
    """A safetensors file, opened by ``safe_open``, whose header is no longer than it can honestly be.

    Its tensors are on the CPU, and inside so are new ones.

    Args:
        path: A regular file.
        error: Raised where it is not right.
        at_most: Bytes of the header: a longer one is refused before it is parsed.

    Raises:
        FileNotFoundError: There is no regular file of this name.
        FormatError: It is not a whole safetensors file (or ``error``).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a safetensors file")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > at_most:
        raise error(
            f"{path} is not a whole safetensors file: its header has {header} bytes, expected at most {at_most}"
        )
    try:
        with torch.device("cpu"), safe_open(path, framework="pt") as opened:  # whatever torch's default device is
            yield opened
    except (SafetensorError, RuntimeError) as cause:  # torch, which opens the file once more, has the second
        if not path.is_file():
            raise FileNotFoundError(f"{path} was moved while it was read") from cause
        raise error(f"{path} is not a whole safetensors file: {cause}") from cause


def check_tensors(
    path: Path,
    opened: Any,
    expected: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    error: type[FormatError] = FormatError,
) -> None:
    """Raise unless a file of :func:`open_tensors` has exactly these tensors, by name => dtype and shape."""
    if set(opened.keys()) != set(expected):
        raise wrong_field(path, "tensors", ", ".join(sorted(expected)), sorted(opened.keys()), error)
    for name, (dtype, shape) in expected.items():
        found = opened.get_slice(name)
        actual, wanted = f"{found.get_dtype()} {found.get_shape()}", f"{STORED_AS[dtype]} {list(shape)}"
        if actual != wanted:
            raise wrong_field(path, name, wanted, actual, error)


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
    with _writing(folder) as (folder, staging, _):
        _stage(staging, files)
        _swap_in(folder, staging, list(files))
        for path in folder.glob(owns) if owns else ():
            if path.name not in files:
                path.unlink(missing_ok=True)
    return folder


# --------------------------------------------------------------------------------------------------
# The indexed folder
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEntry:
    """A file as an index names it."""

    name: str
    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileEntry:
        """The entry of a file."""
        return FileEntry(path.name, path.stat().st_size, sha256(path))

    @staticmethod
    def read(index: Path, field: str, value: object, error: type[FormatError] = FormatError) -> FileEntry:
        """The entry that a field of an index holds: ``{"name": ..., "size": ..., "sha256": ...}``, checked."""
        if not isinstance(value, dict) or value.keys() != {"name", "size", "sha256"}:
            raise wrong_field(index, field, "name, size and sha256", value, error)
        safe_path(index.parent, value["name"], error)
        if not is_count(value["size"]):
            raise wrong_field(index, f"{field}.size", "a positive integer", value["size"], error)
        if not is_sha256(value["sha256"]):
            raise wrong_field(index, f"{field}.sha256", "64 hexadecimal digits", value["sha256"], error)
        return FileEntry(**value)

    @property
    def interim(self) -> str:
        """The name under which the file waits until the index names it, where an older file has its own."""
        name = Path(self.name)
        return f"{name.stem}-{self.sha256[:16]}{name.suffix}"

    @property
    def interim_names(self) -> str:
        """Glob of the interim names of all versions of this file."""
        name = Path(self.name)
        return f"{name.stem}-{'[0-9a-f]' * 16}{name.suffix}"


@dataclass(frozen=True)
class Field:
    """What a field of an index holds.

    Attributes:
        holds: Value => whether it may be this; it has to take anything that JSON can say.
        expected: The same in words.
        since: First format version with this field; earlier ones must not have it.
    """

    holds: Callable[[Any], bool]
    expected: str
    since: int = 1


def read_index(
    folder: Path,
    name: str,
    fields: Mapping[str, Field],
    version: int,
    *,
    wrote: str = "save_pretrained wrote",
    error: type[FormatError] = FormatError,
    missing: type[Exception] = FileNotFoundError,
) -> dict[str, Any]:
    """Read the index of a folder: a JSON object with exactly these fields, ``format_version`` beside them.

    Args:
        folder: The folder.
        name: The index's file name.
        fields: Name => what it holds, but for ``format_version``.
        version: Latest format version that can be read.
        wrote: Completes "expected a folder that ...", for the error where there is no index.
        error: Raised where the index is not right.
        missing: Raised where there is none.

    Raises:
        FileNotFoundError: There is no index (or ``missing``).
        FormatError: A field is missing, unknown or wrong, or the version is a later one (or ``error``).
    """
    path = safe_path(folder, name, error)
    if not path.is_file():
        raise missing(f"{path} is missing: expected a folder that {wrote}")
    found = read_json(path, error)
    check_fields(path, found, fields, version, error)
    return found


def check_fields(
    path: Path,
    found: Mapping[str, Any],
    fields: Mapping[str, Field],
    version: int,
    error: type[FormatError] = FormatError,
) -> None:
    """Raise unless an index has exactly the fields of its format version, each as it has to be: :func:`read_index`."""
    stated = found.get("format_version")
    if not is_count(stated):
        raise wrong_field(path, "format_version", f"an integer up to {version}", stated, error)
    if stated > version:
        raise error(f"{path} has format_version {stated}, this version reads up to {version}: upgrade latent-mixup")
    names = ["format_version", *(name for name, field in fields.items() if field.since <= stated)]
    for name in [*names, *found]:
        if name not in found or name not in names:
            problem = "is missing" if name not in found else "is unknown"
            raise error(f"{path}: field {name!r:.100} {problem}, expected the fields {', '.join(names)}")
    for name in names[1:]:
        if not fields[name].holds(found[name]):
            raise wrong_field(path, name, fields[name].expected, found[name], error)


def wrong_field(
    path: Path, field: str, expected: str, found: object, error: type[FormatError] = FormatError
) -> FormatError:
    """The error for a field that holds something else than it has to."""
    return error(f"{path}: field {field!r} needs {expected}, found {found!r:.200}")


def find_part(folder: Path, entry: FileEntry, error: type[FormatError] = FormatError) -> Path:
    """Where a file lies, or should lie, that the index of a folder names; nothing of it is compared."""
    path = safe_path(folder, entry.interim, error)
    return path if path.is_file() else safe_path(folder, entry.name, error)


def part_path(
    folder: Path,
    entry: FileEntry,
    index: str,
    error: type[FormatError] = FormatError,
    *,
    missing: type[Exception] | None = None,
    verify: bool = False,
) -> Path:
    """Where a file lies that the index of a folder names, after its size (and SHA-256, to ``verify``) were compared.

    Nothing is opened but a regular file inside the folder.

    Raises:
        FormatError: It is missing, damaged, or a link that leaves the folder (or ``error``, ``missing``).
    """
    path = find_part(folder, entry, error)
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        size = path.stat().st_size
        found = sha256(path) if verify and size == entry.size else entry.sha256
    except FileNotFoundError as cause:
        raise (missing or error)(f"{path} is missing: {index} names it, get it again") from cause
    if size != entry.size:
        raise error(f"{path} is damaged: expected {entry.size} bytes, found {size}: get it again")
    if found != entry.sha256:
        raise error(f"{path} is damaged: expected sha256 {entry.sha256[:12]}, found {found[:12]}: get it again")
    return path


def settled(index: Path, read: Callable[[], T]) -> T:
    """What ``read`` makes of a folder, all of one version: it reads again where the index was replaced meanwhile.

    Args:
        index: The folder's index.
        read: Reads the index and opens the files that it names. What it raises comes out where the index stayed.

    Raises:
        OSError: The folder is replaced again and again.
    """
    moved_at: object = None
    for _ in range(_MAX_READS):
        before = _identity(index)
        try:
            found = read()
        except (OSError, ValueError) as error:
            moved = isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError)
            if _identity(index) == before and not (moved and moved_at != before):
                raise
            moved_at = before
        else:
            if _identity(index) == before:
                return found
    raise OSError(f"{index.parent} is written again and again while it is read: wait for its writer to end")


def _identity(index: Path) -> object:
    """What changes when an index is replaced, also by one like it; None where there is none to read."""
    try:
        facts = index.stat()
        readable = stat.S_ISREG(facts.st_mode) and facts.st_size <= MAX_JSON_BYTES
        return (facts.st_ino, facts.st_mtime_ns, index.read_bytes()) if readable else None
    except OSError:
        return None


def write_indexed(
    folder: str | Path,
    parts: Mapping[str, bytes | Writer],
    index: str,
    describe: Callable[[tuple[FileEntry, ...]], bytes],
    *,
    beside: Mapping[str, bytes] | None = None,
    owns: str | None = None,
) -> Path:
    """Write an indexed folder so that readers, and a kill at any moment, see the older or the newer version whole.

    Everything is first written to a hidden folder and synced. A part whose name is taken gets its interim name, where
    :func:`part_path` looks first. One rename of the index then switches all parts at once. Afterwards the interim names
    become the usual ones (never without locks), and older parts are removed. A failure before the switch restores the
    folder. An open (or mmapped) older file is not touched.

    Args:
        folder: Folder, created if missing; the writers may read from it.
        parts: Name => content, or a function that writes it to the path it is given; called in order.
        index: File name of the index.
        describe: Entries of the parts, in order => content of the index.
        beside: Files that the index does not name, such as a card; replaced after the switch.
        owns: Glob of the files that belong to this kind of folder; those not written are removed.
    """
    beside = beside or {}
    with _writing(folder) as (folder, staging, alone):
        _stage(staging, parts)
        entries = tuple(FileEntry.of(staging / name) for name in parts)
        _stage(staging, {**beside, index: describe(entries)})
        claimed = set() if alone else {entry.name for entry in entries if _claim(staging, folder, entry)}
        waits = [entry for entry in entries if entry.name not in claimed]
        interim = {entry.name: entry.interim for entry in waits if not alone or os.path.lexists(folder / entry.name)}
        for name, other in interim.items():
            os.rename(staging / name, staging / other)
        _swap_in(folder, staging, [*(interim.get(entry.name, entry.name) for entry in waits), index])
        # The newer version counts. What fails from here on is left to the next write: Windows replaces no open file.
        moves = [(folder / other, folder / name) for name, other in interim.items()] if alone else []
        for source, target in [*moves, *((staging / name, folder / name) for name in beside)]:
            with contextlib.suppress(OSError):
                os.replace(source, target)
        _remove_older(folder, entries, owns, {*parts, *beside, index, *interim.values()}, alone)
    return folder


def _remove_older(folder: Path, entries: tuple[FileEntry, ...], owns: str | None, kept: set[str], alone: bool) -> None:
    """Remove the parts of older versions; where there may be other writers, after a day."""
    found = {path for entry in entries for path in folder.glob(entry.interim_names)}
    for path in found.union(folder.glob(owns) if owns else ()):
        with contextlib.suppress(OSError):
            if path.name not in kept and (alone or _is_stale(path)):
                path.unlink()


def _claim(staging: Path, folder: Path, entry: FileEntry) -> bool:
    """Give a part its usual name without a lock: only if the name is free or has the same content, for good."""
    try:
        os.link(staging / entry.name, folder / entry.name)
    except FileExistsError:
        path = folder / entry.name
        return path.is_file() and FileEntry.of(path) == entry
    except OSError:  # no hard links
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder, as the next write would; no error where that cannot be."""
    if any(folder.glob(f"{_STAGING}*")):
        with contextlib.suppress(OSError), _locked(folder) as alone:
            _sweep(folder, alone)


@contextlib.contextmanager
def _writing(folder: str | Path) -> Iterator[tuple[Path, Path, bool]]:
    """The folder, created if missing; a hidden one in it to write to, removed afterwards; whether it is locked."""
    folder = Path(folder)
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder) as alone, _staging(folder, alone) as staging:
            yield folder, staging, alone
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """One writer per folder at a time, where the file system has locks: whether it is so."""
    from filelock import FileLock

    path = folder / _LOCK
    lock = FileLock(path)
    alone = _acquire(lock, path)
    try:
        yield alone
    finally:  # the file goes while it is locked, on Windows, which removes no open file, afterwards
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                path.unlink()


def _acquire(lock: FileLock, path: Path) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=_SAY_SO_AFTER, poll_interval=0.01)
    except Timeout:
        logger.warning(
            "waiting for %s: another process writes into this folder; if it was stopped, continue or end it", path
        )
        lock.acquire(timeout=-1, poll_interval=0.05)
    except (OSError, NotImplementedError):  # some network file systems have no locks
        return False
    return True


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
            if alone or _is_stale(stale):
                shutil.rmtree(stale, ignore_errors=True)


def _is_stale(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _STALE_AFTER


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
            if (staging / name).exists():
                continue
            if (backup / name).exists():
                os.replace(backup / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    """Push a file or a folder to the disk. Windows syncs no folder, and no file that is open for reading alone."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
