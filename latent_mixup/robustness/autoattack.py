"""AutoAttack, the standard ensemble of attacks, from ``pyautoattack`` (the extra ``robust``)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latent_mixup.robustness.classifier import scored
from latent_mixup.robustness.pgd import Norm
from latent_mixup.robustness.ranges import Bounds, FromUnit, Range
from latent_mixup.robustness.shared import check_eps, check_images, check_list, class_indices, per_image
from latent_mixup.sampling import states_kept

NORMS = {"linf": "Linf", "l2": "L2"}
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# The classes that an attack needs: the loss of apgd-dlr has a third logit, the targeted ones aim at nine other classes.
LEAST_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "fab": 2, "square": 2, "apgd-t": 10, "fab-t": 10}


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: Bounds | None = None,
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
        bounds: The values of black and white in ``images``, such as ``(0, 1)``, or two lists with a number per channel,
            all of one width; None: ``(-1, 1)``, refused where no value is below 0. AutoAttack itself sees [0, 1].
        eps: Radius of the ball, in the units of ``images``: 8/255 of images in [0, 1] is 16/255 in [-1, 1].
        norm: ``"linf"`` or ``"l2"``.
        attacks: Which of ``"apgd-ce"``, ``"apgd-dlr"``, ``"fab"``, ``"square"``, ``"apgd-t"`` and ``"fab-t"``; None:
            the standard ensemble. The targeted ones, whose names end in ``t``, need ten classes, ``"apgd-dlr"`` three.
        batch_size: Images at once.
        seed: Seed of all draws; the random states of the CPU and of the device of ``images`` are left as they were.

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
    span = Range.of(bounds, images)
    eps_unit = eps / span.width()
    labels = class_indices(labels, len(images))
    if attacks is not None:
        check_list("attacks", attacks)
    with scored(model, gradient=True) as classifier, states_kept(images.device):
        with torch.no_grad():
            for part, own in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                classifier.logits(part, own)
        _check_classes(classifier.num_classes or 0, STANDARD if attacks is None else attacks)
        attack = AutoAttack(
            FromUnit(model, span, images.dtype),
            attacks=None if attacks is None else list(attacks),
            version="standard" if attacks is None else "custom",
            norm=NORMS[norm],
            eps=eps_unit,
            seed=seed,
            device=images.device,
        )
        unit = span.to_unit(images.detach()).float().clamp(0, 1)
        found: Tensor = attack.run_standard_evaluation(unit, labels.to(images.device), batch_size=batch_size)[0]
    return torch.where(per_image((found != unit).flatten(1).any(dim=1)), span.from_unit(found).to(images), images)


def _check_classes(num_classes: int, attacks: Sequence[str]) -> None:
    """Raise ``ValueError`` where an attack is unknown or needs more classes."""
    for name in attacks:
        if name not in LEAST_CLASSES:
            raise ValueError(f"no attack {name!r}: choose from {', '.join(LEAST_CLASSES)}")
    possible = [name for name, least in LEAST_CLASSES.items() if least <= num_classes]
    for least, kind, need in ((10, "the targeted attacks", "need"), (3, "the attack", "needs")):
        lacking = sorted(name for name in attacks if name not in possible and LEAST_CLASSES[name] == least)
        if lacking:
            raise ValueError(
                f"{kind} {', '.join(lacking)} {need} {least} classes: got {num_classes} logits; pass attacks="
                + json.dumps(possible)
            )
