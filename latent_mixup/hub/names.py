"""Resolve a name, a local, bundled or Hub one, to the folder that holds its files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from latent_mixup.hub.download import Needed, Repository

Kind: TypeAlias = Literal["generator", "encoder", "features", "bank"]

WEIGHTS_FILE = "model.safetensors"
MAIN_FILE: dict[Kind, str] = {
    "generator": "config.json",
    "encoder": "config.json",
    "features": "config.json",
    "bank": "bank.index.json",
}
REPO_TYPE: dict[Kind, str] = {"generator": "model", "encoder": "model", "features": "model", "bank": "dataset"}
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
_SUBFOLDER = re.compile(r"([A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*)?", re.ASCII)
_NO_REVISION = re.compile(r"\.\.|^/|[\x00-\x20\x7f~^:?*\[\\]")  # git's own rule
_OTHERS = (".pkl", ".pt", ".pth", ".npz", ".npy")  # other people's files
_LARGEST_FILE = 50 * 1000**3  # bytes that the Hub gives over HTTP


class HubOptions(TypedDict, total=False):
    """How the Hub is read: keywords of everything that loads by name; a folder or a bundled name needs none.

    Attributes:
        revision: Branch, tag or commit; the same as ``@revision`` in the name.
        cache_dir: Where the Hub client keeps its downloads; default: its own.
        token: The Hub client's token, for private repositories; default: the one it has stored.
        local_files_only: Use what is in the cache, and no network.
    """

    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


def bundled_names(kind: Kind | None = None) -> list[str]:
    """Names bundled with the package, which need no network, sorted; ``kind=None``: of every kind."""
    kinds = MAIN_FILE if kind is None else (kind,)
    assets = _assets()
    if not assets.is_dir():
        return []
    return sorted(entry.name for entry in assets.iterdir() if any((entry / k / MAIN_FILE[k]).is_file() for k in kinds))


def locate(
    name: str | Path,
    kind: Kind,
    named: Callable[[Path], Iterable[Needed]] | None = None,
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that holds ``name``: a folder first, then a bundled name, then a Hub repository.

    A local folder hides a bundled name only if it holds the main file of this ``kind``, or a folder of this kind that
    does, as those that ``fit`` makes.

    Args:
        name: A folder, a bundled name such as ``"fashion-mnist"``, or ``org/repo[@revision]``.
        kind: ``"generator"``, ``"encoder"``, ``"features"`` (model repositories) or ``"bank"`` (a data-set repository).
        named: For a Hub repository: path of the main file => the files it names, which are downloaded as well; raises
            if the main file is not valid. None: the weights for a network, nothing for a bank.
        subfolder: Folder of the files in the folder or the repository, such as ``"vae"``.
        revision: See :class:`HubOptions`, as for the other three.
        cache_dir: As there.
        token: As there.
        local_files_only: As there.

    Raises:
        FileNotFoundError: There is no such folder, bundled name or Hub id.
        ValueError: Two revisions, or an impossible revision or subfolder.
        HubError: The Hub refused, or could not be reached.
    """
    if not _SUBFOLDER.fullmatch(subfolder):
        raise ValueError(f"a subfolder looks like vae or a/b: got {subfolder!r:.100}")
    if (folder := _local_folder(name, kind, subfolder)) is not None:
        return folder
    match = _HUB_ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise FileNotFoundError(
            f"no {kind} is called {str(name)!r}: expected a folder, a bundled name "
            f"({', '.join(bundled_names(kind)) or 'none bundled'}) or a Hub id such as org/repo[@revision]"
        )
    revision = _one_revision(str(name), match["revision"], revision)
    instead = f"pass a folder or a bundled name ({', '.join(bundled_names(kind)) or 'none bundled'})"
    source = Repository(
        match["repo"], REPO_TYPE[kind], revision, cache_dir, token, local_files_only, instead, subfolder
    )
    return source.download(MAIN_FILE[kind], named or _default_files(kind))


def _assets() -> Path:
    return Path(str(resources.files("latent_mixup"))) / "assets"


def _local_folder(name: str | Path, kind: Kind, subfolder: str) -> Path | None:
    """A folder of this name, or the bundled one; os.path, unlike pathlib, takes any string: NUL, 10,000 characters."""
    folder = Path(name) / subfolder if os.path.isdir(name) else None
    for each in () if folder is None else (folder, folder / kind):  # the second in a folder that `fit` made
        if (each / MAIN_FILE[kind]).is_file():
            return each
    bundled = _assets() / name / kind if name in bundled_names(kind) else None
    if folder is not None and bundled is None:
        _say_what_is_there(name, folder, kind)
        return folder
    if folder is None and bundled is None and os.path.exists(name):
        raise NotADirectoryError(
            f"a {kind} is a folder with {MAIN_FILE[kind]} in it: {str(name)!r} is a file"
            + (f"; latent-mixup convert {name} OUT makes one of it" if str(name).endswith(_OTHERS) else "")
        )
    return bundled


def _say_what_is_there(name: str | Path, folder: Path, kind: Kind) -> None:
    """Raise ``FileNotFoundError`` with advice if a folder without the main file of ``kind`` holds something we know."""
    other = next((k for k, main in MAIN_FILE.items() if (folder / main).is_file()), None)
    foreign = next((path.name for path in sorted(folder.glob("*")) if path.name.endswith(_OTHERS)), None)
    if other is not None:
        hint = f"it holds a {'bank' if other == 'bank' else 'network'}"
    elif foreign is not None and not foreign.startswith("checkpoint"):  # a training's own
        hint = f"it holds {foreign}, of which latent-mixup convert {folder / foreign} OUT makes such a folder"
    elif isinstance(name, str) and _HUB_ID.fullmatch(name):
        hint = f"for the Hub's repository of this name write {name}@main"
    else:
        return
    raise FileNotFoundError(
        f"{folder / MAIN_FILE[kind]} is missing: expected a folder that save_pretrained wrote; {hint}"
    )


def _one_revision(name: str, in_name: str | None, argument: str | None) -> str | None:
    if in_name is not None and argument is not None and in_name != argument:
        raise ValueError(f"two revisions were asked for, {name!r} and revision={argument!r}: give one")
    revision = in_name if argument is None else argument
    if revision is not None and (not revision or _NO_REVISION.search(revision)):
        raise ValueError(f"a revision is a branch, a tag or a commit: got {revision!r:.100}")
    return revision


def _default_files(kind: Kind) -> Callable[[Path], Iterable[Needed]]:
    return lambda main: () if kind == "bank" else (Needed(WEIGHTS_FILE, _LARGEST_FILE),)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``org/repo[@revision]``, which a relative path may have as well."""
    return _HUB_ID.fullmatch(name) is not None


def download_file(name: str, file: str) -> Path:
    """Path of one file of the Hub model repository ``org/repo[@revision]``, downloaded unless it is in the cache.

    Raises:
        ValueError: The name is not a Hub id.
        HubError: The Hub refused, or could not be reached.
    """
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ValueError(f"a Hub id looks like org/repo[@revision]: got {name!r}")
    revision = _one_revision(name, match["revision"], None)
    source = Repository(match["repo"], "model", revision, None, None, False, instead="pass the path of a file")
    return source.download(file, at_most=_LARGEST_FILE) / file
