"""``invert``: a data set in, a latent bank out; in chunks that a killed run resumes from."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from latent_mixup import hub
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.images import as_images
from latent_mixup.inversion.losses import Loss, default_loss, loss_name
from latent_mixup.inversion.optimise import nearest_start, optimise_codes, reconstruction_mse

RUN_FILE = "inversion.json"
OK, FAILED = 0, 1


def invert(
    dataset: Any,
    generator: Generator,
    *,
    out: str | Path | None = None,
    encoder: Callable[[Tensor], Tensor] | None = None,
    loss: Loss | None = None,
    space: str | None = None,
    steps: int = 1000,
    lr: float = 0.03,
    betas: tuple[float, float] = (0.95, 0.999),
    batch_size: int = 64,
    device: torch.device | str | None = None,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    progress: bool = True,
) -> LatentBank:
    """Find a latent code for every image of a data set: encoder start, then gradient steps, best step kept.

    Args:
        dataset: ``dataset[i] -> (image, int label)``. An image is a PIL image, a uint8 tensor ``[C, R, R]``
            or a float tensor in [-1, 1], of the generator's size. Augmentations belong after inversion.
        generator: Decodes the codes.
        out: Folder for the finished chunks, from which a killed run resumes, and in the end for the bank.
        encoder: Images ``[B, C, R, R]`` in [-1, 1] to codes to start from. None: the generator's own;
            where it has none, the nearest of its mean code and 256 draws.
        loss: ``(images, targets) -> [B]``. None: the generator's feature network plus pixel MSE.
        space: The latent space to invert into. None: the generator's.
        steps: Gradient steps an image; 0 keeps the encoder's code.
        lr: First learning rate; it falls to zero along a half cosine.
        betas: Adam's. No weight decay.
        batch_size: Images at a time, and rows of a chunk. It does not change an image's result.
        device: Where to decode. None: where the generator is.
        resume: Use finished chunks in ``out``. False starts again.
        shard: ``(i, n)``: do every n-th chunk from the i-th. Whoever completes ``out`` writes its bank.
        seed: Of the draws an inversion without an encoder starts from.
        progress: Show a progress bar.

    Returns:
        A bank with labels, source index, pixel ``mse`` in [-1, 1] and ``status`` (1: no finite loss was found)
        of this shard's rows.

    Raises:
        ValueError: Images of another size or range, another latent space, or settings that disagree with the
            run that ``out`` holds.

    Reference: Latent-Mixup, section 2.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard needs (i, n) with 0 <= i < n: got {shard}")
    if steps < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(f"steps >= 0, batch_size >= 1, lr > 0 are needed: got {steps}, {batch_size}, {lr}")
    if space not in (None, generator.latent_space):
        raise ValueError(f"this generator inverts into {generator.latent_space!r}: got space={space!r}")
    if not len(dataset):
        raise ValueError("the data set is empty: there is nothing to invert")
    generator = generator.to(device or generator.device)
    objective = loss or default_loss(generator)
    if isinstance(objective, torch.nn.Module):
        objective = objective.to(generator.device)
    if encoder is None and generator.has_encoder:
        encoder = generator.encode
    facts = _facts(dataset, generator, encoder, objective, steps, lr, betas, batch_size, seed)
    chunks = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    store = _ChunkFolder(Path(out), facts, resume) if out is not None else None

    def solve(indices: range) -> dict[str, Tensor]:
        targets, labels = read_samples(dataset, indices, generator)
        start = encoder(targets).detach() if encoder else nearest_start(generator, targets, seed)
        codes, losses = optimise_codes(generator, targets, start, objective, steps=steps, lr=lr, betas=betas)
        failed = ~losses.isfinite() | ~codes.flatten(1).isfinite().all(1)
        codes[failed] = start[failed].nan_to_num()
        return {
            "latents": codes.cpu(),
            "labels": labels,
            "source_index": torch.arange(indices.start, indices.stop),
            "mse": reconstruction_mse(generator, codes, targets).cpu().nan_to_num(nan=torch.inf),
            "status": torch.where(failed.cpu(), FAILED, OK).to(torch.uint8),
        }

    mine = range(shard[0], len(chunks), shard[1])
    found = []
    for number in tqdm(mine, desc="invert", unit="chunk", disable=None if progress else True):
        columns = store.read(number) if store else None
        if columns is None:
            columns = solve(chunks[number])
            if store:
                store.write(number, columns)
        found.append(columns)
    if not found:
        raise ValueError(f"shard {shard} has no work: there are {len(chunks)} chunks of {batch_size}")
    bank = _as_bank(found, facts)
    if store and store.complete(len(chunks)):
        whole = bank if shard[1] == 1 else _as_bank([store.need(n) for n in range(len(chunks))], facts)
        store.finish(whole, len(chunks))
    return bank


def read_samples(dataset: Any, indices: Sequence[int], generator: Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, R, R]`` in [-1, 1] on the generator's device, and labels ``[B]``.

    Raises:
        ValueError: An image has another size or range, or a label is not an integer.
    """
    samples = [dataset[index] for index in indices]
    images = as_images([sample[0] for sample in samples])
    size = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    if tuple(images.shape[1:]) != size:
        raise ValueError(
            f"images need the generator's size {list(size)}: got {list(images.shape[1:])} at index {indices[0]}; "
            f"resize them in the data set, e.g. v2.Resize({size[1:]})"
        )
    try:
        labels = torch.tensor([int(sample[1]) for sample in samples])
    except (TypeError, ValueError) as cause:
        raise ValueError(f"dataset[i] needs to be (image, int label): got {samples[0][1]!r:.100}") from cause
    return images.to(generator.device), labels


def _facts(
    dataset: Any,
    generator: Generator,
    encoder: object,
    loss: Loss,
    steps: int,
    lr: float,
    betas: tuple[float, float],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What decides the result of a run; a bank's metadata, and what a resumed run has to agree with."""
    classes = getattr(dataset, "classes", None)
    return {
        "classes": [str(name) for name in classes] if classes is not None else None,
        "latent_space": generator.latent_space,
        "generator": {"name": generator.metadata.get("name"), "digest": generator.digest(), "commit": None},
        "dataset": fingerprint(dataset),
        "inversion": {
            "start": "encoder" if encoder else "nearest of 256 draws",
            "loss": loss_name(loss),
            "steps": steps,
            "lr": lr,
            "betas": list(betas),
            "schedule": "cosine",
            "batch_size": batch_size,
            "seed": seed,
        },
    }


def _as_bank(found: list[dict[str, Tensor]], facts: dict[str, Any]) -> LatentBank:
    columns = {name: torch.cat([chunk[name] for chunk in found]) for name in found[0]}
    versions = {name: metadata.version(name) for name in ("latent-mixup", "torch")}
    return LatentBank(
        columns.pop("latents"),
        columns.pop("labels"),
        **columns,
        metadata={**facts, "versions": {**versions, "python": platform.python_version()}},
    )


class _ChunkFolder:
    """The finished chunks of a run, and the settings they were made with."""

    def __init__(self, folder: Path, facts: dict[str, Any], resume: bool) -> None:
        self.folder, self.chunks = folder, folder / "chunks"
        if resume and (folder / RUN_FILE).is_file():
            self._agree(facts)
            return
        for stale in self.chunks.glob("chunk-*.safetensors"):
            stale.unlink()
        hub.write_folder(folder, {RUN_FILE: (json.dumps(facts, indent=2) + "\n").encode()})

    def _agree(self, facts: dict[str, Any]) -> None:
        earlier = hub.read_json(self.folder / RUN_FILE)
        for key, value in facts.items():
            if earlier.get(key) != json.loads(json.dumps(value)):
                raise ValueError(
                    f"{self.folder} holds a run with another {key}: expected {earlier.get(key)}, got {value}; "
                    "choose another out=, or resume=False to start again"
                )

    def path(self, number: int) -> Path:
        return self.chunks / f"chunk-{number:05d}.safetensors"

    def read(self, number: int) -> dict[str, Tensor] | None:
        """A finished chunk; None where there is none, or a broken one that has to be done again."""
        try:
            return load_file(self.path(number)) if self.path(number).is_file() else None
        except SafetensorError:
            return None

    def need(self, number: int) -> dict[str, Tensor]:
        columns = self.read(number)
        if columns is None:
            raise ValueError(f"{self.path(number)} cannot be read: run invert again, it redoes this chunk")
        return columns

    def write(self, number: int, columns: dict[str, Tensor]) -> None:
        hub.write_folder(self.chunks, {self.path(number).name: lambda path: hub.save_tensors(path, columns)})

    def complete(self, num_chunks: int) -> bool:
        return all(self.path(number).is_file() for number in range(num_chunks))

    def finish(self, bank: LatentBank, num_chunks: int) -> None:
        """Write the bank. The chunks stay: running again costs nothing, and other shards may still read them."""
        bank.save_pretrained(self.folder, dtype=torch.float32)
