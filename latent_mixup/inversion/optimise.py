"""The optimiser of codes: images in a batch that is kept full, each independent of the others."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from latent_mixup.generators.base import Generator
from latent_mixup.inversion.curvature import Curvature
from latent_mixup.inversion.descent import LBFGS, Adam, Descent
from latent_mixup.losses.base import Loss, PlainLoss, TargetLoss, pixel_mse
from latent_mixup.networks import eval_mode
from latent_mixup.sampling import keyed_generator

Optimizer: TypeAlias = Literal["lbfgs", "adam"]

HOP = 0.4  # length of a restart's jump, in standard deviations of the numbers of a code


@torch.inference_mode(False)
@torch.no_grad()
def optimise_codes(
    generator: Generator,
    targets: Tensor,
    start: Tensor,
    loss: Loss,
    *,
    steps: int,
    lr: float = 0.03,
    betas: tuple[float, float] = (0.95, 0.999),
    optimizer: Optimizer = "lbfgs",
    target: float = -math.inf,
    tolerance: float = 1e-3,
    restarts: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    curvature: Curvature | None = None,
    advance: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Move each code so that its decode comes closer to its target; keep the best step of each image.

    The result for an image does not depend on its batch, except for rounding: the losses are summed, each image has its
    own step lengths, memory and end, and the next waiting image takes the place of one that is done. A code is recorded
    *before* it moves, with its own loss. There is no weight decay, which would pull a code towards zero by a factor of
    0.3 in 4,000 steps of the paper's settings.

    Args:
        generator: Decodes the codes.
        targets: Images ``[N, C, H, W]`` in [-1, 1].
        start: Codes ``[N, *latent_shape]`` to start from.
        loss: ``(images, targets) -> [B]``; a :class:`~latent_mixup.losses.base.TargetLoss` sees each target once.
        steps: Maximum gradient steps per image; 0 keeps ``start``.
        lr: Length of an image's first step, in each number of its code.
        betas: Betas of Adam.
        optimizer: ``"lbfgs"``, or ``"adam"`` with a learning rate that falls to zero along a half cosine, for losses
            that are random.
        target: Loss at which an image is done.
        tolerance: L-BFGS: an image has converged when its loss fell by less than this share in ten evaluations.
        restarts: L-BFGS: random restarts per image after convergence, each beside its best code.
        seed: Seed of the directions of restarts, which are the same for all images.
        batch_size: Images at a time; None: all.
        curvature: Curvature of the loss, for L-BFGS: see
            :func:`~latent_mixup.inversion.curvature.learn_curvature`.
        advance: Called with a number of images whenever so many are done.

    Returns:
        The best codes ``[N, *latent_shape]`` and their losses ``[N]``, infinite where that of ``start`` was not finite.

    Raises:
        ValueError: The loss is not one number per image, or has no gradient; there is not one code per target; the
            optimizer is unknown.

    Reference: Latent-Mixup, section 2.1.1, does the same one image at a time with 1,000 steps of AdamW.
    """
    if len(start) != len(targets) or (batch_size is not None and batch_size < 1):
        raise ValueError(
            "a code to start from is needed for each target, and batch_size >= 1: "
            f"got {len(start)} codes, {len(targets)} targets, batch_size={batch_size}"
        )
    check_optimizer(optimizer)
    first = start[:batch_size].flatten(1)
    adam = optimizer == "adam"
    descent: Descent = Adam(first, max(1, steps), lr, betas) if adam else LBFGS(first, lr, tolerance, curvature)
    best, best_loss = start.clone(), start.new_full((len(start),), torch.inf)
    seen, jumps = torch.zeros(2, len(start), dtype=torch.int64, device=start.device)
    directions = _directions(restarts, start, seed)
    batch = _Batch(targets, start, loss if isinstance(loss, TargetLoss) else PlainLoss(loss), batch_size)

    while len(rows := batch.rows):
        codes = descent.points().view(-1, *start.shape[1:])
        losses, grads = batch.evaluate(generator, codes, grad=bool((seen[rows] < steps).any()))
        better = losses < best_loss[rows]
        best[rows[better]], best_loss[rows[better]] = codes[better], losses[better]
        descent.tell(losses, grads.flatten(1))
        seen[rows] += 1

        over = (seen[rows] > steps) | (best_loss[rows] <= target) | best_loss[rows].isinf()
        settled = descent.settled & ~over
        jumping = settled & (jumps[rows] < restarts)
        if jumping.any():
            codes = best[rows[jumping]].flatten(1)
            length = HOP * codes.std(1, correction=0, keepdim=True)
            descent.enter(jumping.nonzero()[:, 0], codes + length * directions[jumps[rows[jumping]]])
            jumps[rows[jumping]] += 1
        done = over | (settled & ~jumping)
        if done.any():
            batch.replace(done, descent)
            if advance:
                advance(int(done.sum()))
    return best, best_loss


class _Batch:
    """The images that are optimised now: row and embedded target of each place. The others wait."""

    def __init__(self, targets: Tensor, start: Tensor, loss: TargetLoss, size: int | None) -> None:
        self.targets, self.start, self.loss = targets, start, loss
        self.rows = torch.arange(len(start), device=start.device)[:size]
        self.begun = len(self.rows)
        self.embedded = tuple(part.clone() for part in loss.embed(targets[:size])) if self.begun else ()

    def evaluate(self, generator: Generator, codes: Tensor, *, grad: bool) -> tuple[Tensor, Tensor]:
        """Losses ``[B]``, infinite if not finite, and gradients like ``codes``; zeros without ``grad``."""
        codes = codes.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            losses = self.loss.compare(generator.decode(codes), self.embedded)
        if losses.shape != codes.shape[:1]:
            raise ValueError(f"loss needs one number per image, [{len(codes)}]: got {list(losses.shape)}")
        if grad and not losses.requires_grad:
            raise ValueError(
                "the loss has no gradient: decode and loss need to be differentiable, without torch.no_grad"
            )
        (grads,) = torch.autograd.grad(losses, codes, torch.ones_like(losses)) if grad else (torch.zeros_like(codes),)
        losses = losses.detach().to(codes.dtype)
        return torch.where(losses.isfinite(), losses, torch.inf), grads

    def replace(self, done: Tensor, descent: Descent) -> None:
        """Give the places that are done, bool ``[B]``, to waiting images; without any, close them."""
        places = done.nonzero()[:, 0][: len(self.start) - self.begun]
        if len(places):
            fresh = torch.arange(self.begun, self.begun + len(places), device=done.device)
            self.begun += len(places)
            self.rows[places] = fresh
            descent.enter(places, self.start[fresh].flatten(1))
            for part, new in zip(self.embedded, self.loss.embed(self.targets[fresh]), strict=True):
                part[places] = new
        if len(places) < done.sum():
            stay = (~done.index_fill(0, places, False)).nonzero()[:, 0]
            self.rows, self.embedded = self.rows[stay], tuple(part[stay] for part in self.embedded)
            descent.keep(stay)


def optimizer_settings(
    optimizer: Optimizer, lr: float, betas: tuple[float, float], tolerance: float, draws: int
) -> dict[str, Any]:
    """Everything that determines an optimiser's steps, for metadata; raises as :func:`check_optimizer`."""
    check_optimizer(optimizer)
    own: dict[str, Any] = {"betas": list(betas), "schedule": "cosine"}
    if optimizer == "lbfgs":
        own = {"tolerance": tolerance, "draws": draws}
    return {"optimizer": optimizer, "lr": lr, **own}


def check_optimizer(optimizer: str) -> None:
    """Raise ``ValueError`` if there is no such optimizer."""
    if optimizer not in get_args(Optimizer):
        raise ValueError(f"optimizer needs one of {', '.join(get_args(Optimizer))}: got {optimizer!r}")


def _directions(n: int, start: Tensor, seed: int) -> Tensor:
    """Standard normal rows ``[n, D]`` for codes of D numbers; the first k are the same for any ``n``."""
    draw = keyed_generator("restart", seed)
    directions = torch.empty(n, start.shape[1:].numel(), dtype=torch.float32, device="cpu")
    for direction in directions:
        direction.normal_(generator=draw)
    return directions.to(start)


def reconstruction_mse(generator: Generator, codes: Tensor, targets: Tensor, batch_size: int | None = None) -> Tensor:
    """Pixel MSE of each decoded code, ``[B]``, without a gradient; ``batch_size`` at a time, or all."""
    batches = zip(*(part.split(batch_size or max(1, len(codes))) for part in (codes, targets)), strict=True)
    with torch.no_grad():
        return torch.cat([pixel_mse(generator.decode(some), wanted) for some, wanted in batches])


@contextlib.contextmanager
def eval_modes(*callables: object) -> Iterator[None]:
    """Eval mode inside, for the networks among these callables and bound methods, whatever their owners set."""
    owners = [getattr(each, "__self__", each) for each in callables]
    with contextlib.ExitStack() as stack:
        for owner in owners:
            if isinstance(owner, nn.Module):
                stack.enter_context(eval_mode(owner))
        yield


def leave_inference_mode(generator: Generator) -> Generator:
    """A generator through which gradients can pass, also if it was made inside ``torch.inference_mode()``.

    Call it outside of that mode. Tensors that were made inside are replaced by copies.
    """
    for module in generator.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_inference():
                copy = tensor.detach().clone()
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(copy, requires_grad=False) if is_parameter else copy)
    return generator
