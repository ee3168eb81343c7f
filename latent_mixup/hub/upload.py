"""Folders => Hub repositories: one commit with the files that count, and no other."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from latent_mixup.cards import is_ours, placed
from latent_mixup.files import FormatError, read_json, safe_path, sha256
from latent_mixup.hub.cache import ORIGIN
from latent_mixup.hub.download import LIBRARY
from latent_mixup.hub.errors import Task
from latent_mixup.hub.names import MAIN_FILE, REPO_TYPE, WEIGHTS_FILE, Kind

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_BESIDE = ("README.md", "LICENSE*", "NOTICE*", "*.png")  # what a card may need
_OWNED: dict[Kind, str] = {"bank": "bank-*.safetensors"}  # files that an older push may have left

logger = logging.getLogger(__name__)


class Published:
    """What has ``save_pretrained`` and ``metadata``, and can be pushed to the Hub.

    The names and keywords are those of ``huggingface_hub.ModelHubMixin``. It is not inherited: it loads weights without
    ``strict``, and from pickles where there are no others, passes whatever a config says to the constructor, and knows
    no data sets.
    """

    hub_kind: ClassVar[Kind]
    metadata: dict[str, Any]

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
        """Write everything into a folder."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        dtype: torch.dtype | None = None,
    ) -> CommitInfo:
        """Save into a repository of the Hugging Face Hub, made where it is missing; afterwards ``metadata`` names it.

        Args:
            repo_id: ``org/name``: a model repository, of a bank a data-set repository.
            private: Of a new repository; None: as the organisation has it.
            token: The Hub client's token, which may write; None: the one it has stored.
            branch: Made where it is missing; None: the default branch.
            commit_message: None: a plain one.
            create_pr: Open a pull request against the default branch instead.
            dtype: Of the stored numbers; None: as ``save_pretrained`` has it.

        Returns:
            The URL of the commit, a ``str``; its ``oid`` is the commit hash, its ``pr_url`` the pull request.

        Raises:
            ValueError: The arguments do not go together.
            NotImplementedError: It has no file format.
            hub.HubError: The Hub did not take it.
        """
        unplaced = copy.copy(self)
        unplaced.metadata = {key: value for key, value in self.metadata.items() if key != ORIGIN}
        with tempfile.TemporaryDirectory() as folder:
            unplaced.save_pretrained(folder, **({} if dtype is None else {"dtype": dtype}))
            pushed = push_folder(
                folder,
                repo_id,
                self.hub_kind,
                private=private,
                token=token,
                branch=branch,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        self.metadata[ORIGIN] = {"repo": repo_id, "commit": pushed.oid}
        return pushed


def push_folder(
    folder: str | Path,
    repo_id: str,
    kind: Kind,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push what ``save_pretrained`` wrote, with its ``README.md``, licence and pictures, as one commit.

    A reader sees all of the older files or all of the new ones; shards of an older bank go. Nothing is committed where
    nothing changed.

    Args:
        folder: With the main file of ``kind`` and the files it names.
        repo_id: ``org/name``.
        kind: What is in the folder.
        private: See :meth:`Published.push_to_hub`, as for the other arguments.
        token: The Hub client's token.
        branch: None: the default branch.
        commit_message: None: a plain one.
        create_pr: Open a pull request instead.

    Returns:
        The URL of the commit, a ``str``; its ``oid`` is the commit hash, its ``pr_url`` the pull request.

    Raises:
        FileNotFoundError: A file is missing in the folder.
        FormatError: A file of a bank is not what its index says.
        ValueError: ``repo_id`` is none, or a pull request was asked for on a branch.
        HubError: The Hub did not take it.
    """
    if create_pr and branch is not None:
        raise ValueError(f"a pull request is opened against the default branch: leave out branch={branch!r}")
    files = files_to_push(folder, repo_id, kind)
    owner = repo_id.partition("/")[0]
    unknown = (
        f"the Hub knows no such repository that the token may write to, set HF_TOKEN to one of a member of {owner}"
    )
    task = Task(repo_id, REPO_TYPE[kind], branch, "", unknown, "push it later")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise task.error("offline mode is on, unset HF_HUB_OFFLINE")
    with task.one_error():
        api = HfApi(token=token, library_name=LIBRARY)
        api.create_repo(repo_id, repo_type=task.repo_type, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, repo_type=task.repo_type, branch=branch, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=task.repo_type, revision=branch) if kind in _OWNED else []
        gone = [name for name in there if fnmatch(name, _OWNED[kind]) and name not in files]
        pushed = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in gone),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=commit_message or f"Push a {kind} with latent-mixup",
            repo_type=task.repo_type,
            revision=branch,
            create_pr=create_pr,
        )
    logger.info("%s@%s is commit %s", repo_id, branch or "main", pushed.oid)
    return pushed


def files_to_push(folder: str | Path, repo_id: str, kind: Kind) -> dict[str, Path | bytes]:
    """What :func:`push_folder` makes of a folder: name => file, or what is pushed in its place.

    That is the main file, the files that this names, and what belongs to its card; a card of ours, which loads the
    folder it lies in, loads the repository once it is there.

    Raises:
        FileNotFoundError: A file is missing.
        FormatError: A file of a bank is not what its index says.
        ValueError: ``repo_id`` is none.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"a repository to push to looks like org/name: got {repo_id!r:.100}")
    folder = Path(folder)
    main = safe_path(folder, MAIN_FILE[kind])
    found = read_json(main)
    names = [MAIN_FILE[kind], *(_checked_shards(folder, found) if kind == "bank" else [WEIGHTS_FILE])]
    beside = [path.name for pattern in _BESIDE for path in sorted(folder.glob(pattern)) if path.is_file()]
    files = {name: safe_path(folder, name).resolve() for name in [*names, *beside]}
    for name, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"{folder / name} is missing: expected a folder that save_pretrained wrote")
    return {name: placed(path.read_bytes(), repo_id) if is_ours(path) else path for name, path in files.items()}


def _checked_shards(folder: Path, index: dict[str, Any]) -> list[str]:
    """The shards that an index names, after their SHA-256 was compared: a damaged bank is not published."""
    entries = index.get("files")
    if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
        raise FormatError(f"{folder / MAIN_FILE['bank']}: field 'files' needs a list of files, found {entries!r:.100}")
    for entry in entries:
        path = safe_path(folder, entry.get("name"))
        if path.is_file() and (found := sha256(path)) != entry.get("sha256"):
            raise FormatError(
                f"{path} is damaged: expected sha256 {entry.get('sha256')!s:.12}, found {found[:12]}: get it again"
            )
    return [entry["name"] for entry in entries]
