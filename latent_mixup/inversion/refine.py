"""``refine``: more gradient steps for a bank's worst codes; a code is only ever replaced by a better one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.inversion.chunks import Chunk, ChunkFolder, Found
from latent_mixup.inversion.curvature import DRAWS, Curvature, learn_curvature
from latent_mixup.inversion.gains import STAGE_MSE, Stage, with_found
from latent_mixup.inversion.optimise import Optimizer, optimise_codes, optimizer_settings, reconstruction_mse
from latent_mixup.inversion.runs import Advance, Meter, check_shard, run_chunks, save_bank
from latent_mixup.inversion.samples import SampleFormat, Samples, read_samples, stated_format
from latent_mixup.losses.base import Loss, callable_id, chosen_loss
from latent_mixup.quality.report import CHECKED_ROWS, compare_mse


def refine(
    bank: LatentBank,
    dataset: Any,
    generator: Generator,
    *,
    above: float | Sequence[float] = 0.025,
    steps: int | Sequence[int] = 4000,
    loss: Loss | None = None,
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
    progress: bool | Meter = True,
) -> LatentBank:
    """Give the worst codes of a bank more gradient steps, from where they are; keep the better of old and new.

    Better is a lower pixel ``mse``, whatever the loss: the steps minimise the loss, and of each row the code of the
    lowest loss replaces the old one where its mse is lower. So a row's mse never rises, and a row below the
    thresholds stays as it is.

    Args:
        bank: Its ``mse`` says which rows; where it has none, that of every row is computed first. It is not changed.
        dataset: What the bank was made from, in its order; its samples are read as the bank says, or, where it does
            not say, as :func:`latent_mixup.invert` would.
        generator: What the bank was made with.
        above: Rows with ``mse >= above`` get more steps. Several numbers are stages, each of which works on what the
            one before left; the paper's are ``(0.025, 0.020)``.
        steps: Gradients a row, at most; one number, or one for each stage.
        loss: ``(images, targets) -> [B]``. None: as in :func:`latent_mixup.invert`; it may be another one than the
            bank was made with.
        restarts: So often a row that has settled looks for a lower place nearby.
        optimizer: ``"lbfgs"`` or ``"adam"``: see :func:`latent_mixup.inversion.optimise_codes`; each stage begins anew.
        lr: Length of the first step.
        betas: Adam's. No weight decay.
        tolerance: With L-BFGS, a row is done whose loss fell by less than this share in ten evaluations; 0: it takes
            all steps.
        draws: Images of the generator's own making to learn from how the loss bends.
        seed: Of the draws, and of where restarts jump to.
        batch_size: Rows at a time, and of a chunk. It does not change a row's result.
        out: Folder for the finished chunks, from which a killed run resumes, and in the end for the new bank.
        device: Where to decode. None: where the generator is.
        resume: Use finished chunks in ``out``. False starts again.
        shard: ``(i, n)``: do every n-th chunk from the i-th. Whoever completes ``out`` writes its bank, with all
            shards' codes; each returns a bank with its own.
        progress: Whether to show a bar; or what counts and shows, as in :func:`latent_mixup.invert`.

    Returns:
        A bank of the same rows in the same order, codes in float32. ``metadata["refined"]`` says of each stage how
        many rows were tried and improved; and, before and after it, mean, median, 95 % quantile and the share from
        ``above`` of the mse of all rows, and the mean of those tried (infinite ones count in the share alone). A row
        with status 1 that gets a better code has status 0. The ``lpips`` of a replaced row is infinite: it was not
        measured again.

    Raises:
        ValueError: Bank, data set and generator do not belong together, by their labels, the generator's digest,
            or a stored mse that is not what the codes decode to; or ``out`` is the bank's own folder, or holds
            another run.
        OSError: ``out`` cannot be written to, or has no room; what was done stays, as in
            :func:`latent_mixup.invert`.

    Warns:
        UserWarning: No row is that bad: nothing was done.

    Reference: Latent-Mixup, section 2.1.2.2.
    """
    stages = _stages(above, steps)
    check_shard(shard, resume)
    _check_settings(lr, tolerance, batch_size)
    _check_out(bank, out)
    _check_belong(bank, dataset, generator)
    generator = generator.to(device or generator.device)
    objective = chosen_loss(generator, loss)
    format = stated_format(bank.metadata.get("samples"), dataset, generator)
    source = _Source(bank, dataset, generator, format)
    mse = source.decoded_mse(torch.arange(len(bank)), batch_size) if bank.mse is None else bank.mse
    worst = _worst_first(mse, min(stage.above for stage in stages))
    if bank.mse is not None:
        source.check(worst, batch_size)

    @functools.cache
    def curvature() -> Curvature | None:
        """Learnt when the first chunk needs it."""
        return learn_curvature(generator, objective, draws, seed) if optimizer == "lbfgs" else None

    def solve(indices: Sequence[int], advance: Advance) -> Chunk:
        samples = source.samples(bank.rows_of(indices))
        rows = bank.rows_of(samples.index)
        start, labels = bank[rows]
        given = (samples.images, start.to(generator.device), mse[rows].to(generator.device))
        codes, after = refine_codes(
            generator,
            *given,
            objective,
            stages,
            restarts=restarts,
            optimizer=optimizer,
            lr=lr,
            betas=betas,
            tolerance=tolerance,
            curvature=curvature(),
            seed=seed,
        )
        after = after.T.cpu().contiguous()
        status = torch.zeros(len(rows), dtype=torch.uint8)
        columns = {"labels": labels, "source_index": samples.index, "mse": after[:, -1].clone(), "status": status}
        return Chunk({"latents": codes.cpu(), **columns, STAGE_MSE: after}, samples.errors)

    def readable_now(chunk: Chunk) -> bool:
        return bool(len(source.samples(bank.rows_of(list(chunk.errors))).index))

    def refined(found: Found | None) -> LatentBank:
        return with_found(bank, mse, found, stages, settings)

    settings = {
        "loss": callable_id(objective),
        "restarts": restarts,
        **optimizer_settings(optimizer, lr, betas, tolerance, draws),
        "batch_size": batch_size,
        "seed": seed,
    }
    chunks = [bank.source_index[rows].sort().values.tolist() for rows in worst.split(batch_size) if len(rows)]
    store = None if out is None else ChunkFolder(Path(out), _facts(source, stages, settings), chunks, resume=resume)
    if not chunks:
        _warn_of_nothing(mse, stages)
    found = None
    if shard[0] < len(chunks):
        found = run_chunks(
            solve, chunks, store=store, shard=shard, progress=progress, desc="refine", again=readable_now
        )
    if store is None or store.finished() < len(chunks):
        return refined(found)
    whole = save_bank(refined(store.join(range(len(chunks))) if chunks else None), store)  # the chunks stay
    return whole if shard[1] == 1 else refined(found)


def refine_codes(
    generator: Generator,
    targets: Tensor,
    codes: Tensor,
    mse: Tensor,
    loss: Loss,
    stages: Sequence[Stage],
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """More steps for the codes whose mse is at a stage's threshold or above it; the better of old and new stays.

    Args:
        generator: Decodes the codes.
        targets: Images ``[B, C, R, R]`` in [-1, 1].
        codes: ``[B, *latent_shape]``, to start from.
        mse: Of each code, ``[B]``, as it is known; infinite: unknown.
        loss: ``(images, targets) -> [B]``.
        stages: One after the other.
        how: For :func:`optimise_codes`.

    Returns:
        The codes, and the mse of each after each stage, ``[num_stages, B]``: where it fell, the code was replaced.
    """
    codes, mse, after = codes.clone(), mse.clone(), []
    for stage in stages:
        rows = (mse >= stage.above).nonzero()[:, 0]
        if len(rows):
            start, wanted = codes[rows], targets[rows]
            found, _ = optimise_codes(generator, wanted, start, loss, steps=stage.steps, **how)
            # Beside the mse as it is known also what the code decodes to here: rounding is no improvement.
            best_known = torch.minimum(mse[rows], reconstruction_mse(generator, start, wanted))
            found_mse = reconstruction_mse(generator, found, wanted)
            better = (found_mse < best_known) & found.flatten(1).isfinite().all(1)
            codes[rows[better]], mse[rows[better]] = found[better], found_mse[better]
        after.append(mse.clone())
    return codes, torch.stack(after)


# --------------------------------------------------------------------------------------------------
# What belongs together
# --------------------------------------------------------------------------------------------------


def _stages(above: float | Sequence[float], steps: int | Sequence[int]) -> list[Stage]:
    """Each threshold with its steps."""
    thresholds = [above] if isinstance(above, int | float) else list(above)
    counts = [steps] * len(thresholds) if isinstance(steps, int) else list(steps)
    if not thresholds or len(counts) != len(thresholds):
        raise ValueError(f"steps needs one number, or one for each of {len(thresholds)} thresholds: got {steps}")
    if not all(threshold >= 0 for threshold in thresholds) or not all(count >= 1 for count in counts):
        raise ValueError(f"above needs numbers from 0, steps from 1: got {above} and {steps}")
    return [Stage(float(threshold), count) for threshold, count in zip(thresholds, counts, strict=True)]


def _check_settings(lr: float, tolerance: float, batch_size: int) -> None:
    if batch_size < 1 or not lr > 0 or not tolerance >= 0:
        raise ValueError(f"batch_size >= 1, lr > 0, tolerance >= 0 are needed: got {batch_size}, {lr}, {tolerance}")


def _check_out(bank: LatentBank, out: str | Path | None) -> None:
    """Raise ``ValueError`` where the run would write into the bank's own folder."""
    if out is None or bank.folder is None:
        return
    if bank.folder.resolve() in (Path(out).resolve(), Path(out, "chunks").resolve()):
        raise ValueError(f"{out} is the folder of the bank itself, which stays as it is: choose another out=")


def _check_belong(bank: LatentBank, dataset: Any, generator: Generator) -> None:
    """Raise ``ValueError`` where the three do not belong together."""
    bank.check(generator)
    bank.check(dataset)
    stated = bank.metadata.get("dataset")
    for name, found in fingerprint(dataset).items():
        expected = stated.get(name) if isinstance(stated, dict) else None
        if None not in (expected, found) and expected != found:
            raise ValueError(
                f"the bank was made from a data set with {name} {expected!r:.14}, this one has {found!r:.14}: "
                "pass the data set the bank was made from, in its order"
            )


def _facts(source: _Source, stages: Sequence[Stage], settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a run: what a resumed run has to agree with."""
    bank = {"bank": source.bank.digest(), "samples": source.format.to_dict()}
    plan = {"above": [stage.above for stage in stages], "steps": [stage.steps for stage in stages]}
    belong = {"generator": {"digest": source.generator.digest()}, "dataset": fingerprint(source.dataset)}
    return {**bank, **belong, "refine": {**plan, **settings}}


def _worst_first(mse: Tensor, above: float) -> Tensor:
    """Rows with ``mse >= above``, so that those which one stage takes lie together."""
    order = mse.argsort(descending=True, stable=True)
    return order[mse[order] >= above]


def _warn_of_nothing(mse: Tensor, stages: Sequence[Stage]) -> None:
    least = min(stage.above for stage in stages)
    warnings.warn(
        f"no row has mse >= {least:g}, the largest is {float(mse.max()):.4g}: nothing to refine, the codes stay as "
        "they are",
        stacklevel=3,
    )


@dataclass(frozen=True)
class _Source:
    """What rows are read from."""

    bank: LatentBank
    dataset: Any
    generator: Generator
    format: SampleFormat

    def samples(self, rows: Tensor) -> Samples:
        """Images and labels of some rows."""
        return read_samples(self.dataset, self.bank.source_index[rows].tolist(), self.generator, self.format)

    def decoded_mse(self, rows: Tensor, batch_size: int) -> Tensor:
        """What the codes of some rows decode to, ``[B]``; infinite where the image cannot be read, or is no number."""
        found = torch.full((len(self.bank),), torch.inf)
        for chunk in rows.split(batch_size):
            samples = self.samples(chunk)
            if len(samples.index):
                read = self.bank.rows_of(samples.index)
                codes = self.bank[read][0].to(self.generator.device)
                found[read] = reconstruction_mse(self.generator, codes, samples.images).cpu().nan_to_num(nan=torch.inf)
        return found[rows]

    def check(self, rows: Tensor, batch_size: int) -> None:
        """Raise ``ValueError`` where the finite ``mse`` of some of the rows is not what they decode to."""
        assert self.bank.mse is not None
        rows = rows[self.bank.mse[rows].isfinite()]
        if not len(rows):
            return
        sample = rows[torch.linspace(0, len(rows) - 1, min(CHECKED_ROWS, len(rows))).long()]
        decoded = self.decoded_mse(sample, batch_size)
        if not decoded.isfinite().any():
            said = next(iter(self.samples(sample[:1]).errors.values()), "its code decodes to no numbers")
            raise ValueError(
                f"none of {len(sample)} images can be compared with the bank's codes; image "
                f"{int(self.bank.source_index[sample[0]])}: {said}"
            )
        compare_mse(self.bank.mse[sample][decoded.isfinite()], decoded[decoded.isfinite()])
