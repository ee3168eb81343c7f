"""Batched, per-row L-BFGS and Adam with an ask/tell interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from latent_mixup.inversion.curvature import Curvature

PAIRS = 10  # memory of L-BFGS, in steps
RECENT = 4  # nonmonotone line search: a step has to fall below the worst of so many losses
SUFFICIENT = 1e-4  # ... by this share of the decrease that the gradient predicts
SHORTEST = 1e-3  # after a step this much shorter than proposed, the memory is cleared
LONGEST = 30.0  # longest step, in first steps, so that rows of flat functions do not run away
TINY = 1e-30
PATIENCE = 10  # evaluations within which a row's loss has to fall
STEADY = 1e-10  # least cosine between s and y of a pair that is kept


class Descent(ABC):
    """Minimises one function per row of ``[B, D]``; a row's path depends on itself alone.

    In each round, :meth:`points` gives the points to evaluate, and :meth:`tell` takes losses and gradients there.
    """

    @abstractmethod
    def points(self) -> Tensor:
        """Points to evaluate next, ``[B, D]``."""

    @abstractmethod
    def tell(self, losses: Tensor, grads: Tensor) -> None:
        """Take losses ``[B]`` and gradients ``[B, D]`` at :meth:`points`; either may be infinite or NaN."""

    @property
    @abstractmethod
    def settled(self) -> Tensor:
        """Whether each row has converged, bool ``[B]``."""

    @abstractmethod
    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Restart ``rows``, int64 ``[k]``, at ``start``, ``[k, D]``."""

    def keep(self, rows: Tensor) -> None:
        """Keep ``rows``, int64 ``[k]``, alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


class Adam(Descent):
    """Adam; the learning rate of each row falls to zero along a half cosine.

    Args:
        start: Rows ``[B, D]``.
        steps: Steps per row.
        lr: First learning rate.
        betas: Decay of the means of gradient and squared gradient.

    Reference: Kingma and Ba, "Adam" (2015), algorithm 1; Loshchilov and Hutter, "SGDR" (2017), equation 5.
    """

    def __init__(self, start: Tensor, steps: int, lr: float, betas: tuple[float, float]) -> None:
        self.steps, self.lr, self.betas = steps, lr, betas
        self.at = start.clone()
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)
        self.step = torch.zeros(len(start), dtype=torch.int64, device=start.device)

    def points(self) -> Tensor:
        """The rows."""
        return self.at

    def tell(self, losses: Tensor, grads: Tensor) -> None:
        """Move each row."""
        self.mean.lerp_(grads, 1 - self.betas[0])
        self.square.lerp_(grads.square(), 1 - self.betas[1])
        rate = self.lr * (1 + (math.pi * self.step.to(grads.dtype) / self.steps).cos()) / 2
        self.step += 1
        step = self.step.to(grads.dtype)
        # 1 - beta**step, accurate without float64, which MPS does not have
        mean_bias, square_bias = (-torch.expm1(step * math.log(max(beta, TINY))) for beta in self.betas)
        scale = (self.square / square_bias[:, None]).sqrt().add_(1e-8)
        self.at = self.at - (rate / mean_bias)[:, None] * self.mean / scale

    @property
    def settled(self) -> Tensor:
        """Whether each row has done its steps, and the loss after the last one is known."""
        return self.step > self.steps

    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Restart rows."""
        self.at[rows], self.mean[rows], self.square[rows], self.step[rows] = start, 0.0, 0.0, 0


class LBFGS(Descent):
    """Limited-memory BFGS with a backtracking line search; each row has its own memory and step length.

    With s the differences of points, y those of gradients, and rho = 1 / (y . s). The line search is nonmonotone: a
    step is taken if it falls enough below the worst of the last few losses, so a row may climb over a small hill. A
    refused step is shortened to the minimum of a parabola through the known values.

    Args:
        start: Rows ``[B, D]``.
        lr: Length of a row's first step, as the root mean square over its numbers.
        tolerance: A row has converged when its lowest loss fell by less than this share in :data:`PATIENCE`
            evaluations.
        curvature: Mean second derivative of the functions, as the first guess; None: a multiple of the identity.

    References: Nocedal and Wright, "Numerical Optimization" (2006), algorithm 7.4 (the two loops) and section 3.5
    (the parabola); Grippo, Lampariello and Lucidi, "A Nonmonotone Line Search Technique for Newton's Method" (1986).
    """

    def __init__(self, start: Tensor, lr: float, tolerance: float, curvature: Curvature | None = None) -> None:
        n, size = start.shape
        self.first, self.tolerance, self.curvature = lr * math.sqrt(size), tolerance, curvature
        self.at, self.step, self.grad = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        self.recent = start.new_full((n, RECENT), torch.inf)
        self.lowest = start.new_full((n, PATIENCE + 1), torch.inf)  # of the last evaluations, the oldest first
        self.length = start.new_ones(n)
        self.s, self.y = start.new_zeros(n, PAIRS, size), start.new_zeros(n, PAIRS, size)
        self.rho, self.gamma = start.new_zeros(n, PAIRS), start.new_zeros(n)  # rho = 0: no pair

    def points(self) -> Tensor:
        """The end of each row's step; for a row that has just entered, its start."""
        return self.at + self.length[:, None] * self.step

    def tell(self, losses: Tensor, grads: Tensor) -> None:
        """Take each row's step or shorten it, and choose the next."""
        points, before = self.points(), self.recent[:, -1]
        fresh = before.isinf()
        predicted = self.length * _dot(self.grad, self.step)
        sane = losses.isfinite() & grads.isfinite().all(1)
        taken = sane & (losses <= self.recent.amax(1) + SUFFICIENT * predicted)
        self._remember(taken & ~fresh, points - self.at, grads - self.grad)
        shorter = (-predicted / (2 * (losses - before - predicted))).nan_to_num(0.1, 0.5, 0.1).clamp(0.1, 0.5)
        self.length = torch.where(taken, 1.0, self.length * torch.where(sane, shorter, 0.1))
        moved = taken[:, None]
        self.at, self.grad = torch.where(moved, points, self.at), torch.where(moved, grads, self.grad)
        recent = torch.where(fresh[:, None], losses[:, None], self.recent)
        self.recent = torch.where(moved, torch.cat([recent[:, 1:], losses[:, None]], 1), self.recent)
        lowest = torch.fmin(self.lowest[:, -1], losses)
        self.lowest = torch.cat([self.lowest[:, 1:], lowest[:, None]], 1)
        self._forget(taken & fresh, self.first)
        self._forget((self.length < SHORTEST) & self.rho.any(1), self.first / 10)
        self.step = self._direction()

    @property
    def settled(self) -> Tensor:
        """Whether each row is on a plateau, or has a zero gradient, or none that is finite at its start."""
        oldest, lowest = self.lowest[:, 0], self.lowest[:, -1]
        return (oldest - lowest < self.tolerance * oldest.abs()) | (self.grad == 0).all(1)

    def enter(self, rows: Tensor, start: Tensor) -> None:
        """Restart rows."""
        self.at[rows], self.step[rows], self.grad[rows] = start, 0.0, 0.0
        self.recent[rows], self.lowest[rows] = torch.inf, torch.inf
        self.length[rows], self.rho[rows] = 1.0, 0.0

    def _remember(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        """Add the pair of s and y where the gradient grew along s, in the place of the oldest."""
        sy = _dot(s, y)
        rows = rows & (sy > STEADY * s.norm(dim=1) * y.norm(dim=1))
        pairs = rows[:, None, None]
        self.s = torch.where(pairs, torch.cat([self.s[:, 1:], s[:, None]], 1), self.s)
        self.y = torch.where(pairs, torch.cat([self.y[:, 1:], y[:, None]], 1), self.y)
        rho = torch.cat([self.rho[:, 1:], sy.clamp_min(TINY).reciprocal()[:, None]], 1)
        self.rho = torch.where(rows[:, None], rho, self.rho)
        self.gamma = torch.where(rows, sy / _dot(y, self._precondition(y)).clamp_min(TINY), self.gamma)

    def _forget(self, rows: Tensor, length: float) -> None:
        """Clear the memory, and make the next step one of steepest descent of this length."""
        steepest = self._precondition(self.grad).norm(dim=1).clamp_min(TINY)
        self.rho = torch.where(rows[:, None], 0.0, self.rho)
        self.gamma = torch.where(rows, length / steepest, self.gamma)
        self.length = torch.where(rows, 1.0, self.length)

    def _direction(self) -> Tensor:
        """The two-loop recursion: minus the approximate inverse Hessian times the gradient."""
        step, alphas = self.grad, []
        pairs = [(self.s[:, i], self.y[:, i], self.rho[:, i]) for i in reversed(range(PAIRS))]  # the newest first
        for s, y, rho in pairs:
            alphas.append(rho * _dot(s, step))
            step = step - alphas[-1][:, None] * y
        step = self.gamma[:, None] * self._precondition(step)
        for (s, y, rho), alpha in reversed(list(zip(pairs, alphas, strict=True))):
            step = step + (alpha - rho * _dot(y, step))[:, None] * s
        shortened: Tensor = step * (LONGEST * self.first / step.norm(dim=1, keepdim=True).clamp_min(TINY)).clamp_max(1)
        return -shortened

    def _precondition(self, grad: Tensor) -> Tensor:
        return grad if self.curvature is None else self.curvature.solve(grad)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
