"""Checks of a bank's codes, columns and metadata: the same for what a user gives and for what a file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.labels import as_labels

Columns: TypeAlias = dict[str, Tensor]
"""Everything but the codes, by name, each ``[N]``; soft labels ``[N, num_classes]``."""

STORED_DTYPES = {"float16": torch.float16, "float32": torch.float32}
COLUMN_DTYPES = {
    "labels": torch.int64,
    "source_index": torch.int64,
    "mse": torch.float32,
    "lpips": torch.float32,
    "status": torch.uint8,
}
CHUNK_ROWS = 4096  # codes in memory at a time


def check_latents(values: Any) -> Tensor:
    """Codes as a bank keeps them, ``[N, *latent_shape]`` on the CPU, float16 or float32.

    Raises:
        ValueError: No row, another shape or dtype, or a number that is not finite.
    """
    latents = torch.as_tensor(values, device=None if isinstance(values, Tensor) else "cpu").detach().cpu()
    if latents.ndim < 2:
        raise ValueError(f"latents need shape [N, *latent_shape]: got {list(latents.shape)}")
    if not len(latents):
        raise ValueError("empty bank: latents have no row, give at least one")
    if not latents.numel():
        raise ValueError(f"latents need at least one number a row: got {list(latents.shape)}")
    if not latents.is_floating_point():
        raise ValueError(f"latents need a floating dtype: got {latents.dtype}")
    if latents.dtype not in STORED_DTYPES.values():
        latents = latents.float()
    check_finite(latents)
    return latents


def check_finite(latents: Tensor) -> None:
    """Raise ``ValueError`` where a code has NaN or infinity."""
    for start, codes in chunked(latents):
        bad = ~codes.isfinite().flatten(1).all(1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise ValueError(f"latents need finite numbers: row {row} has NaN or infinity, leave it out")


def chunked(latents: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Codes in order, some at a time, each time with the row they start at."""
    for start in range(0, len(latents), CHUNK_ROWS):
        yield start, latents[start : start + CHUNK_ROWS]


def check_columns(columns: Mapping[str, Any], num_rows: int) -> Columns:
    """Columns as a bank keeps them, on the CPU; columns that are None are left out.

    Raises:
        ValueError: A column does not have one valid entry per row.
    """
    return {name: _check_column(name, values, num_rows) for name, values in columns.items() if values is not None}


def _check_column(name: str, values: Any, num_rows: int) -> Tensor:
    if name == "labels":
        return as_labels(values, num_rows)
    column = torch.as_tensor(values, device=None if isinstance(values, Tensor) else "cpu").detach().cpu()
    dtype = COLUMN_DTYPES[name]
    if tuple(column.shape) != (num_rows,):
        raise ValueError(f"{name} needs one entry per row, [{num_rows}]: got {list(column.shape)}")
    if not dtype.is_floating_point and (column.is_floating_point() or column.is_complex()):
        raise ValueError(f"{name} needs integers: got {column.dtype}")
    bad = column.isnan() | (column < 0) if column.is_floating_point() else column < 0
    if dtype == torch.uint8:
        bad |= column > 255
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} needs numbers from 0: row {row} has {column[row].item()}")
    if name == "source_index" and (repeated := first_repeated(column)) is not None:
        raise ValueError(f"source_index needs one row per sample: {repeated} is there twice")
    return column.to(dtype)


def first_repeated(values: Tensor) -> int | None:
    """The least value that is there twice; None where each is there once."""
    ordered = values.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return int(repeated[0]) if len(repeated) else None


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON gives it back, with the known keys checked.

    Raises:
        ValueError: JSON cannot hold it, or a known key has a value of another type.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise ValueError(f"metadata needs to be what JSON can say: {cause}") from cause
    generator = copy.get("generator", {})
    if not isinstance(generator, dict) or not isinstance(generator.get("digest", ""), str | None):
        raise ValueError(f"metadata['generator'] needs to be a dict with a digest: got {generator!r:.200}")
    for key in ("repo", "commit"):
        if not isinstance(generator.get(key), str | None):
            raise ValueError(f"metadata['generator']['{key}'] needs to be a string: got {generator[key]!r:.100}")
    if not isinstance(space := copy.get("latent_space"), str | None):
        raise ValueError(f"metadata['latent_space'] needs to be a string: got {space!r}")
    return copy
