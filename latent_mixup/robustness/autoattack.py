"""AutoAttack, the standard ensemble of attacks, from ``pyautoattack`` (the extra ``robust``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latent_mixup.robustness.pgd import Norm
from latent_mixup.robustness.shared import (
    Bounds,
    check_eps,
    check_images,
    check_inside,
    class_indices,
    from_unit,
    per_image,
    scored,
    to_unit,
)

NORMS = {"linf": "Linf", "l2": "L2"}
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
TARGETED, LEAST_CLASSES = {"apgd-t", "fab-t"}, 10  # they aim at nine other classes


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: Bounds,
    eps: float,
    norm: Norm = "linf",
    attacks: Sequence[str] | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Tensor:
    """AutoAttack: images within ``eps`` of ``images`` that the model gets wrong, where it finds one.

    Args:
        model: Images to logits ``[B, K]``, differentiable; on the device of ``images``.
        images: Float ``[B, C, H, W]`` within ``bounds``.
        labels: Class indices ``[B]``.
        bounds: The values of black and white in ``images``; AutoAttack itself sees [0, 1].
        eps: Radius of the ball, in the units of ``images``: 8/255 of images in [0, 1] is 16/255 in [-1, 1].
        norm: ``"linf"`` or ``"l2"``.
        attacks: Which of ``"apgd-ce"``, ``"apgd-dlr"``, ``"fab"``, ``"square"``, ``"apgd-t"`` and ``"fab-t"``; None:
            the standard ensemble. The targeted ones, whose names end in ``t``, need ten classes.
        batch_size: Images at once.
        seed: Seed of all draws; the random state of the caller is left as it was.

    Returns:
        ``[B, C, H, W]`` within ``bounds``; the image itself where nothing fooled.

    Raises:
        ImportError: ``pyautoattack`` is not installed.
        ValueError: ``images`` are not a finite float batch within ``bounds``, ``labels`` are not class indices for
            them, a setting is out of range, or a targeted attack has fewer than ten classes.

    Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", ICML 2020.

    Example:
        ``(model(autoattack(model, images, labels, bounds=(-1, 1), eps=16 / 255)).argmax(1) == labels).float().mean()``
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ImportError('AutoAttack needs pyautoattack: pip install "latent-mixup[robust]"') from error

    check_eps(eps, norm)
    check_images(images)
    check_inside(images, bounds)
    labels = class_indices(labels, len(images)).to(images.device)
    with scored(model, gradient=True) as classifier, torch.random.fork_rng():
        classifier.logits(images[:1])
        _check_classes(classifier.num_classes or 0, STANDARD if attacks is None else attacks)
        attack = AutoAttack(
            _FromUnit(model, bounds, images.dtype),
            attacks=None if attacks is None else list(attacks),
            version="standard" if attacks is None else "custom",
            norm=NORMS[norm],
            eps=eps / (bounds[1] - bounds[0]),
            seed=seed,
            device=images.device,
        )
        unit = to_unit(images.detach(), bounds).float().clamp(0, 1)
        found: Tensor = attack.run_standard_evaluation(unit, labels, batch_size=batch_size)[0]
    return torch.where(per_image((found != unit).flatten(1).any(dim=1)), from_unit(found, bounds).to(images), images)


def _check_classes(num_classes: int, attacks: Sequence[str]) -> None:
    """Raise ``ValueError`` where a targeted attack lacks classes."""
    targeted = sorted(TARGETED.intersection(attacks))
    if targeted and num_classes < LEAST_CLASSES:
        raise ValueError(
            f"the targeted attacks {', '.join(targeted)} need {LEAST_CLASSES} classes: got {num_classes} logits; "
            'pass attacks=["apgd-ce", "apgd-dlr", "fab", "square"]'
        )


class _FromUnit(nn.Module):
    """The model behind a conversion of float32 images in [0, 1] to its own range and type."""

    def __init__(self, model: nn.Module, bounds: Bounds, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.bounds, self.dtype = model, bounds, dtype

    def forward(self, unit: Tensor) -> Tensor:
        logits: Tensor = self.model(from_unit(unit.to(self.dtype), self.bounds)).float()
        return logits
