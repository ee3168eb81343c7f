"""Adversarial images to train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.robustness import shared
from latent_mixup.robustness.classifier import no_gradient, scored
from latent_mixup.robustness.pgd import Attack, Norm, inside, upwards
from latent_mixup.robustness.ranges import Bounds, Range
from latent_mixup.robustness.shared import l2_norms, per_image


def adversarial(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    bounds: Bounds | None = None,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The images to train on instead: each moved by at most ``eps`` to where the model's loss is large.

    Projected gradient descent of ``steps`` steps for all images alike, whether or not the model is fooled on the way,
    as a training needs it; :func:`pgd` is the attack to score with. The model is in eval mode meanwhile, so that the
    statistics of its normalisation layers do not see the steps on the way, and in its own mode afterwards; its
    parameters get no gradient.

    Args:
        model: Images to logits ``[B, K]``, differentiable.
        images: Float ``[B, C, H, W]`` within ``bounds``, on the model's device.
        targets: Class indices ``[B]``, or soft targets ``[B, K]``, such as those of mixes.
        eps: Radius of the ball, in the units of ``images``: 8/255 of images in [0, 1] is 16/255 in [-1, 1].
        bounds: The values of black and white in ``images``, two numbers or two lists with a number per channel; None:
            (-1, 1), for images with a value below 0.
        norm: ``"linf"``, the largest change of a number, or ``"l2"``, the Euclidean length of the change.
        steps: Gradient steps, from 1.
        step_size: Length of a step; None: ``2.5 * eps / steps``.
        random_start: Start at a point that is uniform in the ball; False: at the image itself.
        loss: ``(logits, targets) -> scalar`` that the steps raise.
        generator: Random stream of the starts, on the CPU; None: torch's own.

    Returns:
        As ``images``, detached, within ``bounds`` and within ``eps`` of them.

    Raises:
        ValueError: What :func:`pgd` refuses, or targets of another number than images.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, equation 2.1.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
        >>> adversarial(net, torch.rand(5, 3, 2, 2), torch.arange(5), eps=0.1, bounds=(0, 1)).shape
        torch.Size([5, 3, 2, 2])
    """
    attack = Attack(bounds, eps, norm, step_size, steps, 1, random_start, 0)
    shared.check_images(images)
    if targets.shape[:1] != images.shape[:1]:
        raise ValueError(f"targets must be [{len(images)}] or [{len(images)}, K]: got {shared.describe(targets)}")
    images = images.detach()
    span = Range.of(bounds, images)
    total = torch.zeros_like(images)
    if random_start:
        total = inside(_uniform_in_ball(images, eps, norm, generator), images, attack, span)
    with scored(model, gradient=True) as classifier:
        for _ in range(steps):
            seen, logits = classifier.with_gradient(images + total)
            (gradient,) = torch.autograd.grad(loss(logits, targets), seen, allow_unused=True)
            if gradient is None:
                raise no_gradient()
            total = inside(total + attack.step * upwards(gradient, norm), images, attack, span)
    return images + total


def _uniform_in_ball(images: Tensor, eps: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """A point of the ball for each image, as ``images``."""
    options: dict[str, Any] = {"generator": generator, **shared.FLOAT32}
    if norm == "linf":
        return (eps * (2 * torch.rand(images.shape, **options) - 1)).to(images)
    direction = torch.randn(images.shape, **options)
    lengths = eps * torch.rand(len(images), **options) ** (1 / direction[0].numel())
    return (direction * per_image(lengths / l2_norms(direction))).to(images)
