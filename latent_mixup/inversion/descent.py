"""Descent for many rows at once that do not touch each other: L-BFGS and Adam, a point asked for, its slope told."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from latent_mixup.inversion.curvature import Curvature

PAIRS = 10  # steps that L-BFGS remembers
RECENT = 4  # a step has to fall below the worst of so many losses
SUFFICIENT = 1e-4  # ... by this share of what the slope promises
SHORTEST = 1e-3  # a step this much shorter than proposed: forget what was remembered
LONGEST = 30.0  # the most a step may be, in first steps: rows of flat functions do not run away
TINY = 1e-30
PATIENCE = 10  # evaluations within which a row's loss has to fall
STEADY = 1e-10  # a pair whose angle has less cosine says nothing about curvature


class Descent(ABC):
    """Rows ``[B, D]``, each on its way down its own function. What a row does depends on itself alone.

    A round: :meth:`points` says where to look, :meth:`tell` takes what was found there.
    """

    @abstractmethod
    def points(self) -> Tensor:
        """Where each row looks next, ``[B, D]``."""

    @abstractmethod
    def tell(self, losses: Tensor, slopes: Tensor) -> None:
        """Losses ``[B]`` and gradients ``[B, D]`` at :meth:`points`; either may be infinite or NaN."""

    @property
    @abstractmethod
    def settled(self) -> Tensor:
        """Which rows, of those that were told something, have nothing more to gain: bool ``[B]``."""

    @abstractmethod
    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Begin anew in ``rows``, int64 ``[k]``, at ``start``, ``[k, D]``."""

    def keep(self, rows: Tensor) -> None:
        """Go on with ``rows``, int64 ``[k]``, alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


class Adam(Descent):
    """Adam; the rate of each row falls to zero along a half cosine of its own.

    Args:
        start: Rows ``[B, D]``.
        steps: Of each row.
        lr: First learning rate.
        betas: Decay of the means of slope and squared slope.

    Reference: Kingma and Ba, "Adam" (2015), algorithm 1; Loshchilov and Hutter, "SGDR" (2017), equation 5.
    """

    def __init__(self, start: Tensor, steps: int, lr: float, betas: tuple[float, float]) -> None:
        self.steps, self.lr, self.betas = steps, lr, betas
        self.at = start.clone()
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)
        self.step = torch.zeros(len(start), dtype=torch.float64, device=start.device)

    def points(self) -> Tensor:
        """Where each row is."""
        return self.at

    def tell(self, losses: Tensor, slopes: Tensor) -> None:
        """Move each row."""
        self.mean.lerp_(slopes, 1 - self.betas[0])
        self.square.lerp_(slopes.square(), 1 - self.betas[1])
        rate = self.lr * (1 + (math.pi * self.step / self.steps).cos()) / 2
        self.step += 1
        mean_bias, square_bias = (1 - beta**self.step for beta in self.betas)
        length = (rate / mean_bias).to(slopes.dtype)[:, None]
        scale = (self.square.sqrt() / square_bias.sqrt().to(slopes.dtype)[:, None]).add_(1e-8)
        self.at = self.at - length * self.mean / scale

    @property
    def settled(self) -> Tensor:
        """Those that have been told where their last step led."""
        return self.step > self.steps

    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Begin anew."""
        self.at[rows], self.mean[rows], self.square[rows], self.step[rows] = start, 0.0, 0.0, 0.0


class LBFGS(Descent):
    """Limited-memory BFGS with a line search by halving, each row with its own memory and step length.

    A step is taken where it falls enough below the worst of the last few losses (not the last alone: a row may climb
    over a small hill). One that is refused is shortened to where a parabola through what is known has its minimum.

    Args:
        start: Rows ``[B, D]``.
        lr: Length of a row's first step, as the root mean square over its numbers.
        tolerance: A row has settled whose lowest loss fell by less than this share in :data:`PATIENCE` evaluations.
        curvature: What the functions' second derivatives are like on the average; None: the same in all directions.

    References: Nocedal and Wright, "Numerical Optimization" (2006), algorithm 7.4 (the two loops) and section 3.5
    (the parabola); Grippo, Lampariello and Lucidi, "A Nonmonotone Line Search Technique for Newton's Method" (1986).
    """

    def __init__(self, start: Tensor, lr: float, tolerance: float, curvature: Curvature | None = None) -> None:
        n, size = start.shape
        self.first, self.tolerance, self.curvature = lr * math.sqrt(size), tolerance, curvature
        self.at, self.step = start.clone(), torch.zeros_like(start)
        self.slope = torch.zeros_like(start)
        self.recent = start.new_full((n, RECENT), torch.inf)
        self.lowest = start.new_full((n, PATIENCE + 1), torch.inf)  # now and before, the oldest first
        self.length = start.new_ones(n)
        self.moves, self.bends = start.new_zeros(n, PAIRS, size), start.new_zeros(n, PAIRS, size)
        self.weights, self.scale = start.new_zeros(n, PAIRS), start.new_zeros(n)

    def points(self) -> Tensor:
        """A step from where each row is; of a row that has just entered, its start."""
        return self.at + self.length[:, None] * self.step

    def tell(self, losses: Tensor, slopes: Tensor) -> None:
        """Take the step or shorten it, and choose the next from what was learnt."""
        points, before = self.points(), self.recent[:, -1]
        fresh = before.isinf()
        promised = self.length * _dot(self.slope, self.step)
        sane = losses.isfinite() & slopes.isfinite().all(1)
        taken = sane & (losses <= self.recent.amax(1) + SUFFICIENT * promised)
        self._remember(taken & ~fresh, points - self.at, slopes - self.slope)
        shorter = (-promised / (2 * (losses - before - promised))).nan_to_num(0.1, 0.5, 0.1).clamp(0.1, 0.5)
        self.length = torch.where(taken, 1.0, self.length * torch.where(sane, shorter, 0.1))
        moved = taken[:, None]
        self.at, self.slope = torch.where(moved, points, self.at), torch.where(moved, slopes, self.slope)
        recent = torch.where(fresh[:, None], losses[:, None], self.recent)
        self.recent = torch.where(moved, torch.cat([recent[:, 1:], losses[:, None]], 1), self.recent)
        lowest = torch.fmin(self.lowest[:, -1], losses)
        self.lowest = torch.cat([self.lowest[:, 1:], lowest[:, None]], 1)
        self._forget(taken & fresh, self.first)
        self._forget((self.length < SHORTEST) & self.weights.any(1), self.first / 10)
        self.step = self._direction()

    @property
    def settled(self) -> Tensor:
        """Those on a plateau, and those that cannot leave where they are: no slope, or no finite one at the start."""
        oldest, lowest = self.lowest[:, 0], self.lowest[:, -1]
        return (oldest - lowest < self.tolerance * oldest.abs()) | (self.slope == 0).all(1)

    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Begin anew."""
        self.at[rows], self.step[rows], self.slope[rows] = start, 0.0, 0.0
        self.recent[rows], self.lowest[rows] = torch.inf, torch.inf
        self.length[rows], self.weights[rows] = 1.0, 0.0

    def _remember(self, rows: Tensor, move: Tensor, bend: Tensor) -> None:
        """Where the slope grew along the move, keep the pair and drop the oldest."""
        along = _dot(move, bend)
        rows = rows & (along > STEADY * move.norm(dim=1) * bend.norm(dim=1))
        pairs = rows[:, None, None]
        self.moves = torch.where(pairs, torch.cat([self.moves[:, 1:], move[:, None]], 1), self.moves)
        self.bends = torch.where(pairs, torch.cat([self.bends[:, 1:], bend[:, None]], 1), self.bends)
        weights = torch.cat([self.weights[:, 1:], along.clamp_min(TINY).reciprocal()[:, None]], 1)
        self.weights = torch.where(rows[:, None], weights, self.weights)
        self.scale = torch.where(rows, along / _dot(bend, self._flatten(bend)).clamp_min(TINY), self.scale)

    def _forget(self, rows: Tensor, length: float) -> None:
        """Go down the slope, so far."""
        steepest = self._flatten(self.slope).norm(dim=1).clamp_min(TINY)
        self.weights = torch.where(rows[:, None], 0.0, self.weights)
        self.scale = torch.where(rows, length / steepest, self.scale)
        self.length = torch.where(rows, 1.0, self.length)

    def _direction(self) -> Tensor:
        """Minus the slope, times the inverse of the second derivative as the pairs tell it."""
        step, shares = self.slope, []
        for move, bend, weight in self._pairs():
            shares.append(weight * _dot(move, step))
            step = step - shares[-1][:, None] * bend
        step = self.scale[:, None] * self._flatten(step)
        for (move, bend, weight), share in reversed(list(zip(self._pairs(), shares, strict=True))):
            step = step + (share - weight * _dot(bend, step))[:, None] * move
        shortened: Tensor = step * (LONGEST * self.first / step.norm(dim=1, keepdim=True).clamp_min(TINY)).clamp_max(1)
        return -shortened

    def _pairs(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Moves, bends and weights, the last first; a weight of 0 is no pair."""
        return [(self.moves[:, i], self.bends[:, i], self.weights[:, i]) for i in reversed(range(PAIRS))]

    def _flatten(self, slope: Tensor) -> Tensor:
        """The slope where all directions are as steep, as far as the curvature is known beforehand."""
        return slope if self.curvature is None else self.curvature.solve(slope)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
