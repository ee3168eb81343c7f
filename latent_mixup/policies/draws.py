"""What a policy has decided about some mixes before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_mixup.policies.weights import of_two, on_own


@dataclass(frozen=True)
class Draw:
    """``k`` mixes of ``n`` bank rows each.

    Attributes:
        slots: Positions in the batch that become these mixes, ``[k]`` int64, sorted.
        sources: Bank rows, ``[k, n]`` int64; the first is the sample's own.
        weights: Of each source in the code, ``[k, n]`` float32; rows sum to 1.
        label_weights: Of each source in the label, ``[k, n]`` float32; rows sum to 1.
        shares: Of each source in each entry of the code: broadcasts to ``[k, n, *latent_shape]``; None: the weights.
        noise: Added to the mixed codes, ``[k, *latent_shape]``; None: nothing.
        sigma: Of the low-pass of each image in pixels, ``[k]``; None: there is none.
    """

    slots: Tensor
    sources: Tensor
    weights: Tensor
    label_weights: Tensor
    shares: Tensor | None = None
    noise: Tensor | None = None
    sigma: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def rows(self) -> Tensor:
        """The sample's own row, ``[k]``."""
        return self.sources[:, 0]

    @property
    def partners(self) -> Tensor:
        """The row it is mixed with, the first where there are several, ``[k]``."""
        return self.sources[:, 1]

    @property
    def lam(self) -> Tensor:
        """The weight of the sample's own code, ``[k]``."""
        return self.weights[:, 0]

    @classmethod
    def of_pairs(cls, rows: Tensor, partners: Tensor, lam: Tensor) -> Draw:
        """Mixes of two rows each, with weight ``lam`` on the first; ``[k]`` each."""
        return cls(_all(rows), torch.stack([rows, partners], 1), of_two(lam), of_two(lam))

    @classmethod
    def alone(cls, rows: Tensor, num_sources: int = 2) -> Draw:
        """Rows ``[k]`` as they are: weight 1 on themselves."""
        weights = on_own(torch.empty(len(rows), num_sources, device=rows.device))
        return cls(_all(rows), rows[:, None].expand(-1, num_sources), weights, weights)

    @classmethod
    def cat(cls, draws: Sequence[Draw]) -> Draw:
        """All of them, of one ``n``; what one of them has not is what changes nothing."""
        shares = [draw.shares for draw in draws if draw.shares is not None]
        noise = [draw.noise for draw in draws if draw.noise is not None]
        sigma = [draw.sigma for draw in draws if draw.sigma is not None]
        return cls(
            torch.cat([draw.slots for draw in draws]),
            torch.cat([draw.sources for draw in draws]),
            torch.cat([draw.weights for draw in draws]),
            torch.cat([draw.label_weights for draw in draws]),
            torch.cat([draw._shares_like(shares[0]) for draw in draws]) if shares else None,
            torch.cat([_or_zeros(draw.noise, len(draw), noise[0]) for draw in draws]) if noise else None,
            torch.cat([_or_zeros(draw.sigma, len(draw), sigma[0]) for draw in draws]) if sigma else None,
        )

    def _shares_like(self, other: Tensor) -> Tensor:
        if self.shares is not None:
            return self.shares
        return self.weights.view(*self.weights.shape, *[1] * (other.ndim - 2)).expand(-1, -1, *other.shape[2:])

    def split(self, sizes: Sequence[int]) -> list[Draw]:
        """The opposite of :meth:`cat`."""
        parts = zip(*(_split(value, sizes) for value in vars(self).values()), strict=True)
        return [Draw(*part) for part in parts]


def _all(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)


def _or_zeros(value: Tensor | None, k: int, like: Tensor) -> Tensor:
    return like.new_zeros(k, *like.shape[1:]) if value is None else value


def _split(value: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if value is None else value.split(list(sizes))
