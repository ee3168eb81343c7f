"""Entries of a pool decoded anew while an epoch is trained on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from latent_mixup import files
from latent_mixup.augment.base import Decoder
from latent_mixup.augment.prefetch import ONE_THREAD, THREAD_NAME, own_stream, use_one_core
from latent_mixup.augment.sources import pair_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.policies import from_config
from latent_mixup.pool.files import AUTOCAST, INDEX_FILE, Pool, PoolFormatError
from latent_mixup.pool.render import Renderer

COLUMNS = ("labels_a", "labels_b", "lam")
_made_here = itertools.count()


class Refreshed:
    """The parts of a pool that were decoded anew, one file each.

    The pool has ``k = round(1 / share)`` parts. At epoch ``e`` from 1, part ``(e - 1) % k`` is drawn and decoded anew,
    for the ``(e - 1) // k + 1``-th time: seed, entry and epoch decide an entry. The ranks of a run on one machine share
    the files, and each part is decoded by one of them.

    Args:
        pool: The pool.
        share: Share of the pool that is refreshed an epoch, in (0, 1].
        generator: The pool's.
        bank: The pool's.

    Raises:
        ValueError: The pool was not made with generator and bank, or the share is out of its range.
    """

    def __init__(self, pool: Pool, share: float, generator: Generator | None, bank: LatentBank | None) -> None:
        if not 0 < share <= 1 or generator is None or bank is None:
            raise ValueError(
                f"refresh needs a share in (0, 1], generator= and bank=: got refresh={share}, "
                f"generator={type(generator).__name__}, bank={type(bank).__name__}"
            )
        generator, bank = pair_of(generator, bank)
        self.pool = pool
        self.num_parts = min(round(1 / share), pool.index.num_images)
        self._renderer: Renderer | None = _renderer_of(pool, generator, bank)
        self._folder = _shared_folder(pool) or Path(tempfile.mkdtemp(prefix="latent-mixup-refresh-"))
        self._ended: threading.Event | None = threading.Event()
        in_use = FileLock(self._folder / f"{os.getpid()}.used")  # held as long as this process uses the folder
        in_use.acquire()
        weakref.finalize(self, _end, self._ended, self._folder, in_use, os.getpid())
        self._open: dict[Path, dict[str, Tensor]] = {}
        self._job: _Job | None = None

    def images(self, entries: Tensor, images: Tensor, epoch: int) -> Tensor:
        """Images of some entries: ``images`` apart from those that were refreshed by ``epoch``."""
        return self._replaced("images", entries, images, epoch)

    def columns(self, entries: Tensor, columns: list[Tensor], epoch: int) -> list[Tensor]:
        """The same for ``labels_a``, ``labels_b`` and ``lam``."""
        return [self._replaced(name, entries, column, epoch) for name, column in zip(COLUMNS, columns, strict=True)]

    def prepare(self, epoch: int) -> None:
        """Wait for the parts of ``epoch``, decode those that are missing, and start on the next epoch's in a thread."""
        if self._renderer is None:
            raise RuntimeError("set_epoch needs to be called in the process that made the data set, not in a copy")
        parts = self._parts(epoch)
        following = (epoch % self.num_parts, epoch // self.num_parts + 1)
        if self._job is not None and self._job.part != following:
            self._job.wait()
            self._job = None
        for part in parts:
            if not self._path(*part).exists():
                self._writer(part)()
        wanted = {self._path(*part) for part in [*parts, *self._parts(epoch - 1), following]}  # a rank may be behind
        for path in set(self._folder.glob("part-*.safetensors")) - wanted:
            for each in (path, path.with_suffix(".lock")):
                with contextlib.suppress(OSError):  # Windows removes no file that a worker has open
                    each.unlink()
        in_thread = self._renderer.decoder.device.type not in ONE_THREAD
        if in_thread and self._job is None and not self._path(*following).exists():
            self._job = _Job(following, self._writer(following))

    def __getstate__(self) -> dict[str, Any]:
        """A worker process reads what the main process has written."""
        return {**self.__dict__, "_renderer": None, "_ended": None, "_open": {}, "_job": None}

    def _parts(self, epoch: int) -> list[tuple[int, int]]:
        """The parts that are not the pool's own in an epoch, each with the number of times that it was drawn anew."""
        turns = ((part, (epoch - 1 - part) // self.num_parts + 1) for part in range(self.num_parts))
        return [(part, turn) for part, turn in turns if turn > 0]

    def _range(self, part: int) -> range:
        """The entries of a part; all parts have as many, give or take one."""
        n = self.pool.index.num_images
        return range(part * n // self.num_parts, (part + 1) * n // self.num_parts)

    def _path(self, part: int, turn: int) -> Path:
        return self._folder / f"part-{part:05d}-{turn:05d}.safetensors"

    def _replaced(self, name: str, entries: Tensor, values: Tensor, epoch: int) -> Tensor:
        for part, turn in self._parts(epoch):
            span = self._range(part)
            here = ((entries >= span.start) & (entries < span.stop)).nonzero()[:, 0]
            if len(here):
                values[here] = self._tensors(part, turn)[name][entries[here] - span.start]
        return values

    def _tensors(self, part: int, turn: int) -> dict[str, Tensor]:
        """A part's file, mmapped; older files of the part are closed."""
        path = self._path(part, turn)
        if path not in self._open:
            self._open.pop(self._path(part, turn - 1), None)
            with files.open_tensors(path) as opened:
                self._open[path] = {name: opened.get_tensor(name) for name in ("images", *COLUMNS)}
        return self._open[path]

    def _writer(self, part: tuple[int, int]) -> Callable[[], None]:
        assert self._renderer is not None
        assert self._ended is not None
        return partial(_write_part, self._renderer, self._path(*part), self._range(part[0]), part[1], self._ended)


def _renderer_of(pool: Pool, generator: Generator, bank: LatentBank) -> Renderer:
    """How the pool was made; raises where it was not made with these two."""
    made_with = pool.index.made_with
    labels = made_with["policy"].get("labels")
    if isinstance(labels, dict) and labels.get("kind") == "Teacher":
        raise ValueError(
            f"{pool.folder} has the labels of a classifier, which is not in it: render another pool instead"
        )
    try:
        policy = from_config(made_with["policy"])
    except ValueError as cause:
        raise PoolFormatError(f"{pool.folder / INDEX_FILE}: field 'made_with.policy': {cause}") from cause
    renderer = Renderer(
        Decoder(generator, autocast=AUTOCAST[made_with["autocast"]]), bank, policy, made_with["seed"], batch_size=256
    )
    for name, found in renderer.facts().items():
        check_digest(pool, name, found)
    return renderer


def check_digest(pool: Pool, name: str, found: object) -> None:
    """Raise ``ValueError`` unless the pool was rendered with this seed, policy, path, generator or bank."""
    made_with = pool.index.made_with[name]
    if made_with != found:
        raise ValueError(
            f"{pool.folder} was rendered with another {name}, {made_with!r:.20}: got {found!r:.20}; pass the same"
        )


def _write_part(renderer: Renderer, path: Path, entries: range, turn: int, ended: threading.Event) -> None:
    """Decode some entries into a file, unless another rank does, or the data set or the program ends before that."""

    def is_over() -> bool:
        return ended.is_set() or not threading.main_thread().is_alive()

    with contextlib.suppress(Timeout), FileLock(path.with_suffix(".lock")).acquire(cancel_check=is_over):
        if path.exists():
            return
        found = []
        with own_stream(renderer.decoder.device):
            for images, _ in renderer.images(entries, turn):
                if is_over():
                    return
                found.append(images)
        columns = renderer.columns(entries, turn)
        tensors = {"images": torch.cat(found), **{name: columns[name] for name in COLUMNS}}
        files.write_folder(path.parent, {path.name: lambda file: files.save_tensors(file, tensors)})


def _shared_folder(pool: Pool) -> Path | None:
    """The folder that all ranks of a run on this machine have for their n-th refreshed pool; None for one process."""
    run = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not run[1]:
        return None
    name = hashlib.sha256(repr([*run, next(_made_here), str(pool.folder), pool.index]).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"latent-mixup-refresh-{name[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
    return folder


def _end(ended: threading.Event, folder: Path, lock: FileLock, owner: int) -> None:
    """The data set is gone: the last process removes the folder. A forked worker's copy takes nothing away."""
    if os.getpid() != owner:
        return
    ended.set()
    lock.release()
    for path in folder.glob("*.used"):
        try:
            FileLock(path, timeout=0).acquire().lock.release()
        except Timeout:
            return
    shutil.rmtree(folder, ignore_errors=True)


class _Job:
    """A part that is decoded by a thread of its own, which ends when the program does."""

    def __init__(self, part: tuple[int, int], write: Callable[[], None]) -> None:
        self.part, self._write = part, write
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME}-refresh")
        self._thread.start()

    def wait(self) -> None:
        """Return when it is done; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        use_one_core()
        try:
            self._write()
        except BaseException as error:
            self._error = error
