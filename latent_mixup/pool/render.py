"""Decoded mixes written once, to be trained on as fast as stored images: ``latent-mixup render``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files
from latent_mixup.augment.base import Decoder, MixSettings
from latent_mixup.augment.sources import pair_of
from latent_mixup.bank import LatentBank
from latent_mixup.files import FileEntry
from latent_mixup.functional import path_named
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.images import to_uint8
from latent_mixup.policies import BankView, Draw, Policy, Teacher, to_config
from latent_mixup.policies.settings import checked
from latent_mixup.pool.files import COLUMNS_FILE, FORMAT_VERSION, IMAGES_FILE, INDEX_FILE, PoolIndex
from latent_mixup.runs import Advance, ChunkFolder, Meter, Tensors, check_shard, differences, run_chunks
from latent_mixup.sampling import keyed_generator

RUN_FILE = "rendering.json"
POOL_BLOCK = 1024  # entries that share a stream; another number gives another pool
CHUNK_BYTES = 4 * 1024**2  # of images that are written at a time: what a kill loses


@dataclass(frozen=True)
class Renderer:
    """Makes the entries of a pool.

    Attributes:
        decoder: Decodes the mixes.
        bank: Codes and labels.
        policy: How a mix is made.
        seed: Names the draws.
        batch_size: Mixes that are decoded in one call; changes images by rounding alone.
    """

    decoder: Decoder
    bank: LatentBank
    policy: Policy
    seed: int
    batch_size: int

    @property
    def path(self) -> PathName:
        """Name of the path between two codes."""
        return self.policy.path or self.decoder.generator.preferred_path

    def facts(self) -> dict[str, Any]:
        """Everything that decides the images, as JSON."""
        autocast = self.decoder.autocast
        return {
            "seed": self.seed,
            "policy": to_config(self.policy),
            "path": self.path,
            "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
            "generator": self.decoder.generator.digest(),
            "bank": self.bank.digest(),
        }

    @property
    def is_taught(self) -> bool:
        """Whether labels need the images."""
        return isinstance(self.policy.labels, Teacher)

    @cached_property
    def rows(self) -> BankView:
        """The bank as the policy sees it."""
        return BankView(self.bank)

    def draw(self, entries: range, turn: int = 0) -> Draw:
        """The draws of some entries: an entry's draw depends on seed, turn and its number alone.

        Args:
            entries: Consecutive entry numbers.
            turn: Number of times that they were drawn before.
        """
        first, end = entries.start // POOL_BLOCK, -(-entries.stop // POOL_BLOCK)
        streams = [keyed_generator("pool-draws", self.seed, turn, block) for block in range(first, end)]
        drawn = Draw.cat([self.policy.draw(POOL_BLOCK, self.rows, stream) for stream in streams])
        before, after = entries.start - first * POOL_BLOCK, end * POOL_BLOCK - entries.stop
        return drawn.split([before, len(entries), after])[1]

    def columns(self, entries: range, turn: int = 0) -> Tensors:
        """The tensors of a pool for some entries, without their images."""
        policy = replace(self.policy, labels=None) if self.is_taught else self.policy
        blocks = [entries[start : start + POOL_BLOCK] for start in range(0, len(entries), POOL_BLOCK)]
        parts = []
        for draw in (self.draw(block, turn) for block in blocks):
            labels_a, labels_b, lam = policy.label(self.bank.labels[draw.sources], draw, self.bank.num_classes)
            parts.append({"labels_a": labels_a, "labels_b": labels_b, "lam": lam, "sources": draw.sources})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def images(self, entries: range, turn: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The images of some entries, uint8 ``[k, C, H, W]`` on the CPU, a batch at a time; and a Teacher's labels."""
        path = path_named(self.path)
        starts = range(0, len(entries), self.batch_size)
        sizes = [min(self.batch_size, len(entries) - start) for start in starts]
        for draw in self.draw(entries, turn).split(sizes):
            generator, num_classes = self.decoder.generator, self.bank.num_classes
            images, labels = self.policy.decoded(draw, self.rows, path, generator, num_classes, self.decoder)
            if not images.isfinite().all():
                raise ValueError("an image that the generator decodes is NaN or infinite: a pool of it is not written")
            taught = self.policy.label(labels, draw, num_classes, images)[0].cpu() if self.is_taught else None
            yield to_uint8(images).cpu().contiguous(), taught


def render(
    generator: Generator,
    bank: LatentBank,
    out: str | Path,
    *,
    n: int,
    alpha: float = 1.0,
    path: PathName | None = None,
    policy: Policy | str | None = None,
    seed: int = 0,
    batch_size: int = 256,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    compile: bool = False,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> bool:
    """Decode ``n`` mixes of bank rows into a folder that :class:`latent_mixup.RenderedMixupDataset` reads.

    Mix i depends on the seed and i alone: a larger pool starts with the smaller one's. Killed at any moment, it goes on
    where it was when it is called again. Several processes share the work by ``shard``; the last one puts the pool
    together.

    Args:
        generator: Decodes, on its device.
        bank: Codes and labels.
        out: Folder of the pool; made where it is missing.
        n: Number of mixes.
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        policy: How a mix is made, in place of ``alpha`` and ``path``, or its name. A schedule counts as in its first
            epoch. The labels of a :class:`latent_mixup.policies.Teacher` are written beside the images.
        seed: Names all draws.
        batch_size: Mixes that are decoded in one call.
        autocast: Half precision for the decodes; see :class:`latent_mixup.LatentMixupLoader`.
        channels_last: Memory format of the decodes; see there.
        compile: Decode through ``torch.compile``; see there.
        shard: ``(i, n)``: every n-th chunk from the i-th.
        progress: Show a progress bar.

    Returns:
        Whether the pool is complete; False: other shards have chunks to do.

    Raises:
        TypeError: ``generator`` or ``bank`` is another kind of object.
        ValueError: A setting is out of range, bank and generator do not belong together, or the folder holds a pool
            with other settings.
        OSError: The folder cannot be written to, or has no room; finished chunks stay.
    """
    generator, bank = pair_of(generator, bank)
    followed = MixSettings(alpha=alpha, path=path, policy=policy).policy
    n, batch_size, seed = (
        checked(int, value, name) for name, value in (("n", n), ("batch_size", batch_size), ("seed", seed))
    )
    check_shard(shard)
    if n < 1 or batch_size < 1:
        raise ValueError(f"a pool needs at least one image, and a batch as well: got n={n}, batch_size={batch_size}")
    bank.check(generator)
    bank.check_labelled()
    if isinstance(followed.labels, Teacher) and followed.labels.min_confidence:
        raise ValueError(
            f"a pool holds all of its {n} images, however sure a Teacher is of them: leave out min_confidence="
            f"{followed.labels.min_confidence}, or wrap a loader"
        )
    if bank.multi_label:
        raise ValueError("a pool holds labels that sum to 1: wrap a loader to train on mixes of a multi-label bank")
    decoder = Decoder(generator, autocast=autocast, channels_last=channels_last, compile=compile)
    renderer = Renderer(decoder, bank, followed, seed, batch_size)
    followed.check(renderer.rows, generator)
    if followed.by_batch:
        warnings.warn(
            f'a pool knows no batches: mode="batch" gives each {POOL_BLOCK:,} mixes in a row one lam, use mode="elem"',
            stacklevel=2,
        )
    run = PoolRun(Path(out), renderer, n)
    if not run.is_complete() and shard[0] < len(run.chunks):
        sizes = [len(chunk) for chunk in run.chunks]
        run_chunks(run.make, sizes, run, shard=shard, meter=Meter(progress), desc="render")
    return run.finish()


class PoolRun(ChunkFolder):
    """A pool in the making: one file a chunk, put together at the end.

    Args:
        folder: Folder of the pool.
        renderer: Makes its entries.
        n: Number of entries.

    Raises:
        ValueError: The folder holds a pool, or a run, with other settings.
    """

    def __init__(self, folder: Path, renderer: Renderer, n: int) -> None:
        generator = renderer.decoder.generator
        self.img_shape = generator.image_shape
        per_chunk = max(1, CHUNK_BYTES // (prod(self.img_shape) * POOL_BLOCK)) * POOL_BLOCK
        self.chunks = [range(start, min(start + per_chunk, n)) for start in range(0, n, per_chunk)]
        self.folder, self.renderer, self.n, self._made_with = folder, renderer, n, renderer.facts()
        settings = {"num_images": n, "images_a_chunk": per_chunk, **self._made_with}
        earlier = self._earlier()
        if wrong := differences(earlier, {name: settings[name] for name in earlier if name in settings}):
            raise ValueError(
                f"{folder} holds a pool with other settings ({'; '.join(wrong)}): choose another folder, "
                "or remove this one"
            )
        if not self.is_complete():
            super().__init__(folder, settings, len(self.chunks), run_file=RUN_FILE)

    def _earlier(self) -> dict[str, Any]:
        """The settings of the pool or the run in the folder; empty where there is neither."""
        if self.is_complete():
            index = PoolIndex.read(self.folder)
            return {"num_images": index.num_images, **index.made_with}
        return files.read_json(self.folder / RUN_FILE) if (self.folder / RUN_FILE).is_file() else {}

    def is_complete(self) -> bool:
        """Whether the pool is there."""
        return (self.folder / INDEX_FILE).is_file()

    def read(self, number: int) -> Tensors | None:
        """A finished chunk; empty where another shard has put the pool together meanwhile."""
        return {} if self.is_complete() else super().read(number)

    def make(self, number: int, advance: Advance) -> Tensors:
        """Decode a chunk."""
        found, labels = [], []
        for images, taught in self.renderer.images(self.chunks[number]):
            found.append(images)
            labels += [] if taught is None else [taught]
            advance(len(images))
        return {"images": torch.cat(found), **({"labels": torch.cat(labels)} if labels else {})}

    def finish(self) -> bool:
        """Put the pool together where all chunks are there; whether it is complete."""
        if not self.is_complete():
            if not all(map(self.has, range(len(self.chunks)))):
                return self.is_complete()
            try:
                self._put_together()
            except OSError:
                if not self.is_complete():  # else another shard was faster and has removed the chunks
                    raise
        self.remove_chunks()
        with contextlib.suppress(OSError):
            (self.folder / RUN_FILE).unlink()
            self.path(0).parent.rmdir()
        return True

    def _put_together(self) -> None:
        columns = self.renderer.columns(range(self.n))
        if self.renderer.is_taught:
            columns["labels_a"] = torch.cat([self._labels(each) for each in range(len(self.chunks))])
            columns["labels_b"] = columns["labels_a"].clone()
            columns["lam"] = torch.ones_like(columns["lam"])
        with self.saying_what_is_done():
            files.write_indexed(
                self.folder,
                {IMAGES_FILE: self._write_images, COLUMNS_FILE: lambda path: files.save_tensors(path, columns)},
                INDEX_FILE,
                partial(self._index, columns["labels_a"]),
            )

    def _write_images(self, path: Path) -> None:
        """All chunks one after the other: one of them is in memory at a time."""
        with path.open("wb") as file:
            for number in range(len(self.chunks)):
                with files.open_tensors(self.path(number)) as opened:
                    file.write(opened.get_tensor("images").numpy().data)

    def _labels(self, number: int) -> Tensor:
        """A Teacher's labels of a chunk, ``[k, num_classes]``."""
        with files.open_tensors(self.path(number)) as opened:
            labels: Tensor = opened.get_tensor("labels")
        return labels

    def _index(self, labels: Tensor, entries: tuple[FileEntry, ...]) -> bytes:
        return PoolIndex(
            format_version=FORMAT_VERSION,
            num_images=self.n,
            img_shape=self.img_shape,
            num_classes=self.renderer.bank.num_classes,
            label_dtype=str(labels.dtype).removeprefix("torch."),
            num_sources=self.renderer.policy.num_sources,
            made_with=self._made_with,
            files={entry.name: {"size": entry.size, "sha256": entry.sha256} for entry in entries},
            versions={name: metadata.version(name) for name in ("latent-mixup", "torch")},
        ).to_bytes()
