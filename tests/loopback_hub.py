"""A Hugging Face Hub on the loopback device, of the standard library alone, that the real client talks to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants, file_download

READER, WRITER = "hf_reader", "hf_writer"
LARGE = (".safetensors", ".png")  # kept by SHA-256 elsewhere, as LFS has it

Files = dict[str, bytes]
Answer = Callable[["Handler"], None]


@dataclass
class Repo:
    """Commits, and the branches and tags that name them.

    Attributes:
        commits: Hash => files.
        refs: Branch, tag or ``refs/pr/n`` => hash.
        tags: Those of them that are tags.
        private: Whether only a token reads it.
        listed: What the listing says beside the files: name => size.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    private: bool = False
    listed: dict[str, int] = field(default_factory=dict)

    def commit(self, changes: dict[str, bytes | None], branch: str = "main", parent: str = "main") -> str:
        """A new commit on a branch: name => content, or None where the file goes."""
        files = {**self.commits.get(self.refs.get(branch, self.refs.get(parent, "")), {}), **changes}
        kept = {name: content for name, content in files.items() if content is not None}
        sha = hashlib.sha1(repr((len(self.commits), sorted(kept))).encode()).hexdigest()
        self.commits[sha] = kept
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The hash of a revision."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Fault:
    """What a server does instead of what it should.

    Attributes:
        pattern: Of ``"METHOD path"``.
        answer: Instead of the true one.
        times: How often; None: always.
    """

    pattern: str
    answer: Answer
    times: int | None = None


@dataclass
class Request:
    """What the client asked for."""

    method: str
    path: str
    headers: dict[str, str]


class LoopbackHub:
    """The server; inside ``with`` it answers at :attr:`url`.

    Args:
        host: ``"127.0.0.1"``, or ``"localhost"`` for a host of another name.

    Attributes:
        repos: ``("model", "org/name")`` => repository.
        stored: What was uploaded by SHA-256.
        requests: All, in order.
        faults: The first that fits is played.
        elsewhere: Another server that large files are redirected to; None: none.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.elsewhere: LoopbackHub | None = None
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone: the port is closed, and so are connections that were kept alive."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def repo(self, repo_type: str = "model", name: str = "org/repo") -> Repo:
        """A repository, made where it is missing."""
        return self.repos.setdefault((repo_type, name), Repo())

    def push(self, folder: Path, repo_type: str = "model", name: str = "org/repo", **where: str) -> str:
        """A commit of all files of a folder; its hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.repo(repo_type, name).commit(files, **where)

    def play(self, pattern: str, answer: Answer, times: int | None = None) -> None:
        """Add a fault."""
        self.faults.append(Fault(pattern, answer, times))

    def asked(self) -> list[str]:
        """``"METHOD path"`` of each request, in order."""
        return [f"{request.method} {request.path}" for request in self.requests]


def answers(status: int, body: bytes = b"", **headers: str) -> Answer:
    """A fault that answers with a status; ``_`` in the name of a header is ``-``."""
    return lambda handler: handler.answer(status, body, **headers)


def git_sha1(content: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection; a method for each kind of request."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    body: bytes

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub  # type: ignore[attr-defined]
        self.hub._connections.add(self.connection)

    def finish(self) -> None:
        self.hub._connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    # ---------------------------------------------------------------------------------------------
    # Answers
    # ---------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Play a fault, or do what was asked."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._chunks()
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        line = f"{self.command} {path}"
        self.hub.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        for fault in self.hub.faults:
            if fault.times != 0 and re.search(fault.pattern, line):
                if fault.times is not None:
                    fault.times -= 1
                return fault.answer(self)
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {parts.path}"):
                return getattr(self, name)(*(group and unquote(group) for group in match.groups()))
        return self.answer(404)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        """Status, headers and body; a ``length`` that is not the body's breaks the connection off."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()
            if length is not None and length > len(body):
                self.close_connection = True

    def say(self, value: Any, status: int = 200) -> None:
        """JSON."""
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    # ---------------------------------------------------------------------------------------------
    # Reading
    # ---------------------------------------------------------------------------------------------

    def found(self, kind: str | None, name: str, revision: str = "main") -> tuple[Repo, str] | None:
        """A repository and a commit of it; None after an error was answered."""
        repo = self.hub.repos.get(("dataset" if kind and kind.startswith("dataset") else "model", name))
        if repo is None or (repo.private and not self.token()):
            self.answer(404 if self.token() else 401, X_Error_Code="RepoNotFound", X_Error_Message="not found")
            return None
        commit = repo.find(revision)
        if commit is None:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def token(self) -> str | None:
        """What the client says that it is."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def info(self, kind: str, name: str, revision: str | None) -> None:
        if not (found := self.found(kind, name, revision or "main")):
            return
        repo, commit = found
        siblings: list[dict[str, Any]] = [
            {"rfilename": path, "size": len(content), "blobId": git_sha1(content), **self._lfs(path, content)}
            for path, content in repo.commits[commit].items()
        ]
        for sibling in siblings:
            sibling["size"] = repo.listed.get(sibling["rfilename"], sibling["size"])
        plain = siblings if "blobs" in self.query else [{"rfilename": entry["rfilename"]} for entry in siblings]
        self.say({"id": name, "sha": commit, "private": repo.private, "siblings": plain, "tags": [], "downloads": 0})

    def _lfs(self, path: str, content: bytes) -> dict[str, Any]:
        if not path.endswith(LARGE):
            return {}
        sha = hashlib.sha256(content).hexdigest()
        return {"lfs": {"sha256": sha, "oid": sha, "size": len(content), "pointerSize": 128}}

    def tree(self, kind: str, name: str, revision: str) -> None:
        if found := self.found(kind, name, revision):
            repo, commit = found
            self.say(
                [
                    {"type": "file", "path": path, "size": len(body), "oid": git_sha1(body), **self._lfs(path, body)}
                    for path, body in repo.commits[commit].items()
                ]
            )

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if not (found := self.found(kind, name, revision)):
            return
        repo, commit = found
        content = repo.commits[commit].get(path)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="no entry", X_Repo_Commit=commit)
        large = path.endswith(LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else git_sha1(content)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"', "Accept_Ranges": "bytes"}
        if large and self.hub.elsewhere:
            self.hub.elsewhere.stored[etag] = content
            linked = {"X_Linked_ETag": f'"{etag}"', "X_Linked_Size": str(len(content))}
            return self.answer(302, Location=f"{self.hub.elsewhere.url}/stored/{etag}", **linked, **headers)
        self.send(content, **headers)

    def send(self, content: bytes, **headers: str) -> None:
        """A file, or the range of it that was asked for."""
        if self.command == "HEAD":
            return self.answer(200, length=len(content), **headers)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], Content_Range=where, **headers)
        self.answer(200, content, **headers)

    def give_stored(self, sha: str) -> None:
        self.send(self.hub.stored[sha], ETag=f'"{sha}"')

    # ---------------------------------------------------------------------------------------------
    # Writing
    # ---------------------------------------------------------------------------------------------

    def may_write(self) -> bool:
        """Whether the token may; else an error was answered."""
        if self.token() == WRITER:
            return True
        self.answer(403 if self.token() else 401, X_Error_Message="You don't have the rights")
        return False

    def create(self) -> None:
        if not self.may_write():
            return
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            return self.say({"error": "You already created this repo", "url": url}, 409)
        repo = self.hub.repo(kind, name)
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.say({"url": url})

    def branch(self, kind: str, name: str, branch: str) -> None:
        if not self.may_write() or not (found := self.found(kind, name)):
            return
        repo, commit = found
        if branch in repo.refs:
            return self.say({"error": "Reference already exists"}, 409)
        repo.refs[branch] = commit
        self.say({})

    def tag(self, kind: str, name: str, revision: str) -> None:
        if not self.may_write() or not (found := self.found(kind, name, revision)):
            return
        repo, commit = found
        tag = json.loads(self.body)["tag"]
        if tag in repo.refs:
            return self.say({"error": "Tag reference exists already"}, 409)
        repo.refs[tag] = commit
        repo.tags.add(tag)
        self.say({})

    def refs(self, kind: str, name: str) -> None:
        if not (found := self.found(kind, name)):
            return
        repo = found[0]
        lists: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
        for ref, commit in repo.refs.items():
            part, place = ("tags", "tags") if ref in repo.tags else ("branches", "heads")
            lists[part].append({"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": commit})
        self.say(lists)

    def validate(self) -> None:
        self.say({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if not self.may_write() or not (found := self.found(kind, name, revision)):
            return
        repo, commit = found
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if (there := repo.commits[commit].get(file["path"])) is not None:
                entry["oid"] = hashlib.sha256(there).hexdigest() if mode == "lfs" else git_sha1(there)
            files.append(entry)
        self.say({"files": files})

    def batch(self, kind: str | None, name: str) -> None:
        if not self.may_write() or not self.found(kind, name):
            return
        base = (self.hub.elsewhere or self.hub).url
        there = (self.hub.elsewhere or self.hub).stored
        objects = [
            entry
            if entry["oid"] in there
            else {**entry, "actions": {"upload": {"href": f"{base}/stored/{entry['oid']}"}}}
            for entry in json.loads(self.body)["objects"]
        ]
        self.say({"transfer": "basic", "objects": objects})

    def store(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            return self.answer(400)
        self.hub.stored[sha] = self.body
        self.answer(200)

    def commit(self, kind: str, name: str, revision: str) -> None:
        if not self.may_write() or not (found := self.found(kind, name, revision)):
            return
        changes: dict[str, bytes | None] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = (self.hub.elsewhere or self.hub).stored[value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        request = f"{self.hub.url}/{name}/discussions/1" if "create_pr" in self.query else None
        sha = found[0].commit(changes, "refs/pr/1" if request else revision, parent=revision)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self.say({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": request, "hookOutput": ""})


_REPO = r"([\w.-]+/[\w.-]+)"
_API = rf"/api/(models|datasets)/{_REPO}"
ROUTES = [
    (rf"GET {_API}(?:/revision/(.+))?", "info"),
    (rf"GET {_API}/tree/([^/]+)", "tree"),
    (rf"(?:GET|HEAD) /(?:(datasets)/)?{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
    (r"(?:GET|HEAD) /stored/([0-9a-f]{64})", "give_stored"),
    (r"POST /api/repos/create", "create"),
    (rf"POST {_API}/branch/(.+)", "branch"),
    (rf"POST {_API}/tag/(.+)", "tag"),
    (rf"GET {_API}/refs", "refs"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST {_API}/preupload/(.+)", "preupload"),
    (rf"POST /(?:(datasets)/)?{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /stored/([0-9a-f]{64})", "store"),
    (rf"POST {_API}/commit/(.+)", "commit"),
]


def environment(hub: LoopbackHub, home: Path, **more: str) -> dict[str, str]:
    """What another process needs so that its client talks to ``hub`` and keeps everything under ``home``."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": READER,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **more,
    }


def connect(hub: LoopbackHub, home: Path, monkeypatch: Any) -> None:
    """From now on this process's client talks to ``hub``, keeps its files under ``home`` and never sleeps."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": 60.0,  # on a busy machine as well
        "HF_HUB_ETAG_TIMEOUT": 60.0,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 60.0, raising=False)
    for name, value in environment(hub, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
