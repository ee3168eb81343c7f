"""The real client against a Hub that fails: each fault is one sentence, and leaves nothing half-written behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from loopback_hub import READER, WRITER, Answer, Handler, LoopbackHub, answers, git_sha1

from latent_mixup import files, hub
from latent_mixup.bank import LatentBank
from latent_mixup.generators import CompactGenerator, load_generator
from latent_mixup.hub.download import Repository

# the client, of the library below it
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")

OLDER_CLIENT = int(huggingface_hub.__version__.split(".")[0]) < 2
since_2 = pytest.mark.skipif(OLDER_CLIENT, reason="clients before 2 try fewer times")

NAME = "org/repo@v1"
INFO, CONFIG, WEIGHTS = r"GET /api/", r"resolve/.*/config.json", r"resolve/.*/model.safetensors"
INSTEAD = "pass a folder or a bundled name (cifar10, fashion-mnist, mnist)"
UNKNOWN = (
    f"neither a repository nor a local folder has this name, check it, set HF_TOKEN if it is private, or {INSTEAD}"
)
FOREIGN = "the answer is not one of a Hub, check HF_ENDPOINT and the proxy"


def generator(seed: int = 0) -> CompactGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CompactGenerator(z_dim=8, img_resolution=6, decoder_widths=(16,), encoder_widths=(16,))


@pytest.fixture
def server(hub_server, tmp_path):
    """A Hub with a generator, of which ``v1`` is a tag."""
    generator().save_pretrained(tmp_path / "generator")
    commit = hub_server.push(tmp_path / "generator")
    hub_server.repo().refs["v1"] = commit
    return hub_server


# --- what a server can do wrong


def breaks_off(share: float) -> Answer:
    """Says how long a file is, sends a part of it, and closes the connection."""

    def answer(handler: Handler) -> None:
        content = content_of(handler)
        if handler.command == "HEAD":
            return handler.send(content)
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        part = content[start : start + round(len(content) * share)]
        handler.answer(206 if start else 200, part, length=len(content) - start)

    return answer


def alters(change: Callable[[bytes], bytes], etag: str = "e") -> Answer:
    """Sends other content, as if it were the file's."""

    def answer(handler: Handler) -> None:
        (commit,) = handler.hub.repo().commits or [""]
        handler.send(change(content_of(handler)), X_Repo_Commit=commit, ETag=f'"{etag}"')

    return answer


def content_of(handler: Handler) -> bytes:
    if "/stored/" in handler.path:
        return handler.hub.stored[handler.path.rpartition("/")[2]]
    (files,) = handler.hub.repo().commits.values()
    return files[handler.path.rpartition("/")[2]]


def waits(handler: Handler) -> None:
    """Sends the headers and a byte, and then nothing until the client gives up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.wfile.flush()
    with contextlib.suppress(OSError):
        handler.connection.recv(1)
    handler.close_connection = True


def impatient() -> None:
    """The client gives up after a second, for the rest of this test; in the others it waits as long as it takes."""
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 1.0


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True


def heads(**changed: str | None) -> Answer:
    """Answers about a small file with other headers; None leaves one out."""

    def answer(handler: Handler) -> None:
        (commit,) = handler.hub.repo().commits
        headers = {"X_Repo_Commit": commit, "ETag": '"e"', **changed}
        content = content_of(handler)
        handler.answer(200, length=len(content), **{name: said for name, said in headers.items() if said is not None})

    return answer


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def stop(server: LoopbackHub) -> None:
    server.stop()


# --- the table


@dataclass(frozen=True)
class Case:
    """A fault and what is said of it.

    Attributes:
        hint: What happened and what to try; ``{url}`` is the server's.
        play: Sets it up.
        file: That is named.
        options: Of ``load_generator``.
        name: Of what is loaded.
    """

    hint: str
    play: Callable[[LoopbackHub], object] = lambda server: None
    file: str = "config.json"
    options: dict[str, object] | None = None
    name: str = NAME


def fault(pattern: str, answer: Answer) -> Callable[[LoopbackHub], object]:
    """A fault of the server, and of the one with the large files."""

    def play(server: LoopbackHub) -> None:
        if answer is waits:
            impatient()
        server.play(pattern, answer)
        assert server.elsewhere
        server.elsewhere.play(pattern, answer)

    return play


def private(server: LoopbackHub) -> None:
    server.repo().private = True


def without(file: str) -> Callable[[LoopbackHub], object]:
    return lambda server: [files.pop(file) for files in server.repo().commits.values()]


def enormous(file: str) -> Callable[[LoopbackHub], object]:
    return lambda server: server.repo().listed.update({file: 10**12})


def offline(server: LoopbackHub) -> None:
    constants.HF_HUB_OFFLINE = True  # the fixture puts it back


def offline_after_the_config(server: LoopbackHub) -> None:
    server.play(WEIGHTS, answers(500))
    with pytest.raises(hub.HubError):
        load_generator(NAME)
    offline(server)


def no_token(server: LoopbackHub) -> None:
    del os.environ["HF_TOKEN"]  # so is this


def moved(server: LoopbackHub) -> None:
    """Another commit between the answers to the first request and the second."""
    server.play(f"HEAD .*{CONFIG}", heads(X_Repo_Commit="1" * 40))


GATED = answers(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model org/repo is restricted")
CASES = {
    # who asks
    "a private repository, no token": Case(UNKNOWN, private, options={"token": False}),
    "a token that is not valid (401)": Case(
        "no valid token came with it (401), set HF_TOKEN or run `hf auth login`",
        fault(INFO, answers(401, X_Error_Message="Invalid credentials in Authorization header")),
    ),
    "a token that is not allowed to (403)": Case(
        "the token does not allow it (403), set HF_TOKEN to one of somebody who may", fault(INFO, answers(403))
    ),
    "a file that the token is not allowed to read (403)": Case(
        "the token does not allow it (403), set HF_TOKEN to one of somebody who may",
        fault(WEIGHTS, answers(403)),
        file="model.safetensors",
    ),
    "a gated repository": Case("access is gated, ask for it at {url}/org/repo and set HF_TOKEN", fault(CONFIG, GATED)),
    "a disabled repository": Case(
        f"the Hub has disabled the repository, {INSTEAD}",
        fault(INFO, answers(403, X_Error_Message="Access to this resource is disabled.")),
    ),
    "no token is stored": Case(
        "no token is stored, run `hf auth login` or set HF_TOKEN", no_token, options={"token": True}
    ),
    "too many requests (429)": Case(
        "there were too many requests (429), try again in some minutes, with HF_TOKEN set", fault(INFO, answers(429))
    ),
    # what is asked for
    "no such repository (404)": Case(UNKNOWN, name="org/none@v1"),
    "no such revision (404)": Case(
        "the repository has no such revision, name a branch, tag or commit of it", name="org/repo@v2"
    ),
    "no such commit (404)": Case(
        "the repository has no such revision, name a branch, tag or commit of it", name=f"org/repo@{'1' * 40}"
    ),
    "a repository without the main file": Case(
        "the repository lacks the file, check its name and the revision", without("config.json")
    ),
    "a repository without a file that the main file names": Case(
        "the repository lacks the file, check its name and the revision",
        without("model.safetensors"),
        file="model.safetensors",
    ),
    "a file that is listed and not there (404)": Case(
        "the repository lacks the file, check its name and the revision",
        fault(WEIGHTS, answers(404, X_Error_Code="EntryNotFound")),
        file="model.safetensors",
    ),
    "an id that the Hub does not have": Case(
        "this is not a valid repository id, it looks like org/repo", name="org/re--po@v1"
    ),
    "an enormous config": Case(
        "it has 1000000000000 bytes, expected at most 67108864, do not use this revision", enormous("config.json")
    ),
    "enormous weights": Case(
        "it has 1000000000000 bytes, expected at most {weights}, do not use this revision",
        enormous("model.safetensors"),
        file="model.safetensors",
    ),
    # the server
    "500 about the repository": Case("the server failed (500), try again later", fault(INFO, answers(500))),
    "503 about a file": Case("the server failed (503), try again later", fault(f"HEAD .*{CONFIG}", answers(503))),
    "500 instead of a file": Case(
        "the server failed (500), try again later", fault("GET /stored/", answers(500)), file="model.safetensors"
    ),
    "a status that says nothing (418)": Case(
        "the server refused (418), check the name and HF_ENDPOINT", fault(INFO, answers(418))
    ),
    "a bad request (400)": Case("the server refused (400), check the name and HF_ENDPOINT", fault(INFO, answers(400))),
    "a server that is gone": Case("{url} cannot be reached, go online or " + INSTEAD, stop),
    "a server that hangs up": Case("the connection broke off, try again", fault(INFO, hangs_up)),
    "a server that hangs up at the second file": Case(
        "the connection broke off, try again", fault(f"HEAD .*{WEIGHTS}", hangs_up), file="model.safetensors"
    ),
    "the other host is gone": Case(
        "{elsewhere} cannot be reached, go online or " + INSTEAD,
        lambda server: server.elsewhere.stop(),
        file="model.safetensors",
    ),
    "a server that is slow to answer": Case(
        "the server did not answer in time, try again or raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT",
        fault(INFO, waits),
    ),
    "a server that redirects for ever": Case(
        "the server redirects for ever, check HF_ENDPOINT",
        fault(INFO, lambda handler: handler.answer(302, Location=handler.path)),
    ),
    "a login page instead of a Hub": Case(FOREIGN, fault(INFO, answers(200, b"<html>Log in</html>"))),
    "JSON of something else": Case(FOREIGN, fault(INFO, answers(200, b"[]"))),
    "a repository without a commit": Case(
        "the server answers with commit 'None', check HF_ENDPOINT", fault(INFO, answers(200, b'{"id": "org/repo"}'))
    ),
    "a commit that is none": Case(
        "the server answers with commit '../x', check HF_ENDPOINT",
        fault(INFO, answers(200, b'{"id": "org/repo", "sha": "../x"}')),
    ),
    "another commit than the pinned one": Case(
        f"the server answers with commit '{'2' * 40}', check HF_ENDPOINT",
        fault(INFO, answers(200, b'{"id": "org/repo", "sha": "%s"}' % (b"2" * 40))),
        name=f"org/repo@{'1' * 40}",
    ),
    "a file without a commit": Case(FOREIGN, fault(f"HEAD .*{CONFIG}", heads(X_Repo_Commit=None))),
    "a file without an ETag": Case(FOREIGN, fault(f"HEAD .*{CONFIG}", heads(ETag=None))),
    # the content
    "a body that breaks off, each time": Case(
        "the connection broke off, try again", fault("GET /stored/", breaks_off(0.0)), file="model.safetensors"
    ),
    "a body that is slow, each time": Case(
        "the server did not answer in time, try again or raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT",
        fault("GET /stored/", waits),
        file="model.safetensors",
    ),
    "a body that is shorter than was said": Case(
        "Consistency check failed: file should be of size {bytes} but has size {fewer} ({stored}), "
        "check the connection and the disk, then try again",
        fault("GET /stored/", alters(lambda content: content[:-1])),
        file="model.safetensors",
    ),
    "a file that is shorter than was listed": Case(
        "it arrived damaged ({config_fewer} bytes, expected {config_bytes}), try again",
        fault(CONFIG, alters(lambda content: content[:-1])),
    ),
    "weights of other content": Case(
        "it arrived damaged (hash {flipped}, expected {sha256}), try again",
        fault("GET /stored/", alters(flip)),
        file="model.safetensors",
    ),
    "a config of other content": Case(
        "it arrived damaged (hash {config_flipped}, expected {config_sha1}), try again",
        fault(f"GET .*{CONFIG}", alters(flip)),
    ),
    "another ETag at the second request": Case(
        "it arrived damaged (hash {config_flipped}, expected {config_sha1}), try again",
        fault(f"GET .*{CONFIG}", alters(flip, etag="another")),
    ),
    "another commit at the second request": Case("the repository was changed while it was read, try again", moved),
    # this machine
    "offline": Case(f"it is not in the cache, unset HF_HUB_OFFLINE to go online, or {INSTEAD}", offline),
    "offline, with half of it in the cache": Case(
        f"it is not in the cache, unset HF_HUB_OFFLINE to go online, or {INSTEAD}",
        offline_after_the_config,
        file="model.safetensors",
    ),
    "local files only": Case(
        f"it is not in the cache, leave out local_files_only to go online, or {INSTEAD}",
        options={"local_files_only": True},
    ),
}


def said(hint: str, server: LoopbackHub) -> str:
    """A hint with the facts of this server filled in."""
    (files,) = server.repo().commits.values()
    config, weights = files.get("config.json", b""), files.get("model.safetensors", b"")
    sha256 = hashlib.sha256(weights).hexdigest()
    numbers = sum(tensor.numel() for tensor in generator().state_dict().values())
    assert server.elsewhere
    return hint.format(
        url=server.url,
        elsewhere=server.elsewhere.url,
        weights=4 * numbers + 1024**2,
        bytes=len(weights),
        fewer=len(weights) - 1,
        stored=f"(…){sha256[-40:]}",
        sha256=sha256[:12],
        flipped=hashlib.sha256(flip(weights)).hexdigest()[:12] if weights else "",
        config_bytes=len(config),
        config_fewer=len(config) - 1,
        config_sha1=git_sha1(config)[:12],
        config_flipped=git_sha1(flip(config))[:12] if config else "",
    )


def assert_nothing_half_written(home: Path, server: LoopbackHub) -> None:
    """Every file in the cache is one of the repository, and whole; nothing temporary is there.

    (But for what clients before 2 leave to go on from, and never take for the file.)
    """
    contents = {content for files in server.repo().commits.values() for content in files.values()}
    for path in (home / "hub").rglob("*"):
        inside = path.relative_to(home / "hub").parts
        if path.is_symlink():
            assert path.is_file(), path
        leftover = path.suffix == ".incomplete" and OLDER_CLIENT
        if path.is_file() and not leftover and len(inside) > 1 and inside[1] in ("blobs", "snapshots"):
            assert path.read_bytes() in contents, path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_fault_is_one_sentence_and_leaves_nothing_half_written(server, tmp_path, case):
    case.play(server)
    with pytest.raises(hub.HubError) as caught:
        load_generator(case.name, **(case.options or {}))
    error, (repo, revision) = caught.value, case.name.split("@")
    message = f"cannot read {case.file} of the Hub model {repo} (revision {revision}): {said(case.hint, server)}"
    assert str(error) == message
    assert (error.repo, error.revision, error.file) == (repo, revision, case.file)
    assert READER not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == message  # noqa: S301
    assert_nothing_half_written(tmp_path / "home", server)
    with pytest.raises(hub.HubError, match="it is not in the cache"):
        load_generator(NAME, local_files_only=True)


@since_2
@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        (INFO, answers(500)),
        (INFO, answers(503)),
        (f"HEAD .*{CONFIG}", answers(502)),
        (f"GET .*{CONFIG}", answers(500)),
        ("GET /stored/", answers(500)),
        ("GET /stored/", breaks_off(0.5)),
        ("GET /stored/", waits),
    ],
    ids=["500", "503", "502 about a file", "500 for a config", "500 for weights", "half a body", "slow"],
)
def test_what_fails_once_is_tried_again(server, pattern, answer):
    if answer is waits:
        impatient()
    for host in (server, server.elsewhere):
        host.play(pattern, answer, times=1)
    assert load_generator(NAME).digest() == generator().digest()


@since_2
def test_a_download_goes_on_where_it_broke_off(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    server.elsewhere.play("GET /stored/", breaks_off(0.25), times=3)
    assert load_generator(NAME).digest() == generator().digest()
    first, *more = [request.headers.get("range") for request in server.elsewhere.requests]
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in more]
    assert first is None
    assert len(starts) == 3
    assert 0 < starts[0] < starts[1] < starts[2]


def test_what_was_damaged_is_downloaded_anew(server):
    server.elsewhere.play("GET /stored/", alters(flip), times=1)
    with pytest.raises(hub.HubError, match="it arrived damaged"):
        load_generator(NAME)
    assert load_generator(NAME).digest() == generator().digest()


# --- the token


def redirected(server: LoopbackHub) -> Answer:
    return lambda handler: handler.answer(302, Location=server.url + handler.path)


@pytest.mark.parametrize("pattern", [INFO, f"GET .*{CONFIG}", None], ids=["listing", "small file", "large file"])
def test_the_token_does_not_follow_to_another_host(server, pattern):
    elsewhere = server.elsewhere
    elsewhere.repos = server.repos
    if pattern:
        server.play(pattern, redirected(elsewhere))
    assert load_generator(NAME).digest() == generator().digest()
    assert {request.headers.get("authorization") for request in server.requests} == {f"Bearer {READER}"}
    assert elsewhere.requests
    assert {request.headers.get("authorization") for request in elsewhere.requests} == {None}


def test_a_question_about_a_file_does_not_follow_to_another_host(server):
    server.play(f"HEAD .*{CONFIG}", redirected(server.elsewhere))
    with pytest.raises(hub.HubError, match=f"{FOREIGN}$"):
        load_generator(NAME)
    assert server.elsewhere.requests == []


def test_a_given_token_is_the_one_that_is_sent_and_is_not_logged(server, caplog):
    private(server)
    caplog.set_level("DEBUG")
    load_generator(NAME, token="hf_given")
    assert {request.headers.get("authorization") for request in server.requests} == {"Bearer hf_given"}
    assert "hf_given" not in caplog.text


@pytest.mark.parametrize(
    "play",
    [stop, fault(INFO, GATED), fault(INFO, answers(500)), fault(INFO, answers(200, b"<html>")), fault(CONFIG, GATED)],
    ids=["gone", "gated", "500", "no Hub", "a gated file"],
)
@pytest.mark.parametrize("push", [False, True])
def test_no_error_shows_the_password_of_an_endpoint_or_a_token(server, tmp_path, monkeypatch, caplog, play, push):
    monkeypatch.setattr(constants, "ENDPOINT", server.url.replace("://", "://me:s3cret@"))
    play(server)
    token = "hf_" + "x" * 34
    call = (hub.push_folder, tmp_path / "generator", "org/repo", "generator") if push else (load_generator, NAME)
    with pytest.raises(hub.HubError) as caught:
        call[0](*call[1:], token=token)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "s3cret" not in shown
    assert token not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:80/x failed", "http://***@host:80/x failed"),
        ("https://token@host", "https://***@host"),
        ("a https://u:p@ss@h and socks5://x:y@z", "a https://***@h and socks5://***@z"),
        ("Bearer hf_abcdefghijklmn", "Bearer hf_***"),
        ("https://host/org/repo@main, hf_hub_download", "https://host/org/repo@main, hf_hub_download"),
    ],
)
def test_secrets_in_a_text(text, shown):
    assert hub.errors.without_secrets(text) == shown


def test_what_a_repository_shows_of_itself_is_not_its_token():
    asked = Repository("me/gen", "model", None, cache_dir=None, token="hf_secret", local_files_only=False, instead="")
    assert "hf_secret" not in repr(asked)


def test_no_token_is_sent_where_none_may_be(server):
    load_generator(NAME, token=False)
    assert {request.headers.get("authorization") for request in server.requests} == {None}


# --- writing


WRITE_CASES = {
    "no token": (
        lambda server: os.environ.pop("HF_TOKEN"),
        "no valid token came with it (401), set HF_TOKEN or run `hf auth login`",
    ),
    "a token that only reads": (
        lambda server: os.environ.update(HF_TOKEN=READER),
        "the token does not allow it (403), set HF_TOKEN to one of somebody who may",
    ),
    "a repository that is hidden": (
        fault("POST .*/preupload/", answers(404, X_Error_Code="RepoNotFound")),
        "the Hub knows no such repository that the token may write to, set HF_TOKEN to one of a member of org",
    ),
    "500 each time": (fault("POST .*/preupload/", answers(500)), "the server failed (500), try again later"),
    "an object store that refuses": (
        fault("PUT /stored/", answers(403)),
        "the token does not allow it (403), set HF_TOKEN to one of somebody who may",
    ),
    "an object store that is gone": (
        lambda server: server.elsewhere.stop(),
        "{elsewhere} cannot be reached, go online or push it later",
    ),
    "a commit that is refused (412)": (
        fault("POST .*/commit/", answers(412)),
        "somebody else has written to it (412), try again",
    ),
    "a commit beside another (409)": (
        fault("POST .*/commit/", answers(409)),
        "somebody else is writing to it (409), try again",
    ),
    "a server that hangs up at the commit": (
        fault("POST .*/commit/", hangs_up),
        "the connection broke off, try again",
    ),
    "a server that is gone": (stop, "{url} cannot be reached, go online or push it later"),
    "a login page instead of a Hub": (fault("POST .*/preupload/", answers(200, b"<html>")), FOREIGN),
    "offline": (offline, "offline mode is on, unset HF_HUB_OFFLINE"),
}


@since_2
@pytest.mark.parametrize(("play", "hint"), WRITE_CASES.values(), ids=WRITE_CASES.keys())
def test_each_fault_of_a_push_is_one_sentence_and_commits_nothing(server, tmp_path, monkeypatch, play, hint):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    play(server)
    before, folder = dict(server.repo().refs), tmp_path / "other"
    generator(seed=1).save_pretrained(folder)
    with pytest.raises(hub.HubError) as caught:
        hub.push_folder(folder, "org/repo", "generator")
    filled = hint.format(url=server.url, elsewhere=server.elsewhere.url)
    assert str(caught.value) == f"cannot write to the Hub model org/repo (revision main): {filled}"
    assert WRITER not in str(caught.value)
    assert server.repo().refs == before


# --- without a Hub, what is in the cache


@pytest.mark.parametrize("play", [stop, fault(INFO, answers(500)), fault(INFO, waits)], ids=["gone", "500", "slow"])
def test_where_no_hub_answers_a_branch_is_its_last_commit_with_a_warning(server, play, caplog):
    loaded = load_generator(NAME)
    play(server)
    assert load_generator(NAME).metadata == loaded.metadata
    (warning,) = [record.message for record in caplog.records if record.name == "latent_mixup.hub.download"][-1:]
    assert warning.startswith("cannot read config.json of the Hub model org/repo (revision v1): ")
    assert warning.endswith(f"; going on with its last commit in the cache, {server.repo().refs['v1']}")


@pytest.mark.parametrize("play", [private, fault(INFO, answers(403))], ids=["private by now", "forbidden by now"])
def test_where_the_hub_refuses_the_cache_does_not_answer_for_it(server, play, monkeypatch):
    load_generator(NAME)
    play(server)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(hub.HubError):
        load_generator(NAME)
    assert load_generator(NAME, local_files_only=True).digest() == generator().digest()


@since_2
def test_a_bank_of_several_files_is_whole_or_not_there(server, tmp_path):
    bank = LatentBank(torch.randn(9, 8), torch.arange(9) % 3)
    bank.save_pretrained(tmp_path / "bank", max_shard_bytes=48)
    server.push(tmp_path / "bank", "dataset")
    server.elsewhere.play("GET /stored/", answers(200, b"x"))
    for _ in range(2):
        with pytest.raises(hub.HubError, match=r"^cannot read bank-00000-of-00003.safetensors of the Hub dataset org"):
            LatentBank.from_pretrained("org/repo")
    server.elsewhere.faults.clear()
    last = files.sha256(tmp_path / "bank" / "bank-00002-of-00003.safetensors")
    server.elsewhere.play(f"GET /stored/{last}", answers(500))
    with pytest.raises(hub.HubError, match=r"^cannot read bank-00002-of-00003.safetensors .* the server failed"):
        LatentBank.from_pretrained("org/repo")
    with pytest.raises(hub.HubError, match="it is not in the cache"):
        LatentBank.from_pretrained("org/repo", local_files_only=True)
    server.elsewhere.faults.clear()
    assert LatentBank.from_pretrained("org/repo").digest() == LatentBank.from_pretrained(tmp_path / "bank").digest()
