"""LatentMixupCollate: replaces part of a batch by decoded mixes, as a collate_fn or after the loader."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from latent_mixup.augment.base import Mixer, MixSettings, TargetFormat, Transform
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.images import Moments
from latent_mixup.labels import hard_labels
from latent_mixup.policies import Policy
from latent_mixup.sampling import Mode

NUM_PROBES = 4096


class LatentMixupCollate:
    """A ``collate_fn`` over any data set of ``(image, label)``, the label an int or a soft one, a tensor.

    Or, as torchvision's ``v2.MixUp`` is, a call after the loader: ``images, targets = mixup(images, labels)``.
    A share ``prob`` of each batch is replaced by mixes drawn from the bank. What is drawn depends on seed,
    epoch, rank and on the batch itself, so neither on the number of workers nor on where a run was resumed
    (as long as the data set's own images do not depend on them). Decodes where it is called: in a worker
    process on the CPU only, so on an accelerator use :class:`latent_mixup.LatentMixupLoader`.

    Args:
        generator: Decodes the bank's codes.
        bank: Codes and labels.
        collate_fn: Makes ``(images, labels)`` of a list of samples.
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        prob: Share of the batch that becomes mixes. None: that of a policy given by name, else all.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        policy: How a mix is made, in place of ``alpha``, ``mode`` and ``path``: see :mod:`latent_mixup.policies`; or a
            name, ``"robust"`` or ``"paper"``.
        num_classes: Width of the targets; None for the bank's.
        label_smoothing: Share of a target that is spread over all classes:
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        transform: What happens to a decoded image, a float32 ``[C, H, W]`` tensor in [-1, 1].
        normalize: ``(mean, std)`` that the data set's images were normalised with, as ``v2.Normalize`` takes them;
            decoded images get it last. None: they stay in [-1, 1].
        target_format: ``"soft"``: float32 ``[B, num_classes]``; ``"pair"``: ``(y_a, y_b, lam)``, where bank or
            batch has soft labels with these.
        seed: Names all draws; None for ``torch.initial_seed()``.
        rank: Names them as well; None for this process's, so that ranks draw differently. The same number in all of
            them: they draw the same.

    Attributes:
        mixup_enabled: timm's switch. False: the data set's own images with their own labels as targets; reaches worker
            processes.

    Raises:
        ValueError: A setting is out of range, a row of the bank has no label, or bank and generator do not
            belong together.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> mixup = LatentMixupCollate(generator, bank, prob=0.5)  # doctest: +SKIP
        >>> images, targets = next(iter(DataLoader(dataset, 64, collate_fn=mixup)))  # doctest: +SKIP
        >>> images.shape, targets.shape  # doctest: +SKIP
        (torch.Size([64, 1, 28, 28]), torch.Size([64, 10]))
    """

    def __init__(
        self,
        generator: Generator,
        bank: LatentBank,
        *,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        alpha: float = 1.0,
        prob: float | None = None,
        mode: Mode = "elem",
        path: PathName | None = None,
        policy: Policy | str | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        transform: Transform | None = None,
        normalize: tuple[Moments, Moments] | None = None,
        target_format: TargetFormat = "soft",
        seed: int | None = None,
        rank: int | None = None,
    ) -> None:
        settings = MixSettings(
            alpha=alpha,
            prob=prob,
            mode=mode,
            path=path,
            policy=policy,
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            transform=transform,
            normalize=normalize,
            target_format=target_format,
            seed=seed,
            rank=rank,
        )
        self.collate_fn = collate_fn
        self._mixer = Mixer(generator, bank, settings)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; reaches worker processes, persistent ones included."""
        self._mixer.epoch = epoch

    @property
    def mixup_enabled(self) -> bool:
        """The switch of timm's mixing."""
        return self._mixer.enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._mixer.enabled = enabled

    def __call__(self, samples: Any, labels: Tensor | None = None) -> tuple[Tensor, Any]:
        """A list of ``(image, label)``, or images and labels of a batch, to images ``[B, C, H, W]`` and their targets.

        Images and targets of a batch stay on their devices.
        """
        if labels is not None:
            return self._mix(samples, labels)
        batch = self.collate_fn(samples)
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise TypeError(f"collate_fn needs to return (images, labels): got {type(batch).__name__}")
        return self._mix(*batch)

    def _mix(self, images: Any, labels: Any) -> tuple[Tensor, Any]:
        if not self.mixup_enabled:
            return self._mixer.unmixed(images, labels)
        return self._mixer.blend(images, labels, self._mixer.key(_fingerprint(images, labels)))


def _fingerprint(images: Any, labels: Any) -> int:
    """CRC-32 of the classes and of some 4096 evenly spaced values of the images; 0 for what is no tensor."""
    checksum = 0
    if isinstance(labels, Tensor) and labels.ndim == 2:
        labels = hard_labels(labels)  # so that one-hot rows draw what class indices do
    for tensor in (labels, images):
        if isinstance(tensor, Tensor):
            values = tensor.detach().flatten()
            probe = values[:: max(1, len(values) // NUM_PROBES)].cpu().contiguous()
            checksum = zlib.crc32(probe.view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
