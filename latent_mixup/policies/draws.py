"""Draws: the random decisions about some mixes, made before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from latent_mixup.policies.weights import of_two, on_own


@dataclass(frozen=True)
class Draw:
    """``k`` mixes of ``n`` bank rows each.

    Attributes:
        slots: Positions in the batch that become these mixes, ``[k]`` int64, sorted.
        sources: Bank rows, ``[k, n]`` int64; the first is the sample's own.
        weights: Weight of each source in the code, ``[k, n]`` float32; rows sum to 1.
        label_weights: Weight of each source in the label, ``[k, n]`` float32; rows sum to 1.
        shares: Weight of each source in each entry of the code, broadcasts to ``[k, n, *latent_shape]``; None: the
            weights everywhere.
        noise: Added to the mixed codes, ``[k, *latent_shape]``; None: nothing.
        sigma: Standard deviation of each image's low-pass in pixels, ``[k]``; None: no low-pass.
        times: Time in [0, 1] to which each code is noised before the generator brings it back to likely ones, ``[k]``;
            0 leaves it as it is; None: nothing.
        jitter: Standard normal noise for it, ``[k, *latent_shape]``.
        seeds: Random stream of each fresh code of the prior, which takes the place of the mixed one, ``[k]`` int64;
            -1: none; None: there are none.
    """

    slots: Tensor
    sources: Tensor
    weights: Tensor
    label_weights: Tensor
    shares: Tensor | None = None
    noise: Tensor | None = None
    sigma: Tensor | None = None
    times: Tensor | None = None
    jitter: Tensor | None = None
    seeds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def rows(self) -> Tensor:
        """The sample's own row, ``[k]``."""
        return self.sources[:, 0]

    @property
    def partners(self) -> Tensor:
        """The row it is mixed with, the first of several, ``[k]``."""
        return self.sources[:, 1]

    @property
    def lam(self) -> Tensor:
        """The weight of the sample's own code, ``[k]``."""
        return self.weights[:, 0]

    @classmethod
    def of_pairs(cls, rows: Tensor, partners: Tensor, lam: Tensor) -> Draw:
        """Mixes of two rows each, with weight ``lam`` on the first; ``[k]`` each."""
        weights = of_two(lam)
        return cls(torch.arange(len(rows), device=rows.device), torch.stack([rows, partners], 1), weights, weights)

    @classmethod
    def alone(cls, rows: Tensor, num_sources: int = 2) -> Draw:
        """Rows ``[k]`` unmixed: weight 1 on themselves."""
        weights = on_own(torch.empty(len(rows), num_sources, dtype=torch.float32, device=rows.device))
        slots = torch.arange(len(rows), device=rows.device)
        return cls(slots, rows[:, None].expand(-1, num_sources), weights, weights)

    @classmethod
    def cat(cls, draws: Sequence[Draw]) -> Draw:
        """Several draws of one ``n`` as one. A field that only some have is filled with values that change nothing."""
        if len(draws) == 1:
            return draws[0]
        columns: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            values = [getattr(draw, name) for draw in draws]
            like = next((value for value in values if value is not None), None)
            columns[name] = None if like is None else torch.cat([draw._filled(name, like) for draw in draws])
        return cls(**columns)

    def _filled(self, name: str, like: Tensor) -> Tensor:
        """A field; where it is None, the values of ``like``'s shape that change nothing."""
        value: Tensor | None = getattr(self, name)
        if value is None and name == "seeds":
            return torch.full_like(like[:1], -1).expand(len(self))
        if value is None and name == "shares":
            value = self.weights.view(*self.weights.shape, *[1] * (like.ndim - 2)).expand(-1, -1, *like.shape[2:])
        return like.new_zeros(len(self), *like.shape[1:]) if value is None else value

    def take(self, places: Tensor) -> Draw:
        """The mixes at some places, int64 or bool ``[k]``."""
        return Draw(*[None if value is None else value[places] for value in vars(self).values()])  # type: ignore[arg-type]

    def split(self, sizes: Sequence[int]) -> list[Draw]:
        """The opposite of :meth:`cat`: draws of these sizes."""
        columns = [[None] * len(sizes) if v is None else v.split(list(sizes)) for v in vars(self).values()]
        return [Draw(*values) for values in zip(*columns, strict=True)]
