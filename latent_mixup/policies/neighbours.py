"""Neighbours: the rows whose codes are nearest to those of other rows, by matrix products of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latent_mixup.sampling import keyed_generator

MAX_SEARCHED = 20_000  # rows of a class among which its neighbours are looked for
BLOCK_ROWS = 2048
BLOCK_ENTRIES = 2**22  # of the codes of a block: 32 MB in float64


def nearest_rows(rows: Tensor, candidates: Tensor, k: int, codes: Callable[[Tensor], Tensor]) -> Tensor:
    """The ``k`` candidates whose codes are nearest to the code of each row, the row itself left out.

    A block of rows meets a block of candidates, so that no table of all distances is made. Euclidean distances are
    computed in float64, so that processes with other numbers of threads find the same rows.

    Args:
        rows: Rows of a bank, ``[n]`` int64.
        candidates: Likewise, ``[m]``, ascending; at least ``k`` others than any of ``rows``.
        k: From 1.
        codes: Rows of the bank to their codes, ``[B, *latent_shape]``.

    Returns:
        int64 ``[n, k]``, the nearest first.
    """
    size = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // codes(rows[:1]).numel()))

    def flat(some: Tensor) -> Tensor:
        return codes(some).flatten(1).to(torch.float64)

    found = []
    for block in rows.split(size):
        own, parts = flat(block), []
        for others in candidates.split(size):
            theirs = flat(others)
            distances = torch.addmm(theirs.square().sum(1), own, theirs.T, alpha=-2)  # squared, less the own norm's
            places = torch.searchsorted(others, block).clamp_max(len(others) - 1)
            itself = (others[places] == block).nonzero()[:, 0]
            distances[itself, places[itself]] = torch.inf
            near, chosen = distances.topk(min(k, len(others)), largest=False)
            parts.append((near, others[chosen]))
        near, chosen = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        found.append(chosen.gather(1, near.topk(k, largest=False).indices))
    return torch.cat(found)


def searched(rows: Tensor, label: int) -> Tensor:
    """The rows of a class among which neighbours are looked for: all, or of a large class the same drawn ones."""
    if len(rows) <= MAX_SEARCHED:
        return rows
    order = torch.randperm(len(rows), generator=keyed_generator("searched-rows", label), device="cpu")
    return rows[order[:MAX_SEARCHED].sort().values]
