"""``invert``: a data set in, a latent bank out; in chunks that a killed run resumes from."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latent_mixup import hub
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.images import MIN_IMAGES, Moments
from latent_mixup.inversion.chunks import Chunk, ChunkFolder
from latent_mixup.inversion.losses import Loss, callable_id, default_loss
from latent_mixup.inversion.optimise import START_DRAWS, nearest_start, optimise_codes, reconstruction_mse
from latent_mixup.inversion.samples import Key, SampleFormat, class_names, probe, read_samples

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
    mean: Moments | None = None,
    std: Moments | None = None,
    image_key: Key | None = None,
    label_key: Key | None = None,
) -> LatentBank:
    """Find a latent code for every image of a data set: encoder start, then gradient steps, best step kept.

    Args:
        dataset: Anything with a length whose samples are ``(image, label)``, mappings with an image and a label,
            or images alone. An image is a PIL image, or an array or tensor, ``[C, R, R]`` or ``[R, R, C]``, uint8
            or float in [0, 1] or [-1, 1], of the generator's size. A label is an integer, soft, or missing. An
            image that cannot be read is set aside: it has no row, and its error stands in the bank's metadata
            under ``"set_aside"``. Augmentations belong after inversion.
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
        mean: Of each channel, where the images were normalised; as ``v2.Normalize`` has it.
        std: The same.
        image_key: Where in a sample the image is: a name, or a number in a tuple. None: found.
        label_key: The same of the label.

    Returns:
        A bank with labels, source index, pixel ``mse`` in [-1, 1] and ``status`` (1: no finite loss was found)
        of this shard's rows.

    Raises:
        ValueError: Images of another size or range, another latent space, or settings that disagree with the
            run that ``out`` holds.

    Reference: Latent-Mixup, section 2.1.1.
    """
    _check_settings(shard, steps, batch_size, lr)
    if shard[1] > 1 and not resume:
        raise ValueError("resume=False with several shards would empty the folder under the others: give a new out=")
    if space not in (None, generator.latent_space):
        raise ValueError(f"this generator inverts into {generator.latent_space!r}: got space={space!r}")
    generator = generator.to(device or generator.device)
    objective = loss or default_loss(generator)
    if isinstance(objective, torch.nn.Module):
        objective = objective.to(generator.device)
    if encoder is None and generator.has_encoder:
        encoder = generator.encode

    # Read before anything is written, so that images of a wrong size or range leave no folder behind.
    format, first = probe(
        dataset,
        generator,
        num_images=max(batch_size, MIN_IMAGES),
        mean=mean,
        std=std,
        image_key=image_key,
        label_key=label_key,
    )

    def solve(indices: range) -> Chunk:
        samples = read_samples(dataset, indices, generator, format)
        targets = samples.images
        if not len(targets):
            return Chunk(_no_rows(generator, samples.labels), samples.errors)
        start = encoder(targets).detach() if encoder else nearest_start(generator, targets, seed)
        codes, losses = optimise_codes(generator, targets, start, objective, steps=steps, lr=lr, betas=betas)
        failed = ~losses.isfinite() | ~codes.flatten(1).isfinite().all(1)
        codes[failed] = start[failed].nan_to_num()
        columns = {
            "latents": codes.cpu(),
            "labels": samples.labels,
            "source_index": samples.index,
            "mse": reconstruction_mse(generator, codes, targets).cpu().nan_to_num(nan=torch.inf),
            "status": torch.where(failed.cpu(), FAILED, OK).to(torch.uint8),
        }
        return Chunk(columns, samples.errors)

    settings = {
        "start": f"nearest of {START_DRAWS} draws" if encoder is None else callable_id(encoder),
        "loss": callable_id(objective),
        "steps": steps,
        "lr": lr,
        "betas": list(betas),
        "schedule": "cosine",
        "batch_size": batch_size,
        "seed": seed,
    }
    facts = _facts(dataset, format, first.images, generator, settings)
    chunks = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    mine = range(shard[0], len(chunks), shard[1])
    if not mine:
        raise ValueError(f"shard {shard} has no work: there are {len(chunks)} chunks of {batch_size}")
    store = None if out is None else ChunkFolder(Path(out), facts, chunks, resume=resume)

    found = []
    for number in tqdm(mine, desc="invert", unit="chunk", disable=None if progress else True):
        chunk = store.read(number) if store else None
        if chunk is None:
            chunk = solve(chunks[number])
            if store:
                store.write(number, chunk)
        found.append(chunk)
    bank = _as_bank(found, facts)
    if store and store.complete():  # the chunks stay: running again costs nothing, and other shards may read them
        whole = bank if shard[1] == 1 else _as_bank(store.read_all(), facts)
        whole.save_pretrained(store.folder, dtype=torch.float32)
    return bank


def _check_settings(shard: tuple[int, int], steps: int, batch_size: int, lr: float) -> None:
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard needs (i, n) with 0 <= i < n: got {shard}")
    if steps < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(f"steps >= 0, batch_size >= 1, lr > 0 are needed: got {steps}, {batch_size}, {lr}")


def _facts(
    dataset: Any, format: SampleFormat, first: Tensor, generator: Generator, settings: dict[str, Any]
) -> dict[str, Any]:
    """What decides the result of a run: a bank's metadata, and what a resumed run has to agree with."""
    return {
        "classes": class_names(dataset, format),
        "samples": format.to_dict(),
        "latent_space": generator.latent_space,
        "generator": {"name": generator.metadata.get("name"), "digest": generator.digest(), "commit": None},
        "dataset": {**fingerprint(dataset), "first_images": hub.tensors_sha256({"images": first})},
        "inversion": settings,
    }


def _no_rows(generator: Generator, labels: Tensor) -> dict[str, Tensor]:
    """The columns of a chunk none of whose images could be read."""
    return {
        "latents": torch.empty(0, *generator.latent_shape),
        "labels": labels,
        "source_index": torch.empty(0, dtype=torch.int64),
        "mse": torch.empty(0),
        "status": torch.empty(0, dtype=torch.uint8),
    }


def _as_bank(found: list[Chunk], facts: dict[str, Any]) -> LatentBank:
    columns = {name: torch.cat([chunk.columns[name] for chunk in found]) for name in found[0].columns}
    set_aside = {str(index): error for chunk in found for index, error in chunk.errors.items()}
    versions = {name: metadata.version(name) for name in ("latent-mixup", "torch")}
    return LatentBank(
        columns.pop("latents"),
        columns.pop("labels"),
        **columns,
        metadata={**facts, "set_aside": set_aside, "versions": {**versions, "python": platform.python_version()}},
    )
