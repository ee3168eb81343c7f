"""Default devices and dtypes that a caller may have set, and that must not change a result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def other_defaults() -> tuple[contextlib.AbstractContextManager[Any], ...]:
    """The meta device, which stands for an accelerator (a tensor that is made there has no numbers), and float64."""
    return torch.device("meta"), default_dtype(torch.float64)
