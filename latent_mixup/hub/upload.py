"""Folders => Hub repositories: one commit with the files that count, and no other.

A folder's ``README.md`` may be a card that the package wrote. It ends in a line with a hash of what is above it, which
tells it from one that somebody wrote or edited: such a file is never replaced.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch

from latent_mixup.files import FileEntry, part_path, read_json, safe_path, wrong_field
from latent_mixup.hub.cache import ORIGIN
from latent_mixup.hub.download import LIBRARY
from latent_mixup.hub.errors import HubCall
from latent_mixup.hub.names import MAIN_FILE, REPO_TYPE, WEIGHTS_FILE, Kind

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from typing_extensions import Unpack

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
HERE = "."  # how a card's example loads what lies beside it, until it has a name on the Hub
_SEAL = re.compile(rb"\n<!-- latent-mixup wrote this card; one that was edited is kept: ([0-9a-f]{64}) -->\n\Z")
_MAX_CARD_BYTES = 1024**2
_BESIDE = ("README.md", "LICENSE*", "NOTICE*", "*.png")  # what a card may need
_OWNED: dict[Kind, str] = {"bank": "bank-*.safetensors"}  # files that an older push may have left

logger = logging.getLogger(__name__)


class PushOptions(TypedDict, total=False):
    """How a push is made: keywords of ``push_to_hub`` and :func:`push_folder`.

    Attributes:
        private: Visibility of a new repository; default: the organisation's.
        token: A Hub token that may write; default: the one the Hub client has stored.
        branch: Branch to push to, created if missing; default: the repository's default branch.
        commit_message: Commit message.
        create_pr: Open a pull request against the default branch instead of committing.
        tag: Name for the commit, such as ``"v1"``: a ``revision`` that does not move.
    """

    private: bool | None
    token: str | bool | None
    branch: str | None
    commit_message: str | None
    create_pr: bool
    tag: str | None


class Published:
    """Base of everything with ``save_pretrained`` and ``metadata`` that can be pushed to the Hub.

    Names and keywords are those of ``huggingface_hub.ModelHubMixin``, which is not inherited: it loads weights without
    ``strict`` and from pickles, passes whatever a config holds to the constructor, and knows no data sets.
    """

    hub_kind: ClassVar[Kind]
    metadata: dict[str, Any]

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
        """Write everything into a folder."""
        raise NotImplementedError

    def push_to_hub(
        self, repo_id: str, *, dtype: torch.dtype | None = None, **options: Unpack[PushOptions]
    ) -> CommitInfo:
        """Save into a Hub repository, created if missing, as one commit; afterwards ``metadata["hub"]`` names it.

        Args:
            repo_id: ``org/name``: a model repository, or for a bank a data-set repository.
            dtype: Dtype of the stored numbers; None: the default of ``save_pretrained``.
            options: ``private``, ``token``, ``branch``, ``commit_message``, ``create_pr``, ``tag``: see
                :class:`PushOptions`.

        Returns:
            The URL of the commit, a ``str``; its ``oid`` is the commit hash, its ``pr_url`` the pull request.

        Raises:
            ValueError: The arguments do not go together.
            NotImplementedError: It has no file format.
            hub.HubError: The Hub refused, or could not be reached.
        """
        unplaced = copy.copy(self)
        unplaced.metadata = {key: value for key, value in self.metadata.items() if key != ORIGIN}
        with tempfile.TemporaryDirectory() as folder:
            unplaced.save_pretrained(folder, **({} if dtype is None else {"dtype": dtype}))
            pushed = push_folder(folder, repo_id, self.hub_kind, **options)
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
    tag: str | None = None,
) -> CommitInfo:
    """Push what ``save_pretrained`` wrote, with its ``README.md``, licence and pictures, as one commit.

    Shards of an older bank are removed in the same commit. Without a change there is no commit. A push that was stopped
    is made again by the same call: files that the Hub got then are not sent a second time.

    Args:
        folder: Folder with the main file of ``kind`` and the files it names.
        repo_id: ``org/name``.
        kind: What the folder holds.
        private: See :class:`PushOptions`, as for the other five.
        token: As there.
        branch: As there.
        commit_message: As there.
        create_pr: As there.
        tag: As there.

    Returns:
        The URL of the commit, a ``str``; its ``oid`` is the commit hash, its ``pr_url`` the pull request.

    Raises:
        FileNotFoundError: A file is missing in the folder.
        FormatError: A file is not what the main file says.
        ValueError: ``repo_id`` is not ``org/name``, or a pull request was asked for on a branch or with a tag.
        HubError: The Hub refused, could not be reached, or has that tag.
    """
    if create_pr and branch is not None:
        raise ValueError(f"a pull request is opened against the default branch: leave out branch={branch!r}")
    if create_pr and tag is not None:
        raise ValueError(f"a tag names a commit on a branch: leave out tag={tag!r} until the pull request is merged")
    files = files_to_push(folder, repo_id, kind)
    owner = repo_id.partition("/")[0]
    unknown = (
        f"the Hub knows no such repository that the token may write to, set HF_TOKEN to one of a member of {owner}"
    )
    call = HubCall(repo_id, REPO_TYPE[kind], branch, "", unknown, "push it later")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise call.error("offline mode is on, unset HF_HUB_OFFLINE")
    with call.one_error():
        api = HfApi(token=token, library_name=LIBRARY)
        api.create_repo(repo_id, repo_type=call.repo_type, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, repo_type=call.repo_type, branch=branch, exist_ok=True)
        if tag is not None and tag in {
            each.name for each in api.list_repo_refs(repo_id, repo_type=call.repo_type).tags
        }:
            raise call.error(f"it has a tag {tag!r}, which does not move, choose another one")
        there = api.list_repo_files(repo_id, repo_type=call.repo_type, revision=branch) if kind in _OWNED else []
        gone = [name for name in there if fnmatch(name, _OWNED[kind]) and name not in files]
        pushed = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in gone),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=commit_message or f"Push a {kind} with latent-mixup",
            repo_type=call.repo_type,
            revision=branch,
            create_pr=create_pr,
        )
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=pushed.oid, repo_type=call.repo_type)
    logger.info("%s@%s is commit %s", repo_id, branch or "main", pushed.oid)
    return pushed


def files_to_push(folder: str | Path, repo_id: str, kind: Kind) -> dict[str, Path | bytes]:
    """What :func:`push_folder` makes of a folder: name => file, or what is pushed in its place.

    That is the main file, the files that this names, and what belongs to its card; a card of ours, which loads the
    folder it lies in, loads the repository once it is there.

    Raises:
        FileNotFoundError: A file is missing.
        FormatError: A file is not what the main file says: what is damaged is not published.
        ValueError: ``repo_id`` is none.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"a repository to push to looks like org/name: got {repo_id!r:.100}")
    folder = Path(folder)
    index = safe_path(folder, MAIN_FILE[kind])
    files = {index.name: index}
    for entry in _entries(index, read_json(index)):
        files[entry.name] = part_path(folder, entry, index.name, missing=FileNotFoundError, verify=True)
    if kind != "bank" and WEIGHTS_FILE not in files:  # format version 1
        files[WEIGHTS_FILE] = safe_path(folder, WEIGHTS_FILE)
    for path in itertools.chain(*(sorted(folder.glob(pattern)) for pattern in _BESIDE)):
        if path.is_file():
            files[path.name] = safe_path(folder, path.name)
    if missing := [path for path in files.values() if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing: expected a folder that save_pretrained wrote")
    return {name: _placed(path, repo_id) or path.resolve() for name, path in files.items()}


def _entries(index: Path, found: dict[str, Any]) -> Iterator[FileEntry]:
    """The files that an index names: in the list ``files``, or one under a field of its own."""
    if not isinstance(found.get("files", []), list):
        raise wrong_field(index, "files", "a list of files", found["files"])
    for number, entry in enumerate(found.get("files", [])):
        yield FileEntry.read(index, f"files[{number}]", entry)
    for field, entry in found.items():
        if field == "weights" or (isinstance(entry, dict) and entry.keys() == {"name", "size", "sha256"}):
            yield FileEntry.read(index, field, entry)


# --------------------------------------------------------------------------------------------------
# The card
# --------------------------------------------------------------------------------------------------


def sealed(card: str) -> bytes:
    """A card as it is written: with a last line by which a later write knows that nobody has changed it."""
    content = card.encode("utf-8", "replace")
    seal = hashlib.sha256(content).hexdigest()
    return content + f"\n<!-- latent-mixup wrote this card; one that was edited is kept: {seal} -->\n".encode()


def unsealed(path: Path) -> str | None:
    """The card in a file that :func:`sealed` made and nobody has edited; None for any other file."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    match = _SEAL.search(content)
    if match is None or hashlib.sha256(content[: match.start()]).hexdigest().encode() != match[1]:
        return None
    return content[: match.start()].decode()


def _placed(path: Path, repo_id: str) -> bytes | None:
    """A card of ours, whose example loads ``repo_id`` in the place of the folder it lies in; None: none of ours."""
    card = unsealed(path)
    if card is None:
        return None
    here, there = json.dumps(HERE), json.dumps(repo_id)
    return sealed(card.replace(f"({here})", f"({there})").replace(f"({here}, ", f"({there}, "))
