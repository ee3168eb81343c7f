"""Chunks that are whole or absent, progress, and stopping, whatever is made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from systems import pipe

from latent_mixup import files, runs
from latent_mixup.runs import ChunkFolder, Chunks, Meter, Progress, Stopped, run_chunks, stoppable

SIZES = [4, 4, 2]
FACTS = {"seed": 0, "steps": [1, 2]}


def made(number, advance=None) -> dict:
    return {"values": torch.full((SIZES[number],), float(number))}


def folder(path, **changes) -> ChunkFolder:
    return ChunkFolder(path, FACTS, len(SIZES), **{"run_file": "run.json", **changes})


class Sums(Meter):
    """Shows the sum of the values so far."""

    total = 0.0

    def count(self, chunk) -> None:
        self.total += float(chunk["values"].sum())

    def note(self) -> str:
        return f"sum {self.total:g}"


# ---- chunks ----------------------------------------------------------------------------------------


def test_finished_chunks_are_not_made_again(tmp_path):
    store, seen, meter = folder(tmp_path), [], Sums(show=False)
    store.write(1, made(1))

    def make(number, advance):
        seen.append(number)
        return made(number)

    run_chunks(make, SIZES, store, meter=meter)
    assert seen == [0, 2]
    assert (meter.images, meter.solved, meter.total) == (10, 6, 8.0)
    assert meter.seconds > 0
    assert folder(tmp_path).finished() == 3
    for number in range(3):
        assert folder(tmp_path).read(number)["values"].equal(made(number)["values"])
    run_chunks(make, SIZES, folder(tmp_path), meter=Meter(show=False), again=lambda chunk: chunk["values"][0] == 1)
    assert seen == [0, 2, 1]


@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_a_shard_makes_every_nth_chunk(shard):
    store = Chunks(len(SIZES))
    run_chunks(made, SIZES, store, shard=shard, meter=Meter(show=False))
    assert [number for number in range(3) if store.read(number)] == list(range(*shard[:1], 3, 2))


@pytest.mark.parametrize(
    ("shard", "resume", "message"),
    [((2, 2), True, r"0 <= i < n: got \(2, 2\)"), ((-1, 2), True, "0 <= i < n"), ((0, 2), False, "resume=False with")],
)
def test_a_shard_that_is_none(shard, resume, message):
    with pytest.raises(ValueError, match=message):
        runs.check_shard(shard, resume)
    with pytest.raises(ValueError, match=r"shard \(3, 4\) has no work: there are 3 chunks"):
        run_chunks(made, SIZES, Chunks(3), shard=(3, 4))


@pytest.mark.parametrize("spoil", ["cut", "other run", "other number", "text", "pipe", "refused"])
def test_a_chunk_that_is_not_this_one_is_made_again(tmp_path, spoil):
    store = folder(tmp_path, check=lambda number, chunk: len(chunk["values"]) == SIZES[number])
    run_chunks(made, SIZES, store, meter=Meter(show=False))
    path = store.path(1)
    whole = path.read_bytes()
    if spoil == "cut":
        path.write_bytes(whole[:-3])
    elif spoil == "other run":
        other = ChunkFolder(tmp_path / "other", {"seed": 1}, 3, run_file="run.json")
        other.write(1, made(1))
        path.write_bytes(other.path(1).read_bytes())
    elif spoil == "other number":
        path.write_bytes(store.path(0).read_bytes())
    elif spoil == "text":
        path.write_bytes(b"no tensors")
    elif spoil == "pipe":
        path.unlink()
        pipe(path)
    else:
        store.write(1, {"values": torch.zeros(1)})
    assert store.read(1) is None
    run_chunks(made, SIZES, store, meter=Meter(show=False))
    assert path.read_bytes() == whole


def test_a_chunk_of_0_1_0_is_read(tmp_path):
    """Its header names the run alone."""
    store = folder(tmp_path)
    store.write(1, made(1))
    files.write_folder(
        store.path(1).parent,
        {store.path(1).name: lambda path: files.save_tensors(path, made(1), {"run": store._run})},
    )
    assert store.has(1)
    assert store.read(1)["values"].equal(made(1)["values"])


def test_a_folder_of_another_run_is_refused(tmp_path):
    folder(tmp_path).write(0, made(0))
    with pytest.raises(
        ValueError, match=r"other settings \(more: None there, 2 here; steps: \[1, 2\] there, \[3\] here\)"
    ):
        ChunkFolder(tmp_path, {"seed": 0, "steps": [3], "more": 2}, 3, run_file="run.json")
    assert folder(tmp_path, resume=False).finished() == 0
    (tmp_path / "run.json").unlink()
    (tmp_path / "result").write_text("")
    with pytest.raises(ValueError, match=r"holds result but no run to resume: choose another out=, or resume=False"):
        folder(tmp_path, result_file="result")
    folder(tmp_path, result_file="result", resume=False)
    assert json.loads((tmp_path / "run.json").read_text()) == FACTS


# ---- progress --------------------------------------------------------------------------------------


def test_without_a_terminal_a_line_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(runs, "LINE_EVERY", 0.0)
    run_chunks(made, SIZES, Chunks(3), meter=Sums(), desc="add", unit="numbers")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("add: 8 of 10 numbers, ")
    assert lines[1].endswith(" numbers/s, sum 4, 0:00:00 left")
    with Progress(1000, "train", "steps", done=500) as bar:
        bar.advance(0)
    assert capsys.readouterr().err == "train: 500 of 1,000 steps, 0.00 steps/s, ? left\n"
    monkeypatch.setattr(runs, "LINE_EVERY", 60.0)
    run_chunks(made, SIZES, Chunks(3), meter=Sums())
    monkeypatch.setattr(runs, "LINE_EVERY", 0.0)
    run_chunks(made, SIZES, Chunks(3), meter=Sums(show=False))
    assert not capsys.readouterr().err


class Terminal:
    """What tqdm takes for a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_moves_within_a_chunk_and_ends_at_its_end(monkeypatch):
    terminal, seen = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)

    def make(number, advance):
        for _ in range(3):  # one more than there is
            advance(SIZES[number] // 2)
            seen.append(terminal.text.count("\r"))
        return made(number)

    monkeypatch.setattr(runs, "MIN_INTERVAL", 0.0)
    run_chunks(make, SIZES, Chunks(3), meter=Sums(), desc="refine")
    assert seen == sorted(set(seen))  # it moved each time
    last = terminal.text.rstrip().rsplit("\r", 1)[-1]
    assert last.startswith("refine: 100%")
    assert all(part in last for part in ("10/10", "images/s", "sum 8"))


NOTEBOOK = """
import sys, types, warnings
warnings.simplefilter("always")
shown = []

class Widget:
    bar_style = ""
    def __init__(self, **given):
        self.layout = self.style = types.SimpleNamespace()
        self.__dict__.update(given)
    def close(self):
        pass

def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)

shell = types.SimpleNamespace(config={"IPKernelApp": {}})
module("ipykernel.zmqshell")
module("IPython", get_ipython=lambda: shell)
module("IPython.display", display=shown.append, clear_output=None)
sys.modules["ipywidgets"] = None
if WIDGETS:
    module("ipywidgets", HBox=Widget, HTML=Widget, FloatProgress=Widget)

from latent_mixup.runs import Progress
with Progress(4, "train", "steps") as bar:
    bar.advance(3, "loss 0.25")
print([box.children[1].value for box in shown], [box.children[2].value for box in shown])
"""


def test_a_notebook_gets_a_widget_and_no_warning_where_there_are_none():
    def call(widgets):
        code = NOTEBOOK.replace("WIDGETS", str(widgets))
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    with_widgets, without = call(True), call(False)
    assert with_widgets.stdout.startswith("[3] [")
    assert "loss" in with_widgets.stdout
    assert without.stdout == "[] []\n"
    assert not with_widgets.stderr + without.stderr


# ---- stopping --------------------------------------------------------------------------------------


def test_a_signal_that_was_swallowed_ends_the_run_after_the_chunk():
    chunks = []

    def make(number, advance):
        chunks.append(number)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        return made(number)

    with pytest.raises(Stopped, match="stopped by SIGTERM: without out= nothing is kept") as stopped:
        run_chunks(make, SIZES, Chunks(3), meter=Meter(show=False))
    assert chunks == [0]
    assert stopped.value.code == 143


def test_an_error_inside_is_not_changed():
    with pytest.raises(LookupError, match=r"^inside$"), stoppable(lambda: "nothing"):
        raise LookupError("inside")
