"""``invert``: a data set in, a latent bank out; in chunks that a killed run resumes from."""

from __future__ import annotations

import functools
import math
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files, hub
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.bank.files import CodeFiles
from latent_mixup.generators.base import Generator
from latent_mixup.images import Moments
from latent_mixup.inversion.chunks import FAILED, OK, CodeMeter, Found, errors_of, folder_of_run, join, pack, save_bank
from latent_mixup.inversion.curvature import DRAWS, Curvature, learn_curvature
from latent_mixup.inversion.optimise import (
    Optimizer,
    eval_modes,
    leave_inference_mode,
    optimise_codes,
    optimizer_settings,
    reconstruction_mse,
)
from latent_mixup.inversion.samples import check_arguments, class_names, probe, read_samples
from latent_mixup.inversion.start import DrawnStart
from latent_mixup.labels import Key
from latent_mixup.losses.base import Loss, callable_id, pixel_mse
from latent_mixup.losses.chosen import LossName, chosen_loss
from latent_mixup.runs import Advance, ChunkFolder, Chunks, Tensors, check_shard, run_chunks

CHUNK_BATCHES = 4  # batches in a chunk: within one, the optimiser refills its batch


@torch.inference_mode(False)
def invert(
    dataset: Any,
    generator: Generator,
    *,
    out: str | Path | None = None,
    encoder: Callable[[Tensor], Tensor] | None = None,
    loss: Loss | LossName | None = None,
    space: str | None = None,
    steps: int | None = None,
    restarts: int | None = None,
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
    progress: bool | CodeMeter = True,
    mean: Moments | None = None,
    std: Moments | None = None,
    image_key: Key | None = None,
    label_key: Key | None = None,
    multi_label: bool = False,
    command: Sequence[str] | None = None,
) -> LatentBank:
    """Find a latent code for every image of a data set: a start, then gradient steps, of which the best is kept.

    Before the first image a run learns from generated images how the loss curves and, without an encoder, where to
    start: see :func:`~latent_mixup.inversion.curvature.learn_curvature` and
    :class:`~latent_mixup.inversion.start.DrawnStart`.

    Args:
        dataset: Anything with a length whose samples are ``(image, label)``, mappings with an image and a label,
            or images alone. An image is a PIL image, or an array or tensor, ``[C, H, W]`` or ``[H, W, C]``, uint8,
            uint16, or float in [0, 1] or [-1, 1], of the generator's size. A label is an integer, soft, or missing.
            An image that cannot be read is set aside: it has no row, and its error is in the bank's metadata under
            ``"set_aside"``. Augmentations belong after inversion.
        generator: Decodes the codes.
        out: Folder for the finished chunks, from which a killed run resumes, and finally for the bank, which is
            then read from there. None: codes are kept in memory.
        encoder: Images ``[B, C, H, W]`` in [-1, 1] to codes to start from. None: the generator's own; if it has
            none, the better of the nearest draw and a linear guess.
        loss: ``(images, targets) -> [B]``; or ``"lpips"`` (0.9 LPIPS + 0.1 MSE), ``"features"`` (the generator's
            features + MSE) or ``"pixels"``. None: what the generator prefers, else lpips for RGB and features for grey;
            with ``steps=0``, where nothing is minimised, pixels.
        space: The latent space to invert into. None: the generator's.
        steps: Maximum gradient steps per image; 0 keeps the start, which encodes a data set in one pass. None: what
            the generator prefers, else 200: of L-BFGS, these reach the result of 1,000 of the paper's AdamW.
        restarts: Random restarts per image after convergence. None: what the generator prefers, else 1.
        optimizer: ``"lbfgs"``; or ``"adam"``, for a loss that is random: all ``steps``, with a learning rate that
            falls to zero along a half cosine, without weight decay.
        lr: Length of the first step, in each number of a code.
        betas: Betas of Adam.
        target: Loss at which an image is done. None: it goes on until convergence.
        tolerance: L-BFGS: an image has converged when its loss fell by less than this share in ten evaluations.
        draws: Number of generated images used for initialisation.
        batch_size: Images at a time; when one is done, the next takes its place. A chunk has four times as many.
            It does not change an image's result, except for rounding.
        device: Where to decode. None: where the generator is.
        resume: Use finished chunks in ``out``; images in them that were set aside are tried again. False starts
            again.
        shard: ``(i, n)``: do every n-th chunk from the i-th. The shard that completes ``out`` writes the bank, with
            the same bytes whatever n.
        seed: Seed of the draws and of the restarts.
        progress: Show a progress bar, and without a terminal a line a minute; or a ``CodeMeter``, which also counts.
        mean: Mean of each channel, if the images were normalised, as in ``v2.Normalize``.
        std: Standard deviation of each channel.
        image_key: Place of the image in a sample: a name, or a number in a tuple. None: found.
        label_key: Place of the label.
        multi_label: Whether a sample may have several classes or none: labels are ``[num_classes]`` numbers in [0, 1]
            of any sum, and the bank is for ``multi_label=True`` of the wrappers.
        command: Command line to record in the bank's metadata.

    Returns:
        A bank with labels, source index, pixel ``mse`` in [-1, 1] and ``status`` (1: no finite loss was found)
        of this shard's rows. It has as many classes as the data set names.

    Raises:
        ValueError: Images of another size or range, colours for a grey generator, another latent space, settings
            that disagree with the run that ``out`` holds, or more than half of the images cannot be used.
        TypeError: An argument is something else, such as a ``DataLoader``.
        OSError: ``out`` cannot be written to, which is found out before the first step, or has no room; finished
            chunks stay, and the same call goes on from there.
        Stopped: A ``SystemExit``: SIGTERM ended the run. Finished chunks stay.

    Warns:
        UserWarning: Some images could not be used (with their number, the first error and the remedy), or have no
            finite code.

    Reference: Latent-Mixup, section 2.1.1.
    """
    check_arguments(dataset, generator)
    check_shard(shard, resume)
    steps = generator.preferred_inversion.get("steps", 200) if steps is None else steps
    restarts = generator.preferred_inversion.get("restarts", 1) if restarts is None else restarts
    if steps < 0 or batch_size < 1 or not lr > 0 or draws < 1:
        raise ValueError(
            f"steps >= 0, batch_size >= 1, lr > 0, draws >= 1 are needed: got {steps}, {batch_size}, {lr}, {draws}"
        )
    if space not in (None, generator.latent_space):
        raise ValueError(f"this generator inverts into {generator.latent_space!r}: got space={space!r}")
    generator = leave_inference_mode(generator.to(device or generator.device)).coder
    objective = chosen_loss(generator, pixel_mse if loss is None and steps == 0 else loss)
    if encoder is None and generator.has_encoder:
        encoder = generator.encode

    # Read before anything is written, so that images of a wrong size or range leave no folder behind.
    format, first = probe(
        dataset, generator, mean=mean, std=std, image_key=image_key, label_key=label_key, multi_label=multi_label
    )
    classes = class_names(dataset, format)
    _check_labels(first.labels, classes)

    @functools.cache
    def learnt() -> tuple[Callable[[Tensor], Tensor], Curvature | None]:
        """The start and the curvature: learnt when the first chunk needs them."""
        curved = optimizer == "lbfgs" and steps > 0
        return (
            encoder or DrawnStart(generator, draws, seed),
            learn_curvature(generator, objective, draws, seed) if curved else None,
        )

    def make(number: int, advance: Advance) -> Tensors:
        samples = read_samples(dataset, chunks[number], generator, format)
        if not len(samples.index):
            return pack(_no_rows(generator, samples.labels), samples.errors)
        _check_labels(samples.labels, classes)
        first_code, curvature = learnt()
        start = torch.cat([first_code(images).detach().float() for images in samples.images.split(batch_size)])
        _check_codes(start, generator)
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
        # with steps=0 each code was decoded once already
        is_mse = steps == 0 and objective is pixel_mse
        mse = losses if is_mse else reconstruction_mse(generator, codes, samples.images, batch_size)
        columns = {
            "latents": codes.cpu(),
            "labels": samples.labels,
            "source_index": samples.index,
            "mse": mse.cpu().nan_to_num(nan=torch.inf, posinf=torch.inf),
            "status": torch.where(failed.cpu(), FAILED, OK).to(torch.uint8),
        }
        return pack(columns, samples.errors)

    def readable_now(chunk: Tensors) -> bool:
        errors = errors_of(chunk)
        return bool(errors) and bool(len(read_samples(dataset, errors, generator, format).index))

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
    facts: dict[str, Any] = {
        "classes": classes,
        "samples": format.to_dict(),
        "latent_space": generator.latent_space,
        "generator": {"name": generator.metadata.get("name"), "digest": generator.digest(), "commit": None},
        "dataset": {
            **fingerprint(dataset, multi_label=multi_label),
            "first_images": files.tensors_sha256({"images": first.images}),
        },
        **({"multi_label": True} if multi_label else {}),
        "inversion": settings,
    }
    chunks = split_chunks(len(dataset), batch_size)
    if shard[0] >= len(chunks):
        raise ValueError(f"shard {shard} has no work: there are {len(chunks)} chunks of {len(chunks[0])} images")
    store = Chunks(len(chunks)) if out is None else folder_of_run(Path(out), facts, chunks, resume)
    meter = progress if isinstance(progress, CodeMeter) else CodeMeter(progress)
    with eval_modes(generator, encoder, objective):
        run_chunks(make, [*map(len, chunks)], store, shard=shard, meter=meter, desc="invert", again=readable_now)
    meter.check()
    meter.warn(
        "they have no row in the bank: repair them and run it again, or train on bank.usable(dataset)", stacklevel=3
    )
    stated = {**facts, "generator": facts["generator"] | (hub.stated_origin(generator.metadata) or {})}
    if command:
        stated["command"] = [*command]
    mine = _as_bank(join(store, range(shard[0], len(chunks), shard[1])), stated)
    assert mine.status is not None
    if (failed := int((mine.status == FAILED).sum())) > 0:
        warnings.warn(
            f"{failed:,} of {len(mine):,} images have no finite code: their rows have status 1 and the code of "
            "the start; leave them out, bank.subset(bank.status == 0)",
            stacklevel=3,
        )
    if not isinstance(store, ChunkFolder) or store.finished() < len(chunks):
        return mine
    whole = save_bank(_as_bank(join(store, range(len(chunks))), stated), store)  # the chunks stay: they cost little
    return whole if shard[1] == 1 else mine


def split_chunks(num_images: int, batch_size: int) -> list[range]:
    """The consecutive indices of each chunk of a run; they do not depend on the number of machines."""
    size = CHUNK_BATCHES * batch_size
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _check_codes(codes: Tensor, generator: Generator) -> None:
    """Raise ``ValueError`` if an encoder gives codes of another shape."""
    if tuple(codes.shape[1:]) != tuple(generator.latent_shape):
        raise ValueError(
            f"the encoder gives codes of shape {tuple(codes.shape[1:])}, and the generator takes "
            f"{tuple(generator.latent_shape)}: pass an encoder that was trained for this generator"
        )


def _no_rows(generator: Generator, labels: Tensor) -> Tensors:
    """The columns of a chunk none of whose images could be read."""
    nothing = torch.empty(0, dtype=torch.float32, device="cpu")
    return {
        "latents": nothing.new_empty(0, *generator.latent_shape),
        "labels": labels,
        "source_index": nothing.long(),
        "mse": nothing,
        "status": nothing.to(torch.uint8),
    }


def _as_bank(found: Found, facts: dict[str, Any]) -> LatentBank:
    columns = dict(found.columns)
    stated = {
        **facts,
        **({"num_classes": len(facts["classes"])} if facts["classes"] else {}),
        "set_aside": {str(index): error for index, error in found.errors.items()},
        "versions": {
            **{name: metadata.version(name) for name in ("latent-mixup", "torch")},
            "python": platform.python_version(),
        },
    }
    if isinstance(found.latents, CodeFiles):
        return LatentBank.from_files(found.latents, stated)
    return LatentBank(found.latents, columns.pop("labels"), **columns, metadata=stated)


def _check_labels(labels: Tensor, classes: list[str] | None) -> None:
    """Raise ``ValueError`` if a label is beyond the classes that the data set names."""
    if not classes or not len(labels):
        return
    found = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if found > len(classes) or (labels.ndim == 2 and found != len(classes)):
        raise ValueError(
            f"the data set names {len(classes)} classes, and its labels are of {found}: correct one of them"
        )
