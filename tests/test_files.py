"""Files: read with limits and clear errors, written whole or not at all, at any moment of one version."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from systems import KILL, KILLED, endless, link, needs_posix, pipe

from latent_mixup import files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
        (b'{"a": [' + b"{}," * 2**20 + b"{}]}", "about 2097155 values: expected at most 1048576"),
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
    link(inside / "out", outside)
    link(inside / "loop", inside / "loop")
    (inside / "file").touch()
    link(inside / "near", inside / "file")
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
    link(folder / "config.json", "../../blobs/abc")
    link(folder / "model.json", "../../other")
    assert files.read_json(files.safe_path(folder, "config.json")) == {}
    with pytest.raises(files.FormatError, match="leaves its folder"):
        files.safe_path(folder, "model.json")


def test_the_hub_clients_links_into_the_blobs_that_repositories_share(tmp_path):
    repository = tmp_path / "models--org--repo"
    folder, shared = repository / "snapshots" / COMMIT, tmp_path / "blobs" / "ab" / "abc"
    for path in (folder, repository / "blobs", shared.parent):
        path.mkdir(parents=True)
    shared.write_text("{}")
    link(repository / "blobs" / "etag", "../../blobs/ab/abc")
    link(folder / "config.json", "../../blobs/etag")
    assert files.read_json(files.safe_path(folder, "config.json")) == {}


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


@needs_posix
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
        "import os, sys; from pathlib import Path; from latent_mixup import files\n"
        f"kill = lambda path: os.kill(os.getpid(), {KILL:d})\n"
        "files.write_folder(Path(sys.argv[1]), {'a': b'A', 'b': kill})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert sorted(path.name[:14] for path in tmp_path.iterdir()) == [".latent-mixup-", ".latent-mixup."]
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


def test_files_are_synced_through_descriptors_that_may_write(tmp_path, monkeypatch):
    """Windows refuses to sync a file that is open for reading alone."""
    fcntl, real = pytest.importorskip("fcntl"), os.fsync

    def fsync(descriptor):
        reads = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if reads and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, b"x")
    assert read(tmp_path) == b"x"


# --- the lock


def test_a_writer_that_waits_says_so_once_and_names_the_lock(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "_SAY_SO_AFTER", 0.05)
    inside, go_on = threading.Event(), threading.Event()

    def slow(path):
        inside.set()
        assert go_on.wait(60)
        path.write_bytes(b"first")

    first = threading.Thread(target=files.write_folder, args=(tmp_path, {"a": slow}))
    second = threading.Thread(target=files.write_folder, args=(tmp_path, {"a": b"second"}))
    first.start()
    assert inside.wait(60)
    second.start()
    while not caplog.records:
        second.join(0.05)
    go_on.set()
    first.join()
    second.join()
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for {tmp_path / '.latent-mixup.lock'}: another process writes into this folder; if it was stopped, "
        "continue or end it"
    ]
    assert contents(tmp_path) == {"a": b"second"}


def test_the_lock_of_a_killed_writer_is_free(tmp_path):
    kill = "import os, sys; from pathlib import Path; from latent_mixup import files\n"
    kill += f"files.write_folder(Path(sys.argv[1]), {{'a': lambda path: os.kill(os.getpid(), {KILL:d})}})"
    assert subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False).returncode == KILLED
    assert (tmp_path / ".latent-mixup.lock").exists()
    files.write_folder(tmp_path, {"a": b"A"})
    assert contents(tmp_path) == {"a": b"A"}


# --- indexed folders


def save(folder: Path, *content: bytes, **more) -> None:
    """An indexed folder with a part for each content, and a card beside them."""
    files.write_indexed(
        folder,
        {f"part-{number}.bin": piece for number, piece in enumerate(content)},
        "index.json",
        lambda entries: json.dumps({"format_version": 1, "files": [asdict(entry) for entry in entries]}).encode(),
        **{"beside": {"README.md": b"card of " + content[0]}, "owns": "part-*.bin", **more},
    )


FIELDS = {"files": files.Field(lambda value: isinstance(value, list), "a list of files")}


def read(folder: Path) -> bytes:
    """The parts of an indexed folder, one after the other."""

    def parts() -> bytes:
        found = files.read_index(folder, "index.json", FIELDS, 1)["files"]
        entries = [files.FileEntry.read(folder / "index.json", f"files[{n}]", entry) for n, entry in enumerate(found)]
        return b"".join(files.part_path(folder, entry, "index.json", verify=True).read_bytes() for entry in entries)

    return files.settled(folder / "index.json", parts)


OPERATIONS = ("open", "mkdir", "replace", "rename", "link", "unlink", "rmdir", "fsync", "chmod", "utime")


class Killed(BaseException):
    """Nothing catches it, and nothing that is to happen afterwards does."""


def ends_before(call: int, write) -> bool:
    """Run ``write`` until its file operation number ``call``: from there on none is done, as after a kill."""
    calls = itertools.count()

    def counted(real, *args, **kwargs):
        if next(calls) >= call:
            raise Killed
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
        try:
            write()
        except Killed:
            patch.undo()  # the lock is free again, as the system frees that of a killed process
            return True
    return False


@pytest.mark.parametrize(
    ("first", "content"), [([b"a", b"b"], [b"a", b"b"]), ([b"a", b"b"], [b"c"]), ([b"a"], [b"c", b"a"]), ([], [b"a"])]
)
def test_a_kill_at_any_file_operation_leaves_the_older_or_the_newer_version(tmp_path, monkeypatch, first, content):
    """And a second kill, at any operation of the next save, as well; a save that ends leaves nothing of either."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted, but it takes its time
    older, newer = b"".join(first) if first else None, b"".join(content)

    def version(folder: Path) -> bytes | None:
        return read(folder) if (folder / "index.json").exists() else None

    outcomes, again = set(), tmp_path / "again"
    for call in itertools.count():
        folder = tmp_path / str(call)
        if first:
            save(folder, *first)
        killed = ends_before(call, functools.partial(save, folder, *content))
        outcomes.add(version(folder))
        for stop in range(call % 7, call if folder.is_dir() else 0, 7):
            shutil.copytree(folder, again)
            ends_before(stop, functools.partial(save, again, *content))
            assert version(again) in (older, newer)
            save(again, b"last")
            assert contents(again).keys() == {"README.md", "index.json", "part-0.bin"}
            assert read(again) == b"last"
            shutil.rmtree(again)
        if not killed:
            break
    assert call > 10
    assert outcomes == {older, newer}


@pytest.mark.parametrize("operation", ["replace", "rename", "fsync"])
@pytest.mark.parametrize("content", [[b"old"], [b"new", b"more"]])
def test_a_failure_at_any_step_leaves_the_older_or_the_newer_version_whole(tmp_path, monkeypatch, operation, content):
    real = getattr(os, operation)
    for call in range(20):
        folder, calls = tmp_path / str(call), []
        save(folder, b"old")

        def fails(*args, _call=call, _calls=calls):
            _calls.append(args)
            if len(_calls) == _call + 1:
                raise OSError("no space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fails)
            try:
                save(folder, *content)
            except OSError:
                assert read(folder) == b"old"
                assert sorted(contents(folder)) == ["README.md", "index.json", "part-0.bin"]
            else:
                assert read(folder) == b"".join(content)
        if len(calls) <= call:
            return
    raise AssertionError("there are more steps than were tried")


def test_a_reader_beside_a_writer_sees_one_version(tmp_path):
    versions = [[bytes([letter]) * 1000, bytes([letter]) * 2000] for letter in b"ab"]
    save(tmp_path, *versions[0])
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            save(tmp_path, *versions[number % 3 % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = {read(tmp_path)}
    while not done.is_set():
        seen.add(read(tmp_path))
    writer.join()
    assert seen <= {b"".join(version) for version in versions}


def test_a_folder_that_is_replaced_again_and_again_is_given_up(tmp_path):
    save(tmp_path, b"0")

    def parts() -> bytes:
        save(tmp_path, os.urandom(8))
        return b""

    with pytest.raises(OSError, match="is written again and again while it is read"):
        files.settled(tmp_path / "index.json", parts)


def test_writers_without_locks_leave_one_version(tmp_path, monkeypatch):
    """At each step of one save another one comes in between, and the folder is of one of the two."""
    fcntl, real = pytest.importorskip("fcntl"), os.replace

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    outcomes = set()
    for first in ([], [b"old", b"old 2"]):
        for call in range(8):
            folder, calls = tmp_path / f"{len(first)}-{call}", itertools.count()
            if first:
                save(folder, *first)

            def replace(*paths, _folder=folder, _calls=calls, _call=call):
                if next(_calls) == _call:
                    save(_folder, b"B", b"2")
                real(*paths)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", replace)
                save(folder, b"A", b"1")
            outcomes.add(read(folder))
    assert outcomes <= {b"A1", b"B2"}


INDEX_ERRORS = {
    "no version": ({"files": []}, "field 'format_version' needs an integer up to 1, found None"),
    "a later version": ({"format_version": 2}, "has format_version 2, this version reads up to 1: upgrade"),
    "a missing field": ({"format_version": 1}, "field 'files' is missing, expected the fields format_version, files"),
    "an unknown field": ({"format_version": 1, "files": [], "x": 1}, "field 'x' is unknown, expected the fields"),
    "a wrong field": ({"format_version": 1, "files": 3}, "field 'files' needs a list of files, found 3"),
    "no entry": ({"format_version": 1, "files": [3]}, r"field 'files\[0\]' needs name, size and sha256, found 3"),
    "no size": (
        {"format_version": 1, "files": [{"name": "a", "size": True, "sha256": ""}]},
        r"field 'files\[0\].size' needs a positive integer, found True",
    ),
    "no hash": (
        {"format_version": 1, "files": [{"name": "a", "size": 1, "sha256": "A" * 64}]},
        r"field 'files\[0\].sha256' needs 64 hexadecimal digits",
    ),
    "a path": (
        {"format_version": 1, "files": [{"name": "../a", "size": 1, "sha256": "a" * 64}]},
        "expected a plain file name inside the folder",
    ),
}


@pytest.mark.parametrize(("index", "message"), INDEX_ERRORS.values(), ids=INDEX_ERRORS.keys())
def test_an_index_that_is_not_right_is_named(tmp_path, index, message):
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(files.FormatError, match=message):
        read(tmp_path)


def spoil(folder: Path, how: str) -> None:
    part = folder / "part-0.bin"
    part.unlink()
    if how == "fifo":
        pipe(part)
    elif how == "folder":
        part.mkdir()
    elif how == "device":
        link(part, endless())
    elif how == "link":
        (folder.parent / "outside").write_bytes(b"old")
        link(part, folder.parent / "outside")
    elif how != "missing":
        part.write_bytes({"short": b"ol", "other": b"odl"}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "part-0.bin is missing: index.json names it, get it again"),
        ("fifo", "part-0.bin is missing: index.json names it"),
        ("folder", "part-0.bin is missing: index.json names it"),
        ("device", "part-0.bin is a link that leaves its folder"),
        ("link", "part-0.bin is a link that leaves its folder"),
        ("short", "part-0.bin is damaged: expected 3 bytes, found 2: get it again"),
        ("other", "part-0.bin is damaged: expected sha256 [0-9a-f]{12}, found [0-9a-f]{12}: get it again"),
    ],
)
def test_nothing_is_opened_but_a_regular_file_inside_the_folder(tmp_path, how, message):
    folder = tmp_path / "folder"
    save(folder, b"old")
    spoil(folder, how)
    with pytest.raises(files.FormatError, match=message):
        read(folder)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_json_and_tensors_are_read_from_regular_files_alone(tmp_path, kind):
    path = tmp_path / "x.json"
    pipe(path) if kind == "fifo" else link(path, endless())
    with pytest.raises(FileNotFoundError, match=r"x.json is missing"):
        files.read_json(path)
    with pytest.raises(FileNotFoundError, match=r"x.json is missing"), files.open_tensors(path):
        pass


def test_a_header_that_is_too_long_is_refused_before_it_is_parsed(tmp_path):
    entries = {f"{number:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_000)}
    header = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with (
        pytest.raises(
            files.FormatError,
            match=rf"x.safetensors is not a .*: its header has {len(header)} bytes, expected at most 1048576",
        ),
        files.open_tensors(tmp_path / "x.safetensors"),
    ):
        pass


def test_tensors_are_compared_with_what_is_expected(tmp_path):
    files.save_tensors(tmp_path / "x", {"a": torch.ones(2, 3), "b": torch.ones(1, dtype=torch.int64)})
    expected = {"a": (torch.float32, [2, 3]), "b": (torch.int64, (1,))}
    with files.open_tensors(tmp_path / "x") as opened:
        files.check_tensors(tmp_path / "x", opened, expected)
        for change, message in (
            ({"a": (torch.float16, [2, 3])}, r"field 'a' needs F16 \[2, 3\], found 'F32 \[2, 3\]'"),
            ({"a": (torch.float32, [3, 2])}, r"field 'a' needs F32 \[3, 2\], found 'F32 \[2, 3\]'"),
            ({"c": (torch.float32, [1])}, r"field 'tensors' needs a, b, c, found \['a', 'b'\]"),
        ):
            with pytest.raises(files.FormatError, match=message):
                files.check_tensors(tmp_path / "x", opened, {**expected, **change})
