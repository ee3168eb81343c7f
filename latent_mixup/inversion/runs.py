"""Runs that last: chunk after chunk, each written whole; stopped at any moment, the next run goes on from there."""

from __future__ import annotations

import contextlib
import datetime
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from latent_mixup.bank import LatentBank
from latent_mixup.bank.files import COLUMN_DTYPES, BankFormatError
from latent_mixup.inversion.chunks import Chunk, ChunkFolder, Found, join

CHUNK_BATCHES = 4  # batches in a chunk: the optimiser fills its batch again within one
MIN_LOOKED_AT, MAX_SET_ASIDE = 64, 0.5  # after so many images, a greater share that cannot be used ends the run
BANK_FILE_BYTES = 256 * 1024**2  # of a bank that is put together: so much of it is in memory at a time
MIN_INTERVAL = 0.1  # seconds between two looks of the bar
LINE_EVERY = 60.0  # seconds between lines in a log, where there is no terminal for a bar

Advance: TypeAlias = Callable[[int], None]
Solve: TypeAlias = Callable[[Sequence[int], Advance], Chunk]


class Stopped(SystemExit):
    """SIGTERM ended a run; what was done stays. ``code`` is 143, as a shell has it; ``str`` says what is done."""

    def __init__(self, text: str = "stopped") -> None:
        super().__init__(128 + signal.SIGTERM)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Meter:
    """Counts what a run does, and shows it: images a second, mean mse and the time left.

    Args:
        show: Whether to show it: a bar on a terminal, elsewhere a line a minute.

    Attributes:
        images: Of this shard so far, with those of earlier runs.
        solved: Of them, this run's.
        set_aside: Of them, those that could not be used.
        seconds: What this run took.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.images, self.solved, self.set_aside, self.seconds = 0, 0, 0, 0.0
        self._first_error: tuple[int, str] | None = None
        self._mse_sum, self._mse_rows = 0.0, 0

    def count(self, chunk: Chunk) -> None:
        """One more finished chunk."""
        mse = chunk.columns["mse"].double()
        self.images += len(mse) + len(chunk.errors)
        self.set_aside += len(chunk.errors)
        self._mse_sum += float(mse[mse.isfinite()].sum())
        self._mse_rows += int(mse.isfinite().sum())
        if chunk.errors:
            self._first_error = min([*chunk.errors.items(), *([self._first_error] if self._first_error else [])])

    def check(self) -> None:
        """Raise ``ValueError`` where most images so far could not be used: then something is wrong with all."""
        if self.images >= MIN_LOOKED_AT and self.set_aside > MAX_SET_ASIDE * self.images and self._first_error:
            index, error = self._first_error
            raise ValueError(
                f"{self.set_aside:,} of {self.images:,} images cannot be used, more than {MAX_SET_ASIDE:.0%}: mend "
                f"them in the data set, then run it again; the first, image {index}: {error}"
            )

    @contextlib.contextmanager
    def bar(self, total: int, desc: str) -> Iterator[_Bar]:
        """The bar of a run of ``total`` images, of which :attr:`images` are done."""
        bar = _Bar(self, total, desc)
        try:
            yield bar
        finally:
            bar.tqdm.close()
            self.seconds = time.perf_counter() - bar.started
            self.solved = self.images - bar.before

    @property
    def mean_mse(self) -> float:
        """Of the rows so far whose mse is finite; NaN where there is none."""
        return self._mse_sum / self._mse_rows if self._mse_rows else float("nan")


class _Bar:
    """Where a run stands: tqdm on a terminal, else a line now and then."""

    def __init__(self, meter: Meter, total: int, desc: str) -> None:
        self.meter, self.total, self.desc, self.before = meter, total, desc, meter.images
        self.started = self.said = time.perf_counter()
        self.tqdm = tqdm(
            total=total,
            initial=meter.images,
            desc=desc,
            unit=" images",
            smoothing=0.1,
            mininterval=MIN_INTERVAL,
            miniters=1,
            disable=None if meter.show else True,
        )
        self._say()

    def advance(self, count: int) -> None:
        """Some images of the chunk at work are done."""
        self.tqdm.update(count)

    def finish(self, chunk: Chunk) -> None:
        """A chunk is done: the bar stands at its end, whatever :meth:`advance` was told."""
        self.meter.count(chunk)
        self.tqdm.update(self.meter.images - self.tqdm.n)
        self._say()

    def _say(self) -> None:
        if self.meter.images > self.meter.set_aside:
            self.tqdm.set_postfix_str(f"mse {self.meter.mean_mse:.4f}")
        now = time.perf_counter()
        if not (self.meter.show and self.tqdm.disable) or now - self.said < LINE_EVERY:
            return
        self.said, speed = now, (self.meter.images - self.before) / (now - self.started)
        left = datetime.timedelta(seconds=round((self.total - self.meter.images) / speed)) if speed else "?"
        print(
            f"{self.desc}: {self.meter.images:,} of {self.total:,} images, {speed:.2f} images/s, "
            f"mean mse {self.meter.mean_mse:.4f}, {left} left",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def stoppable(done: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Inside, SIGTERM raises :class:`Stopped` with a sentence, and Ctrl-C ``KeyboardInterrupt`` with one.

    A handler that somebody else has set stays; so does everything outside the main thread.

    Args:
        done: Says what is done.

    Returns:
        A function that raises where the exception was swallowed by what was at work.
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


def check_shard(shard: tuple[int, int], resume: bool) -> None:
    """Raise ``ValueError`` where there is no such shard, or where it would take the others' chunks away."""
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard needs (i, n) with 0 <= i < n: got {shard}")
    if shard[1] > 1 and not resume:
        raise ValueError("resume=False with several shards would empty the folder under the others: give a new out=")


def run_chunks(
    solve: Solve,
    chunks: Sequence[Sequence[int]],
    *,
    store: ChunkFolder | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool | Meter = True,
    desc: str = "invert",
    again: Callable[[Chunk], bool] | None = None,
) -> Found:
    """Solve this shard's chunks, but for those that are finished already.

    SIGTERM raises :class:`Stopped`, and Ctrl-C ``KeyboardInterrupt``, with a sentence that says what is done; a
    chunk is then whole or absent.

    Args:
        solve: The indices of a chunk, and a function that may be told of images as they are done => the chunk.
        chunks: The indices of every chunk, of all shards, ascending in each.
        store: Where chunks are kept; made for the same ``chunks``. None: in memory.
        shard: ``(i, n)``: every n-th chunk from the i-th.
        progress: Whether to show a bar; or what counts and shows.
        desc: What the bar says.
        again: Whether a finished chunk has to be solved once more, since something has changed.

    Returns:
        The rows of this shard's chunks, in order. Codes in a store are read when they are asked for.

    Raises:
        ValueError: Most images cannot be used, or the shard has no chunk.
        OSError: The folder cannot be written to, or has no room; finished chunks stay.
    """
    mine = range(shard[0], len(chunks), shard[1])
    if not mine:
        raise ValueError(f"shard {shard} has no work: there are {len(chunks)} chunks")
    meter = progress if isinstance(progress, Meter) else Meter(progress)
    kept: list[Chunk] = []
    with stoppable(lambda: _what_is_done(store)) as check_stopped:
        missing = []
        for number in mine:
            if chunk := _finished(store, number, again):
                meter.count(chunk)
            else:
                missing.append(number)
        meter.check()
        if store and missing:
            store.check_writable()
        with meter.bar(sum(len(chunks[number]) for number in mine), desc) as bar:
            for number in missing:
                chunk = _finished(store, number, again)  # somebody else may have been faster
                if chunk is None:
                    chunk = solve(chunks[number], bar.advance)
                    check_stopped()
                    if store:
                        with _saying_what_is_done(store):
                            store.write(number, chunk)
                    else:
                        kept.append(chunk)
                bar.finish(chunk)
                meter.check()
    return store.join(mine) if store else join(kept)


def save_bank(bank: LatentBank, store: ChunkFolder) -> LatentBank:
    """Put the bank of a finished run into its folder, unless it is there already, and open it.

    Raises:
        OSError: The folder cannot be written to, or has no room; the chunks stay.
    """
    if not _holds(store.folder, bank):
        with stoppable(lambda: _what_is_done(store)), _saying_what_is_done(store):
            bank.save_pretrained(store.folder, dtype=torch.float32, max_shard_bytes=BANK_FILE_BYTES)
    store.sweep()
    return LatentBank.from_pretrained(store.folder)


def _holds(folder: Path, bank: LatentBank) -> bool:
    """Whether this bank lies there, by its columns and by what its metadata say, but for versions of software."""
    try:
        found = LatentBank.from_pretrained(folder)
    except (BankFormatError, OSError):
        return False
    columns = [(getattr(found, name), getattr(bank, name)) for name in COLUMN_DTYPES]
    return all(_same(*pair) for pair in columns) and _without_versions(found) == _without_versions(bank)


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second if first is None or second is None else first.equal(second)


def _without_versions(bank: LatentBank) -> dict[str, Any]:
    return {key: value for key, value in bank.metadata.items() if key != "versions"}


def _finished(store: ChunkFolder | None, number: int, again: Callable[[Chunk], bool] | None) -> Chunk | None:
    """A finished chunk that need not be solved again."""
    chunk = store.read(number) if store else None
    return None if chunk is None or (again and again(chunk)) else chunk


@contextlib.contextmanager
def _saying_what_is_done(store: ChunkFolder) -> Iterator[None]:
    """Where there is no room, the error says what stays."""
    try:
        yield
    except OSError as cause:
        raise OSError(f"{cause}; {_what_is_done(store)}") from cause


def _what_is_done(store: ChunkFolder | None) -> str:
    if store is None:
        return "without out= nothing is kept"
    return f"{store.finished()} of {len(store.chunks)} chunks lie finished in {store.folder}; run it again to go on"
