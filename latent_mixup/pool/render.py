"""Decoded mixes written once, to be trained on as fast as stored images: ``latent-mixup render``."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from latent_mixup import files
from latent_mixup.augment.base import MixSettings
from latent_mixup.augment.decoder import Decoder
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.images import to_uint8
from latent_mixup.interpolation import path_named
from latent_mixup.inversion.chunks import differences
from latent_mixup.inversion.runs import check_shard, stoppable
from latent_mixup.policies import Draw, Policy, Rows, to_config
from latent_mixup.pool.files import COLUMNS_FILE, FORMAT_VERSION, IMAGES_FILE, INDEX_FILE, PoolIndex
from latent_mixup.sampling import keyed_generator

RUN_FILE = "rendering.json"
POOL_BLOCK = 1024  # entries that share a stream; another number is another pool
CHUNK_BYTES = 4 * 1024**2  # of images that are written at a time: what a kill loses


@dataclass(frozen=True)
class Recipe:
    """What the entries of a pool are made of, and by what.

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
        """Between two codes."""
        return self.policy.path or self.decoder.generator.preferred_path

    def facts(self) -> dict[str, Any]:
        """What decides the images, as JSON can say it."""
        autocast = self.decoder.autocast
        return {
            "seed": self.seed,
            "policy": to_config(self.policy),
            "path": self.path,
            "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
            "generator": self.decoder.generator.digest(),
            "bank": self.bank.digest(),
        }

    @cached_property
    def rows(self) -> Rows:
        """What is known of the bank."""
        return Rows(self.bank)

    def draw(self, entries: range, turn: int = 0) -> Draw:
        """What some entries are made of: an entry's draw depends on seed, turn and its number alone.

        Args:
            entries: Consecutive entry numbers.
            turn: How many times they were drawn anew.
        """
        first, end = entries.start // POOL_BLOCK, -(-entries.stop // POOL_BLOCK)
        streams = [keyed_generator("pool-draws", self.seed, turn, block) for block in range(first, end)]
        drawn = Draw.cat([self.policy.draw(POOL_BLOCK, self.rows, stream) for stream in streams])
        before, after = entries.start - first * POOL_BLOCK, end * POOL_BLOCK - entries.stop
        return drawn.split([before, len(entries), after])[1]

    def columns(self, entries: range, turn: int = 0) -> dict[str, Tensor]:
        """What a pool says of some entries beside their images."""
        blocks = [entries[start : start + POOL_BLOCK] for start in range(0, len(entries), POOL_BLOCK)]
        parts = [self._columns(self.draw(block, turn)) for block in blocks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _columns(self, draw: Draw) -> dict[str, Tensor]:
        labels_a, labels_b, lam = self.policy.label(self.bank.labels[draw.sources], draw, self.bank.num_classes)
        return {"labels_a": labels_a, "labels_b": labels_b, "lam": lam, "sources": draw.sources}

    def images(self, entries: range, turn: int = 0) -> Iterator[Tensor]:
        """The images of some entries, uint8 ``[k, C, R, R]`` on the CPU, a batch at a time."""
        path, whole = path_named(self.path), [self.batch_size] * (len(entries) // self.batch_size)
        rest = len(entries) - sum(whole)
        for draw in self.draw(entries, turn).split([*whole, rest] if rest else whole):
            codes = self.bank[draw.sources.flatten()][0].unflatten(0, draw.sources.shape)
            latents = self.policy.mix(codes, draw, self.rows, path)
            yield to_uint8(self.policy.finish(self.decoder(latents), draw)).cpu().contiguous()


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
    where it was when it is called again. Several processes share the work by ``shard``; whoever is last puts the pool
    together.

    Args:
        generator: Decodes, on its device.
        bank: Codes and labels.
        out: Folder of the pool; made where it is missing.
        n: How many mixes.
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        policy: How a mix is made, in place of ``alpha`` and ``path``, or its name; with a schedule, as in its first
            epoch.
        seed: Names all draws.
        batch_size: Mixes that are decoded in one call.
        autocast: See :class:`latent_mixup.decoding.Decoder`, as for the next two.
        channels_last: See there.
        compile: See there.
        shard: ``(i, n)``: every n-th chunk from the i-th.
        progress: Show a progress bar.

    Returns:
        Whether the pool is complete; False: other shards have chunks to do.

    Raises:
        ValueError: A setting is out of range, bank and generator do not belong together, or the folder holds a pool
            with other settings.
        OSError: The folder cannot be written to, or has no room; finished chunks stay.
    """
    followed = MixSettings(alpha=alpha, path=path, policy=policy).followed
    check_shard(shard, resume=True)
    if n < 1 or batch_size < 1:
        raise ValueError(f"a pool needs at least one image, and a batch as well: got n={n}, batch_size={batch_size}")
    bank.check(generator)
    bank.check_labelled()
    decoder = Decoder(generator, autocast=autocast, channels_last=channels_last, compile=compile)
    recipe = Recipe(decoder, bank, followed, seed, batch_size)
    followed.check(recipe.rows)
    img_shape = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    run = PoolRun(Path(out), recipe, n, img_shape)
    mine = range(shard[0], len(run.chunks), shard[1])
    total = sum(len(run.chunks[number]) for number in mine)
    with (
        stoppable(run.what_is_done) as check_stopped,
        tqdm(total=total, desc="render", unit=" images", disable=None if progress else True) as bar,
    ):
        for number in mine:
            if not run.has(number):
                run.write(number)
            bar.update(len(run.chunks[number]))
            check_stopped()
        return run.finish()


class PoolRun:
    """A pool in the making: one file a chunk, each written whole or not at all, put together at the end.

    Args:
        folder: Of the pool.
        recipe: What its entries are made of.
        n: How many there are.
        img_shape: ``(C, R, R)``.

    Raises:
        ValueError: The folder holds a pool, or a run, with other settings.
    """

    def __init__(self, folder: Path, recipe: Recipe, n: int, img_shape: tuple[int, int, int]) -> None:
        self.folder, self.recipe, self.n, self.img_shape = folder, recipe, n, img_shape
        per_chunk = max(1, CHUNK_BYTES // (prod(img_shape) * POOL_BLOCK)) * POOL_BLOCK
        self.chunks = [range(start, min(start + per_chunk, n)) for start in range(0, n, per_chunk)]
        self._made_with = recipe.facts()
        facts = {"num_images": n, "images_a_chunk": per_chunk, **self._made_with}
        self._name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        earlier = self._earlier()
        if earlier is None:
            files.write_folder(folder, {RUN_FILE: (json.dumps(facts, indent=2) + "\n").encode()})
        elif wrong := differences(earlier, {name: facts[name] for name in earlier}):
            raise ValueError(
                f"{folder} holds a pool with other settings ({'; '.join(wrong)}): choose another folder, "
                "or remove this one"
            )

    def has(self, number: int) -> bool:
        """Whether a chunk is there, or the whole pool is."""
        if self._is_complete():
            return True
        try:
            with safe_open(self._path(number), framework="pt") as opened:
                said = (opened.metadata() or {}).get("latent_mixup")
                return bool(said == json.dumps({"run": self._name, "chunk": number}))
        except (SafetensorError, OSError):
            return False

    def write(self, number: int) -> None:
        """Decode a chunk and write it; a kill leaves it whole or absent."""
        path = self._path(number)
        with self._saying_what_is_done():
            path.parent.mkdir(parents=True, exist_ok=True)
            images = torch.cat(list(self.recipe.images(self.chunks[number])))
            label = {"run": self._name, "chunk": number}
            files.write_folder(
                path.parent, {path.name: lambda file: files.save_tensors(file, {"images": images}, label)}
            )

    def finish(self) -> bool:
        """Put the pool together where all chunks are there; whether it is complete."""
        if self._is_complete():
            return True
        if not all(map(self.has, range(len(self.chunks)))):
            return False
        columns = self.recipe.columns(range(self.n))
        try:
            with self._saying_what_is_done():
                files.write_folder(
                    self.folder,
                    {
                        IMAGES_FILE: self._write_images,
                        COLUMNS_FILE: lambda path: files.save_tensors(path, columns),
                        INDEX_FILE: self._write_index(columns["labels_a"]),
                    },
                )
        except FileNotFoundError:
            if not self._is_complete():  # another shard was faster and has swept the chunks
                raise
        for path in [*self._chunk_files(), self.folder / RUN_FILE]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path(0).parent.rmdir()
        return True

    def what_is_done(self) -> str:
        """For the error of a run that ends early."""
        done = sum(map(self.has, range(len(self.chunks))))
        return f"{done} of {len(self.chunks)} chunks lie finished in {self.folder}; run it again to go on"

    def _write_images(self, path: Path) -> None:
        """All chunks one after the other: one of them is in memory at a time."""
        with path.open("wb") as file:
            for number in range(len(self.chunks)):
                with safe_open(self._path(number), framework="pt") as opened:
                    file.write(opened.get_tensor("images").numpy().data)

    def _write_index(self, labels: Tensor) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            data = [path.with_name(name) for name in (IMAGES_FILE, COLUMNS_FILE)]
            index = PoolIndex(
                format_version=FORMAT_VERSION,
                num_images=self.n,
                img_shape=self.img_shape,
                num_classes=self.recipe.bank.num_classes,
                label_dtype=str(labels.dtype).removeprefix("torch."),
                num_sources=self.recipe.policy.num_sources,
                made_with=self._made_with,
                files={file.name: {"size": file.stat().st_size, "sha256": files.sha256(file)} for file in data},
                versions={name: metadata.version(name) for name in ("latent-mixup", "torch")},
            )
            path.write_bytes(index.to_bytes())

        return write

    def _earlier(self) -> dict[str, Any] | None:
        """The settings of the pool or the run that is there; None: there is none."""
        if (self.folder / INDEX_FILE).is_file():
            index = PoolIndex.read(self.folder)
            return {"num_images": index.num_images, **index.made_with}
        return files.read_json(self.folder / RUN_FILE) if (self.folder / RUN_FILE).is_file() else None

    def _is_complete(self) -> bool:
        return (self.folder / INDEX_FILE).is_file()

    def _path(self, number: int) -> Path:
        return self.folder / "chunks" / f"chunk-{number:05d}.safetensors"

    def _chunk_files(self) -> list[Path]:
        return sorted((self.folder / "chunks").glob("chunk-*.safetensors"))

    @contextlib.contextmanager
    def _saying_what_is_done(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as cause:
            raise OSError(f"{cause}; {self.what_is_done()}") from cause
