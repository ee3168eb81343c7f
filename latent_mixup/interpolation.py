"""Paths between two batches of latent codes: one function per path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Path: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``path(a, b, lam) -> codes``: ``lam = 1`` is ``a``, ``lam = 0`` is ``b``."""

MIN_SIN_SQUARED = 1e-6  # below it (a thousandth of a radian) slerp and lerp agree to float32


def lerp(a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """The straight line: ``lam * a + (1 - lam) * b``. For W, W+ and VAE codes.

    Args:
        a: The sample's own codes, ``[B, ...]``.
        b: Their partners' codes, ``[B, ...]``.
        lam: Weight of ``a``, ``[B]``, in [0, 1].

    Returns:
        Codes of shape, dtype and device of ``a``; exactly ``a`` where ``lam = 1``, ``b`` where ``lam = 0``.

    Raises:
        ValueError: Shapes do not agree.

    Reference: Latent-Mixup, section 1.1.3; Zhang et al. 2018 (arXiv 1710.09412), equation 1.

    Example:
        >>> lerp(torch.randn(2, 8, 512), torch.randn(2, 8, 512), torch.tensor([1.0, 0.3])).shape
        torch.Size([2, 8, 512])
    """
    _check(a, b, lam)
    weight = lam.to(a).view(-1, *[1] * (a.ndim - 1))
    return weight * a + (1 - weight) * b


def slerp(a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """The great circle: the direction turns at constant speed, the norm changes linearly. For Gaussian z.

    A code is one flat vector here. (Anti)parallel codes, and codes of norm 0, span no great circle:
    they are mixed by :func:`lerp`, which for parallel codes is the limit.

    Args:
        a: The sample's own codes, ``[B, ...]``.
        b: Their partners' codes, ``[B, ...]``.
        lam: Weight of ``a``, ``[B]``, in [0, 1].

    Returns:
        Codes of shape, dtype and device of ``a``; exactly ``a`` where ``lam = 1``, ``b`` where ``lam = 0``.

    Raises:
        ValueError: Shapes do not agree.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016 (arXiv 1609.04468).

    Example:
        >>> slerp(torch.randn(2, 1024), torch.randn(2, 1024), torch.tensor([0.5, 0.3])).shape
        torch.Size([2, 1024])
    """
    _check(a, b, lam)
    exact = torch.promote_types(a.dtype, torch.float32)
    own, other, weight = a.flatten(1).to(exact), b.flatten(1).to(exact), lam.to(a.device, exact)
    own_norm, other_norm = own.norm(dim=1), other.norm(dim=1)
    cosine = (own * other).sum(1) / (own_norm * other_norm).clamp_min(torch.finfo(exact).tiny)
    flat = (1 - cosine.square() < MIN_SIN_SQUARED) | (own_norm * other_norm == 0)

    # Safe stand-ins where the codes are flat, so that torch.where passes no NaN gradient on.
    angle = torch.acos(torch.where(flat, 0.0, cosine))
    norm = weight * own_norm + (1 - weight) * other_norm
    own_share = torch.sin(weight * angle) / torch.sin(angle) * norm / torch.where(flat, 1.0, own_norm)
    other_share = torch.sin((1 - weight) * angle) / torch.sin(angle) * norm / torch.where(flat, 1.0, other_norm)

    own_share = torch.where(flat, weight, own_share)
    other_share = torch.where(flat, 1 - weight, other_share)
    mixed = own_share[:, None] * own + other_share[:, None] * other
    return mixed.view(a.shape).to(a.dtype)


PATHS: dict[str, Path] = {"lerp": lerp, "slerp": slerp}


def path_named(name: str) -> Path:
    """The path called ``"lerp"`` or ``"slerp"``.

    Raises:
        ValueError: There is no such path.
    """
    if name not in PATHS:
        raise ValueError(f'path needs to be "lerp" or "slerp": got {name!r}')
    return PATHS[name]


def _check(a: Tensor, b: Tensor, lam: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"two codes need one shape to be mixed: got {list(a.shape)} and {list(b.shape)}")
    if lam.shape != a.shape[:1]:
        raise ValueError(f"lam needs one weight per code: got {list(lam.shape)} for {len(a)} codes")
