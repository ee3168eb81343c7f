"""Entries of a pool decoded anew while an epoch is trained on."""

from __future__ import annotations

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
from safetensors import safe_open
from torch import Tensor

from latent_mixup import files
from latent_mixup.augment.decoder import Decoder
from latent_mixup.augment.prefetch import THREAD_NAME, own_stream
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.policies import from_config
from latent_mixup.pool.files import Pool
from latent_mixup.pool.render import Recipe

COLUMNS = ("labels_a", "labels_b", "lam")


class Refreshed:
    """The parts of a pool that were decoded anew, one file each.

    The pool has ``k = round(1 / share)`` parts. At epoch ``e`` from 1, part ``(e - 1) % k`` is drawn and decoded anew,
    for the ``(e - 1) // k + 1``-th time: what an entry is follows from seed, entry and epoch alone.

    Args:
        pool: Of the entries.
        share: Of the pool that is refreshed an epoch, in (0, 1].
        generator: The pool's.
        bank: The pool's.

    Raises:
        ValueError: They are not, or the share is out of its range.
    """

    def __init__(self, pool: Pool, share: float, generator: Generator | None, bank: LatentBank | None) -> None:
        if not 0 < share <= 1 or generator is None or bank is None:
            raise ValueError(
                f"refresh needs a share in (0, 1], generator= and bank=: got refresh={share}, "
                f"generator={type(generator).__name__}, bank={type(bank).__name__}"
            )
        self.pool = pool
        self.num_parts = min(round(1 / share), pool.index.num_images)
        self._recipe: Recipe | None = _recipe_of(pool, generator, bank)
        self._folder = Path(tempfile.mkdtemp(prefix="latent-mixup-refresh-"))
        self._ended: threading.Event | None = threading.Event()
        weakref.finalize(self, _end, self._ended, self._folder, os.getpid())
        self._open: dict[Path, dict[str, Tensor]] = {}
        self._job: _Job | None = None

    def images(self, entries: Tensor, images: Tensor, epoch: int) -> Tensor:
        """Images of some entries, ``images`` but for those that were refreshed by ``epoch``."""
        return self._replaced("images", entries, images, epoch)

    def columns(self, entries: Tensor, columns: list[Tensor], epoch: int) -> list[Tensor]:
        """The same for ``labels_a``, ``labels_b`` and ``lam``."""
        return [self._replaced(name, entries, column, epoch) for name, column in zip(COLUMNS, columns, strict=True)]

    def prepare(self, epoch: int) -> None:
        """Wait for the parts of ``epoch``, decode those that are missing, and start on the next epoch's in a thread."""
        if self._recipe is None:
            raise RuntimeError("set_epoch needs to be called in the process that made the data set, not in a copy")
        parts = self._parts(epoch)
        following = (epoch % self.num_parts, epoch // self.num_parts + 1)
        if self._job is not None and self._job.part != following:
            self._job.wait()
            self._job = None
        for part in parts:
            if not self._path(*part).exists():
                self._writer(part)()
        for path in set(self._folder.glob("part-*.safetensors")) - {self._path(*part) for part in [*parts, following]}:
            path.unlink(missing_ok=True)
        if self._job is None and not self._path(*following).exists():
            self._job = _Job(following, self._writer(following))

    def __getstate__(self) -> dict[str, Any]:
        """A worker process reads what the main process has written."""
        return {**self.__dict__, "_recipe": None, "_ended": None, "_open": {}, "_job": None}

    def _turn(self, part: int, epoch: int) -> int:
        """How many times a part was drawn anew by ``epoch``."""
        return max(0, (epoch - 1 - part) // self.num_parts + 1)

    def _parts(self, epoch: int) -> list[tuple[int, int]]:
        """The parts that are not the pool's own, each with its turn."""
        turns = [(part, self._turn(part, epoch)) for part in range(self.num_parts)]
        return [(part, turn) for part, turn in turns if turn]

    def _range(self, part: int) -> range:
        """The entries of a part: as many in each, but for the last ones."""
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
        """A part's file, mmapped; older ones of the part are closed."""
        path = self._path(part, turn)
        if path not in self._open:
            self._open.pop(self._path(part, turn - 1), None)
            with safe_open(path, framework="pt") as opened:
                self._open[path] = {name: opened.get_tensor(name) for name in ("images", *COLUMNS)}
        return self._open[path]

    def _writer(self, part: tuple[int, int]) -> Callable[[], None]:
        assert self._recipe is not None
        assert self._ended is not None
        return partial(_write_part, self._recipe, self._path(*part), self._range(part[0]), part[1], self._ended)


def _recipe_of(pool: Pool, generator: Generator, bank: LatentBank) -> Recipe:
    """How the pool was made, where it was made with these two."""
    said = pool.index.made_with
    autocast = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}[said["autocast"]]
    decoder = Decoder(generator, autocast=autocast)
    recipe = Recipe(decoder, bank, from_config(said["policy"]), said["seed"], batch_size=256)
    for name, found in recipe.facts().items():
        if said[name] != found:
            raise ValueError(
                f"{pool.folder} was rendered with another {name}, {said[name]!r:.20}: got {found!r:.20}; "
                "refresh= needs the same"
            )
    return recipe


def _write_part(recipe: Recipe, path: Path, entries: range, turn: int, ended: threading.Event) -> None:
    """Decode some entries into a file, unless the data set or the program ends before that."""
    found = []
    with own_stream(recipe.decoder.generator.device):
        for images in recipe.images(entries, turn):
            if ended.is_set() or not threading.main_thread().is_alive():
                return
            found.append(images)
    columns = recipe.columns(entries, turn)
    tensors = {"images": torch.cat(found), **{name: columns[name] for name in COLUMNS}}
    files.write_folder(path.parent, {path.name: lambda file: files.save_tensors(file, tensors)})


def _end(ended: threading.Event, folder: Path, owner: int) -> None:
    """The data set is gone; a forked worker's copy of it takes nothing away."""
    if os.getpid() == owner:
        ended.set()
        shutil.rmtree(folder, ignore_errors=True)


class _Job:
    """A part that is decoded by a thread of its own, which ends when the program does."""

    def __init__(self, part: tuple[int, int], write: Callable[[], None]) -> None:
        self.part, self._write = part, write
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME}-refresh")
        self._thread.start()

    def wait(self) -> None:
        """Until it is done; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread: the training step keeps its cores
        try:
            self._write()
        except BaseException as error:
            self._error = error
