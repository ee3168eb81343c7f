"""Checks of a bank's codes, columns and metadata: the same for what a user gives and for what a file holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.labels import as_labels, on_cpu

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
    latents = on_cpu(values)
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


def check_columns(columns: Mapping[str, Any], num_rows: int, metadata: Mapping[str, Any]) -> Columns:
    """Columns as a bank keeps them, on the CPU; columns that are None are left out.

    Args:
        columns: Name => values.
        num_rows: Rows of the bank.
        metadata: Its checked metadata: with ``multi_label``, labels need not sum to 1.

    Raises:
        ValueError: A column does not have one valid entry per row.
    """
    multi_label = metadata.get("multi_label", False)
    return {
        name: as_labels(values, num_rows, multi_label=multi_label)
        if name == "labels"
        else _check_column(name, values, num_rows)
        for name, values in columns.items()
        if values is not None
    }


def _check_column(name: str, values: Any, num_rows: int) -> Tensor:
    column = on_cpu(values)
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


def _is_text(value: object) -> bool:
    return isinstance(value, str | None)


def _is_key(value: object) -> bool:
    return isinstance(value, str | int | None) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _are_stages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _are_errors(value: object) -> bool:
    return isinstance(value, dict) and all(
        index.isdecimal() and index.isascii() and len(index) < 19 and isinstance(error, str)
        for index, error in value.items()
    )


def _is_length(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


_KNOWN: dict[tuple[str, ...], tuple[Callable[[Any], bool], str]] = {
    ("latent_space",): (_is_text, "a string"),
    ("generator",): (lambda value: isinstance(value, dict), "a dict with a digest"),
    ("generator", "digest"): (_is_text, "a string"),
    ("generator", "repo"): (_is_text, "a string"),
    ("generator", "commit"): (_is_text, "a string"),
    ("dataset",): (lambda value: isinstance(value, dict | None), "a dict, as fingerprint gives it"),
    ("dataset", "length"): (_is_length, "an integer from 0"),
    ("samples",): (lambda value: isinstance(value, dict | None), "a dict"),
    ("samples", "image_key"): (_is_key, "a string or an integer"),
    ("samples", "label_key"): (_is_key, "a string or an integer"),
    ("classes",): (_are_texts, "a list of strings"),
    ("filtered",): (_are_stages, "a list of dicts"),
    ("refined",): (_are_stages, "a list of dicts"),
    ("part_of",): (_is_length, "an integer from 0"),
    ("multi_label",): (lambda value: isinstance(value, bool), "true or false"),
    ("set_aside",): (_are_errors, "a dict of source indices, as text, and errors"),
}
"""Keys of the metadata that a bank itself reads: place => whether a value may stand there, and what is expected."""


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON gives it back, with the known keys checked.

    Raises:
        ValueError: JSON cannot hold it, or a known key has a value of another type.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise ValueError(f"metadata needs to be what JSON can say: {cause}") from cause
    for place, (may_be, expected) in _KNOWN.items():
        within = copy if len(place) == 1 else copy.get(place[0]) or {}
        if place[-1] in within and not may_be(value := within[place[-1]]):
            where = "".join(f"[{key!r}]" for key in place)
            raise ValueError(f"metadata{where} needs to be {expected}: got {value!r:.200}")
    return copy
