"""Names, local folders and Hub repositories => folders and files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["generator", "bank"]

MAIN_FILE: dict[Kind, str] = {"generator": "config.json", "bank": "bank.index.json"}
_REPO_TYPE: dict[Kind, str] = {"generator": "model", "bank": "dataset"}
_DOWNLOADED = ["*.json", "*.safetensors", "README.md"]
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

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

    wanted = (repo, _REPO_TYPE[kind], MAIN_FILE[kind], revision)
    local = f"pass a folder or a bundled name ({', '.join(bundled_names(kind)) or 'none bundled'})"
    with _one_error(*wanted, local):
        path = huggingface_hub.snapshot_download(
            repo,
            repo_type=_REPO_TYPE[kind],
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=_DOWNLOADED,
            library_name="latent-mixup",
        )
    folder = Path(path)
    if not (folder / MAIN_FILE[kind]).is_file():
        raise _hub_error(*wanted, f"it has no such file, so it is not a latent-mixup {kind}")
    logger.info("%s@%s is commit %s", repo, revision or "main", commit_of(folder))
    return folder


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``org/repo[@revision]``; a relative path may have it as well."""
    return _HUB_ID.fullmatch(name) is not None


def download_file(name: str, file: str) -> Path:
    """One file of the Hub model repository ``org/repo[@revision]``, from the client's cache where it is there.

    Raises:
        ValueError: The name is no Hub id.
        HubError: The Hub did not give it.
    """
    import huggingface_hub

    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ValueError(f"a Hub id looks like org/repo[@revision]: got {name!r}")
    repo, revision = match["repo"], match["revision"]
    with _one_error(repo, "model", file, revision, "pass the path of a file"):
        path = huggingface_hub.hf_hub_download(repo, file, revision=revision, library_name="latent-mixup")
    return Path(path)


@contextmanager
def _one_error(repo: str, repo_type: str, file: str, revision: str | None, local: str) -> Iterator[None]:
    """Whatever the Hub client raises, as a :class:`HubError`; ``local``: what to do without the Hub."""
    from huggingface_hub import errors

    network_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        yield
    except (OSError, ValueError, network_error) as error:
        raise _hub_error(repo, repo_type, file, revision, _hint(error, repo, local)) from error


def commit_of(folder: Path) -> str | None:
    """The commit hash of a folder that the Hub client downloaded; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def _hub_error(repo: str, repo_type: str, file: str, revision: str | None, hint: str) -> HubError:
    message = f"cannot read {file} of the Hub {repo_type} {repo} (revision {revision or 'main'}): {hint}"
    return HubError(message, repo=repo, revision=revision, file=file)


def _hint(error: Exception, repo: str, local: str) -> str:
    """What happened and what to try, in half a sentence. Subclasses come before their bases."""
    from huggingface_hub import errors

    hints: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"access is gated, ask for it at https://huggingface.co/{repo} and set HF_TOKEN",
        ),
        (
            errors.RevisionNotFoundError,
            "the repository has no such revision, name a branch, tag or commit of it",
        ),
        (
            errors.RepositoryNotFoundError,
            "neither a repository nor a local folder has this name, check it, set HF_TOKEN if it is private, "
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
