"""What LatentMixupDataset, LatentMixupCollate and LatentMixupLoader share: settings, checks, one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from latent_mixup import sampling
from latent_mixup.augment.decoder import Decoder
from latent_mixup.bank import LatentBank
from latent_mixup.functional import mix_targets, soft_targets
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.images import (
    MIN_IMAGES,
    ImageFormat,
    Moments,
    RangeMismatchWarning,
    check_size,
    moments_of,
    normalized,
    range_mismatch,
)
from latent_mixup.interpolation import path_named
from latent_mixup.labels import check_labels
from latent_mixup.policies import Beta, Draw, Policy, Rows, named
from latent_mixup.policies.policy import LabelPair
from latent_mixup.sampling import Mode

Transform: TypeAlias = Callable[[Tensor], Tensor]
TargetFormat: TypeAlias = Literal["soft", "pair"]
Target: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor]
"""Soft targets ``[B, num_classes]``; or ``(y_a, y_b, lam)``, ``[B]`` each, soft labels ``[B, num_classes]``."""


@dataclass(frozen=True)
class MixSettings:
    """The keywords that the three wrappers share.

    Attributes:
        alpha: ``lam`` is drawn from Beta(alpha, alpha); above 0.
        prob: Share of samples that are decoded mixes, in [0, 1]; the rest are the data set's own. None: that of a
            policy given by name, else 1.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch as in the paper.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        policy: How a mix is made, or a name of :data:`latent_mixup.policies.NAMED`; None: as ``alpha``, ``mode`` and
            ``path`` say.
        num_classes: Width of the targets; None for the bank's, and not another where that has soft labels.
        label_smoothing: Share of a target that is spread over all classes, in [0, 1):
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        transform: What happens to a decoded image: a callable on one float32 ``[C, H, W]`` tensor in [-1, 1].
        normalize: ``(mean, std)`` of the data set's own images, as ``v2.Normalize`` takes them after [0, 1]: one number
            each, or one a channel. Decoded images get it last; None: they stay in [-1, 1].
        target_format: ``"soft"``, or ``"pair"`` for :func:`latent_mixup.mixup_criterion`.
        seed: Names all draws; None for ``torch.initial_seed()``, the number last given to
            ``torch.manual_seed``.
        rank: Names them as well; None for this process's, so that ranks draw differently. The same number in all of
            them: they draw the same.
        followed: The policy in use.
        share: The ``prob`` in use.

    Raises:
        ValueError: A setting is out of its range, or is given beside a policy that has one of its own.
    """

    alpha: float = 1.0
    prob: float | None = None
    mode: Mode = "elem"
    path: PathName | None = None
    policy: Policy | str | None = None
    num_classes: int | None = None
    label_smoothing: float = 0.0
    transform: Transform | None = None
    normalize: tuple[Moments, Moments] | None = None
    target_format: TargetFormat = "soft"
    seed: int | None = None
    rank: int | None = None
    followed: Policy = field(init=False)
    share: float = field(init=False)

    def __post_init__(self) -> None:
        by_name = named(self.policy) if isinstance(self.policy, str) else None
        own = self.policy if isinstance(self.policy, Policy) else Policy(Beta(self.alpha, self.mode), path=self.path)
        share = by_name.prob if by_name else 1.0
        object.__setattr__(self, "followed", by_name.policy if by_name else own)
        object.__setattr__(self, "share", share if self.prob is None else self.prob)
        sampling.check_prob(self.share)
        if self.policy is not None and (self.alpha, self.mode, self.path) != (1.0, "elem", None):
            given = f"alpha={self.alpha}, mode={self.mode!r}, path={self.path!r}"
            raise ValueError(
                f"alpha, mode and path are parts of a policy: got {given} beside policy=; "
                "say Policy(weights=Beta(alpha, mode), path=path)"
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes needs to be at least 1: got {self.num_classes}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing needs to be in [0, 1): got {self.label_smoothing}")
        if self.transform is not None and not callable(self.transform):
            raise ValueError(f"transform needs to be a callable on one image: got {self.transform!r}")
        if self.normalize is not None:
            moments_of(self.normalize)
        if self.target_format not in ("soft", "pair"):
            raise ValueError(f'target_format needs to be "soft" or "pair": got {self.target_format!r}')
        if self.label_smoothing and self.target_format == "pair":
            raise ValueError(
                'label_smoothing belongs to the criterion with target_format="pair": '
                f"use nn.CrossEntropyLoss(label_smoothing={self.label_smoothing})"
            )


class Mixer:
    """Decodes mixes of bank rows and blends them into batches; checks early what can be checked early.

    Args:
        generator: Decodes the bank's codes.
        bank: Codes and labels.
        settings: See :class:`MixSettings`.
        decoder: What decodes; None: the generator as it is.

    Attributes:
        seed: The seed in use.
        num_classes: Width of the targets.

    Raises:
        ValueError: The bank is empty, is another generator's, has a row without a label, or one outside
            ``num_classes``, or the policy cannot be followed with it.
    """

    def __init__(
        self, generator: Generator, bank: LatentBank, settings: MixSettings, decoder: Decoder | None = None
    ) -> None:
        if not len(bank):
            raise ValueError("the bank is empty: a mix needs at least one row")
        bank.check(generator)
        bank.check_labelled()
        self.generator, self.bank, self.settings = generator, bank, settings
        self.decoder = Decoder(generator) if decoder is None else decoder
        self._moments = None if settings.normalize is None else moments_of(settings.normalize)
        self.num_classes = bank.num_classes if settings.num_classes is None else settings.num_classes
        check_labels(bank.labels, self.num_classes)
        self.policy, self._rows = settings.followed, Rows(bank)
        self.policy.check(self._rows)
        self.path = path_named(self.policy.path or generator.preferred_path)
        self.seed = torch.initial_seed() if settings.seed is None else settings.seed
        self._rank = settings.rank
        # Shared with worker processes, persistent ones included: [epoch, whether the range was checked, on or off].
        self._shared = torch.tensor([0, 0, 1], dtype=torch.int64, device="cpu")
        self._shared.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that draws belong to, in every process that holds a copy."""
        return int(self._shared[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._shared[0] = epoch

    @property
    def enabled(self) -> bool:
        """Whether anything is mixed, in every process that holds a copy."""
        return bool(self._shared[2])

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._shared[2] = int(enabled)

    def key(self, *parts: int, epoch: int | None = None) -> tuple[int, ...]:
        """Name of a random stream: ``(seed, epoch, rank, *parts)``."""
        rank = sampling.default_rank() if self._rank is None else self._rank
        return (self.seed, self.epoch if epoch is None else epoch, rank, *parts)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker does not know its rank: it is told by the process that pickles this."""
        return {**self.__dict__, "_rank": sampling.default_rank() if self._rank is None else self._rank}

    def draw(self, batch_size: int, key: Sequence[int], rows: Tensor | None = None) -> Draw:
        """What happens to a batch, decided before anything is decoded.

        Args:
            batch_size: Number of samples in it.
            key: Names the draw, as :meth:`key` does.
            rows: The samples' own rows of the bank, ``[batch_size]``; None: they are drawn.
        """
        generator = sampling.keyed_generator("draws", *key)
        return self.policy.draw_batch(batch_size, self.settings.share, self._rows, generator, epoch=key[1], rows=rows)

    def decode(self, draw: Draw) -> tuple[Tensor, LabelPair]:
        """Decode mixes of bank rows, without gradients.

        Args:
            draw: What was decided about them; at least one.

        Returns:
            Images after the transform, ``[k, C, H, W]`` on the generator's device; two labels of each, ``[k]`` int64 or
            soft, ``[k, num_classes]``, and the weight of the first, ``[k]``.

        Raises:
            RuntimeError: A worker process would have to decode on an accelerator.
            ValueError: A code is NaN or infinite, or the transform does not return equal-sized tensors.
        """
        _refuse_in_worker(self.generator.device)
        codes, labels = self.bank[draw.sources.T.flatten()]
        by_source = (draw.sources.shape[1], len(draw))
        codes, labels = (each.unflatten(0, by_source).transpose(0, 1) for each in (codes, labels))
        latents = self.policy.mix(codes, draw, self._rows, self.path)
        if not latents.isfinite().all():
            raise ValueError("a code in the bank is NaN or infinite: open it with verify=True, or invert it again")
        decoded = self.policy.finish(self.decoder(latents), draw)
        parts = self.policy.label(labels, draw, self.num_classes, decoded)
        return finished(decoded, self.settings.transform, self._moments), parts

    def blend(self, images: Tensor, labels: Tensor, key: Sequence[int]) -> tuple[Tensor, Target]:
        """Replace a share ``prob`` of a batch by decoded mixes drawn from the bank.

        Args:
            images: The data set's own, ``[B, C, H, W]``, float in any range, on any device; not modified.
            labels: ``[B]`` integers, or soft, ``[B, num_classes]``, as from ``v2.MixUp``.
            key: Names the draw.

        Returns:
            Images, with shape, dtype and device of ``images``; targets on the device of ``labels``.

        Raises:
            TypeError: ``images`` or ``labels`` is no tensor of the right kind.
            ValueError: Sizes do not agree, or a label lies outside ``num_classes``.
        """
        return self.blend_all([(images, labels, key)])[0]

    def blend_all(self, batches: Sequence[tuple[Tensor, Tensor, Sequence[int]]]) -> list[tuple[Tensor, Target]]:
        """:meth:`blend` for each ``(images, labels, key)``; the mixes of all are decoded in one call.

        The draws are those of each batch alone, and so are the images, up to rounding.
        """
        for images, labels, _ in batches:
            _check_batch(images, labels)
        draws = [self.draw(len(images), key) for images, _, key in batches]
        sizes = [len(draw.slots) for draw in draws]
        if not any(sizes):
            return [self.unmixed(images, labels) for images, labels, _ in batches]
        decoded, (labels_a, labels_b, lam) = self.decode(Draw.cat(draws))
        targets: list[Target]
        if self.settings.target_format == "soft":
            soft = mix_targets(labels_a, labels_b, lam, self.num_classes, self.settings.label_smoothing)
            targets = [*soft.split(sizes)]
        else:
            pairs = zip(labels_a.split(sizes), labels_b.split(sizes), lam.split(sizes), batches, strict=True)
            targets = [self.targets(*pair, soft=self._is_soft(labels)) for *pair, (_, labels, _) in pairs]
        return [
            self._place(images, labels, draw, *mix)
            for (images, labels, _), draw, *mix in zip(batches, draws, decoded.split(sizes), targets, strict=True)
        ]

    def _place(
        self, images: Tensor, labels: Tensor, draw: Draw, decoded: Tensor, targets: Target
    ) -> tuple[Tensor, Target]:
        """One batch with its mixes in their slots."""
        decoded = decoded.to(images.device, images.dtype)
        check_size(images, decoded)
        self.check_range(images, decoded)
        if len(draw.slots) == len(images):  # all, in order
            check_labels(labels, self.num_classes)
            return decoded, _to_device(targets, labels.device)
        slots = draw.slots.to(labels.device)
        real = self._real_targets(labels, soft=self._is_soft(labels))
        return images.index_copy(0, draw.slots.to(images.device), decoded), _with_rows(real, slots, targets)

    def unmixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Target]:
        """The batch as it is, with its (smoothed) labels as soft targets, or with ``(labels, labels, 1)``."""
        return images, self._real_targets(labels, soft=self._is_soft(labels))

    def targets(self, labels_a: Tensor, labels_b: Tensor, lam: Tensor, *, soft: bool | None = None) -> Target:
        """Targets in the format asked for.

        Args:
            labels_a: ``[k]`` integers or soft labels ``[k, num_classes]``.
            labels_b: Those of the partners.
            lam: ``[k]``, weight of ``labels_a``.
            soft: Whether a pair has soft labels; None: where ``labels_a`` are soft.
        """
        return make_targets(
            labels_a,
            labels_b,
            lam,
            self.num_classes,
            label_smoothing=self.settings.label_smoothing,
            target_format=self.settings.target_format,
            soft=soft,
        )

    def _is_soft(self, labels: Tensor) -> bool:
        """Whether a pair has soft labels: where the bank or the batch has, or the policy makes them."""
        return self.policy.soft or self.bank.labels.is_floating_point() or labels.is_floating_point()

    def _real_targets(self, labels: Tensor, *, soft: bool) -> Target:
        return self.targets(labels, labels, torch.ones(len(labels), device=labels.device), soft=soft)

    def check_range(self, real: Tensor, decoded: Tensor) -> None:
        """At the first batch that is large enough, warn where real and decoded images differ in range.

        Where a small ``prob`` leaves too few decoded images, some more are decoded for this once.
        """
        if self.range_checked or len(real) < MIN_IMAGES:
            return
        self._shared[1] = 1
        if len(decoded) < MIN_IMAGES:
            rows = torch.linspace(0, len(self.bank) - 1, MIN_IMAGES, device="cpu").long()
            decoded = self.decode(Draw.alone(rows, self.policy.num_sources))[0]
        message = range_mismatch(real, decoded)
        if message is not None:
            warnings.warn(message, RangeMismatchWarning, stacklevel=3)

    @property
    def range_checked(self) -> bool:
        """Whether :meth:`check_range` has compared two batches, in any process that holds a copy."""
        return bool(self._shared[1])


def make_targets(
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    num_classes: int,
    *,
    label_smoothing: float,
    target_format: TargetFormat,
    soft: bool | None = None,
) -> Target:
    """Targets of mixes in the format asked for: see :meth:`Mixer.targets` and :class:`MixSettings`."""
    if target_format == "soft":
        return mix_targets(labels_a, labels_b, lam, num_classes, label_smoothing)
    if labels_a.is_floating_point() if soft is None else soft:
        return soft_targets(labels_a, num_classes), soft_targets(labels_b, num_classes), lam
    for labels in (labels_a, labels_b):
        check_labels(labels, num_classes)
    return labels_a.long(), labels_b.long(), lam


def _with_rows(targets: Target, slots: Tensor, rows: Target) -> Target:
    """Targets of a batch with others in some slots."""
    if isinstance(targets, Tensor):
        assert isinstance(rows, Tensor)
        return targets.index_copy(0, slots, rows.to(targets))
    y_a, y_b, lam = (old.index_copy(0, slots, new.to(old)) for old, new in zip(targets, rows, strict=True))
    return y_a, y_b, lam


def _to_device(targets: Target, device: torch.device) -> Target:
    if isinstance(targets, Tensor):
        return targets.to(device)
    y_a, y_b, lam = (part.to(device) for part in targets)
    return y_a, y_b, lam


def _refuse_in_worker(device: torch.device) -> None:
    if device.type != "cpu" and torch.utils.data.get_worker_info() is not None:
        raise RuntimeError(
            f"a DataLoader worker cannot decode on {device}: use LatentMixupLoader, "
            "which decodes in the main process, or num_workers=0"
        )


def finished(images: Tensor, transform: Transform | None, moments: ImageFormat | None) -> Tensor:
    """Decoded images ``[k, C, H, W]`` in [-1, 1] as the classifier gets them: transformed, then normalised.

    Raises:
        ValueError: The transform does not return equal-sized tensors, or ``moments`` are of other channels.
    """
    changed = images if transform is None else _transformed(images, transform)
    return changed if moments is None else normalized(changed, moments)


def _transformed(images: Tensor, transform: Transform) -> Tensor:
    changed = [transform(image) for image in images]
    for image in changed:
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"transform needs to return a float tensor [C, H, W]: got {found}")
        if image.shape != changed[0].shape:
            raise ValueError(
                f"transform needs to return one size for all images: got {list(changed[0].shape)} "
                f"and {list(image.shape)}; end it with v2.Resize((H, W))"
            )
    return torch.stack(changed)


def _check_batch(images: object, labels: object) -> None:
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"a batch needs to be (images, labels), two tensors: got {type(images).__name__} "
            f"and {type(labels).__name__}; soft labels need to be tensors as well"
        )
    if not images.is_floating_point():
        raise TypeError(f"images need a float dtype: got {images.dtype}; add v2.ToDtype(torch.float32, scale=True)")
    if images.ndim != 4:
        raise ValueError(f"images need shape [B, C, H, W]: got {list(images.shape)}")
    if len(images) != len(labels):
        raise ValueError(f"a batch needs one label per image: got {len(labels)} for {len(images)} images")
