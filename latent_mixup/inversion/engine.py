"""``invert``: a data set in, a latent bank out; in chunks that a killed run resumes from."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files, hub
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.bank.files import Parts
from latent_mixup.generators.base import Generator
from latent_mixup.images import Moments
from latent_mixup.inversion.chunks import FAILED, OK, Chunk, ChunkFolder, Found
from latent_mixup.inversion.curvature import DRAWS, Curvature, learn_curvature
from latent_mixup.inversion.optimise import Optimizer, optimise_codes, optimizer_settings, reconstruction_mse
from latent_mixup.inversion.runs import CHUNK_BATCHES, Advance, Meter, check_shard, run_chunks, save_bank
from latent_mixup.inversion.samples import Key, SampleFormat, class_names, probe, read_samples
from latent_mixup.inversion.start import DrawnStart
from latent_mixup.losses.base import Loss, callable_id, chosen_loss, pixel_mse


def invert(
    dataset: Any,
    generator: Generator,
    *,
    out: str | Path | None = None,
    encoder: Callable[[Tensor], Tensor] | None = None,
    loss: Loss | None = None,
    space: str | None = None,
    steps: int = 200,
    restarts: int = 1,
    optimizer: Optimizer = "lbfgs",
    lr: float = 0.03,
    betas: tuple[float, float] = (0.95, 0.999),
    target: float | None = None,
    tolerance: float = 1e-3,
    draws: int = DRAWS,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    progress: bool | Meter = True,
    mean: Moments | None = None,
    std: Moments | None = None,
    image_key: Key | None = None,
    label_key: Key | None = None,
) -> LatentBank:
    """Find a latent code for every image of a data set: a start, then gradient steps, of which the best is kept.

    Before the first image a run learns from images of the generator's own making how the loss bends, and, where there
    is no encoder, where to start: see :func:`~latent_mixup.inversion.curvature.learn_curvature` and
    :class:`~latent_mixup.inversion.start.DrawnStart`.

    Args:
        dataset: Anything with a length whose samples are ``(image, label)``, mappings with an image and a label,
            or images alone. An image is a PIL image, or an array or tensor, ``[C, R, R]`` or ``[R, R, C]``, uint8
            or float in [0, 1] or [-1, 1], of the generator's size. A label is an integer, soft, or missing. An
            image that cannot be read is set aside: it has no row, and its error stands in the bank's metadata
            under ``"set_aside"``. Augmentations belong after inversion.
        generator: Decodes the codes.
        out: Folder for the finished chunks, from which a killed run resumes, and in the end for the bank, which is
            then read from there. None: codes are kept in memory.
        encoder: Images ``[B, C, R, R]`` in [-1, 1] to codes to start from. None: the generator's own;
            where it has none, the better of the nearest draw and a linear guess.
        loss: ``(images, targets) -> [B]``. None: 0.9 LPIPS + 0.1 MSE for RGB, else the generator's features + MSE;
            with ``steps=0``, where nothing is minimised, the pixel MSE.
        space: The latent space to invert into. None: the generator's.
        steps: Gradients an image, at most; 0 keeps the start, which encodes a data set in one pass. 200 of L-BFGS reach
            what 1,000 of the paper's AdamW do.
        restarts: So often an image that has settled looks for a lower place nearby.
        optimizer: ``"lbfgs"``; or ``"adam"``, for a loss that is random: all ``steps``, at a rate that falls to zero
            along a half cosine, without weight decay.
        lr: Length of the first step, in each number of a code.
        betas: Adam's.
        target: An image whose loss is as low is done. None: it goes on until it has settled.
        tolerance: L-BFGS: an image has settled whose loss fell by less than this share in ten evaluations.
        draws: Images of the generator's own making to learn from.
        batch_size: Images at a time; when one is done, the next takes its place. A chunk has four times as many. It
            does not change an image's result, but for rounding.
        device: Where to decode. None: where the generator is.
        resume: Use finished chunks in ``out``; images of theirs that were set aside are tried again. False starts
            again.
        shard: ``(i, n)``: do every n-th chunk from the i-th. Whoever completes ``out`` writes its bank, the same
            bytes whatever n.
        seed: Of the draws, and of where restarts jump to.
        progress: Show a progress bar, and where there is no terminal a line a minute; or a ``Meter``, which also
            counts.
        mean: Of each channel, where the images were normalised; as ``v2.Normalize`` has it.
        std: The same.
        image_key: Where in a sample the image is: a name, or a number in a tuple. None: found.
        label_key: The same of the label.

    Returns:
        A bank with labels, source index, pixel ``mse`` in [-1, 1] and ``status`` (1: no finite loss was found)
        of this shard's rows.

    Raises:
        ValueError: Images of another size or range, another latent space, settings that disagree with the run that
            ``out`` holds, or more than half of at least 64 images cannot be used.
        OSError: ``out`` cannot be written to, which is found out before the first step, or has no room; what was
            done stays, and the same call goes on from there.
        Stopped: A ``SystemExit``: SIGTERM ended the run. What was done stays.

    Reference: Latent-Mixup, section 2.1.1.
    """
    check_shard(shard, resume)
    _check_settings(steps, batch_size, lr, draws)
    if space not in (None, generator.latent_space):
        raise ValueError(f"this generator inverts into {generator.latent_space!r}: got space={space!r}")
    generator = generator.to(device or generator.device)
    objective = chosen_loss(generator, pixel_mse if loss is None and steps == 0 else loss)
    if encoder is None and generator.has_encoder:
        encoder = generator.encode

    # Read before anything is written, so that images of a wrong size or range leave no folder behind.
    format, first = probe(dataset, generator, mean=mean, std=std, image_key=image_key, label_key=label_key)

    @functools.cache
    def learnt() -> tuple[Callable[[Tensor], Tensor], Curvature | None]:
        """Where to start and how the loss bends: learnt when the first chunk needs it."""
        bends = optimizer == "lbfgs" and steps > 0
        return (
            encoder or DrawnStart(generator, draws, seed),
            learn_curvature(generator, objective, draws, seed) if bends else None,
        )

    def solve(indices: Sequence[int], advance: Advance) -> Chunk:
        samples = read_samples(dataset, indices, generator, format)
        if not len(samples.index):
            return Chunk(_no_rows(generator, samples.labels), samples.errors)
        first_code, curvature = learnt()
        start = torch.cat([first_code(images).detach() for images in samples.images.split(batch_size)])
        codes, losses = optimise_codes(
            generator,
            samples.images,
            start,
            objective,
            steps=steps,
            restarts=restarts,
            optimizer=optimizer,
            lr=lr,
            betas=betas,
            target=-math.inf if target is None else target,
            tolerance=tolerance,
            curvature=curvature,
            batch_size=batch_size,
            seed=seed,
            advance=advance,
        )
        failed = ~losses.isfinite() | ~codes.flatten(1).isfinite().all(1)
        codes[failed] = start[failed].nan_to_num()
        if steps == 0 and objective is pixel_mse:
            mse = losses  # each code was decoded once
        else:
            parts = zip(codes.split(batch_size), samples.images.split(batch_size), strict=True)
            mse = torch.cat([reconstruction_mse(generator, *part) for part in parts])
        columns = {
            "latents": codes.cpu(),
            "labels": samples.labels,
            "source_index": samples.index,
            "mse": mse.cpu().nan_to_num(nan=torch.inf, posinf=torch.inf),
            "status": torch.where(failed.cpu(), FAILED, OK).to(torch.uint8),
        }
        return Chunk(columns, samples.errors)

    def readable_now(chunk: Chunk) -> bool:
        return bool(len(read_samples(dataset, chunk.errors, generator, format).index))

    settings = {
        "start": f"nearest or linear of {draws} draws" if encoder is None else callable_id(encoder),
        "loss": callable_id(objective),
        "steps": steps,
        "restarts": restarts,
        **optimizer_settings(optimizer, lr, betas, tolerance, draws),
        "target": target,
        "batch_size": batch_size,
        "seed": seed,
    }
    facts = _facts(dataset, format, first.images, generator, settings)
    chunks = split_chunks(len(dataset), batch_size)
    if shard[0] >= len(chunks):
        raise ValueError(f"shard {shard} has no work: there are {len(chunks)} chunks of {len(chunks[0])} images")
    store = None if out is None else ChunkFolder(Path(out), facts, chunks, resume=resume)
    found = run_chunks(solve, chunks, store=store, shard=shard, progress=progress, again=readable_now)
    stated = {**facts, "generator": facts["generator"] | (hub.stated_origin(generator.metadata) or {})}
    if store is None or store.finished() < len(chunks):
        return _as_bank(found, stated)
    whole = save_bank(_as_bank(store.join(range(len(chunks))), stated), store)  # the chunks stay: they cost little
    return whole if shard[1] == 1 else _as_bank(found, stated)


def split_chunks(num_images: int, batch_size: int) -> list[range]:
    """The consecutive indices of each chunk of a run; they do not depend on how many machines there are."""
    size = CHUNK_BATCHES * batch_size
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _check_settings(steps: int, batch_size: int, lr: float, draws: int) -> None:
    if steps < 0 or batch_size < 1 or not lr > 0 or draws < 1:
        raise ValueError(
            f"steps >= 0, batch_size >= 1, lr > 0, draws >= 1 are needed: got {steps}, {batch_size}, {lr}, {draws}"
        )


def _facts(
    dataset: Any, format: SampleFormat, first: Tensor, generator: Generator, settings: dict[str, Any]
) -> dict[str, Any]:
    """What decides the result of a run: a bank's metadata, and what a resumed run has to agree with."""
    return {
        "classes": class_names(dataset, format),
        "samples": format.to_dict(),
        "latent_space": generator.latent_space,
        "generator": {"name": generator.metadata.get("name"), "digest": generator.digest(), "commit": None},
        "dataset": {**fingerprint(dataset), "first_images": files.tensors_sha256({"images": first})},
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


def _as_bank(found: Found, facts: dict[str, Any]) -> LatentBank:
    set_aside = {str(index): error for index, error in found.errors.items()}
    versions = {name: metadata.version(name) for name in ("latent-mixup", "torch")}
    stated = {**facts, "set_aside": set_aside, "versions": {**versions, "python": platform.python_version()}}
    if isinstance(found.latents, Parts):
        return LatentBank.from_parts(found.latents, stated)
    columns = dict(found.columns)
    return LatentBank(found.latents, columns.pop("labels"), **columns, metadata=stated)
