"""Names, local folders and Hub repositories => files; and files written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

Kind: TypeAlias = Literal["generator", "bank"]
Writer: TypeAlias = Callable[[Path], None]

MAIN_FILE: dict[Kind, str] = {"generator": "config.json", "bank": "bank.index.json"}
_REPO_TYPE: dict[Kind, str] = {"generator": "model", "bank": "dataset"}
_DOWNLOADED = ["*.json", "*.safetensors", "README.md"]
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STAGING = ".latent-mixup-"
_MAX_JSON_BYTES = 64 * 1024**2

logger = logging.getLogger(__name__)


class HubError(RuntimeError):
    """A repository of the Hugging Face Hub could not be read.

    Attributes:
        repo: The repository, ``org/name``.
        revision: What was asked for; None is the default branch.
        file: The file that was looked for.
    """

    def __init__(self, message: str, *, repo: str = "", revision: str | None = None, file: str = "") -> None:
        super().__init__(message)
        self.repo, self.revision, self.file = repo, revision, file


class FormatError(ValueError):
    """A file is not what its format says; the message names file, field, expected and found."""


# --------------------------------------------------------------------------------------------------
# Names => folders
# --------------------------------------------------------------------------------------------------


def bundled_names(kind: Kind | None = None) -> list[str]:
    """Names that come with the package and need no network, sorted; ``kind=None``: of either kind."""
    kinds = MAIN_FILE if kind is None else (kind,)
    assets = _assets()
    if not assets.is_dir():
        return []
    return sorted(entry.name for entry in assets.iterdir() if any((entry / k / MAIN_FILE[k]).is_file() for k in kinds))


def locate(
    name: str | Path,
    kind: Kind,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that holds ``name``: a folder first, then a bundled name, then a Hub repository.

    Args:
        name: A folder, a bundled name such as ``"fashion-mnist"``, or ``org/repo[@revision]``.
        kind: ``"generator"`` (a model repository) or ``"bank"`` (a data-set repository).
        revision: Branch, tag or commit on the Hub; the same as ``@revision`` in the name.
        cache_dir: Where the Hub client keeps its downloads; None: its default.
        token: The Hub client's token; None: the one it has stored.
        local_files_only: Use what is in the cache, and no network.

    Raises:
        FileNotFoundError: There is no such folder, bundled name or Hub id.
        HubError: The Hub did not give it.
    """
    folder = _local_folder(name, kind)
    if folder is not None:
        return folder
    match = _HUB_ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise FileNotFoundError(
            f"no {kind} is called {str(name)!r}: expected a folder, a bundled name "
            f"({', '.join(bundled_names(kind)) or 'none bundled'}) or a Hub id such as org/repo[@revision]"
        )
    revision = _one_revision(str(name), match["revision"], revision)
    return _download(match["repo"], kind, revision, cache_dir, token, local_files_only)


def _assets() -> Path:
    return Path(str(resources.files("latent_mixup"))) / "assets"


def _local_folder(name: str | Path, kind: Kind) -> Path | None:
    if os.path.isdir(name):  # os.path, unlike pathlib, takes any string: NUL, 10,000 characters
        return Path(name)
    if os.path.exists(name):
        raise NotADirectoryError(f"a {kind} is a folder with {MAIN_FILE[kind]} in it: {str(name)!r} is a file")
    return _assets() / name / kind if name in bundled_names(kind) else None


def _one_revision(name: str, in_name: str | None, argument: str | None) -> str | None:
    if in_name is not None and argument is not None and in_name != argument:
        raise ValueError(f"two revisions were asked for, {name!r} and revision={argument!r}: give one")
    return in_name if argument is None else argument


def _download(
    repo: str,
    kind: Kind,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Path:
    """Download one revision whole; the client asks for its commit once, and never for a cached commit."""
    import huggingface_hub
    from huggingface_hub import errors

    network_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repo,
                repo_type=_REPO_TYPE[kind],
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=_DOWNLOADED,
                library_name="latent-mixup",
            )
        )
    except (OSError, ValueError, network_error) as error:
        raise _hub_error(repo, kind, revision, _hint(error, repo, kind)) from error
    if not (folder / MAIN_FILE[kind]).is_file():
        raise _hub_error(repo, kind, revision, f"it has no such file, so it is not a latent-mixup {kind}")
    logger.info("%s@%s is commit %s", repo, revision or "main", commit_of(folder))
    return folder


def commit_of(folder: Path) -> str | None:
    """The commit hash of a folder that the Hub client downloaded; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def _hub_error(repo: str, kind: Kind, revision: str | None, hint: str) -> HubError:
    file = MAIN_FILE[kind]
    message = f"cannot read {file} of the Hub {_REPO_TYPE[kind]} {repo} (revision {revision or 'main'}): {hint}"
    return HubError(message, repo=repo, revision=revision, file=file)


def _hint(error: Exception, repo: str, kind: Kind) -> str:
    """What happened and what to try, in half a sentence. Subclasses come before their bases."""
    from huggingface_hub import errors

    local = f"pass a folder or a bundled name ({', '.join(bundled_names(kind)) or 'none bundled'})"
    hints: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"access is gated, ask for it at https://huggingface.co/{repo} and pass token=",
        ),
        (
            errors.RevisionNotFoundError,
            "the repository has no such revision, name a branch, tag or commit of it",
        ),
        (
            errors.RepositoryNotFoundError,
            "neither a repository nor a local folder has this name, check it, pass token= if it is private, "
            f"or {local}",
        ),
        (
            errors.OfflineModeIsEnabled,
            f"offline mode is on and it is not in the cache, unset HF_HUB_OFFLINE or {local}",
        ),
        (
            errors.LocalEntryNotFoundError,
            f"it is not in the cache and the Hub was not asked or not reached, go online or {local}",
        ),
        (errors.EntryNotFoundError, "the repository lacks a file, check the revision"),
        (errors.HFValidationError, "this is not a valid repository id, it looks like org/repo"),
        (errors.HfHubHTTPError, f"the server answered with an error ({_first_line(error)}), try again later"),
    ]
    for kind_of_error, hint in hints:
        if isinstance(error, kind_of_error):
            return hint
    return f"{_first_line(error)}, check the connection and the disk, then try again"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def read_json(path: Path, error: type[FormatError] = FormatError) -> dict[str, Any]:
    """Read a JSON object; no NaN, no repeated key, at most 64 MiB.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is not a JSON object (or ``error``, a subclass).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a folder that save_pretrained wrote")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise error(f"{path} is {path.stat().st_size} bytes: expected at most {_MAX_JSON_BYTES}")
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
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", name) is not None
    if not plain:
        raise error(f"{folder} names a file {name!r}: expected a plain file name inside the folder")
    path = folder / str(name)
    roots = [folder.resolve()]
    if commit_of(folder) is not None:
        roots.append(folder.resolve().parent.parent / "blobs")
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as cause:  # a loop of links
        raise error(f"{path} cannot be resolved: expected a file inside the folder") from cause
    if not any(target.is_relative_to(root) for root in roots):
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


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


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
    process left behind is swept by the next write. An open (or mmapped) older file is not touched.

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
        with _locked(folder), _staging(folder) as staging:
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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer per folder at a time, where the system has ``flock``; the lock is on the folder itself."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, gone afterwards; older ones, left by a kill, go as well."""
    for stale in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
