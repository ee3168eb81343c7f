"""The method as pure functions on tensors: mix codes along a path, mix targets, mix losses."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.labels import check_labels

Path: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``path(a, b, lam) -> codes``: ``lam = 1`` is ``a``, ``lam = 0`` is ``b``."""
Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``criterion(pred, y) -> loss``."""

REDUCTIONS = ("mean", "sum", "none", "batchmean")
MIN_SIN_SQUARED = 1e-6  # below it (a thousandth of a radian) slerp and lerp agree to float32
PLAIN_MEAN = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiMarginLoss, nn.MultiLabelSoftMarginLoss)  # divide by all values


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
    _check_path(a, b, lam)
    weight = lam.to(a).view(-1, *[1] * (a.ndim - 1))
    return weight * a + (1 - weight) * b


def on_sphere(latents: Tensor) -> Tensor:
    """Scale codes ``[B, z_dim]`` to norm ``sqrt(z_dim)``, where a Gaussian z of that size lives."""
    return F.normalize(latents, dim=1) * math.sqrt(latents.shape[1])


def slerp(a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """The great circle: the direction turns at constant speed, the norm changes linearly. For Gaussian z.

    A code counts as one flat vector. (Anti)parallel codes and codes of norm 0 span no great circle: they are mixed by
    :func:`lerp`, which is the limit for parallel codes.

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
    _check_path(a, b, lam)
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
    """The path of a name, ``"lerp"`` or ``"slerp"``; ``ValueError`` for another."""
    if name not in PATHS:
        raise ValueError(f'path needs to be "lerp" or "slerp": got {name!r}')
    return PATHS[name]


def mix_latents(latents: Tensor, partner: Tensor, lam: Tensor, path: Path = lerp) -> Tensor:
    """Move each latent code towards its partner's; ``lam = 1`` returns it unchanged.

    Args:
        latents: ``[B, ...]``; in W+ ``[B, num_ws, w_dim]``.
        partner: Row of ``latents`` each code is mixed with, ``[B]``, int64 in ``[0, B)``; or the partners' codes, of
            the shape of ``latents``.
        lam: Weight of the code itself, ``[B]``, in ``[0, 1]``.
        path: :func:`lerp` for W and W+ (the default), :func:`slerp` for Gaussian z.

    Returns:
        Mixed codes; shape, dtype and device of ``latents``.

    Raises:
        ValueError: ``partner`` or ``lam`` does not have one entry per code.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> mix_latents(torch.randn(2, 8, 512), torch.tensor([1, 0]), torch.tensor([1.0, 0.3])).shape
        torch.Size([2, 8, 512])
    """
    if not partner.is_floating_point():
        if partner.shape != latents.shape[:1]:
            raise ValueError(f"partner needs one row per code: got {list(partner.shape)} for {len(latents)} codes")
        partner = latents[partner.to(latents.device)]
    return path(latents, partner, lam)


def soft_targets(
    labels: Tensor, num_classes: int, label_smoothing: float = 0.0, *, multi_label: bool = False
) -> Tensor:
    """Labels as rows that sum to 1: one-hot rows for class indices, soft labels as they are, then smoothed.

    Args:
        labels: Integers ``[B]`` in ``[0, num_classes)``, or soft: float ``[B, num_classes]``, rows from 0 and
            summing to 1.
        num_classes: Number of classes.
        label_smoothing: Share of each row that is spread over all classes, in [0, 1), as in ``F.cross_entropy``:
            ``(1 - label_smoothing) * row + label_smoothing / num_classes``.
        multi_label: For losses such as ``F.binary_cross_entropy_with_logits``: ``labels`` are ``[B, num_classes]``,
            each number in [0, 1], rows of any sum; each is smoothed towards 1/2, as by timm's ``Mixup``.

    Returns:
        ``[B, num_classes]`` float32, on the device of ``labels``; a new tensor.

    Raises:
        ValueError: A label lies outside ``num_classes`` or is missing (-1), a soft label is not a distribution, or
            the shape is another.

    Example:
        >>> soft_targets(torch.tensor([2, 0]), 3).shape
        torch.Size([2, 3])
    """
    if multi_label:
        check_labels(labels, num_classes, multi_label=True)
        return labels.float() * (1 - label_smoothing) + label_smoothing / 2
    if labels.is_floating_point():
        check_labels(labels, num_classes)
        targets = labels.float()
    else:
        classes = labels.long()
        if labels.ndim != 1 or labels.dtype == torch.bool or ((classes < 0) | (classes >= num_classes)).any():
            check_labels(labels, num_classes)  # which finds the words
        targets = F.one_hot(classes, num_classes).float()
    return targets * (1 - label_smoothing) + label_smoothing / num_classes


def mix_targets(
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    num_classes: int,
    label_smoothing: float = 0.0,
    *,
    multi_label: bool = False,
) -> Tensor:
    """Soft targets of mixes: ``lam * a + (1 - lam) * b``, then smoothed.

    Args:
        labels_a: The samples' own labels, ``[B]`` integers, or soft labels ``[B, num_classes]``.
        labels_b: The partners' labels, in either form.
        lam: Weight of ``labels_a``, ``[B]``, in [0, 1].
        num_classes: Number of classes.
        label_smoothing: See :func:`soft_targets`.
        multi_label: See :func:`soft_targets`.

    Returns:
        ``[B, num_classes]`` float32 whose rows sum to 1 (unless ``multi_label``), for
        ``F.cross_entropy(logits, targets)``.

    Raises:
        ValueError: See :func:`soft_targets`; or the lengths do not agree.

    Reference: Latent-Mixup, section 1.1.3; Zhang et al. 2018 (arXiv 1710.09412), equation 1.

    Example:
        >>> mix_targets(torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([0.3, 0.5]), 3).shape
        torch.Size([2, 3])
    """
    own = soft_targets(labels_a, num_classes, label_smoothing, multi_label=multi_label)
    other = soft_targets(labels_b, num_classes, label_smoothing, multi_label=multi_label)
    return lerp(own, other.to(own.device), lam)


def mixup_criterion(criterion: Criterion, pred: Tensor, y_a: Tensor, y_b: Tensor, lam: float | Tensor) -> Tensor:
    """``lam * criterion(pred, y_a) + (1 - lam) * criterion(pred, y_b)``, with one ``lam`` or one a sample.

    With a vector, the criterion is asked for one loss per sample, and the weighted losses are then reduced as it would
    have reduced them. That works for a loss module with a ``reduction`` attribute (of which a copy is used), for a
    function with a ``reduction=`` keyword, such as ``F.cross_entropy``, and for a criterion that returns one loss per
    sample. A mean over class weights, or over targets other than ``ignore_index``, is normalised for each of the two
    terms, as in the formula above.

    Args:
        criterion: Any callable ``(pred, y) -> loss``.
        pred: The network's output, ``[B, ...]``.
        y_a: The samples' own targets, ``[B, ...]``: class indices, or soft labels as class probabilities.
        y_b: The partners' targets, ``[B, ...]``.
        lam: Weight of ``y_a`` in [0, 1]: a number, or ``[B]``.

    Returns:
        The loss, reduced as ``criterion`` reduces it.

    Raises:
        ValueError: ``lam`` is neither one number nor ``[B]``, the criterion returns one number for the whole batch and
            cannot be asked for more, or its reduction is unknown.

    Reference: Zhang et al. 2018 (arXiv 1710.09412), section 2, and their mixup-cifar10.

    Example:
        >>> y_a, y_b, lam = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([0.3, 0.5])
        >>> mixup_criterion(nn.CrossEntropyLoss(), torch.randn(2, 3), y_a, y_b, lam).shape
        torch.Size([])
    """
    if not isinstance(lam, Tensor) or lam.ndim == 0:
        weight = lam if isinstance(lam, Tensor) else float(lam)
        return weight * criterion(pred, y_a) + (1 - weight) * criterion(pred, y_b)
    if lam.shape != pred.shape[:1]:
        raise ValueError(f"lam needs to be one number or one per sample: got {list(lam.shape)} for {len(pred)}")
    per_sample, reduction = _without_reduction(criterion)
    own, other = per_sample(pred, y_a), per_sample(pred, y_b)
    for losses in (own, other):
        if losses.ndim == 0 or len(losses) != len(pred):
            raise ValueError(
                f"lam is a vector, but {_name(criterion)} returns a loss of shape {list(losses.shape)} for {len(pred)} "
                "samples: give it reduction='none' or a reduction= keyword, use target_format=\"soft\", or use "
                'mode="batch" with lam[0]'
            )
    weight = lam.to(own).view(-1, *[1] * (own.ndim - 1))
    if reduction == "mean":
        own_mean = (weight * own).sum() / _mean_divisor(criterion, own, y_a)
        return own_mean + ((1 - weight) * other).sum() / _mean_divisor(criterion, other, y_b)
    mixed = weight * own + (1 - weight) * other
    return mixed if reduction == "none" else mixed.sum() / (len(pred) if reduction == "batchmean" else 1)


def _without_reduction(criterion: Criterion) -> tuple[Criterion, str]:
    """The criterion with one loss per sample, and the reduction that was taken from it."""
    reduction = getattr(criterion, "reduction", None)
    if isinstance(reduction, str):
        per_sample: Criterion = copy.copy(criterion)
        per_sample.reduction = "none"  # type: ignore[attr-defined]
    else:
        reduction = _reduction_keyword(criterion)
        per_sample = functools.partial(criterion, reduction="none") if isinstance(reduction, str) else criterion  # type: ignore[call-arg]
    if not isinstance(reduction, str):
        return criterion, "none"
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"lam is a vector, and how {_name(criterion)} reduces by {reduction!r} is not known: expected "
            f"{', '.join(REDUCTIONS)}; give it reduction='none' and reduce the result"
        )
    return per_sample, reduction


def _reduction_keyword(criterion: Criterion) -> Any:
    """The default of a ``reduction`` keyword; None where there is no such keyword."""
    try:
        parameters = inspect.signature(criterion).parameters
    except (TypeError, ValueError):  # some built-ins have no signature
        return None
    return parameters["reduction"].default if "reduction" in parameters else None


def _mean_divisor(criterion: Criterion, losses: Tensor, y: Tensor) -> Tensor:
    """The number that the criterion's own mean divides the sum of ``losses`` by."""
    weight, ignore_index = _option(criterion, "weight", None), _option(criterion, "ignore_index", -100)
    everything = losses.new_tensor(losses.numel())
    if y.is_floating_point() or isinstance(criterion, PLAIN_MEAN):
        return everything
    if not _is_cross_entropy(criterion):
        if weight is not None:
            raise ValueError(
                f"how {_name(criterion)} averages its class weights is not known: "
                "give it reduction='none' and average the result"
            )
        return everything
    kept = y != ignore_index
    weights = torch.ones_like(losses) if weight is None else weight.to(losses)[y.where(kept, 0)]
    return torch.where(kept, weights, 0.0).sum()


def _is_cross_entropy(criterion: Criterion) -> bool:
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    return isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) or function in (
        F.cross_entropy,
        F.nll_loss,
    )


def _option(criterion: Criterion, name: str, default: int | None) -> Any:
    """An option of a loss: a module's attribute or a partial's keyword."""
    if isinstance(criterion, functools.partial):
        return criterion.keywords.get(name, default)
    return getattr(criterion, name, default)


def _name(criterion: Criterion) -> str:
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    return getattr(function, "__name__", type(function).__name__)


def _check_path(a: Tensor, b: Tensor, lam: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"two codes need one shape to be mixed: got {list(a.shape)} and {list(b.shape)}")
    if lam.shape != a.shape[:1]:
        raise ValueError(f"lam needs one weight per code: got {list(lam.shape)} for {len(a)} codes")
