"""Checked downloads: from a Hub repository into the Hub client's cache, only the files that are needed.

The main file is downloaded first; it names the others, by plain names in the same folder. Name, size and hash are
compared with the repository's listing before a download, and the content after it; a damaged file is removed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from latent_mixup.files import COMMIT, MAX_JSON_BYTES
from latent_mixup.hub.cache import hash_like
from latent_mixup.hub.errors import HubCall, HubError, is_unreachable

LIBRARY = "latent-mixup"
PAUSES = (1.0, 2.0)  # seconds before a request is made again that the server failed to answer

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needed:
    """A file that a main file names.

    Attributes:
        name: File name, in the folder of the main file.
        at_most: Largest size in bytes.
        sha256: SHA-256 of its content; None where the main file does not state it.
    """

    name: str
    at_most: int
    sha256: str | None = None


@dataclass(frozen=True)
class _Listed:
    """A file as the repository lists it: a large one with SHA-256, a small one with git's SHA-1."""

    size: int | None
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: dict[str, _Listed]


@dataclass(frozen=True)
class Repository:
    """One revision of a repository of the Hub, and how it is read.

    Attributes:
        name: ``org/name``.
        type: ``"model"`` or ``"dataset"``.
        revision: Branch, tag or commit; None: the default branch.
        cache_dir: Folder of the Hub client's downloads; None: its default.
        token: The Hub client's token; None: the one it has stored.
        local_files_only: Use the cache only, and no network.
        instead: Advice for errors: what works without the Hub.
        subfolder: Folder of the files in the repository; empty: its top.
    """

    name: str
    type: str
    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None = field(repr=False)
    local_files_only: bool
    instead: str
    subfolder: str = ""

    def download(
        self, main: str, named: Callable[[Path], Iterable[Needed]] = lambda main: (), *, at_most: int = MAX_JSON_BYTES
    ) -> Path:
        """Download the main file and the files that it names, all of one commit; return their folder.

        A commit that is complete in the cache needs no request. A branch or tag needs one, to resolve it; if no Hub
        answers, its last known commit is used, with a warning.

        Args:
            main: Name of the main file.
            named: Path of the main file => the files it names; raises if the main file is not valid.
            at_most: Largest size of the main file in bytes.

        Raises:
            HubError: The Hub did not give it.
        """
        path, listing = self._main(self._in_repository(main), at_most)
        commit = self._commit(path)
        for file in (replace(file, name=self._in_repository(file.name)) for file in named(path)):
            if self._cached(file.name, commit) is None:
                listing = listing or self._list(file.name, commit)
                self._fetch(file, listing, commit)
        logger.info("%s@%s is commit %s", self.name, self.revision or "main", commit)
        return path.parent

    def _in_repository(self, file: str) -> str:
        return f"{self.subfolder}/{file}" if self.subfolder else file

    def _commit(self, path: Path) -> str:
        """The commit of a file in the cache."""
        return path.parents[len(PurePosixPath(self.subfolder).parts)].name

    def _main(self, file: str, at_most: int) -> tuple[Path, _Listing | None]:
        """The main file, and the listing of its commit if one was requested."""
        cached = self._cached(file, self.revision)
        if cached and (self._offline() or self._is_commit()):
            return cached, None
        try:
            listing = self._list(file, self.revision)
        except HubError as error:
            if cached is None or not is_unreachable(error.__cause__):
                raise
            logger.warning("%s; going on with its last commit in the cache, %s", error, self._commit(cached))
            return cached, None
        if cached and self._commit(cached) == listing.commit:
            return cached, listing
        return self._fetch(Needed(file, at_most), listing, self.revision), listing

    def call(self, file: str) -> HubCall:
        """Reading one file."""
        unknown = (
            "neither a repository nor a local folder has this name, check it, set HF_TOKEN if it is private, "
            f"or {self.instead}"
        )
        return HubCall(self.name, self.type, self.revision, file, unknown, self.instead)

    def _is_commit(self) -> bool:
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def _offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE

    def _cached(self, file: str, revision: str | None) -> Path | None:
        import huggingface_hub

        with self.call(file).one_error():
            found = huggingface_hub.try_to_load_from_cache(self.name, file, self.cache_dir, revision, self.type)
        return Path(found) if isinstance(found, str) else None

    def _list(self, file: str, revision: str | None) -> _Listing:
        """The commit of a revision and its files: one request."""
        import huggingface_hub
        from huggingface_hub import constants

        call = self.call(file)
        if self._offline():
            why = "leave out local_files_only" if self.local_files_only else "unset HF_HUB_OFFLINE"
            raise call.error(f"it is not in the cache, {why} to go online, or {self.instead}")
        with call.one_error():
            api = huggingface_hub.HfApi(token=self.token, library_name=LIBRARY)
            info: Any = _patiently(
                lambda: api.repo_info(
                    self.name,
                    repo_type=self.type,
                    revision=revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                )
            )
            commit, files = str(info.sha), {file.rfilename: _listed(file) for file in info.siblings or []}
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision or "") and commit != revision):
            raise call.error(f"the server answers with commit {commit!r:.50}, check HF_ENDPOINT")
        return _Listing(commit, files)

    def _fetch(self, needed: Needed, listing: _Listing, revision: str | None) -> Path:
        """Download one file into the cache; the client remembers which commit ``revision`` is."""
        import huggingface_hub

        call = self.call(needed.name)
        listed = listing.files.get(needed.name)
        if listed is None:
            raise call.error("the repository lacks the file, check its name and the revision")
        if listed.size is None or listed.size > needed.at_most:
            raise call.error(f"it has {listed.size} bytes, expected at most {needed.at_most}, do not use this revision")
        if needed.sha256 and listed.sha256 and needed.sha256 != listed.sha256:
            raise call.error(
                f"it has SHA-256 {listed.sha256[:12]}, expected {needed.sha256[:12]}, do not use this revision"
            )
        with call.one_error():
            downloaded = _patiently(
                lambda: huggingface_hub.hf_hub_download(
                    self.name,
                    needed.name,
                    repo_type=self.type,
                    revision=revision,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    library_name=LIBRARY,
                )
            )
        path = Path(downloaded)
        if self._commit(path) != listing.commit:
            raise call.error("the repository was changed while it was read, try again")
        if problem := _problem(path, needed, listed):
            path.resolve().unlink(missing_ok=True)  # the client compares sizes alone, and would keep it
            path.unlink(missing_ok=True)
            raise call.error(f"it arrived damaged ({problem}), try again")
        return path


def _listed(file: Any) -> _Listed:
    return _Listed(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)


def _problem(path: Path, needed: Needed, listed: _Listed) -> str | None:
    """What is wrong with a downloaded file; None if nothing is."""
    if (size := path.stat().st_size) != listed.size:
        return f"{size} bytes, expected {listed.size}"
    expected = needed.sha256 or listed.sha256 or listed.blob_id
    if expected and (found := hash_like(path, expected)) != expected:  # a Hub may list none
        return f"hash {found[:12]}, expected {expected[:12]}"
    return None


def _patiently(call: Callable[[], T]) -> T:
    """Call the client, up to three times if the server fails (5xx); the client itself repeats only some requests."""
    from huggingface_hub.errors import HfHubHTTPError

    for pause in PAUSES:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            logger.warning("the server failed (%d), trying again", error.response.status_code)
        time.sleep(pause)
    return call()
