"""Random streams and draws. A stream is named by its key, so no draw depends on what was drawn before it."""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mode: TypeAlias = Literal["elem", "batch"]

NUM_PROPOSALS = 16  # each is accepted with probability > 0.95: all refused once in 1e20 draws
FIRST_PROPOSALS = 4  # are looked at first: all refused once in 1e5 draws


def states_kept(device: torch.device) -> AbstractContextManager[None]:
    """Torch's random states of the CPU and of a device are as they were afterwards; MPS's own is not kept."""
    if device.type in ("cpu", "mps"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def keyed_generator(purpose: str, *key: int) -> torch.Generator:
    """The random stream named by a purpose and integers of any size and sign; on the CPU.

    Neighbouring keys give unrelated streams, since a hash of the key is the seed. (torch's CPU generator keeps 32 bits
    of it, so among millions of keys a few pairs share a stream.) torch's global random state is neither read nor moved.

    Args:
        purpose: A word for the use of the draws. Streams with different words are unrelated, whatever the integers.
        key: Such as seed, epoch, rank and sample.

    Example:
        >>> torch.rand(3, generator=keyed_generator("draws", 7, 0, -1)).shape
        torch.Size([3])
    """
    name = ",".join([purpose, *map(str, map(int, key))]).encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little", signed=True))


def draw_lam(n: int, alpha: float, generator: torch.Generator, mode: Mode = "elem") -> Tensor:
    """Mixing weights from Beta(alpha, alpha).

    ``lam = g1 / (g1 + g2)`` of two Gamma(alpha) variables. Their logarithms are drawn, so that an alpha of 0.001
    (weights at 0 and 1) and of 1000 (weights at 1/2) are both exact. For an alpha of 1, a uniform number is drawn: that
    is one per cent of a training step faster.

    Args:
        n: Number of weights.
        alpha: Both parameters of the Beta distribution, above 0. 1 is uniform.
        generator: Random stream.
        mode: ``"elem"`` for a weight each, ``"batch"`` for one weight that all share.

    Returns:
        ``[n]`` float32 in [0, 1], on the generator's device.

    Raises:
        ValueError: ``alpha`` or ``mode`` is out of its range.

    Reference: Latent-Mixup, section 1.1.3; Zhang et al. 2018 (arXiv 1710.09412).

    Example:
        >>> draw_lam(64, 1.0, keyed_generator("draws", 0)).shape
        torch.Size([64])
    """
    check_alpha(alpha)
    if mode not in ("elem", "batch"):
        raise ValueError(f'mode needs to be "elem" or "batch": got {mode!r}')
    count = n if mode == "elem" else 1
    if alpha == 1:
        lam = torch.rand(count, generator=generator, dtype=torch.float32, device=generator.device)
    else:
        own, other = _log_gamma(2 * count, alpha, generator).chunk(2)
        lam = torch.sigmoid(own - other).float()
    return lam.expand(n).clone()


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
    alpha = max(alpha, 1e-12)  # all weights are 0 or 1 long before
    return math.log(d) + log_v.gather(1, first).squeeze(1) + torch.log1p(-boost) / alpha


def draw_simplex(k: int, n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Weights from a symmetric Dirichlet(alpha) distribution: normalised Gamma(alpha) variables.

    Args:
        k: Number of rows.
        n: Number of weights in a row. With two, the first is distributed as in :func:`draw_lam`.
        alpha: All parameters of the distribution, above 0.
        generator: Random stream.

    Returns:
        ``[k, n]`` float32, each row from 0 and summing to 1.

    Raises:
        ValueError: ``alpha`` is not above 0.

    Example:
        >>> draw_simplex(64, 3, 1.0, keyed_generator("draws", 0)).shape
        torch.Size([64, 3])
    """
    check_alpha(alpha)
    return torch.softmax(_log_gamma(n * k, alpha, generator).view(n, k).T, 1).float()


def draw_slots(batch_size: int, prob: float | Tensor, generator: torch.Generator) -> Tensor:
    """Positions in a batch that become mixes: int64 ``[k]``, sorted.

    ``k`` is ``prob * batch_size`` rounded up or down at random, so that the mean share is ``prob`` for any batch size,
    one included. With a share for each sample the same holds among the samples of one share, and in the whole batch
    for the sum of the shares; the same share for all of them draws what the number draws.

    Args:
        batch_size: Number of samples in the batch.
        prob: Share of the batch that becomes mixes, in [0, 1]; or each sample's, ``[batch_size]`` float64 in [0, 1].
        generator: Random stream.

    Raises:
        ValueError: ``prob`` is a number out of range.

    Example:
        >>> draw_slots(8, 0.5, keyed_generator("draws", 0)).shape
        torch.Size([4])
    """
    device = generator.device
    u = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    order = torch.randperm(batch_size, generator=generator, device=device)
    if isinstance(prob, Tensor):
        return _first_of_each_share(prob[order], order, u).sort().values
    check_prob(prob)
    count = min(math.floor(prob * batch_size + u.item()), batch_size)
    return order[:count].sort().values


def _first_of_each_share(prob: Tensor, order: Tensor, u: Tensor) -> Tensor:
    """Of ``order`` ``[n]``, whose shares are ``prob``, the first of each share: as many as it asks for.

    The sums of the shares, in ascending order and from ``u`` in [0, 1) on, pass a whole number once for each position
    that is chosen: systematic sampling, Madow 1949.
    """
    shares, group, sizes = prob.unique(return_inverse=True, return_counts=True)
    passed = torch.cat([u[None], shares * sizes]).cumsum(0).floor().diff()
    counts = passed.long().minimum(sizes)
    by_group = group.argsort(stable=True)
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group[by_group]]
    return order[by_group[rank < counts[group[by_group]]]]


def check_alpha(alpha: float) -> None:
    """Raise ``ValueError`` unless ``alpha`` is above 0 and finite."""
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha needs to be above 0 and finite: got {alpha}")


def check_prob(prob: float) -> None:
    """Raise ``ValueError`` unless ``prob`` is in [0, 1]."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob needs to be in [0, 1]: got {prob}")


def default_rank() -> int:
    """This process's rank: of ``torch.distributed`` where it is initialised, else ``$RANK``, else 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together: of ``torch.distributed``, else ``$WORLD_SIZE``, else 1."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def fresh_seeds(n: int) -> list[int]:
    """Seeds from torch's global random state, which moves on, as it does for torchvision's transforms."""
    return torch.randint(2**63 - 1, (n,), dtype=torch.int64, device="cpu").tolist()
