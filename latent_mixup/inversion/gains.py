"""The result of ``refine``: a bank with the better codes, and a record of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.bank.files import CodeFiles
from latent_mixup.inversion.chunks import FAILED, OK, Found
from latent_mixup.pictures import text_table

STAGE_MSE = "stage_mse"  # column of a chunk: the mse of each row after each stage, [B, num_stages]


@dataclass(frozen=True)
class Stage:
    """More steps for rows with ``mse >= above``."""

    above: float
    steps: int


@dataclass(frozen=True)
class ReplacedCodes(CodeFiles):
    """The codes of a bank, some of them replaced; read when they are asked for, so that a large bank stays on disk.

    Attributes:
        bank: The older codes.
        new: Codes of the replaced rows, ``[k, *latent_shape]``, or files with them.
        row_of: For each row of the bank its row in ``new``, -1 where it is not replaced; ``[N]`` int64.
    """

    bank: LatentBank
    new: Tensor | CodeFiles
    row_of: Tensor

    @property
    def folder(self) -> Path | None:  # type: ignore[override]
        """The folder of the older codes, None in memory."""
        return self.bank.folder

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all codes, ``[N, *latent_shape]``."""
        return (len(self.bank), *self.latent_shape)

    def latents(self, rows: Tensor) -> Tensor:
        """Codes of the rows ``[B]``: ``[B, *latent_shape]`` float32."""
        codes, row_of = self.bank[rows][0], self.row_of[rows]
        if (replaced := row_of >= 0).any():
            wanted = row_of[replaced]
            codes[replaced] = self.new[wanted] if isinstance(self.new, Tensor) else self.new.latents(wanted)
        return codes


def with_found(
    bank: LatentBank,
    mse: Tensor,
    found: Found | None,
    stages: Sequence[Stage],
    settings: dict[str, Any],
) -> LatentBank:
    """The bank with the codes of ``found``; its metadata record the stages."""
    history = mse.repeat(len(stages) + 1, 1)  # of all rows: before, and after each stage
    rows, errors = torch.empty(0, dtype=torch.int64, device="cpu"), dict[int, str]()
    if found is not None:
        rows, errors = bank.rows_of(found.columns["source_index"]), found.errors
        history[1:, rows] = found.columns[STAGE_MSE].T
    better = history[-1] < mse
    columns = {"labels": bank.labels, "source_index": bank.source_index, "mse": history[-1]}
    if bank.status is not None:
        columns["status"] = bank.status.masked_fill(better & (bank.status == FAILED), OK)
    if bank.lpips is not None:
        columns["lpips"] = bank.lpips.masked_fill(better, torch.inf)
    records = []
    for stage, before, after in zip(stages, history[:-1], history[1:], strict=True):
        said = {str(i): error for i, error in errors.items() if before[bank.rows_of(i)] >= stage.above}
        records.append(_record(stage, before, after, rows) | settings | {"set_aside": said})
    row_of = torch.full((len(bank),), -1, dtype=torch.int64, device="cpu")
    row_of[rows] = torch.arange(len(rows), device="cpu")
    codes = ReplacedCodes(
        (), (), bank.latent_shape, columns, bank, bank[rows[:0]][0] if found is None else found.latents, row_of
    )
    stated = {**bank.metadata, "num_classes": bank.num_classes}
    return LatentBank.from_files(codes, {**stated, "refined": [*bank.metadata.get("refined", []), *records]})


def _record(stage: Stage, before: Tensor, after: Tensor, rows: Tensor) -> dict[str, Any]:
    """Figures of a stage: ``before`` and ``after`` are the mse of all rows, ``rows`` those that it may have changed."""
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
    """Mean, median and 95 % quantile of the finite mse, the mean of the rows tried, and the share of rows >= above."""
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
    """Stages of ``metadata["refined"]`` as a table of text: the mse of all rows before and after each stage."""

    def numbers(summary: dict[str, float | None]) -> list[str]:
        values = [summary[name] for name in ("mean", "median", "p95")]
        return ["" if value is None else f"{value:.5f}" for value in values]

    lines = [["mse of all rows", "mean", "median", "95 % below", "rows >= above", "mean of those tried"]]
    lines.append(["before", *numbers(refined[0]["before"])])
    for stage in refined:
        name = f">= {stage['above']:g}, {stage['steps']:,} steps: {stage['improved']:,} of {stage['tried']:,} better"
        both = (stage["before"], stage["after"])
        shares = " to ".join(f"{100 * summary['share']:.2f} %" for summary in both)
        tried = " to ".join(f"{summary['mean_tried']:.5f}" for summary in both if summary["mean_tried"] is not None)
        lines.append([name, *numbers(stage["after"]), shares, tried])
    return text_table(lines)
