"""Names => folders, files read with clear errors, and files written whole or not at all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors import safe_open

from latent_mixup import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A package with one bundled name, "toy", that has a bank and no generator."""
    folder = tmp_path / "assets"
    (folder / "toy" / "bank").mkdir(parents=True)
    (folder / "toy" / "bank" / "bank.index.json").write_text("{}")
    monkeypatch.setattr(hub.names, "_assets", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


class FakeSnapshot:
    """Stands in for ``snapshot_download``: remembers the call, gives a folder or raises."""

    def __init__(self, outcome: Path | Exception) -> None:
        self.outcome, self.calls = outcome, []

    def __call__(self, repo, **options):
        self.calls.append((repo, options))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return str(self.outcome)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "bank.index.json").write_text("{}")
    fake = FakeSnapshot(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


# --- names


def test_a_folder_comes_before_a_bundled_name(assets, tmp_path):
    assert hub.locate("toy", "bank") == assets / "toy" / "bank"
    (tmp_path / "toy").mkdir()
    assert hub.locate("toy", "bank") == Path("toy")


def test_bundled_names_are_those_of_the_kind(assets):
    assert hub.bundled_names("bank") == hub.bundled_names() == ["toy"]
    assert hub.bundled_names("generator") == []


def test_no_assets_no_names(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.names, "_assets", lambda: tmp_path / "none")
    assert hub.bundled_names() == []


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "", "x\0y", "../up", "/abs/none", "n" * 10_000, "a/b@"])
def test_an_unknown_name_lists_the_bundled_ones(assets, name):
    with pytest.raises(FileNotFoundError, match=r"no bank is called .*\(toy\) or a Hub id such as org/repo"):
        hub.locate(name, "bank")


def test_a_path_is_never_a_hub_id(assets, snapshot):
    with pytest.raises(FileNotFoundError, match="no bank is called 'org/repo'"):
        hub.locate(Path("org/repo"), "bank")
    assert snapshot.calls == []


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "bank.pt").touch()
    with pytest.raises(NotADirectoryError, match=r"a bank is a folder with bank.index.json in it"):
        hub.locate(tmp_path / "bank.pt", "bank")


# --- the Hub


@pytest.mark.parametrize(
    ("name", "argument", "revision"),
    [
        ("org/repo", None, None),
        ("org/repo@v1", None, "v1"),
        ("org/repo", "v1", "v1"),
        ("org/repo@v1", "v1", "v1"),
    ],
)
def test_a_hub_id_is_downloaded_with_its_revision(assets, snapshot, name, argument, revision):
    assert hub.locate(name, "bank", revision=argument, token="t", cache_dir="c") == snapshot.outcome
    ((repo, options),) = snapshot.calls
    assert (repo, options["revision"], options["token"], options["cache_dir"]) == (
        "org/repo",
        revision,
        "t",
        "c",
    )
    assert options["repo_type"] == "dataset"
    assert options["allow_patterns"] == ["*.json", "*.safetensors", "README.md"]


def test_two_different_revisions_are_refused(assets, snapshot):
    with pytest.raises(ValueError, match="two revisions"):
        hub.locate("org/repo@v1", "bank", revision="v2")


def test_generators_are_model_repositories(assets, snapshot):
    with pytest.raises(hub.HubError, match=r"cannot read config.json of the Hub model org/repo \(revision main\)"):
        hub.locate("org/repo", "generator")  # the fake one holds a bank
    assert snapshot.calls[0][1]["repo_type"] == "model"


def http_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "500 Server Error\nmore")
    return error


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (http_error(errors.GatedRepoError), "access is gated.*HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), "neither a repository nor a local folder.*HF_TOKEN"),
        (http_error(errors.RevisionNotFoundError), "no such revision"),
        (http_error(errors.RemoteEntryNotFoundError), "lacks a file"),
        (errors.LocalEntryNotFoundError("x"), "not in the cache.*bundled name"),
        (errors.OfflineModeIsEnabled("x"), "offline mode is on.*HF_HUB_OFFLINE"),
        (errors.FileMetadataError("no etag."), "no etag, check the connection"),
        (errors.HFValidationError("x"), "not a valid repository id"),
        (http_error(errors.HfHubHTTPError), r"\(500 Server Error\), try again later"),
        (errors.HTTPError("timed out"), "timed out, check the connection"),
        (OSError("disk full"), "disk full, check"),
    ],
)
def test_every_failure_is_one_sentence_with_repository_file_and_revision(assets, snapshot, error, hint):
    snapshot.outcome = error
    expected = rf"^cannot read bank.index.json of the Hub dataset org/repo \(revision v1\): .*{hint}"
    with pytest.raises(hub.HubError, match=expected) as caught:
        hub.locate("org/repo@v1", "bank")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error
    assert (caught.value.repo, caught.value.revision, caught.value.file) == (
        "org/repo",
        "v1",
        "bank.index.json",
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_one_file_of_a_model_repository(monkeypatch, tmp_path):
    fake = FakeSnapshot(tmp_path / "x.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **options: fake((repo, file), **options))
    assert hub.download_file("org/repo@v1", "x.safetensors") == fake.outcome
    assert fake.calls == [(("org/repo", "x.safetensors"), {"revision": "v1", "library_name": "latent-mixup"})]
    fake.outcome = errors.LocalEntryNotFoundError("x")
    expected = (
        r"^cannot read x.safetensors of the Hub model org/repo \(revision main\): it is not in the cache and .*, "
        "go online or pass the path of a file$"
    )
    with pytest.raises(hub.HubError, match=expected) as caught:
        hub.download_file("org/repo", "x.safetensors")
    assert (caught.value.repo, caught.value.revision, caught.value.file) == ("org/repo", None, "x.safetensors")


@pytest.mark.parametrize("name", ["a", "a/b/c", "a/b@", "../b", ""])
def test_what_is_no_hub_id(name):
    assert hub.is_hub_id("org/repo.v1@v2")
    assert not hub.is_hub_id(name)
    with pytest.raises(ValueError, match=rf"a Hub id looks like org/repo\[@revision\]: got '{name}'"):
        hub.download_file(name, "x")


def test_offline_with_the_real_client(tmp_path):
    code = (
        "from latent_mixup import hub\n"
        "try: hub.locate('org/repo', 'bank')\n"
        "except hub.HubError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("cannot read bank.index.json of the Hub dataset org/repo (revision main): ")
    assert printed.count("\n") == 1


def test_bundled_names_need_no_hub_client():
    code = "import sys; from latent_mixup import hub\nhub.bundled_names()\nprint('huggingface_hub' in sys.modules)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# --- reading


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b"[1]", "JSON object: got list"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "a key is there twice"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_read_json_names_the_file(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(hub.FormatError, match=rf"config.json.*{message}"):
        hub.read_json(tmp_path / "config.json")


def test_read_json_of_a_missing_and_of_an_enormous_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        hub.read_json(tmp_path / "config.json")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(hub.FormatError, match="1000000000 bytes: expected at most"):
        hub.read_json(tmp_path / "config.json")


HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/abs",
    "C:\\x",
    "a\\b",
    "a/b",
    "a//b",
    "a\0b",
    ".hidden",
    "x" * 300,
    "é",
    3,
    None,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(tmp_path, name):
    with pytest.raises(hub.FormatError, match="expected a plain file name"):
        hub.safe_path(tmp_path, name)


def test_links_may_not_leave_the_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "secret"
    inside.mkdir()
    outside.touch()
    (inside / "out").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "file").touch()
    (inside / "near").symlink_to(inside / "file")
    assert hub.safe_path(inside, "near").is_file()
    with pytest.raises(hub.FormatError, match="link that leaves its folder"):
        hub.safe_path(inside, "out")
    with pytest.raises((hub.FormatError, FileNotFoundError), match="loop"):
        hub.read_json(hub.safe_path(inside, "loop"))


def test_the_hub_clients_links_into_its_blobs_are_fine(tmp_path):
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_text("{}")
    (tmp_path / "other").touch()
    (folder / "config.json").symlink_to("../../blobs/abc")
    (folder / "model.json").symlink_to("../../other")
    assert hub.read_json(hub.safe_path(folder, "config.json")) == {}
    with pytest.raises(hub.FormatError, match="leaves its folder"):
        hub.safe_path(folder, "model.json")


# --- writing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_folder_writes_bytes_and_calls_writers_in_order(tmp_path):
    seen = []
    files = {
        "a": lambda path: path.write_text(str(seen.append("a"))),
        "b": lambda path: path.write_text(str(seen)),
        "c": b"C",
    }
    assert hub.write_folder(tmp_path / "new" / "deep", files) == tmp_path / "new" / "deep"
    assert contents(tmp_path / "new" / "deep") == {"a": b"None", "b": b"['a']", "c": b"C"}


def test_modes_follow_the_umask(tmp_path):
    files = {
        "t.safetensors": lambda path: hub.save_tensors(path, {"x": torch.ones(2)}),
        "j": b"{}",
    }
    older = os.umask(0o027)
    try:
        hub.write_folder(tmp_path, files)
    finally:
        os.umask(older)
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in files} == {"0o640"}


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("links", [True, False])
def test_a_failed_rename_puts_the_older_files_back(tmp_path, monkeypatch, call, links):
    hub.write_folder(tmp_path, {"model": b"old", "config": b"old"})
    before, calls, rename = contents(tmp_path), [], os.replace

    def fails(source, target):
        calls.append(target)
        if len(calls) == call + 1:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    with pytest.raises(OSError, match="no"):
        hub.write_folder(tmp_path, {"extra": b"new", "model": b"new", "config": b"new"})
    assert contents(tmp_path) == before


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fails(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.write_folder(tmp_path / "new", {"a": b"A", "b": fails})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from latent_mixup import hub\n"
        "kill = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "hub.write_folder(Path(sys.argv[1]), {'a': b'A', 'b': kill})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert [path.name[:14] for path in tmp_path.iterdir()] == [".latent-mixup-"]
    hub.write_folder(tmp_path, {"a": b"A"})
    assert contents(tmp_path) == {"a": b"A"}


def test_owned_files_that_are_not_written_again_go(tmp_path):
    hub.write_folder(tmp_path, {"s-1": b"", "s-2": b"", "README.md": b""})
    hub.write_folder(tmp_path, {"s-2": b"new"}, owns="s-*")
    assert contents(tmp_path) == {"s-2": b"new", "README.md": b""}


def test_hostile_names_are_not_written(tmp_path):
    with pytest.raises(hub.FormatError, match="plain file name"):
        hub.write_folder(tmp_path / "in", {"../out": b""})
    assert list(tmp_path.iterdir()) == []


def test_save_tensors_keeps_values_and_metadata_and_is_deterministic(tmp_path):
    tensors = {"b": torch.arange(6).view(2, 3).T, "a": torch.ones(2, dtype=torch.float16)}
    for name in ("1", "2"):
        hub.save_tensors(tmp_path / name, tensors, {"z": 1, "y": [2], "x": "3"})
    assert hub.sha256(tmp_path / "1") == hub.sha256(tmp_path / "2")
    with safe_open(tmp_path / "1", framework="pt") as opened:
        assert torch.equal(opened.get_tensor("b"), tensors["b"])
        assert opened.metadata() == {"latent_mixup": '{"z": 1, "y": [2], "x": "3"}'}


def test_save_tensors_to_nowhere(tmp_path):
    with pytest.raises(OSError, match=r"cannot write x.safetensors into"):
        hub.save_tensors(tmp_path / "none" / "x.safetensors", {"x": torch.ones(1)})
