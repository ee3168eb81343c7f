"""What ``refine`` gained: the stages, the bank with what they found, and their record as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.inversion.chunks import FAILED, OK, Found

STAGE_MSE = "stage_mse"  # of a chunk: the mse of each row after each stage, [B, num_stages]


@dataclass(frozen=True)
class Stage:
    """Rows with ``mse >= above`` get so many steps."""

    above: float
    steps: int


def with_found(
    bank: LatentBank, mse: Tensor, found: Found | None, stages: Sequence[Stage], settings: dict[str, Any]
) -> LatentBank:
    """The bank with what was found, and what was gained in its metadata."""
    history = mse.repeat(len(stages) + 1, 1)  # of all rows: before, and after each stage
    latents, status, lpips = bank[:][0], bank.status, bank.lpips
    rows, errors = torch.empty(0, dtype=torch.int64), dict[int, str]()
    if found is not None:
        rows, errors = bank.rows_of(found.columns["source_index"]), found.errors
        history[1:, rows] = found.columns[STAGE_MSE].T
        latents[rows] = (
            found.latents if isinstance(found.latents, Tensor) else found.latents.latents(torch.arange(len(rows)))
        )
    better = history[-1] < mse
    if status is not None:
        status = status.masked_fill(better & (status == FAILED), OK)
    if lpips is not None:
        lpips = lpips.masked_fill(better, torch.inf)
    records = []
    for stage, before, after in zip(stages, history[:-1], history[1:], strict=True):
        said = {str(i): error for i, error in errors.items() if before[bank.rows_of(i)] >= stage.above}
        records.append(_record(stage, before, after, rows) | settings | {"set_aside": said})
    return LatentBank(
        latents,
        bank.labels,
        source_index=bank.source_index,
        mse=history[-1],
        lpips=lpips,
        status=status,
        metadata={
            **bank.metadata,
            "num_classes": bank.num_classes,
            "refined": [*bank.metadata.get("refined", []), *records],
        },
    )


def _record(stage: Stage, before: Tensor, after: Tensor, rows: Tensor) -> dict[str, Any]:
    """What a stage did; ``before`` and ``after`` are the mse of all rows, ``rows`` those that it may have changed."""
    tried = rows[before[rows] >= stage.above]
    finite = tried[before[tried].isfinite()]
    return {
        "above": stage.above,
        "steps": stage.steps,
        "tried": len(tried),
        "improved": int((after < before).sum()),
        "before": _summary(before, stage.above, finite),
        "after": _summary(after, stage.above, finite),
    }


def _summary(mse: Tensor, above: float, tried: Tensor) -> dict[str, float | None]:
    """Mean, median and 95 % quantile of the finite ones, the mean of some, and the share of all from ``above``."""
    finite = mse[mse.isfinite()].double().numpy()
    median, p95 = np.quantile(finite, [0.5, 0.95]).tolist() if len(finite) else (None, None)
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "median": median,
        "p95": p95,
        "mean_tried": float(mse[tried].double().mean()) if len(tried) else None,
        "share": float((mse >= above).double().mean()),
    }


def refined_table(refined: Sequence[dict[str, Any]]) -> str:
    """Stages of ``metadata["refined"]`` as a table of text: the mse of all rows before them, and after each."""
    lines = [["mse of all rows", "mean", "median", "95 % below", "rows from there", "mean of those tried"]]
    lines.append(["before", *_numbers(refined[0]["before"]), "", ""])
    for stage in refined:
        name = f">= {stage['above']:g}, {stage['steps']:,} steps: {stage['improved']:,} of {stage['tried']:,} better"
        both = (stage["before"], stage["after"])
        shares = " to ".join(f"{100 * summary['share']:.2f} %" for summary in both)
        tried = " to ".join(f"{summary['mean_tried']:.5f}" for summary in both if summary["mean_tried"] is not None)
        lines.append([name, *_numbers(stage["after"]), shares, tried])
    widths = [-max(len(cells[0]) for cells in lines), 10, 10, 12, 20, 21]
    return "\n".join("".join(map(_aligned, cells, widths)).rstrip() for cells in lines)


def _numbers(summary: dict[str, float | None]) -> list[str]:
    values = [summary[name] for name in ("mean", "median", "p95")]
    return ["" if value is None else f"{value:.5f}" for value in values]


def _aligned(cell: str, width: int) -> str:
    """On the right; on the left where the width is negative."""
    return f"{cell:>{width}}" if width > 0 else f"{cell:<{-width}}"
