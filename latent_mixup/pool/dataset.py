"""RenderedMixupDataset: a pool of decoded mixes as a data set, as fast as stored images."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from latent_mixup import sampling
from latent_mixup.augment.base import MixSettings, Target, TargetFormat, Transform, split_targets
from latent_mixup.augment.dataset import NUM_PROBES, read_sample
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.images import MIN_IMAGES, Moments, RangeMismatchWarning, check_size, from_uint8, range_mismatch
from latent_mixup.labels import check_labels
from latent_mixup.pool.files import Pool
from latent_mixup.pool.refresh import Refreshed

MAX_TARGETS = 16_000_000  # soft targets of 64 MB


class RenderedMixupDataset(Dataset[tuple[Tensor, Any]]):
    """The mixes that ``latent-mixup render`` has written: ``dataset[i] -> (image, target)``.

    Images are read by mmap and augmented anew each time they are asked for. Alone, sample i is the pool's entry i and
    an epoch is the pool. With ``dataset``, an epoch has its length: sample i is a drawn entry of the pool with
    probability ``prob``, else the data set's own; which one depends on seed, epoch and i alone, so call ``set_epoch``
    before each epoch. Works in any DataLoader worker: nothing is decoded there.

    Args:
        folder: Folder of the pool.
        dataset: ``dataset[i] -> (image, label)``, the image a float ``[C, H, W]`` tensor of the pool's size after
            ``transform`` and ``normalize``, the label an int or soft; None: the pool alone.
        prob: Probability that a sample is a mix, where there is a ``dataset``.
        transform: Augmentation of a mix, a float32 ``[C, H, W]`` tensor in [-1, 1].
        normalize: ``(mean, std)`` as ``v2.Normalize`` takes them, applied last; None: images stay in [-1, 1].
        num_classes: Width of the targets; None for the pool's.
        label_smoothing: Share of a target that is spread over all classes:
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        target_format: ``"soft"``: float32 ``[num_classes]``; ``"pair"``: ``(y_a, y_b, lam)``, with soft labels where
            the pool has them.
        seed: Names the draws of entries; None for ``torch.initial_seed()``.
        refresh: Share of the pool that is decoded anew while an epoch is trained on, and replaces the older entries at
            the next ``set_epoch``: 1/2, 1/3, ... or the nearest of these. 0: the pool stays. A thread of this process
            decodes into temporary files, the same in every run and rank; the pool's files stay.
        generator: Decodes the refreshed entries, on its device.
        bank: The codes that are mixed for ``refresh``.
        verify: Read the pool once and compare its SHA-256.

    Raises:
        FileNotFoundError: The folder holds no finished pool.
        PoolFormatError: The pool is damaged.
        ValueError: A setting is out of range, or the pool was not made with this generator and bank.

    Example:
        >>> loader = DataLoader(RenderedMixupDataset("pool"), 64, shuffle=True)  # doctest: +SKIP
        >>> images, targets = next(iter(loader))  # doctest: +SKIP
        >>> images.shape, targets.shape  # doctest: +SKIP
        (torch.Size([64, 1, 28, 28]), torch.Size([64, 10]))
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dataset: Dataset[Any] | Sequence[Any] | None = None,
        prob: float = 1.0,
        transform: Transform | None = None,
        normalize: tuple[Moments, Moments] | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        target_format: TargetFormat = "soft",
        seed: int | None = None,
        refresh: float = 0.0,
        generator: Generator | None = None,
        bank: LatentBank | None = None,
        verify: bool = False,
    ) -> None:
        self.settings = MixSettings(
            prob=prob,
            transform=transform,
            normalize=normalize,
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            target_format=target_format,
            seed=seed,
        )
        if dataset is None and prob != 1:
            raise ValueError(f"prob={prob} needs dataset=, where the other samples come from")
        self._pool = Pool(Path(folder).absolute(), verify=verify)
        self.num_classes = self._pool.index.num_classes if num_classes is None else num_classes
        for name in ("labels_a", "labels_b"):
            check_labels(self._pool.columns[name], self.num_classes)
        self.seed = torch.initial_seed() if seed is None else seed
        self.dataset: Any = dataset
        self._length = len(cast(Sized, dataset)) if dataset is not None else self._pool.index.num_images
        # Shared with worker processes, persistent ones included: [epoch, whether the range was checked].
        self._shared = torch.zeros(2, dtype=torch.int64, device="cpu").share_memory_()
        wanted = refresh or generator is not None or bank is not None
        self._refreshed = Refreshed(self._pool, refresh, generator, bank) if wanted else None
        self._planned: tuple[int, Tensor] | None = None
        self._soft: Tensor | None = None

    @property
    def images_uint8(self) -> Tensor:
        """The pool's images as they were rendered, ``[N, C, R, R]`` uint8, mmapped; without refreshed ones."""
        return self._pool.images

    def images(self, entries: Tensor) -> Tensor:
        """Images of some entries of the pool in this epoch: ``[B, C, R, R]`` uint8."""
        images = self._pool.images[entries]
        return images if self._refreshed is None else self._refreshed.images(entries, images, self.epoch)

    def targets(self, entries: Tensor) -> Target:
        """Targets of some entries of the pool in this epoch: see :data:`latent_mixup.augment.base.Target`."""
        columns = [self._pool.columns[name] for name in ("labels_a", "labels_b", "lam")]
        fits = self._pool.index.num_images * self.num_classes <= MAX_TARGETS
        if self._refreshed is None and self.settings.target_format == "soft" and fits:
            if self._soft is None:  # the targets of the whole pool, made once
                self._soft = cast(Tensor, self._targets(columns))
            return self._soft[entries]
        columns = [column[entries] for column in columns]
        return self._targets(self._refreshed.columns(entries, columns, self.epoch) if self._refreshed else columns)

    def _targets(self, columns: list[Tensor]) -> Target:
        labels_a, labels_b, lam = columns
        return self.settings.mixed_targets(labels_a, labels_b, lam, self.num_classes)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what another process makes for itself."""
        return {**self.__dict__, "_soft": None, "_planned": None}

    @property
    def epoch(self) -> int:
        """The last argument of :meth:`set_epoch`, in every process that holds a copy."""
        return int(self._shared[0])

    def set_epoch(self, epoch: int) -> None:
        """Draw entries anew and take in refreshed ones; reaches worker processes, persistent ones included.

        Waits for entries that this epoch needs and that are not decoded yet; then starts on those of the next.
        """
        if self._refreshed is not None:
            self._refreshed.prepare(epoch)
        self._shared[0] = epoch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """One sample: image ``[C, H, W]``, target ``[num_classes]`` or ``(y_a, y_b, lam)``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """Several samples, read in one batch: what a DataLoader calls."""
        wanted = [self._index(index) for index in indices]
        numbers = torch.tensor(wanted, dtype=torch.int64, device="cpu")
        if self.dataset is None:
            return self._mixes(numbers)
        if self.settings.prob:
            self._check_range_once()
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._plan(self.epoch)
        entries = self._planned[1][numbers]
        mixes = iter(self._mixes(entries[entries >= 0]))
        return [
            next(mixes) if entry >= 0 else self._real(index)
            for index, entry in zip(wanted, entries.tolist(), strict=True)
        ]

    def _index(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} is out of range for a data set of {len(self)}")
        return number % len(self)

    def _plan(self, epoch: int) -> Tensor:
        """The pool's entry for each sample in an epoch; -1: the data set's own."""
        draw = sampling.keyed_generator("pool-entries", self.seed, epoch)
        entries = torch.randint(self._pool.index.num_images, (len(self),), generator=draw, device="cpu")
        u = torch.rand(len(self), generator=draw, dtype=torch.float32, device="cpu")
        return torch.where(u < self.settings.prob, entries, -1)

    def _mixes(self, entries: Tensor) -> list[tuple[Tensor, Any]]:
        if not len(entries):
            return []
        images = self.settings.finished(from_uint8(self.images(entries)))
        return list(zip(images, split_targets(self.targets(entries)), strict=True))

    def _real(self, index: int) -> tuple[Tensor, Any]:
        image, label = read_sample(self.dataset, index)
        soft = self._pool.columns["labels_a"].is_floating_point()
        return image, split_targets(self.settings.own_targets(label[None], self.num_classes, soft=soft))[0]

    def _check_range_once(self) -> None:
        """At first access, compare some samples of the data set with some of the pool; in one process."""
        worker = get_worker_info()
        if self._shared[1] or len(self) < MIN_IMAGES or (worker is not None and worker.id != 0):
            return
        self._shared[1] = 1
        entries, indices = (
            torch.linspace(0, n - 1, NUM_PROBES, dtype=torch.float64, device="cpu").long()
            for n in (len(self.images_uint8), len(self))
        )
        with torch.random.fork_rng(devices=[]):  # a look that leaves no trace in the augmentation
            mixes = torch.stack([image for image, _ in self._mixes(entries)])
            real = [read_sample(self.dataset, index)[0] for index in indices.tolist()]
        for image in real:
            check_size(image[None], mixes)
        message = range_mismatch(torch.stack(real), mixes)
        if message is not None:
            warnings.warn(message, RangeMismatchWarning, stacklevel=4)
