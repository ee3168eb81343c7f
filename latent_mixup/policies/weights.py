"""Weights of a mix: rows ``[k, num_sources]`` float32 from 0 that sum to 1, the weight of the sample itself first.

Each class has ``num_sources``, the number of codes that it mixes, and ``draw(k, generator, epoch)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from latent_mixup import sampling
from latent_mixup.policies.settings import Between, Setting
from latent_mixup.sampling import Mode

MAX_SOURCES = 2**16 - 1


def of_two(lam: Tensor) -> Tensor:
    """Weights ``lam`` of the sample itself, ``[k]``, as weights of two: ``[k, 2]``."""
    return torch.stack([lam, 1 - lam], 1)


def on_own(weights: Tensor) -> Tensor:
    """All the weight on the sample itself; of the shape of ``weights``, ``[k, n]``."""
    own = torch.zeros_like(weights)
    own[:, 0] = 1
    return own


class _OneLam(Setting):
    """Weights of two codes by one ``lam``, drawn for each sample or once for the batch."""

    mode: Mode
    num_sources = 2

    def draw(self, k: int, generator: torch.Generator, epoch: int) -> Tensor:
        """``[k, 2]``, from the same distribution in every epoch."""
        return of_two(self._lam(k if self.mode == "elem" else 1, generator).expand(k))

    def _lam(self, count: int, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Beta(_OneLam):
    """``lam`` from Beta(alpha, alpha): the paper's, and mixup's.

    Args:
        alpha: Both parameters, above 0; 1 is uniform, below it most weights are near 0 and 1.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch as in the paper.

    Raises:
        ValueError: ``alpha`` or ``mode`` is not one of those.

    Reference: Latent-Mixup, section 1.1.3; Zhang et al. 2018 (arXiv 1710.09412).

    Example:
        >>> Beta(0.4).draw(5, torch.Generator(), epoch=0).shape
        torch.Size([5, 2])
    """

    alpha: float = 1.0
    mode: Mode = "elem"

    def __post_init__(self) -> None:
        super().__post_init__()
        sampling.check_alpha(self.alpha)

    def _lam(self, count: int, generator: torch.Generator) -> Tensor:
        return sampling.draw_lam(count, self.alpha, generator)


@dataclass(frozen=True)
class Uniform(_OneLam):
    """``lam`` uniform between two numbers.

    Args:
        low: From 0.
        high: From ``low`` to 1; the same number fixes ``lam``.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch.

    Raises:
        ValueError: The numbers are not in this order, or ``mode`` is not one of those.

    Example:
        >>> Uniform(0.5, 1.0).draw(5, torch.Generator(), epoch=0).shape
        torch.Size([5, 2])
    """

    low: float = 0.0
    high: float = 1.0
    mode: Mode = "elem"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"Uniform needs 0 <= low <= high <= 1: got low={self.low}, high={self.high}")

    def _lam(self, count: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32)
        return (self.low + (self.high - self.low) * u).clamp(self.low, self.high)


@dataclass(frozen=True)
class NearEnds(_OneLam):
    """``lam`` uniform in ``[0, width]`` or ``[1 - width, 1]``, either with probability 1/2: no mix is half and half.

    Args:
        width: Above 0, up to 1/2.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch.

    Raises:
        ValueError: ``width`` or ``mode`` is not one of those.

    Example:
        >>> NearEnds(0.2).draw(5, torch.Generator(), epoch=0).shape
        torch.Size([5, 2])
    """

    width: float = 0.25
    mode: Mode = "elem"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 0.5:
            raise ValueError(f"width needs to be above 0, and at most 0.5: got {self.width}")

    def _lam(self, count: int, generator: torch.Generator) -> Tensor:
        side, u = torch.rand(2, count, generator=generator, device=generator.device, dtype=torch.float32)
        small = self.width * u
        return torch.where(side < 0.5, small, 1 - small)


@dataclass(frozen=True)
class Dirichlet(Setting):
    """Weights of several codes from a symmetric Dirichlet distribution; of two it is :class:`Beta`.

    Args:
        alpha: Concentration, above 0; 1 is uniform over the simplex.
        num_sources: Number of codes that are mixed, from 2.

    Raises:
        ValueError: One is out of its range.

    Reference: mixup's generalisation, Zhang et al. 2018 (arXiv 1710.09412), section 3.1.

    Example:
        >>> Dirichlet(1.0, num_sources=3).draw(5, torch.Generator(), epoch=0).shape
        torch.Size([5, 3])
    """

    alpha: float = 1.0
    num_sources: Annotated[int, Between(2, MAX_SOURCES)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        sampling.check_alpha(self.alpha)

    def draw(self, k: int, generator: torch.Generator, epoch: int) -> Tensor:
        """``[k, num_sources]``, from the same distribution in every epoch."""
        return sampling.draw_simplex(k, self.num_sources, self.alpha, generator)


@dataclass(frozen=True)
class Scheduled(Setting):
    """Other weights, moved towards the sample itself in some epochs.

    With strength s, a weight w of another code becomes ``s * w``, and the sample's own ``1 - s * (1 - w)``: 0 is no
    mixing, 1 leaves the weights as they were drawn.

    Args:
        weights: Distribution of the weights.
        epochs: Epochs, ascending; the strength is linear between them and constant outside.
        strengths: Strength at each of ``epochs``, in [0, 1].

    Raises:
        ValueError: Epochs do not ascend, a strength is out of range, or there is not one an epoch.

    Example:
        >>> warmed_up = Scheduled(Beta(1.0), epochs=(0, 10), strengths=(0.0, 1.0))
        >>> warmed_up.draw(5, torch.Generator(), epoch=3).shape
        torch.Size([5, 2])
    """

    weights: Beta | Uniform | NearEnds | Dirichlet
    epochs: tuple[int, ...] = (0, 10)
    strengths: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs or len(self.epochs) != len(self.strengths):
            raise ValueError(f"a schedule needs one strength an epoch: got {self.epochs} and {self.strengths}")
        if any(a >= b for a, b in pairwise(self.epochs)):
            raise ValueError(f"epochs need to ascend: got {self.epochs}")
        if not all(0 <= strength <= 1 for strength in self.strengths):
            raise ValueError(f"strengths need to be in [0, 1]: got {self.strengths}")

    @property
    def num_sources(self) -> int:
        """Number of codes that are mixed."""
        return self.weights.num_sources

    def strength(self, epoch: int) -> float:
        """Strength of the mixing in an epoch, in [0, 1]."""
        return float(np.interp(epoch, self.epochs, self.strengths))

    def draw(self, k: int, generator: torch.Generator, epoch: int) -> Tensor:
        """``[k, num_sources]``; draws from the stream what ``weights`` draws."""
        scaled = self.strength(epoch) * self.weights.draw(k, generator, epoch)[:, 1:]
        return torch.cat([(1 - scaled.sum(1, keepdim=True)).clamp_min(0), scaled], 1)
