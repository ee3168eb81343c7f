"""Projected gradient descent: accuracy within a small distance of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.networks import eval_mode
from latent_mixup.robustness.shared import (
    NO_GRADIENT,
    Bounds,
    Loader,
    check_images,
    check_inside,
    check_labels,
    chunks,
    device_of,
    first_images,
    l2_norms,
    logits_with_gradient,
    per_image,
)
from latent_mixup.sampling import keyed_generator

Norm: TypeAlias = Literal["linf", "l2"]

STEP_SHARE = 2.5  # the steps together go this many times as far as eps, as in Madry et al.
LEAST_NORM = 1e-12


@dataclass(frozen=True, eq=False)
class PGDResult:
    """What projected gradient descent found for each of ``B`` images, in the order they came.

    Attributes:
        perturbations: ``[B, C, H, W]``, of norm ``eps`` at most; of the last start where nothing fooled, and 0 where
            the image was wrongly classified to begin with.
        iterations: Steps taken over all starts, ``[B]`` int64.
        fooled: Whether the prediction at ``images + perturbations`` is not the label, ``[B]`` bool.
    """

    perturbations: Tensor
    iterations: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class _Attack:
    """The settings of :func:`pgd`, checked."""

    norm: Norm
    eps: float
    step_size: float
    steps: int
    restarts: int
    random_start: bool
    bounds: Bounds
    seed: int


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: Bounds,
    eps: float,
    norm: Norm = "linf",
    step_size: float | None = None,
    steps: int = 20,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    first_index: int = 0,
) -> PGDResult:
    """Look for a wrong prediction within ``eps`` of each image, by steps up the cross-entropy of its label.

    A step adds ``step_size`` times the gradient's sign (``"linf"``) or direction (``"l2"``), goes back to the ball
    of radius ``eps`` and to ``bounds``. An image that is fooled leaves the batch, with the perturbation that did it.
    Random starts are uniform in the ball and belong to (``seed``, index of the image, start), so an image's
    result does not depend on the rest of its batch, up to the rounding of the network itself.

    Args:
        model: Images to logits ``[B, K]``, differentiable; on the device of ``images``.
        images: Float ``[B, C, H, W]`` within ``bounds``. Any number: work is done in chunks.
        labels: Class indices ``[B]``.
        bounds: What black and white are in ``images``, e.g. ``(-1, 1)``.
        eps: Radius of the ball, in the units of ``images``: 8/255 of images in [0, 1] is 16/255 in [-1, 1].
        norm: ``"linf"``, the largest change of a number, or ``"l2"``, the length of the change.
        step_size: Length of a step; None: ``2.5 * eps / steps``.
        steps: Most steps from one start.
        restarts: Starts for an image, until one fools.
        random_start: False: the one start is the image itself.
        seed: Of the starts.
        first_index: Index in the data set of the first image, the others following.

    Returns:
        Perturbations, steps and success, detached, on the device of ``images``.

    Raises:
        ValueError: ``images`` are not a finite float batch within ``bounds``, ``labels`` are not class indices for
            them, the model does not give finite logits ``[B, K]`` with a gradient, or a setting is out of range.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> pgd(net, torch.rand(5, 3, 2, 2), torch.arange(5), bounds=(0, 1), eps=0.1).fooled.shape
        torch.Size([5])
    """
    check_images(images)
    check_labels(labels, len(images))
    check_inside(images, bounds)
    size = STEP_SHARE * eps / max(steps, 1) if step_size is None else step_size
    attack = _Attack(norm, eps, size, steps, restarts, random_start, bounds, seed)
    _check_attack(attack)
    indices = range(first_index, first_index + len(images))
    parts, done = [], 0
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        for chunk in chunks(images):
            rows = slice(done, done + len(chunk))
            parts.append(_attack_chunk(model, chunk.detach().clone(), labels[rows].long(), attack, indices[rows]))
            done += len(chunk)
    perturbations, iterations, fooled = (torch.cat(column) for column in zip(*parts, strict=True))
    return PGDResult(perturbations, iterations, fooled)


def pgd_accuracy(
    model: nn.Module,
    loader: Loader,
    *,
    bounds: Bounds,
    eps: float,
    norm: Norm = "linf",
    step_size: float | None = None,
    steps: int = 20,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    max_images: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> float:
    """Share of a loader's images that are rightly classified and that :func:`pgd` does not fool.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``, float ``[B, C, H, W]`` within ``bounds`` and int ``[B]``.
        bounds: As in :func:`pgd`.
        eps: As in :func:`pgd`.
        norm: As in :func:`pgd`.
        step_size: As in :func:`pgd`.
        steps: As in :func:`pgd`.
        restarts: As in :func:`pgd`.
        random_start: As in :func:`pgd`.
        seed: As in :func:`pgd`.
        max_images: Stop after this many images; None: all.
        device: Where images are moved to; None: the device of the model's parameters.
        progress: Show a progress bar.

    Returns:
        Accuracy in [0, 1]; an upper bound of that under the strongest attack.

    Raises:
        ValueError: No image came, or what :func:`pgd` refuses.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> 0 <= pgd_accuracy(net, [(torch.rand(5, 3, 2, 2), torch.arange(5))], bounds=(0, 1), eps=0.1) <= 1
        True
    """
    standing = count = 0
    for images, labels in first_images(loader, max_images, progress=progress and f"PGD {norm}"):
        if labels is None:
            raise ValueError("accuracy needs labels: pass a loader of (images, labels), not a tensor")
        on = device_of(model, device)
        result = pgd(
            model,
            images.to(on),
            labels.to(on),
            bounds=bounds,
            eps=eps,
            norm=norm,
            step_size=step_size,
            steps=steps,
            restarts=restarts,
            random_start=random_start,
            seed=seed,
            first_index=count,
        )
        standing += int((~result.fooled).sum())
        count += len(images)
    if count == 0:
        raise ValueError("accuracy needs at least one image: the loader gave none")
    return standing / count


def _attack_chunk(
    model: nn.Module, images: Tensor, labels: Tensor, attack: _Attack, indices: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Start after start for those not yet fooled: perturbations, steps, success."""
    total = torch.zeros_like(images)
    iterations = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    fooled = _logits(model, images)[1].argmax(dim=1) != labels
    for restart in range(attack.restarts):
        rows = (~fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        begin = torch.zeros_like(images[rows])
        if attack.random_start:
            keys = [(attack.seed, indices[row], restart) for row in rows.tolist()]
            begin = _inside(_random_start(begin, attack, keys), images[rows], attack)
        total[rows], taken, fooled[rows] = _walk(model, images[rows], labels[rows], begin, attack)
        iterations[rows] += taken
    return total, iterations, fooled


def _walk(
    model: nn.Module, images: Tensor, labels: Tensor, begin: Tensor, attack: _Attack
) -> tuple[Tensor, Tensor, Tensor]:
    """From ``begin`` until it fools, ``steps`` at most: perturbations, steps, success."""
    total = begin.clone()
    iterations = torch.zeros_like(labels, dtype=torch.int64)
    fooled = torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(images), device=images.device)  # the images that are not yet done
    for step in range(attack.steps + 1):
        seen, logits = _logits(model, images[rows] + total[rows])
        changed = logits.argmax(dim=1) != labels[rows]
        fooled[rows[changed]] = True
        if step == attack.steps or changed.all():
            break
        loss = F.cross_entropy(logits, labels[rows], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen, allow_unused=True)
        if gradient is None:
            raise ValueError(NO_GRADIENT)
        rows = rows[~changed]
        moved = total[rows] + attack.step_size * _upwards(gradient[~changed], attack.norm)
        total[rows] = _inside(moved, images[rows], attack)
        iterations[rows] += 1
    return total, iterations, fooled


def _logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf, logits = logits_with_gradient(model, images)
    if not logits.isfinite().all():
        raise ValueError("the model's logits must be finite: got nan or inf within eps of an image")
    return leaf, logits


def _upwards(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit step along which the loss rises fastest; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / per_image(l2_norms(gradient).clamp_min(LEAST_NORM))


def _inside(perturbations: Tensor, images: Tensor, attack: _Attack) -> Tensor:
    """The nearest perturbations of norm ``eps`` at most, then the nearest of those that keep to the bounds."""
    low, high = attack.bounds
    if attack.norm == "linf":
        perturbations = perturbations.clamp(-attack.eps, attack.eps)
    else:
        lengths = l2_norms(perturbations).clamp_min(LEAST_NORM)
        perturbations = perturbations * per_image((attack.eps / lengths).clamp_max(1))
    return perturbations.maximum((low - images).clamp_max(0)).minimum((high - images).clamp_min(0))


def _random_start(like: Tensor, attack: _Attack, keys: Sequence[tuple[int, ...]]) -> Tensor:
    """A point for each key, uniform in the ball of radius ``eps``; shape, dtype and device of ``like``."""
    return torch.stack([_in_ball(like[0].shape, attack, key) for key in keys]).to(like)


def _in_ball(shape: torch.Size, attack: _Attack, key: tuple[int, ...]) -> Tensor:
    draw = keyed_generator("pgd-start", *key)
    if attack.norm == "linf":
        return attack.eps * (2 * torch.rand(shape, generator=draw) - 1)
    direction = torch.randn(shape, generator=draw)
    share: float = torch.rand((), generator=draw).item() ** (1 / direction.numel())
    unit: Tensor = direction / torch.linalg.vector_norm(direction).clamp_min(LEAST_NORM)
    return attack.eps * share * unit


def _check_attack(attack: _Attack) -> None:
    if attack.norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2": got {attack.norm!r}')
    for name, value in (("eps", attack.eps), ("step_size", attack.step_size)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive length in the units of the images: got {value}")
    for name, count in (("steps", attack.steps), ("restarts", attack.restarts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1: got {count}")
    if attack.restarts > 1 and not attack.random_start:
        raise ValueError(
            f"restarts={attack.restarts} needs random starts, or they all go the same way: pass random_start=True"
        )
