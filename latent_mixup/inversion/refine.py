"""``refine``: more gradient steps for a bank's worst codes; a code is only replaced by a better one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.inversion.bank_images import BankImages
from latent_mixup.inversion.chunks import CodeMeter, Found, errors_of, folder_of_run, join, pack, save_bank
from latent_mixup.inversion.curvature import DRAWS, Curvature, learn_curvature
from latent_mixup.inversion.engine import CHUNK_BATCHES
from latent_mixup.inversion.gains import STAGE_MSE, Stage, with_found
from latent_mixup.inversion.optimise import (
    Optimizer,
    eval_modes,
    leave_inference_mode,
    optimise_codes,
    optimizer_settings,
    reconstruction_mse,
)
from latent_mixup.inversion.samples import check_arguments, stated_format
from latent_mixup.losses.base import Loss, callable_id
from latent_mixup.losses.chosen import LossName, chosen_loss
from latent_mixup.runs import Advance, ChunkFolder, Chunks, Tensors, check_shard, run_chunks


@torch.inference_mode(False)
def refine(
    bank: LatentBank,
    dataset: Any,
    generator: Generator,
    *,
    above: float | Sequence[float] = 0.025,
    steps: int | Sequence[int] = 4000,
    loss: Loss | LossName | None = None,
    restarts: int = 3,
    optimizer: Optimizer = "lbfgs",
    lr: float = 0.03,
    betas: tuple[float, float] = (0.95, 0.999),
    tolerance: float = 1e-3,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 64,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    progress: bool | CodeMeter = True,
    command: Sequence[str] | None = None,
) -> LatentBank:
    """Give the worst codes of a bank more gradient steps from where they are; keep the better of old and new.

    Better is a lower pixel ``mse``, for any loss: the steps minimise the loss, and the code of a row's lowest loss
    replaces the old one if its mse is lower. So a row's mse never rises, and rows below the thresholds stay as they
    are. Codes are read a chunk at a time, so that a large bank stays on disk.

    Args:
        bank: Its ``mse`` decides which rows are refined; if it has none, that of every row is computed first. It is not
            changed.
        dataset: The data set of the bank, in its order.
        generator: The generator of the bank.
        above: Rows with ``mse >= above`` get more steps. Several numbers are stages, each on the result of the one
            before; the paper's are ``(0.025, 0.020)``.
        steps: Maximum gradient steps per row; one number, or one for each stage.
        loss: ``(images, targets) -> [B]``, a name, or None: as in :func:`latent_mixup.invert`; it may differ from the
            loss that the bank was made with.
        restarts: Random restarts per row after convergence.
        optimizer: ``"lbfgs"`` or ``"adam"``: see :func:`latent_mixup.inversion.optimise_codes`; each stage begins anew.
        lr: Length of the first step.
        betas: Betas of Adam. No weight decay.
        tolerance: L-BFGS: a row has converged when its loss fell by less than this share in ten evaluations; 0: it
            takes all steps.
        draws: Number of generated images used to learn how the loss curves.
        seed: Seed of the draws and of the restarts.
        batch_size: Rows at a time; a chunk has four times as many. It does not change a row's result.
        out: Folder for the finished chunks, from which a killed run resumes, and finally for the new bank.
        device: Where to decode. None: where the generator is.
        resume: Use finished chunks in ``out``. False starts again.
        shard: ``(i, n)``: do every n-th chunk from the i-th. The shard that completes ``out`` writes its bank, with all
            shards' codes; each returns a bank with its own.
        progress: Show a bar; or a ``CodeMeter``, as in :func:`latent_mixup.invert`.
        command: Command line to record in the bank's metadata.

    Returns:
        A bank of the same rows in the same order, codes in float32. ``metadata["refined"]`` records for each stage
        how many rows were tried and improved; and, before and after it, mean, median, 95 % quantile and the share
        ``>= above`` of the mse of all rows, and the mean of those tried (infinite ones count in the share alone). A
        row with status 1 that gets a better code has status 0. The ``lpips`` of a replaced row is infinite: it was
        not measured again.

    Raises:
        ValueError: Bank, data set and generator do not belong together, by their labels, the generator's digest,
            or a stored mse that is not the mse of the decoded codes; or ``out`` is the bank's own folder, or holds
            another run.
        TypeError: An argument is something else.
        OSError: ``out`` cannot be written to, or has no room; finished chunks stay, as in
            :func:`latent_mixup.invert`.

    Warns:
        UserWarning: No row is that bad: nothing was done.

    Reference: Latent-Mixup, section 2.1.2.2.
    """
    if not isinstance(bank, LatentBank):
        raise TypeError(f"the bank comes first, refine(bank, dataset, generator): got {type(bank).__name__}")
    check_arguments(dataset, generator)
    stages = _stages(above, steps)
    check_shard(shard, resume)
    if batch_size < 1 or not lr > 0 or not tolerance >= 0 or draws < 1:
        raise ValueError(
            "batch_size >= 1, lr > 0, tolerance >= 0, draws >= 1 are needed: "
            f"got {batch_size}, {lr}, {tolerance}, {draws}"
        )
    if (
        out is not None
        and bank.folder
        and bank.folder.resolve() in (Path(out).resolve(), Path(out, "chunks").resolve())
    ):
        raise ValueError(f"{out} is the folder of the bank itself, which stays as it is: choose another out=")
    _check_belong(bank, dataset, generator)
    generator = leave_inference_mode(generator.to(device or generator.device)).coder
    objective = chosen_loss(generator, loss)
    source = BankImages(bank, dataset, generator, stated_format(bank.metadata, dataset, generator))
    every = torch.arange(len(bank), device="cpu")
    with eval_modes(generator):
        mse = source.decoded_mse(every, batch_size) if bank.mse is None else bank.mse
    # the rows of one stage lie together
    worst = mse.argsort(descending=True, stable=True)
    least = min(stage.above for stage in stages)
    worst = worst[mse[worst] >= least]
    if bank.mse is not None:
        with eval_modes(generator):
            source.check(worst, batch_size)

    @functools.cache
    def curvature() -> Curvature | None:
        """Learnt when the first chunk needs it."""
        return learn_curvature(generator, objective, draws, seed) if optimizer == "lbfgs" else None

    def make(number: int, advance: Advance) -> Tensors:
        samples = source.samples(bank.rows_of(chunks[number]))
        rows = bank.rows_of(samples.index)
        start, labels = bank[rows]
        codes, after = refine_codes(
            generator,
            samples.images,
            start.to(generator.device),
            mse[rows].to(generator.device),
            objective,
            stages,
            batch_size=batch_size,
            restarts=restarts,
            optimizer=optimizer,
            lr=lr,
            betas=betas,
            tolerance=tolerance,
            curvature=curvature(),
            seed=seed,
        )
        after = after.T.cpu().contiguous()
        status = torch.zeros(len(rows), dtype=torch.uint8, device="cpu")
        columns = {"labels": labels, "source_index": samples.index, "mse": after[:, -1].clone(), "status": status}
        return pack({"latents": codes.cpu(), **columns, STAGE_MSE: after}, samples.errors)

    def readable_now(chunk: Tensors) -> bool:
        errors = errors_of(chunk)
        return bool(errors) and bool(len(source.samples(bank.rows_of(list(errors))).index))

    settings = {
        "loss": callable_id(objective),
        "restarts": restarts,
        **optimizer_settings(optimizer, lr, betas, tolerance, draws),
        "batch_size": batch_size,
        "seed": seed,
    }
    # what decides the result of a run: a resumed run has to agree with it
    facts = {
        "bank": bank.digest(),
        "samples": source.format.to_dict(),
        "generator": {"digest": generator.digest()},
        "dataset": fingerprint(dataset, multi_label=bank.multi_label),
        "refine": {"above": [s.above for s in stages], "steps": [s.steps for s in stages], **settings},
    }
    if command:
        settings = settings | {"command": [*command]}
    some = CHUNK_BATCHES * batch_size
    chunks = [bank.source_index[rows].sort().values.tolist() for rows in worst.split(some) if len(rows)]
    store = Chunks(len(chunks)) if out is None else folder_of_run(Path(out), facts, chunks, resume)
    if not chunks:
        warnings.warn(
            f"no row has mse >= {least:g}, the largest is {float(mse.max()):.4g}: nothing to refine, the codes stay as "
            "they are",
            stacklevel=3,  # beyond inference_mode's own frame
        )

    def refined(numbers: range) -> LatentBank:
        found: Found | None = join(store, numbers) if numbers else None
        return with_found(bank, mse, found, stages, settings)

    mine = range(shard[0], len(chunks), shard[1])
    if mine:
        meter = progress if isinstance(progress, CodeMeter) else CodeMeter(progress)
        with eval_modes(generator, objective):
            run_chunks(make, [*map(len, chunks)], store, shard=shard, meter=meter, desc="refine", again=readable_now)
        meter.warn("their codes stay as they were", stacklevel=3)
    if not isinstance(store, ChunkFolder) or store.finished() < len(chunks):
        return refined(mine)
    whole = save_bank(refined(range(len(chunks))), store)  # the chunks stay: they cost little
    return whole if shard[1] == 1 else refined(mine)


def refine_codes(
    generator: Generator,
    targets: Tensor,
    codes: Tensor,
    mse: Tensor,
    loss: Loss,
    stages: Sequence[Stage],
    *,
    batch_size: int | None = None,
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """More steps for codes with an mse at a stage's threshold or above; the better of old and new stays.

    Args:
        generator: Decodes the codes.
        targets: Images ``[B, C, H, W]`` in [-1, 1].
        codes: Codes to start from, ``[B, *latent_shape]``.
        mse: Known mse of each code, ``[B]``; infinite: unknown.
        loss: ``(images, targets) -> [B]``.
        stages: Stages, one after the other.
        batch_size: Images at a time; None: all.
        how: Further arguments of :func:`optimise_codes`.

    Returns:
        The codes, and the mse of each after each stage, ``[num_stages, B]``: where it fell, the code was replaced.
    """
    codes, mse, after = codes.clone(), mse.clone(), []
    for stage in stages:
        rows = (mse >= stage.above).nonzero()[:, 0]
        if len(rows):
            start, wanted = codes[rows], targets[rows]
            found, _ = optimise_codes(generator, wanted, start, loss, steps=stage.steps, batch_size=batch_size, **how)
            # compared with the stored mse and with what the code decodes to here: rounding is no improvement
            best_known = torch.minimum(mse[rows], reconstruction_mse(generator, start, wanted, batch_size))
            found_mse = reconstruction_mse(generator, found, wanted, batch_size)
            better = (found_mse < best_known) & found.flatten(1).isfinite().all(1)
            codes[rows[better]], mse[rows[better]] = found[better], found_mse[better]
        after.append(mse.clone())
    return codes, torch.stack(after)


def _stages(above: float | Sequence[float], steps: int | Sequence[int]) -> list[Stage]:
    """Each threshold with its steps."""
    thresholds = [above] if isinstance(above, int | float) else list(above)
    counts = [steps] * len(thresholds) if isinstance(steps, int) else list(steps)
    if not thresholds or len(counts) != len(thresholds):
        raise ValueError(f"steps needs one number, or one for each of {len(thresholds)} thresholds: got {steps}")
    if not all(threshold >= 0 for threshold in thresholds) or not all(count >= 1 for count in counts):
        raise ValueError(f"above needs numbers from 0, steps from 1: got {above} and {steps}")
    return [Stage(float(threshold), count) for threshold, count in zip(thresholds, counts, strict=True)]


def _check_belong(bank: LatentBank, dataset: Any, generator: Generator) -> None:
    """Raise ``ValueError`` if the three do not belong together."""
    bank.check(generator)
    bank.check(dataset)
    stated = bank.metadata.get("dataset")
    for name, found in fingerprint(dataset, multi_label=bank.multi_label).items():
        expected = stated.get(name) if isinstance(stated, dict) else None
        if None not in (expected, found) and expected != found:
            raise ValueError(
                f"the bank was made from a data set with {name} {expected!r:.14}, this one has {found!r:.14}: "
                "pass the data set the bank was made from, in its order"
            )
