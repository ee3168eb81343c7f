"""Names => folders, files read with clear errors, and files written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from latent_mixup import files, hub

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


def test_a_path_is_never_a_hub_id(assets):
    with pytest.raises(FileNotFoundError, match="no bank is called 'org/repo'"):
        hub.locate(Path("org/repo"), "bank")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "bank.pt").touch()
    with pytest.raises(NotADirectoryError, match=r"a bank is a folder with bank.index.json in it"):
        hub.locate(tmp_path / "bank.pt", "bank")


# --- Hub ids


def test_two_different_revisions_are_refused(assets):
    with pytest.raises(ValueError, match="two revisions were asked for, 'org/repo@v1' and revision='v2': give one"):
        hub.locate("org/repo@v1", "bank", revision="v2")


@pytest.mark.parametrize("revision", ["", "../x", "a..b", "/a", "a b", "a\\b", "a\0b", "a^", "a~1", "a:b", "*"])
def test_what_git_does_not_call_a_revision(assets, revision):
    with pytest.raises(ValueError, match="a revision is a branch, a tag or a commit: got "):
        hub.locate("org/repo", "bank", revision=revision)


@pytest.mark.parametrize("name", ["a", "a/b/c", "a/b@", "../b", ""])
def test_what_is_no_hub_id(name):
    assert hub.is_hub_id("org/repo.v1@v2")
    assert not hub.is_hub_id(name)
    with pytest.raises(ValueError, match=rf"a Hub id looks like org/repo\[@revision\]: got '{name}'"):
        hub.download_file(name, "x")


NO_NETWORK = """
import socket, sys
def refuse(*_): raise AssertionError("a connection")
socket.socket.connect = refuse
import latent_mixup as lm
generator, bank = lm.load_generator("fashion-mnist"), lm.LatentBank.from_pretrained("fashion-mnist")
bank.check(generator)
lm.LatentMixupCollate(generator, bank)
print({"huggingface_hub", "httpx", "httpx2", "hf_xet"} & set(sys.modules))
"""


def test_bundled_names_need_neither_network_nor_hub_client(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout == "set()\n"


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
    with pytest.raises(files.FormatError, match=rf"config.json.*{message}"):
        files.read_json(tmp_path / "config.json")


def test_read_json_of_a_missing_and_of_an_enormous_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        files.read_json(tmp_path / "config.json")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(files.FormatError, match="1000000000 bytes: expected at most"):
        files.read_json(tmp_path / "config.json")


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
    with pytest.raises(files.FormatError, match="expected a plain file name"):
        files.safe_path(tmp_path, name)


def test_links_may_not_leave_the_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "secret"
    inside.mkdir()
    outside.touch()
    (inside / "out").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "file").touch()
    (inside / "near").symlink_to(inside / "file")
    assert files.safe_path(inside, "near").is_file()
    with pytest.raises(files.FormatError, match="link that leaves its folder"):
        files.safe_path(inside, "out")
    with pytest.raises((files.FormatError, FileNotFoundError), match="loop"):
        files.read_json(files.safe_path(inside, "loop"))


def test_the_hub_clients_links_into_its_blobs_are_fine(tmp_path):
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_text("{}")
    (tmp_path / "other").touch()
    (folder / "config.json").symlink_to("../../blobs/abc")
    (folder / "model.json").symlink_to("../../other")
    assert files.read_json(files.safe_path(folder, "config.json")) == {}
    assert hub.origin_of(folder) is None
    with pytest.raises(files.FormatError, match="leaves its folder"):
        files.safe_path(folder, "model.json")


def test_the_hub_clients_links_into_the_blobs_that_repositories_share(tmp_path):
    repository = tmp_path / "models--org--repo"
    folder, shared = repository / "snapshots" / COMMIT, tmp_path / "blobs" / "ab" / "abc"
    for path in (folder, repository / "blobs", shared.parent):
        path.mkdir(parents=True)
    shared.write_text("{}")
    (repository / "blobs" / "etag").symlink_to("../../blobs/ab/abc")
    (folder / "config.json").symlink_to("../../blobs/etag")
    assert files.read_json(files.safe_path(folder, "config.json")) == {}


@pytest.mark.parametrize(
    ("folder", "origin"),
    [
        (f"models--org--a.b-c_d/snapshots/{COMMIT}", {"repo": "org/a.b-c_d", "commit": COMMIT}),
        (f"/x/datasets--org--repo/snapshots/{COMMIT}", {"repo": "org/repo", "commit": COMMIT}),
        (f"spaces--org--repo/snapshots/{COMMIT}", None),
        ("models--org--repo/snapshots/main", None),
        (f"models--org--repo/{COMMIT}", None),
        (f"models--repo/snapshots/{COMMIT}", None),
    ],
)
def test_where_a_folder_of_the_cache_is_from(folder, origin):
    assert hub.origin_of(Path(folder)) == origin
    assert hub.with_origin({"name": "x"}, Path(folder)) == {"name": "x", **({"hub": origin} if origin else {})}


@pytest.mark.parametrize("stated", [None, 1, "x", [], {}, {"repo": "a/b"}, {"repo": 1, "commit": "c"}, {"commit": "c"}])
def test_an_origin_that_a_file_states_wrongly_is_none(stated):
    assert hub.stated_origin({"hub": stated}) is None
    assert hub.stated_origin({}) is None


# --- writing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_folder_writes_bytes_and_calls_writers_in_order(tmp_path):
    seen = []
    content = {
        "a": lambda path: path.write_text(str(seen.append("a"))),
        "b": lambda path: path.write_text(str(seen)),
        "c": b"C",
    }
    assert files.write_folder(tmp_path / "new" / "deep", content) == tmp_path / "new" / "deep"
    assert contents(tmp_path / "new" / "deep") == {"a": b"None", "b": b"['a']", "c": b"C"}


def test_modes_follow_the_umask(tmp_path):
    content = {
        "t.safetensors": lambda path: files.save_tensors(path, {"x": torch.ones(2)}),
        "j": b"{}",
    }
    older = os.umask(0o027)
    try:
        files.write_folder(tmp_path, content)
    finally:
        os.umask(older)
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in content} == {"0o640"}


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("links", [True, False])
def test_a_failed_rename_puts_the_older_files_back(tmp_path, monkeypatch, call, links):
    files.write_folder(tmp_path, {"model": b"old", "config": b"old"})
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
        files.write_folder(tmp_path, {"extra": b"new", "model": b"new", "config": b"new"})
    assert contents(tmp_path) == before


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fails(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_folder(tmp_path / "new", {"a": b"A", "b": fails})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from latent_mixup import files, hub\n"
        "kill = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_folder(Path(sys.argv[1]), {'a': b'A', 'b': kill})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert [path.name[:14] for path in tmp_path.iterdir()] == [".latent-mixup-"]
    files.write_folder(tmp_path, {"a": b"A"})
    assert contents(tmp_path) == {"a": b"A"}


def test_owned_files_that_are_not_written_again_go(tmp_path):
    files.write_folder(tmp_path, {"s-1": b"", "s-2": b"", "README.md": b""})
    files.write_folder(tmp_path, {"s-2": b"new"}, owns="s-*")
    assert contents(tmp_path) == {"s-2": b"new", "README.md": b""}


def test_hostile_names_are_not_written(tmp_path):
    with pytest.raises(files.FormatError, match="plain file name"):
        files.write_folder(tmp_path / "in", {"../out": b""})
    assert list(tmp_path.iterdir()) == []


def test_save_tensors_keeps_values_and_metadata_and_is_deterministic(tmp_path):
    tensors = {"b": torch.arange(6).view(2, 3).T, "a": torch.ones(2, dtype=torch.float16)}
    for name in ("1", "2"):
        files.save_tensors(tmp_path / name, tensors, {"z": 1, "y": [2], "x": "3"})
    assert files.sha256(tmp_path / "1") == files.sha256(tmp_path / "2")
    with safe_open(tmp_path / "1", framework="pt") as opened:
        assert torch.equal(opened.get_tensor("b"), tensors["b"])
        assert opened.metadata() == {"latent_mixup": '{"z": 1, "y": [2], "x": "3"}'}


def test_save_tensors_to_nowhere(tmp_path):
    with pytest.raises(OSError, match=r"cannot write x.safetensors into"):
        files.save_tensors(tmp_path / "none" / "x.safetensors", {"x": torch.ones(1)})
