"""Names => folders: local ones, bundled ones, and what is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


# --- names


def test_a_local_folder_hides_a_bundled_name_only_where_it_holds_our_files(assets, tmp_path):
    bundled = assets / "toy" / "bank"
    assert hub.locate("toy", "bank") == bundled
    (tmp_path / "toy").touch()
    assert hub.locate("toy", "bank") == bundled
    (tmp_path / "toy").unlink()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").touch()  # a generator's
    assert hub.locate("toy", "bank") == bundled
    (tmp_path / "toy" / "bank.index.json").touch()
    assert hub.locate("toy", "bank") == Path("toy")


def test_a_path_is_never_a_bundled_name(assets, tmp_path):
    (tmp_path / "toy").mkdir()
    assert hub.locate(Path("toy"), "bank") == Path("toy")


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("generator", "run", "bank.index.json", r"run/config.json is missing: .* it holds a bank"),
        ("bank", "run", "config.json", r"run/bank.index.json is missing: .* it holds a network"),
        ("generator", "run", "ada.pkl", r"it holds ada.pkl, of which latent-mixup convert run/ada.pkl OUT makes such"),
        ("bank", "run", "projected_w.npz", r"it holds projected_w.npz, of which latent-mixup convert"),
        ("bank", "org/repo", "notes.txt", r"for the Hub's repository of this name write org/repo@main"),
    ],
)
def test_a_folder_that_holds_something_else_says_what_to_do(assets, kind, name, content, message):
    Path(name).mkdir(parents=True)
    (Path(name) / content).touch()
    with pytest.raises(FileNotFoundError, match=message):
        hub.locate(name, kind)


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


@pytest.mark.parametrize("name", ["bank.pt", "projected_w.npz", "stylegan2.pkl"])
def test_a_file_is_not_a_folder(assets, name):
    Path(name).touch()
    message = (
        rf"a bank is a folder with bank.index.json in it: '{name}' is a file; latent-mixup convert {name} OUT makes"
    )
    with pytest.raises(NotADirectoryError, match=message):
        hub.locate(name, "bank")


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
generator, bank = lm.load("fashion-mnist")
bank.check(generator)
lm.LatentMixupCollate(generator, bank)
print({"huggingface_hub", "httpx", "httpx2", "hf_xet"} & set(sys.modules))
"""


def test_bundled_names_need_neither_network_nor_hub_client(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout == "set()\n"


# --- where a folder is from


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
