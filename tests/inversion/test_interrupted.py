"""Inversions that last: the same bytes after any stop, and by any number of processes."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from re import escape

import pytest
import torch
from conftest import Killer, LabelledImages, LinearGenerator
from safetensors import safe_open
from systems import FORKS, KILLED
from torch import nn

from latent_mixup import LatentBank, files, invert
from latent_mixup.bank.files import CodeFiles
from latent_mixup.inversion import FeatureLoss, pixel_mse
from latent_mixup.inversion.chunks import CodeMeter
from latent_mixup.inversion.engine import split_chunks
from latent_mixup.inversion.samples import NUM_PROBES
from latent_mixup.runs import Stopped

QUICK = {"loss": pixel_mse, "steps": 5, "lr": 0.05, "batch_size": 2, "progress": False}
SIZE = 8  # of a chunk of the 50 images
FEW = {**QUICK, "steps": 1, "batch_size": 4}  # four chunks


class StopError(BaseException):
    """Stands for anything that ends a run."""


class Watched(LabelledImages):
    """Keeps account of what is read, and does something before the ``at``-th read after the first look."""

    def __init__(self, images, labels, at: int | None = None, action=None) -> None:
        super().__init__(images, labels)
        self.reads: list[int] = []
        self.at, self.action = at, action

    def __getitem__(self, index):
        self.reads.append(index)
        if self.at is not None and len(self.reads) == NUM_PROBES + self.at:
            self.action()
        return super().__getitem__(index)


class Damaged(LabelledImages):
    """Some images cannot be read."""

    def __init__(self, dataset: LabelledImages, bad) -> None:
        super().__init__(dataset.images, dataset.labels)
        self.bad = set(bad)

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def stop():
    raise StopError


def contents(folder: Path) -> dict[str, bytes]:
    """The bank's files of an ``out`` folder."""
    return {path.name: path.read_bytes() for path in folder.glob("bank*")}


def chunk_path(folder: Path, number: int) -> Path:
    return folder / "chunks" / f"chunk-{number:05d}.safetensors"


def names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def watched(dataset: LabelledImages, at: int | None = None, action=None) -> Watched:
    return Watched(dataset.images, dataset.labels, at, action)


FORKING = f"""
import json, os, sys
sys.path[:0] = [{str(Path(__file__).parents[0])!r}, {str(Path(__file__).parents[1])!r}]
from test_interrupted import *
invert(killed_dataset(), LinearGenerator(), **FEW)  # what is slow the first time is done before any fork
for line in sys.stdin:
    text, out, arguments = json.loads(line)
    if not (child := os.fork()):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        sys.argv[1:] = arguments
        exec(text)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A function that runs Python in a process forked from one without threads, and gives what it prints."""
    if not FORKS:
        pytest.skip("needs a fork that libraries survive")
    folder = tmp_path_factory.mktemp("printed")
    numbers = itertools.count()

    def run(text: str, *arguments: str | Path) -> str:
        out = folder / str(next(numbers))
        server.stdin.write(json.dumps([textwrap.dedent(text), str(out), list(map(str, arguments))]) + "\n")
        server.stdin.flush()
        assert server.stdout.readline() == "0\n"
        return out.read_text()

    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield run


def killed_dataset() -> LabelledImages:
    images = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return LabelledImages(images, torch.arange(50) % 3)


# ---- the folder ------------------------------------------------------------------------------------


def test_chunks_do_not_depend_on_how_many_share_the_work():
    assert split_chunks(20, 2) == [range(0, 8), range(8, 16), range(16, 20)]
    assert split_chunks(8, 2) == [range(8)]
    assert [len(chunk) for chunk in split_chunks(1000, 64)] == [256, 256, 256, 232]


def test_a_bank_with_out_is_read_from_there(linear_generator, toy_dataset, tmp_path):
    bank = invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "out")
    assert bank.folder == (tmp_path / "out").absolute()
    in_memory = invert(toy_dataset, linear_generator, **QUICK)
    assert in_memory.folder is None
    assert bank.digest() == in_memory.digest()
    assert bank.metadata == in_memory.metadata


@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0], [2, 0, 1]])
def test_shards_make_the_bank_of_one_run(linear_generator, toy_dataset, tmp_path, order):
    """The world size of a run, and who comes last, do not show in the bank; each returns what it did."""
    whole = invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "one")
    parts = []
    for rank in order:
        assert not contents(tmp_path / "out")
        parts.append(invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "out", shard=(rank, len(order))))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert sorted(torch.cat([part.source_index for part in parts]).tolist()) == list(range(50))
    for part in parts:
        rows = whole.rows_of(part.source_index)
        assert part[:][0].equal(whole[rows][0])
        assert part[[-1, 0, 5]][0].equal(whole[rows[[-1, 0, 5]]][0])
        assert part.mse.equal(whole.mse[rows])
        assert part.digest() == whole.subset(rows).digest()
        assert pickle.loads(pickle.dumps(part.subset([3, 1])))[:][0].equal(whole[rows[[3, 1]]][0])  # noqa: S301


def test_a_shard_without_a_chunk_is_an_error(linear_generator, toy_dataset):
    with pytest.raises(ValueError, match=r"shard \(7, 8\) has no work: there are 7 chunks of 8 images"):
        invert(toy_dataset, linear_generator, **QUICK, shard=(7, 8))


def test_codes_in_several_files_are_rows_in_order(tmp_path):
    latents = torch.randn(7, 2, 3)
    paths = [tmp_path / f"{number}" for number in range(4)]
    for path, rows in zip(paths, latents.split([3, 0, 1, 3]), strict=True):
        files.save_tensors(path, {"latents": rows})
    columns = {"labels": torch.tensor([0, 1, 0, 1, 2, 0, 1]), "source_index": torch.arange(7)}
    bank = LatentBank.from_files(CodeFiles(tuple(paths), (3, 0, 1, 3), (2, 3), columns), {"a": 1})
    assert (len(bank), bank.latent_shape, bank.num_classes, bank.metadata) == (7, (2, 3), 3, {"a": 1})
    assert bank[:][0].equal(latents)
    for rows in ([6, 0, 3, 3, 2], [4], [], slice(5, 1, -2)):
        assert bank[rows][0].equal(latents[torch.arange(7)[rows] if isinstance(rows, list) else [5, 3]])
    assert bank.subset([5, 2]).subset([1])[0][0].equal(latents[2])
    assert bank.digest() == LatentBank(latents, columns["labels"]).digest()
    with pytest.raises(ValueError, match="empty bank: no file has a row"):
        LatentBank.from_files(CodeFiles((paths[1],), (0,), (2, 3), {}), {})


def test_a_stopped_run_goes_on_where_it_was(linear_generator, toy_dataset, tmp_path):
    out, one = tmp_path / "out", tmp_path / "one"
    invert(toy_dataset, linear_generator, **QUICK, out=one)
    with pytest.raises(StopError):
        invert(watched(toy_dataset, 3 * SIZE + 1, stop), linear_generator, **QUICK, out=out)
    assert not contents(out)
    rest = watched(toy_dataset)
    invert(rest, linear_generator, **QUICK, out=out)
    assert rest.reads[NUM_PROBES:] == list(range(3 * SIZE, 50))
    assert contents(out) == contents(one)
    assert names(out) == names(one)


def test_a_finished_run_is_left_as_it_is(linear_generator, toy_dataset, tmp_path, monkeypatch):
    dataset = watched(toy_dataset)
    first = invert(dataset, linear_generator, **QUICK, out=tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    dataset.reads.clear()
    monkeypatch.setattr(tempfile, "mkdtemp", stop)  # nothing is written
    monkeypatch.setattr(tempfile, "TemporaryFile", stop)
    again = invert(dataset, linear_generator, **QUICK, out=tmp_path)
    assert len(dataset.reads) == NUM_PROBES
    assert again.digest() == first.digest()
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("lost", ["bank.index.json", "bank-00000-of-00001.safetensors", "another"])
def test_a_bank_that_is_lost_is_put_together_again(linear_generator, toy_dataset, tmp_path, lost):
    bank = invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)
    before = contents(tmp_path)
    if lost == "another":
        bank.subset(range(49)).save_pretrained(tmp_path)
    else:
        (tmp_path / lost).unlink()
    dataset = watched(toy_dataset)
    invert(dataset, linear_generator, **QUICK, out=tmp_path)
    assert len(dataset.reads) == NUM_PROBES
    assert contents(tmp_path) == before


def test_starting_again_does_all_again(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)
    before, dataset = contents(tmp_path), watched(toy_dataset)
    invert(dataset, linear_generator, **QUICK, out=tmp_path, resume=False)
    assert dataset.reads[NUM_PROBES:] == list(range(50))
    assert contents(tmp_path) == before


def test_a_chunk_of_another_run_is_done_again(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **{**QUICK, "steps": 1}, out=tmp_path / "other")
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    for number in (2, 5):
        shutil.copy(chunk_path(tmp_path / "other", number), chunk_path(tmp_path / "out", number))
    shutil.copytree(tmp_path / "other" / "chunks", tmp_path / "new" / "chunks")  # without the run file
    for folder in ("out", "new"):
        invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / folder)
        assert contents(tmp_path / folder) == before


def test_another_shards_broken_chunk_is_done_by_that_shard(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(0, 2))
    chunk_path(tmp_path, 2).write_bytes(b"")
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(1, 2))
    assert not contents(tmp_path)
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(0, 2))
    assert LatentBank.from_pretrained(tmp_path, verify=True).source_index.equal(torch.arange(50))


def test_a_chunk_of_other_images_is_named(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(0, 2))
    with safe_open(chunk_path(tmp_path, 2), framework="pt") as chunk:
        tensors = {name: chunk.get_tensor(name) for name in chunk.keys()}  # noqa: SIM118
        said = json.loads(chunk.metadata()["latent_mixup"])
    files.save_tensors(chunk_path(tmp_path, 4), tensors, {**said, "chunk": 4})
    with pytest.raises(ValueError, match=r"chunk-00004.safetensors is broken: run it again, it does this chunk anew"):
        invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(1, 2))


class MirroredGenerator(LinearGenerator):
    """The same shapes, other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.basis.neg_()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"steps": 6}, "inversion.steps"),
        ({"lr": 0.06}, "inversion.lr"),
        ({"optimizer": "adam"}, "inversion.optimizer"),
        ({"restarts": 0}, "inversion.restarts"),
        ({"tolerance": 0.01}, "inversion.tolerance"),
        ({"draws": 64}, "inversion.draws"),
        ({"batch_size": 8}, "inversion.batch_size"),
        ({"seed": 1}, "inversion.seed"),
        ({"loss": FeatureLoss(nn.Identity())}, "inversion.loss"),
        ({"encoder": lambda images: images.flatten(1)}, "inversion.start"),
        ({"generator": MirroredGenerator()}, "generator.digest"),
        ({"rows": 49}, "dataset.length"),
        ({"shift": 1}, "dataset.labels"),
        ({"sign": -1}, "dataset.first_images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_with_something_else_is_refused(linear_generator, toy_dataset, tmp_path, changes, key):
    toy_dataset.targets = toy_dataset.labels
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)
    before = contents(tmp_path)
    generator = changes.pop("generator", linear_generator)
    rows, shift, sign = changes.pop("rows", 50), changes.pop("shift", 0), changes.pop("sign", 1)
    dataset = LabelledImages(sign * toy_dataset.images[:rows], toy_dataset.labels[:rows] + shift)
    dataset.targets = dataset.labels
    with pytest.raises(
        ValueError, match=rf"holds a run with other settings \(.*{key}: .* there, .* here.*resume=False to start"
    ):
        invert(dataset, generator, **{**QUICK, **changes}, out=tmp_path)
    assert contents(tmp_path) == before
    fresh = invert(dataset, generator, **{**QUICK, **changes}, out=tmp_path, resume=False)
    assert LatentBank.from_pretrained(tmp_path, verify=True).digest() == fresh.digest()


def test_starting_again_by_shards_is_refused(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(0, 2))
    before = names(tmp_path)
    with pytest.raises(ValueError, match="resume=False with several shards would empty the folder under the others"):
        invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(1, 2), resume=False)
    assert names(tmp_path) == before


def test_a_bank_without_a_run_is_not_written_over(linear_generator, toy_dataset, toy_bank, tmp_path):
    toy_bank.save_pretrained(tmp_path)
    before = names(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds bank.index.json but no run to resume: choose another out=, or resume=Fal"
    ):
        invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)
    assert names(tmp_path) == before
    bank = invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, resume=False)
    assert LatentBank.from_pretrained(tmp_path).digest() == bank.digest() != toy_bank.digest()


def test_a_run_file_of_something_else(linear_generator, toy_dataset, tmp_path):
    (tmp_path / "inversion.json").write_text("{")
    with pytest.raises(files.FormatError, match=r"inversion.json is not valid JSON"):
        invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)


def test_the_first_look_does_not_depend_on_the_batch(linear_generator, toy_dataset):
    """Values that only a later image has are not seen by a larger batch first."""
    images = toy_dataset.images.clone()
    images[:30].clamp_(min=0)  # the first are in [0, 1], all of them in [-1, 1]
    dataset = LabelledImages(images, toy_dataset.labels)
    with pytest.warns(UserWarning, match="20 of 50 images cannot be used"):
        said = [invert(dataset, linear_generator, **{**QUICK, "batch_size": size}).metadata for size in (1, 50)]
    assert said[0]["samples"] == said[1]["samples"]
    assert said[0]["dataset"] == said[1]["dataset"]
    assert said[0]["set_aside"].keys() == said[1]["set_aside"].keys() == {str(index) for index in range(30, 50)}


# ---- images that are set aside ---------------------------------------------------------------------


def test_an_image_that_cannot_be_read_is_set_aside_with_one_warning(linear_generator, toy_dataset, tmp_path):
    damaged = Damaged(toy_dataset, [30, 41])
    message = (
        "2 of 50 images cannot be used; the first, image 30: OSError: image file is truncated; they have no row in the "
        "bank: repair them and run it again, or train on bank.usable(dataset)"
    )
    for _ in range(2):  # a finished run warns as well
        with pytest.warns(UserWarning, match="cannot be used") as warned:
            bank = invert(damaged, linear_generator, **QUICK, out=tmp_path)
        assert [(str(one.message), one.filename) for one in warned] == [(message, __file__)]
    assert bank.metadata["set_aside"] == dict.fromkeys(("30", "41"), "OSError: image file is truncated")
    whole = invert(toy_dataset, linear_generator, **QUICK)
    others = [row for row in range(len(whole)) if row not in (30, 41)]
    assert bank.source_index.tolist() == others
    torch.testing.assert_close(bank[:][0], whole[others][0], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:24 of 50 images:UserWarning")
def test_a_chunk_without_a_readable_image(linear_generator, toy_dataset, tmp_path):
    damaged = Damaged(toy_dataset, range(26, 50))
    banks = [invert(damaged, linear_generator, **QUICK, **out) for out in ({"out": tmp_path}, {})]
    for bank in banks:
        assert bank.source_index.tolist() == list(range(26))
        assert len(bank.metadata["set_aside"]) == 24
    with pytest.raises(ValueError, match="8 of 8 images cannot be used; the first, image 40: "):
        invert(damaged, linear_generator, **QUICK, out=tmp_path, shard=(5, 7))


@pytest.mark.filterwarnings("ignore:. of 50 images cannot be used:UserWarning")
def test_images_that_were_set_aside_are_tried_again(linear_generator, toy_dataset, tmp_path):
    """A file system that failed for a moment costs a chunk once more; an image that stays bad changes no byte."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    invert(toy_dataset, linear_generator, **QUICK, out=good)
    invert(Damaged(toy_dataset, [30, 31, 49]), linear_generator, **QUICK, out=bad)
    before = {path: path.stat().st_ino for path in bad.rglob("*")}
    assert len(LatentBank.from_pretrained(bad)) == 47
    invert(Damaged(toy_dataset, [30, 31, 49]), linear_generator, **QUICK, out=bad)
    assert {path: path.stat().st_ino for path in bad.rglob("*")} == before
    partly = invert(Damaged(toy_dataset, [31]), linear_generator, **QUICK, out=bad)
    assert partly.metadata["set_aside"].keys() == {"31"}
    invert(toy_dataset, linear_generator, **QUICK, out=bad)
    assert contents(bad) == contents(good)


def many(bad, n: int = 100):
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Damaged(LabelledImages(images, torch.zeros(n, dtype=torch.int64)), bad)


@pytest.mark.filterwarnings("ignore:1 of 100 images cannot be used:UserWarning")
def test_a_run_ends_when_most_images_cannot_be_used(linear_generator, tmp_path):
    message = (
        r"^34 of 64 images cannot be used; the first, image 30: OSError: image file is truncated; these are more than "
        r"50%: repair the data set, then run it again$"
    )
    for _ in range(2):  # nor does it go on the next time
        with pytest.raises(ValueError, match=message):
            invert(many(range(30, 64)), linear_generator, **QUICK, out=tmp_path)
        assert not contents(tmp_path)
        assert len(list((tmp_path / "chunks").iterdir())) == 8
    bank = invert(many([30]), linear_generator, **QUICK, out=tmp_path)  # repaired images are done again
    assert (len(bank), bank.metadata["set_aside"].keys()) == (99, {"30"})


@pytest.mark.parametrize(("bad", "n", "enough"), [
    (range(32, 64), 100, True), (range(8, 16), 16, True), (range(1, 3), 4, True),
    (range(16, 100), 100, False), (range(30, 63), 62, False), (range(4, 41), 41, False), (range(1, 3), 3, False),
])  # fmt: skip
def test_more_than_half_of_the_images_are_needed_however_few(linear_generator, bad, n, enough):
    count = len(range(n)[bad.start : bad.stop])
    if enough:
        with pytest.warns(UserWarning, match=f"^{count} of {n} images cannot be used; the first, image {bad.start}: "):
            assert len(invert(many(bad, n), linear_generator, **QUICK)) == n - count
    else:
        with pytest.raises(ValueError, match=f"images cannot be used; the first, image {bad.start}: .*more than 50%"):
            invert(many(bad, n), linear_generator, **QUICK)


# ---- counting ---------------------------------------------------------------------------------------


def test_a_run_counts_images_and_their_mse(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path, shard=(1, 2))
    meter = CodeMeter(show=False)
    with pytest.warns(UserWarning, match="2 of 50 images cannot be used"):
        bank = invert(Damaged(toy_dataset, [18, 34]), linear_generator, **{**QUICK, "progress": meter}, out=tmp_path)
    assert (meter.images, meter.solved, meter.set_aside) == (50, 26, 2)
    assert meter.mean_mse == pytest.approx(float(bank.mse.mean()))
    assert meter.seconds > 0


# ---- killed ----------------------------------------------------------------------------------------


def run_until_killed(out: Path, at: int | None, number: int = 0) -> int:
    """Invert into ``out`` and send this process a signal at its ``at``-th read, loss or renamed file; count these."""
    killer = Killer(at, number)

    class Eventful(LabelledImages):
        def __getitem__(self, index):
            killer.event()
            return super().__getitem__(index)

    def loss(images, targets):
        killer.event()
        return pixel_mse(images, targets)

    dataset = killed_dataset()
    loss.__name__ = "pixel_mse"
    with killer.watching_files():
        invert(Eventful(dataset.images, dataset.labels), LinearGenerator(), **{**FEW, "loss": loss}, out=out)
    return killer.happened


def test_a_killed_run_resumes_to_the_same_bytes(script, tmp_path):
    """SIGKILL and SIGTERM in the steps of a chunk, before a file is renamed into place, and after it."""
    text = """
        out = Path(sys.argv[1])
        events = run_until_killed(out / "counted", None)
        moments = [*range(NUM_PROBES + 1, events - 8, events // 4), *range(events - 3, events + 1)]
        for number, at in enumerate(moments):
            if not (child := os.fork()):
                run_until_killed(out / str(at), at, signal.SIGTERM if number % 3 == 1 else signal.SIGKILL)
                os._exit(0)
            print(at, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
    ends = dict(map(int, line.split()) for line in script(text, tmp_path).splitlines())
    assert len(ends) >= 7
    assert set(ends.values()) == {KILLED, 128 + signal.SIGTERM}  # all were killed
    invert(killed_dataset(), LinearGenerator(), **FEW, out=tmp_path / "one")
    expected, whole = contents(tmp_path / "one"), names(tmp_path / "one")
    assert contents(tmp_path / "counted") == expected
    for at, end in ends.items():
        out = tmp_path / str(at)
        assert end < 0 or names(out) <= whole  # SIGTERM leaves nothing temporary
        assert len(invert(killed_dataset(), LinearGenerator(), **FEW, out=out)) == 50
        assert contents(out) == expected, f"killed at event {at}"
        assert names(out) == whole


send = signal.raise_signal  # os.kill would end the process on Windows


def test_sigterm_says_what_is_done_and_the_handler_is_put_back(linear_generator, toy_dataset, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        invert(
            watched(toy_dataset, 2 * SIZE + 3, lambda: send(signal.SIGTERM)), linear_generator, **QUICK, out=tmp_path
        )
    assert str(stopped.value) == (
        f"stopped by SIGTERM: 2 of 7 chunks lie finished in {tmp_path}; run it again to go on"
    )
    assert stopped.value.code == 143
    assert names(tmp_path) == {
        Path("inversion.json"), Path("chunks"), *(Path("chunks", f"chunk-0000{i}.safetensors") for i in range(2))
    }  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Stopped, match="stopped by SIGTERM: without out= nothing is kept"):
        invert(watched(toy_dataset, 3, lambda: send(signal.SIGTERM)), linear_generator, **QUICK)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_what_is_done(linear_generator, toy_dataset, tmp_path):
    dataset = watched(toy_dataset, SIZE + 1, lambda: send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"stopped: 1 of 7 chunks lie finished in .*; run it again to go on"):
        invert(dataset, linear_generator, **QUICK, out=tmp_path)


def test_somebody_elses_handler_stays(linear_generator, toy_dataset):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        bank = invert(watched(toy_dataset, 3, lambda: send(signal.SIGTERM)), linear_generator, **QUICK)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (len(bank), seen) == (50, [1])


def test_a_run_outside_the_main_thread(linear_generator, toy_dataset):
    banks = []
    thread = threading.Thread(target=lambda: banks.append(invert(toy_dataset, linear_generator, **QUICK)))
    thread.start()
    thread.join()
    assert len(banks[0]) == 50


# ---- folders that cannot be written ----------------------------------------------------------------


def test_a_path_that_cannot_be_fails_before_any_step(linear_generator, toy_dataset, tmp_path):
    dataset = watched(toy_dataset)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match=rf"cannot write into {escape(str(out))}: .*; choose another out="):
            invert(dataset, linear_generator, **QUICK, out=out)
    assert len(dataset.reads) == 2 * NUM_PROBES
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_fails_before_any_step(script):
    """Also one with a run in it; a finished run is opened all the same."""
    text = """
        for folder in map(Path, sys.argv[1:]):
            os.chmod(folder, 0o555)
            if (folder / "chunks").exists():
                os.chmod(folder / "chunks", 0o555)
        # The user that nobody is may be shut out of where the package lies: read before what is read late.
        with tempfile.TemporaryDirectory() as once:
            invert(killed_dataset(), LinearGenerator(), **QUICK, out=once)
        from importlib import metadata, readers
        known = {name: metadata.version(name) for name in ("latent-mixup", "torch")}
        metadata.version = known.__getitem__
        if os.geteuid() == 0:
            os.setuid(65534)
        for folder in map(Path, sys.argv[1:]):
            dataset = watched(killed_dataset())
            try:
                print(len(invert(dataset, LinearGenerator(), **QUICK, out=folder)), len(dataset.reads))
            except OSError as error:
                print(len(dataset.reads), error)
    """
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        os.chmod(name, 0o755)
        empty, begun, finished = (Path(name, folder) for folder in ("empty", "begun", "finished"))
        empty.mkdir()
        invert(killed_dataset(), LinearGenerator(), **QUICK, out=begun, shard=(0, 2))
        invert(killed_dataset(), LinearGenerator(), **QUICK, out=finished)
        said = script(text, empty, begun, finished).splitlines()
        for folder in (empty, begun, begun / "chunks", finished, finished / "chunks"):
            folder.chmod(0o755)
    assert said[0].startswith(f"{NUM_PROBES} cannot write into {empty}: ")
    assert said[1].startswith(f"{NUM_PROBES} cannot write into {begun / 'chunks'}: ")
    assert said[1].endswith("; choose another out=")
    assert said[2] == f"50 {NUM_PROBES}"


def test_a_full_disk_ends_the_run_and_costs_no_finished_chunk(script, tmp_path):
    """At the first chunk, and at the bank, which is larger."""
    text = """
        import resource
        for limit in 900, 2_500:
            if not os.fork():
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try: invert(killed_dataset(), LinearGenerator(), **FEW, out=Path(sys.argv[1], str(limit)))
                except OSError as error: print(error, flush=True)
                os._exit(0)
            os.wait()
    """
    said = script(text, tmp_path).splitlines()
    for line, limit, what, chunks in zip(said, ("900", "2500"), ("chunk", "bank"), (0, 4), strict=True):
        out = tmp_path / limit
        assert line.startswith(f"cannot write {what}-00000")
        assert f".safetensors into {out}" in line
        assert line.endswith(f"; {chunks} of 4 chunks lie finished in {out}; run it again to go on")
        files = {Path("chunks", f"chunk-{number:05d}.safetensors") for number in range(chunks)}
        assert names(out) == {Path("inversion.json"), Path("chunks"), *files}  # nothing temporary
        dataset = watched(killed_dataset())
        bank = invert(dataset, LinearGenerator(), **FEW, out=out)
        assert len(dataset.reads) == NUM_PROBES + (0 if chunks else 50)
        assert LatentBank.from_pretrained(out, verify=True).digest() == bank.digest()


# ---- several processes -----------------------------------------------------------------------------


def test_processes_on_one_folder(script, tmp_path):
    """The same shard twice and two shards at once, with locks and on a file system that has none."""
    text = """
        import fcntl, errno
        def no_locks(*_):
            raise OSError(errno.EBADF, "no locks here")
        for name, shards, lock in [
            ("same", [(0, 1), (0, 1)], fcntl.flock),
            ("shards", [(0, 2), (1, 2)], fcntl.flock),
            ("same, no locks", [(0, 1), (0, 1)], no_locks),
            ("shards, no locks", [(0, 3), (1, 3), (2, 3)], no_locks),
        ]:
            fcntl.flock = lock
            children = []
            for shard in shards:
                if not (child := os.fork()):
                    invert(killed_dataset(), LinearGenerator(), **FEW, shard=shard, out=Path(sys.argv[1], name))
                    os._exit(0)
                children.append(child)
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(shards), name
    """
    script(text, tmp_path)
    invert(killed_dataset(), LinearGenerator(), **FEW, out=tmp_path / "one")
    expected, whole = contents(tmp_path / "one"), names(tmp_path / "one")
    for name in ("same", "shards"):
        assert contents(tmp_path / name) == expected
        assert names(tmp_path / name) == whole
    for name in ("same, no locks", "shards, no locks"):  # a copy of a shard under its interim name may stay
        assert contents(tmp_path / name).items() >= expected.items()
        assert {path.name for path in (tmp_path / name).glob("bank*")} - expected.keys() <= {
            path.name for path in (tmp_path / name).glob(f"bank-00000-of-00001-{'[0-9a-f]' * 16}.safetensors")
        }
        assert LatentBank.from_pretrained(tmp_path / name, verify=True).source_index.equal(torch.arange(50))


@pytest.mark.parametrize("locks", [True, False])
def test_what_killed_writers_left_is_swept(tmp_path, monkeypatch, locks):
    """Without locks another writer may be at work, so only what is older than a day goes."""
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError("no locks here")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    for name, age in {".latent-mixup-new": 0, ".latent-mixup-old": 2 * 24 * 3600, "mine": 2 * 24 * 3600}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    kept = {"mine"} if locks else {"mine", ".latent-mixup-new"}
    for sweep in (lambda: files.write_folder(tmp_path, {"new": b""}), lambda: files.sweep(tmp_path)):
        sweep()
        assert {path.name for path in tmp_path.iterdir()} == kept | {"new"}
    files.sweep(tmp_path / "missing")


def test_a_chunk_that_somebody_else_finishes_meanwhile_is_taken(linear_generator, toy_dataset, tmp_path):
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "one")

    def be_faster():
        for number in (3, 4):
            shutil.copy(chunk_path(tmp_path / "one", number), chunk_path(tmp_path / "out", number))

    dataset = watched(toy_dataset, SIZE + 1, be_faster)
    invert(dataset, linear_generator, **QUICK, out=tmp_path / "out")
    assert dataset.reads[NUM_PROBES:] == [*range(3 * SIZE), *range(5 * SIZE, 50)]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_a_run_keeps_no_random_state(linear_generator, toy_dataset, tmp_path):
    before = copy.copy(torch.get_rng_state())
    invert(toy_dataset, linear_generator, **QUICK, out=tmp_path)
    assert torch.get_rng_state().equal(before)
