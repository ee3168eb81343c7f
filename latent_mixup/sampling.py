"""Every random draw of the augmentation. No global random state is read or moved.

A draw comes from a stream that is named by its key, so it does not depend on what was drawn before it.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mode: TypeAlias = Literal["elem", "batch"]

NUM_PROPOSALS = 16  # each is accepted with probability > 0.95: all refused once in 1e20 draws
FIRST_PROPOSALS = 4  # are looked at first: all refused once in 1e5 draws
POOL_BLOCK = 1024  # entries of a pool that share a stream; another number is another pool
POOL_KEY = -1  # where other keys have the epoch, so that they never share a stream


@dataclass(frozen=True)
class Draw:
    """What happens to one batch, decided before anything is decoded.

    Attributes:
        slots: Positions in the batch that become mixes, ``[k]``, int64, sorted.
        rows: Bank row of each mix, ``[k]``, int64.
        partners: Bank row it is mixed with, ``[k]``, int64.
        lam: Weight of ``rows``, ``[k]``, float32 in [0, 1].
    """

    slots: Tensor
    rows: Tensor
    partners: Tensor
    lam: Tensor


def keyed_generator(*key: int) -> torch.Generator:
    """The random stream that belongs to these integers, of any size and sign; on the CPU.

    Neighbouring keys give unrelated streams: a hash of the key is the seed. (torch's CPU generator keeps 32
    bits of it, so among millions of keys a few pairs share a stream.)

    Example:
        >>> torch.rand(3, generator=keyed_generator(7, 0, -1)).shape
        torch.Size([3])
    """
    name = ",".join(str(int(part)) for part in key).encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little", signed=True))


def draw_lam(n: int, alpha: float, generator: torch.Generator, mode: Mode = "elem") -> Tensor:
    """Mixing weights from Beta(alpha, alpha).

    ``lam = g1 / (g1 + g2)`` of two Gamma(alpha) variables; their logarithms are drawn, so that an alpha
    of 0.001 (weights at 0 and 1) and of 1000 (weights at 1/2) are both exact.

    Args:
        n: Number of weights.
        alpha: Both parameters of the Beta distribution, above 0. 1 is uniform.
        generator: The stream drawn from.
        mode: ``"elem"`` for a weight each, ``"batch"`` for one weight that all share.

    Returns:
        ``[n]`` float32 in [0, 1], on the generator's device.

    Raises:
        ValueError: ``alpha`` or ``mode`` is not one of those.

    Reference: Latent-Mixup, section 1.1.3; Zhang et al. 2018 (arXiv 1710.09412).

    Example:
        >>> draw_lam(64, 1.0, keyed_generator(0)).shape
        torch.Size([64])
    """
    check_alpha(alpha)
    check_mode(mode)
    own, other = _log_gamma(2 * (n if mode == "elem" else 1), alpha, generator).chunk(2)
    return torch.sigmoid(own - other).float().expand(n).clone()


def _log_gamma(n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Logarithms of ``n`` Gamma(alpha, 1) variables, float64.

    Reference: Marsaglia and Tsang 2000, "A simple method for generating gamma variables", sections 2 and 6.
    """
    device = generator.device
    d = alpha + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    x_all = torch.randn(n, NUM_PROPOSALS, generator=generator, dtype=torch.float64, device=device)
    u_all = torch.rand(n, NUM_PROPOSALS, generator=generator, dtype=torch.float64, device=device)
    boost = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    for count in (FIRST_PROPOSALS, NUM_PROPOSALS):
        x, u = x_all[:, :count].contiguous(), u_all[:, :count].contiguous()
        log_v = 3 * torch.log((1 + c * x).clamp_min(1e-300))
        accepted = torch.log1p(-u) < x.square() / 2 + d - d * log_v.exp() + d * log_v
        if accepted.any(1).all():
            break
    first = accepted.to(torch.uint8).argmax(1, keepdim=True)
    return math.log(d) + log_v.gather(1, first).squeeze(1) + torch.log1p(-boost) / alpha


def draw_mixes(
    batch_size: int,
    num_rows: int,
    *,
    alpha: float,
    prob: float,
    mode: Mode,
    generator: torch.Generator,
) -> Draw:
    """Decide which samples of a batch become mixes, and of which bank rows.

    The number of mixes is ``prob * batch_size`` rounded up or down at random, so that the mean share is
    ``prob`` for any batch size, one included. Rows and partners are uniform over the bank and independent.

    Args:
        batch_size: Number of samples in the batch.
        num_rows: Rows in the bank, at least 1.
        alpha: See :func:`draw_lam`.
        prob: Share of the batch that becomes mixes, in [0, 1].
        mode: See :func:`draw_lam`.
        generator: The stream drawn from.

    Raises:
        ValueError: ``alpha``, ``prob`` or ``mode`` is out of range, or there are no rows.

    Example:
        >>> draw_mixes(8, 50, alpha=1.0, prob=0.5, mode="elem", generator=keyed_generator(0)).rows.shape
        torch.Size([4])
    """
    check_prob(prob)
    if num_rows < 1:
        raise ValueError("a mix needs at least one row in the bank: got 0")
    device = generator.device
    u = torch.rand((), generator=generator, dtype=torch.float64, device=device).item()
    k = min(math.floor(prob * batch_size + u), batch_size)
    slots = torch.randperm(batch_size, generator=generator, device=device)[:k].sort().values
    rows, partners = torch.randint(num_rows, (2, k), generator=generator, device=device)
    return Draw(slots, rows, partners, draw_lam(k, alpha, generator, mode))


def draw_pool(
    entries: range, num_rows: int, *, alpha: float, seed: int, turn: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """What the entries of a pool of mixes are made of: an entry's draw depends on seed, turn and its number alone.

    Args:
        entries: Consecutive entry numbers.
        num_rows: Rows in the bank, at least 1.
        alpha: See :func:`draw_lam`.
        seed: Names the draws.
        turn: How many times the entry was drawn anew.

    Returns:
        ``rows`` and ``partners``, int64, and ``lam``, the weight of ``rows``, float32; ``[len(entries)]`` each.

    Example:
        >>> draw_pool(range(2000, 2010), 50, alpha=1.0, seed=0)[0].shape
        torch.Size([10])
    """
    if num_rows < 1:
        raise ValueError("a mix needs at least one row in the bank: got 0")
    first, end = entries.start // POOL_BLOCK, -(-entries.stop // POOL_BLOCK)
    blocks = []
    for block in range(first, end):
        generator = keyed_generator(seed, POOL_KEY, turn, block)
        rows, partners = torch.randint(num_rows, (2, POOL_BLOCK), generator=generator)
        blocks.append((rows, partners, draw_lam(POOL_BLOCK, alpha, generator)))
    ours = slice(entries.start - first * POOL_BLOCK, entries.stop - first * POOL_BLOCK)
    rows, partners, lam = (torch.cat(parts)[ours] for parts in zip(*blocks, strict=True))
    return rows, partners, lam


def check_alpha(alpha: float) -> None:
    """Raise ``ValueError`` unless ``alpha`` is above 0 and finite."""
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha needs to be above 0 and finite: got {alpha}")


def check_prob(prob: float) -> None:
    """Raise ``ValueError`` unless ``prob`` is in [0, 1]."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob needs to be in [0, 1]: got {prob}")


def check_mode(mode: str) -> None:
    """Raise ``ValueError`` unless ``mode`` is ``"elem"`` or ``"batch"``."""
    if mode not in ("elem", "batch"):
        raise ValueError(f'mode needs to be "elem" or "batch": got {mode!r}')


def default_rank() -> int:
    """This process's rank: of ``torch.distributed`` where it is initialised, else of ``$RANK``, else 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))
