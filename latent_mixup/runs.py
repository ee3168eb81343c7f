"""Work in chunks that a kill does not lose: chunk files, shards, stopping, progress."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from torch import Tensor
from tqdm import TqdmWarning

from latent_mixup import files

with warnings.catch_warnings():  # in a notebook without ipywidgets, where a bar of text will do
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as tqdm

MIN_INTERVAL = 0.1  # seconds between two updates of a bar
LINE_EVERY = 60.0  # seconds between two lines of a log, where there is no terminal for a bar

Tensors: TypeAlias = dict[str, Tensor]
Advance: TypeAlias = Callable[[int], None]


# --------------------------------------------------------------------------------------------------
# Progress
# --------------------------------------------------------------------------------------------------


class Progress:
    """A bar on a terminal or in a notebook; elsewhere a line a minute on stderr. A context manager.

    Args:
        total: Number of items.
        desc: Name of the work.
        unit: Plural name of an item.
        done: Items that were finished before.
        show: False shows nothing.

    Example:
        >>> with Progress(100, "train", "steps", show=False) as bar:
        ...     bar.advance(1, "loss 0.25")
    """

    def __init__(self, total: int, desc: str, unit: str = "images", *, done: int = 0, show: bool = True) -> None:
        self.total, self.desc, self.unit, self.done, self._before = total, desc, unit, done, done
        self._started = self._said = time.perf_counter()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=desc,
            unit=f" {unit}",
            smoothing=0.1,
            mininterval=MIN_INTERVAL,
            miniters=1,
            disable=None if show else True,
        )
        self._in_lines = show and bool(self._bar.disable)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._started

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more items are done; ``note`` is shown behind the numbers, such as a mean loss."""
        self.reach(self.done + count, note)

    def reach(self, done: int, note: str = "") -> None:
        """``done`` items are done, those from before included."""
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        self.done = done
        if self._in_lines and time.perf_counter() - self._said >= LINE_EVERY:
            self._say(note)

    def _say(self, note: str) -> None:
        self._said = time.perf_counter()
        speed = (self.done - self._before) / self.seconds
        left = datetime.timedelta(seconds=round(max(0, self.total - self.done) / speed)) if speed > 0 else "?"
        parts = [f"{self.done:,} of {self.total:,} {self.unit}", f"{speed:.2f} {self.unit}/s", note, f"{left} left"]
        print(f"{self.desc}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Meter:
    """Counts the chunks of a run and shows them; a subclass adds its own numbers by :meth:`count` and :meth:`note`.

    Args:
        show: Show a bar on a terminal, elsewhere a line a minute.

    Attributes:
        images: Images of this shard that are done, with those of earlier runs.
        solved: Images that this run did.
        seconds: Duration of this run.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.images, self.solved, self.seconds = 0, 0, 0.0

    def count(self, chunk: Tensors) -> None:
        """Called with each finished chunk once, whether it was found or made."""

    def note(self) -> str:
        """Text beside the bar; raises where the run has to end."""
        return ""


# --------------------------------------------------------------------------------------------------
# Stopping
# --------------------------------------------------------------------------------------------------


class Stopped(SystemExit):
    """SIGTERM ended a run; finished chunks stay. ``code`` is 143, as in a shell; ``str`` says how far it came."""

    def __init__(self, text: str = "stopped") -> None:
        super().__init__(128 + signal.SIGTERM)
        self.text = text

    def __str__(self) -> str:
        return self.text


@contextlib.contextmanager
def stoppable(done: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Inside, SIGTERM raises :class:`Stopped` with a sentence, and Ctrl-C ``KeyboardInterrupt`` with one.

    A handler that somebody else has set stays; outside the main thread nothing is changed.

    Args:
        done: Returns what is finished, for the sentence.

    Returns:
        A function that raises :class:`Stopped` if SIGTERM came and the code at work swallowed the exception.
    """
    asked = False

    def stop(number: int = 0, frame: object = None) -> None:
        nonlocal asked
        asked = True
        raise Stopped

    def check() -> None:
        if asked:
            stop()

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield check
        check()
    except Stopped:
        raise Stopped(f"stopped by SIGTERM: {done()}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped: {done()}") from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --------------------------------------------------------------------------------------------------
# Chunks
# --------------------------------------------------------------------------------------------------


class Chunks:
    """The finished chunks of a run, in memory.

    Args:
        num_chunks: Number of chunks of all shards.
    """

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks
        self._kept: dict[int, Tensors] = {}

    def read(self, number: int) -> Tensors | None:
        """The tensors of a finished chunk; None where it has to be made."""
        return self._kept.get(number)

    def write(self, number: int, chunk: Tensors) -> None:
        """Keep a finished chunk."""
        self._kept[number] = chunk

    def finished(self) -> int:
        """Number of finished chunks, of all shards."""
        return len(self._kept)

    def check_writable(self) -> None:
        """Raise ``OSError`` if no chunk could be written; a run calls it before its first step."""

    def what_is_done(self) -> str:
        """One clause for the message of a run that ends early."""
        return "without out= nothing is kept"


class ChunkFolder(Chunks):
    """The finished chunks of a run in a folder: one safetensors file each, whole or absent, beside the run's settings.

    Args:
        folder: Folder of the run; made where it is missing.
        settings: Everything that decides the result, as JSON. A run that resumes has to agree with the earlier one.
        num_chunks: Number of chunks of all shards.
        run_file: Name of the JSON file with the settings.
        result_file: Name of the file that the result has in this folder. With it and without a run file, the folder
            holds something else, and is refused.
        resume: Keep finished chunks; False removes them.
        check: ``(number, tensors)`` => whether a chunk that was read is as it should be; otherwise it is made again.

    Raises:
        ValueError: The folder holds a run with other settings, or a result without a run.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        num_chunks: int,
        *,
        run_file: str,
        result_file: str | None = None,
        resume: bool = True,
        check: Callable[[int, Tensors], bool] | None = None,
    ) -> None:
        super().__init__(num_chunks)
        self.folder, self.run_file, self._check = folder, run_file, check
        self._run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if resume and (folder / run_file).is_file():
            wrong = differences(files.read_json(folder / run_file), json.loads(json.dumps(settings)))
            if wrong:
                raise ValueError(
                    f"{folder} holds a run with other settings ({'; '.join(wrong)}): choose another out=, "
                    "or resume=False to start again"
                )
            return
        if resume and result_file and (folder / result_file).exists():
            raise ValueError(
                f"{folder} holds {result_file} but no run to resume: choose another out=, or resume=False to replace it"
            )
        if not resume:
            self.remove_chunks()
        with _cannot_write(folder):
            files.write_folder(folder, {run_file: (json.dumps(settings, indent=2) + "\n").encode()})

    def check_writable(self) -> None:
        """Raise ``OSError`` if no chunk could be written; a run calls it before its first step."""
        folder = self.path(0).parent
        with _cannot_write(folder):
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / "chunks" / f"chunk-{number:05d}.safetensors"

    def read(self, number: int) -> Tensors | None:
        """The tensors of a finished chunk, mmapped; None where it is missing, broken, or of another run."""
        try:
            with files.open_tensors(self.path(number)) as opened:
                if not self._is_ours(opened, number):
                    return None
                chunk = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return chunk if self._check is None or self._check(number, chunk) else None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):  # broken in any way
            return None

    def write(self, number: int, chunk: Tensors) -> None:
        """Write a chunk; a kill leaves it whole or absent.

        Raises:
            OSError: There is no room, or the folder cannot be written to; the message says what is finished.
        """
        path, label = self.path(number), {"run": self._run, "chunk": number}
        with self.saying_what_is_done():
            files.write_folder(path.parent, {path.name: lambda target: files.save_tensors(target, chunk, label)})

    def finished(self) -> int:
        """Number of finished chunks, of all shards, by the headers of their files."""
        return sum(map(self.has, range(self.num_chunks)))

    def has(self, number: int) -> bool:
        """Whether a chunk is there, by the header of its file."""
        try:
            with files.open_tensors(self.path(number)) as opened:
                return self._is_ours(opened, number)
        except (SafetensorError, OSError, ValueError):
            return False

    def what_is_done(self) -> str:
        """One clause for the message of a run that ends early."""
        return f"{self.finished()} of {self.num_chunks} chunks lie finished in {self.folder}; run it again to go on"

    @contextlib.contextmanager
    def saying_what_is_done(self) -> Iterator[None]:
        """Inside, an ``OSError`` (there is no room) says what is finished and stays."""
        try:
            yield
        except OSError as cause:
            raise OSError(f"{cause}; {self.what_is_done()}") from cause

    def sweep(self) -> None:
        """Remove the temporary files of killed processes."""
        for folder in (self.folder, self.path(0).parent):
            files.sweep(folder)

    def remove_chunks(self) -> None:
        """Remove the files of all chunks."""
        for path in self.path(0).parent.glob("chunk-*.safetensors"):
            path.unlink(missing_ok=True)

    def _is_ours(self, opened: Any, number: int) -> bool:
        said = (opened.metadata() or {}).get("latent_mixup")
        return said in (json.dumps({"run": self._run, "chunk": number}), json.dumps({"run": self._run}))  # 0.1.0's


@contextlib.contextmanager
def _cannot_write(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise OSError(f"cannot write into {folder}: {cause}; choose another out=") from cause


def run_chunks(
    make: Callable[[int, Advance], Tensors],
    sizes: Sequence[int],
    store: Chunks,
    *,
    shard: tuple[int, int] = (0, 1),
    meter: Meter | None = None,
    desc: str = "run",
    unit: str = "images",
    again: Callable[[Tensors], bool] | None = None,
) -> None:
    """Make this shard's chunks and keep them in ``store``, except those that are finished.

    SIGTERM raises :class:`Stopped`, and Ctrl-C ``KeyboardInterrupt``, with a sentence that says what is done; a
    chunk is then whole or absent.

    Args:
        make: The number of a chunk, and a function to call with the number of items whenever some are done => its
            tensors.
        sizes: Number of items in each chunk, of all shards.
        store: Where chunks are kept.
        shard: ``(i, n)``: every n-th chunk from the i-th.
        meter: Counts and shows what is done.
        desc: Name of the work, beside the bar.
        unit: Plural name of an item.
        again: Whether a finished chunk has to be made once more, since something has changed.

    Raises:
        ValueError: The shard has no chunk.
        OSError: The folder cannot be written to, or has no room; finished chunks stay.
    """
    mine = range(shard[0], len(sizes), shard[1])
    if not mine:
        raise ValueError(f"shard {shard} has no work: there are {len(sizes)} chunks")
    meter = meter or Meter()

    def finished(number: int) -> Tensors | None:
        chunk = store.read(number)
        return None if chunk is None or (again and again(chunk)) else chunk

    def count(number: int, chunk: Tensors) -> None:
        meter.count(chunk)
        meter.images += sizes[number]

    with stoppable(store.what_is_done) as check_stopped:
        missing = []
        for number in mine:
            if (chunk := finished(number)) is None:
                missing.append(number)
            else:
                count(number, chunk)
        meter.note()
        if missing:
            store.check_writable()
        before = meter.images
        total = sum(sizes[number] for number in mine)
        with Progress(total, desc, unit, done=before, show=meter.show) as bar:
            try:
                for number in missing:
                    chunk = finished(number)  # another process may have been faster
                    if chunk is None:
                        chunk = make(number, bar.advance)
                        check_stopped()
                        store.write(number, chunk)
                    count(number, chunk)
                    bar.reach(meter.images, meter.note())
            finally:
                meter.seconds, meter.solved = bar.seconds, meter.images - before


def check_shard(shard: tuple[int, int], resume: bool = True) -> None:
    """Raise ``ValueError`` if there is no such shard, or it would remove the chunks of the others."""
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard needs (i, n) with 0 <= i < n: got {shard}")
    if shard[1] > 1 and not resume:
        raise ValueError("resume=False with several shards would empty the folder under the others: give a new out=")


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested settings differ, each as ``key: earlier there, now here``."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        old, new = earlier.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r:.80} there, {new!r:.80} here")
    return found
