"""Projected gradient descent: accuracy within a small distance of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.robustness import shared
from latent_mixup.robustness.classifier import Classifier, device_of, no_gradient, scored
from latent_mixup.robustness.ranges import Bounds, Range
from latent_mixup.robustness.shared import FLOAT32, Loader, l2_norms, per_image
from latent_mixup.sampling import keyed_generator

Norm: TypeAlias = Literal["linf", "l2"]

STEP_SHARE = 2.5  # the steps together go this many times as far as eps, as in Madry et al.
LEAST_NORM = 1e-12


@dataclass(frozen=True, eq=False)
class PGDResult:
    """Result of :func:`pgd` for each of ``B`` images, in their order.

    Attributes:
        perturbations: ``[B, C, H, W]``, of norm ``eps`` at most; of the last start where no start succeeded, and 0
            where the image itself was wrongly classified.
        iterations: Steps taken over all starts, ``[B]`` int64.
        fooled: Whether the prediction at ``images + perturbations`` is not the label, ``[B]`` bool.
    """

    perturbations: Tensor
    iterations: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class Attack:
    """The settings of :func:`pgd`, checked."""

    bounds: Bounds | None
    eps: float
    norm: Norm
    step_size: float | None
    steps: int
    restarts: int
    random_start: bool
    seed: int

    def __post_init__(self) -> None:
        shared.check_eps(self.eps, self.norm)
        for name, count in (("steps", self.steps), ("restarts", self.restarts)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1: got {count}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts={self.restarts} from one start all end alike: pass random_start=True")
        shared.check_length("step_size", self.step)

    @property
    def step(self) -> float:
        """Length of a step."""
        return STEP_SHARE * self.eps / self.steps if self.step_size is None else self.step_size


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: Bounds | None = None,
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
        bounds: The values of black and white in ``images``, such as ``(0, 1)``, or two lists with a number per channel;
            None: ``(-1, 1)``, refused where no value is below 0.
        eps: Radius of the ball, in the units of ``images``: 8/255 of images in [0, 1] is 16/255 in [-1, 1].
        norm: ``"linf"``, the largest change of a number, or ``"l2"``, the Euclidean length of the change.
        step_size: Length of a step; None: ``2.5 * eps / steps``.
        steps: Maximum steps from one start.
        restarts: Maximum starts per image; the first that succeeds is kept.
        random_start: False: the one start is the image itself.
        seed: Seed of the random starts.
        first_index: Index of the first image in the data set; the others follow it.

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
    attack = Attack(bounds, eps, norm, step_size, steps, restarts, random_start, seed)
    shared.check_images(images)
    with scored(model, gradient=True) as classifier:
        return _pgd(classifier, images, shared.class_indices(labels, len(images)), attack, first_index)


def pgd_accuracy(
    model: nn.Module,
    loader: Loader,
    *,
    bounds: Bounds | None = None,
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
    """Share of a loader's images that are correctly classified and that :func:`pgd` does not fool.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        loader: Yields ``(images, labels)``, float ``[B, C, H, W]`` within ``bounds`` and int ``[B]``.
        bounds: The settings from here to ``seed`` are those of :func:`pgd`.
        eps: Radius of the ball.
        norm: Of the ball.
        step_size: Length of a step.
        steps: Maximum steps from one start.
        restarts: Maximum starts per image.
        random_start: Whether starts are random.
        seed: Of the starts.
        max_images: Stop after this many images; None: all.
        device: Where images are moved to; None: the device of the model's parameters.
        progress: Show a progress bar.

    Returns:
        Accuracy in [0, 1]; an upper bound of the accuracy under the strongest attack.

    Raises:
        ValueError: No image came, or what :func:`pgd` refuses.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> 0 <= pgd_accuracy(net, [(torch.rand(5, 3, 2, 2), torch.arange(5))], bounds=(0, 1), eps=0.1) <= 1
        True
    """
    attack = Attack(bounds, eps, norm, step_size, steps, restarts, random_start, seed)
    standing = count = 0
    with scored(model, gradient=True) as classifier:
        on, title = device_of(model, device), progress and f"PGD {norm}"
        for images, labels in shared.batches(loader, limit=max_images, device=on, progress=title):
            standing += int((~_pgd(classifier, images, labels, attack, count).fooled).sum())
            count += len(images)
    return standing / count


def _pgd(classifier: Classifier, images: Tensor, labels: Tensor, attack: Attack, first_index: int) -> PGDResult:
    span = Range.of(attack.bounds, images)
    parts, index = [], first_index
    for chunk in shared.chunks(images):
        own = labels[index - first_index :][: len(chunk)].to(images.device)
        parts.append(_attack_chunk(classifier, chunk.detach().clone(), own, attack, span, index))
        index += len(chunk)
    perturbations, iterations, fooled = (torch.cat(column) for column in zip(*parts, strict=True))
    return PGDResult(perturbations, iterations, fooled)


def _attack_chunk(
    classifier: Classifier, images: Tensor, labels: Tensor, attack: Attack, span: Range, first_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Start after start for those not yet fooled: perturbations, steps, success."""
    total = torch.zeros_like(images)
    iterations = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    fooled = classifier.with_gradient(images, labels)[1].argmax(dim=1) != labels
    for restart in range(attack.restarts):
        rows = (~fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        begin = torch.zeros_like(images[rows])
        if attack.random_start:
            starts = [_random_start(images.shape[1:], attack, first_index + row, restart) for row in rows.tolist()]
            begin = inside(torch.stack(starts).to(images), images[rows], attack, span)
        total[rows], taken, fooled[rows] = _walk(classifier, images[rows], labels[rows], begin, attack, span)
        iterations[rows] += taken
    return total, iterations, fooled


def _walk(
    classifier: Classifier, images: Tensor, labels: Tensor, begin: Tensor, attack: Attack, span: Range
) -> tuple[Tensor, Tensor, Tensor]:
    """From ``begin`` until it fools, ``steps`` at most: perturbations, steps, success."""
    total = begin.clone()
    iterations = torch.zeros_like(labels)
    fooled = torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(images), device=images.device)  # the images that are not yet done
    for step in range(attack.steps + 1):
        seen, logits = classifier.with_gradient(images[rows] + total[rows])
        changed = logits.argmax(dim=1) != labels[rows]
        fooled[rows[changed]] = True
        if step == attack.steps or changed.all():
            break
        loss = F.cross_entropy(logits, labels[rows], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen, allow_unused=True)
        if gradient is None:
            raise no_gradient()
        rows = rows[~changed]
        moved = total[rows] + attack.step * upwards(gradient[~changed], attack.norm)
        total[rows] = inside(moved, images[rows], attack, span)
        iterations[rows] += 1
    return total, iterations, fooled


def upwards(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit step along which the loss rises fastest; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / per_image(l2_norms(gradient).clamp_min(LEAST_NORM))


def inside(perturbations: Tensor, images: Tensor, attack: Attack, span: Range) -> Tensor:
    """The nearest perturbations of norm ``eps`` at most, then the nearest of those that keep to the bounds."""
    low, high = span.ends(images)
    if attack.norm == "linf":
        perturbations = perturbations.clamp(-attack.eps, attack.eps)
    else:
        lengths = l2_norms(perturbations).clamp_min(LEAST_NORM)
        perturbations = perturbations * per_image((attack.eps / lengths).clamp_max(1))
    return perturbations.maximum((low - images).clamp_max(0)).minimum((high - images).clamp_min(0))


def _random_start(shape: torch.Size, attack: Attack, index: int, restart: int) -> Tensor:
    """A point that is uniform in the ball of radius ``eps``."""
    draw = keyed_generator("pgd-start", attack.seed, index, restart)
    if attack.norm == "linf":
        return attack.eps * (2 * torch.rand(shape, generator=draw, **FLOAT32) - 1)
    direction = torch.randn(shape, generator=draw, **FLOAT32)
    share: float = torch.rand((), generator=draw, **FLOAT32).item() ** (1 / direction.numel())
    unit: Tensor = direction / torch.linalg.vector_norm(direction).clamp_min(LEAST_NORM)
    return attack.eps * share * unit
