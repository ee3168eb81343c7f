"""RenderedMixupDataset: a pool of decoded mixes as a data set, as fast as stored images."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, get_worker_info

from latent_mixup import sampling
from latent_mixup.augment import base
from latent_mixup.augment.batches import OwnSamples
from latent_mixup.augment.dataset import NUM_PROBES
from latent_mixup.augment.sources import SplitWarning, check_dataset, parts_of
from latent_mixup.augment.transforms import Transform
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.images import MIN_IMAGES, Moments, RangeMismatchWarning, check_size, from_uint8, range_mismatch
from latent_mixup.labels import check_labels
from latent_mixup.policies.settings import checked
from latent_mixup.pool.files import Pool
from latent_mixup.pool.refresh import Refreshed, check_digest

MAX_TARGETS = 16_000_000  # soft targets of 64 MB


class RenderedMixupDataset(Dataset[Any]):
    """The mixes that ``latent-mixup render`` has written: ``dataset[i] -> (image, target)``.

    Images are read by mmap and augmented anew each time they are asked for. Alone, sample i is the pool's entry i and
    an epoch is the pool. With ``dataset``, an epoch has its length: sample i is a drawn entry of the pool with
    probability ``prob``, else the data set's own. Works in any DataLoader worker: nothing is decoded there.

    Args:
        folder: Folder of the pool.
        dataset: ``dataset[i] -> (image, label)``, as :class:`latent_mixup.LatentMixupDataset` takes it, the image of
            the pool's size after ``transform`` and ``normalize``; None: the pool alone. With ``bank``, only entries
            whose sources are all in it are drawn.
        prob: Probability that a sample is a mix, where there is a ``dataset``.
        transform: Augmentation of a mix, a float32 ``[C, H, W]`` tensor in [-1, 1].
        normalize: ``(mean, std)`` as ``v2.Normalize`` takes them, applied last; None: images stay in [-1, 1].
        num_classes: Width of the targets; None for the pool's.
        label_smoothing: Share of a target that is spread over all classes:
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        target_format: ``"soft"``: float32 ``[num_classes]``; ``"pair"``: ``(y_a, y_b, lam)``, with soft labels where
            the pool has them.
        seed: Names the draws of entries: they depend on seed, epoch and i, so call ``set_epoch`` before each epoch.
            None: every pass draws anew from torch's random state.
        refresh: Share of the pool that is decoded anew while an epoch is trained on, and replaces the older entries at
            the next ``set_epoch``: 1/2, 1/3, ... or the nearest of these. 0: the pool stays. A thread of this process
            decodes into temporary files, the same in every run and rank; the pool's files stay.
        generator: Decodes the refreshed entries, on its device.
        bank: The bank that the pool was made of: for ``refresh``, and to draw only entries of a ``dataset`` that is a
            part of the bank's.
        verify: Read the pool once and compare its SHA-256.

    Raises:
        FileNotFoundError: The folder holds no finished pool.
        PoolFormatError: The pool is damaged.
        TypeError: ``folder``, ``dataset``, ``generator`` or ``bank`` is another kind of object.
        ValueError: A setting is out of range, the pool was not made with this generator and bank, or no entry is of
            ``dataset`` alone.

    Warns:
        SplitWarning: ``dataset`` is a ``Subset``, and without ``bank`` it cannot be told which entries are of it alone.

    Example:
        >>> loader = DataLoader(RenderedMixupDataset("pool"), 64, shuffle=True)  # doctest: +SKIP
        >>> images, targets = next(iter(loader))  # doctest: +SKIP
        >>> images.shape, targets.shape  # doctest: +SKIP
        (torch.Size([64, 1, 28, 28]), torch.Size([64, 10]))
    """

    mixes_labels = True  # of the samples of `dataset`

    @base.long_lived()
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
        target_format: base.TargetFormat = "soft",
        seed: int | None = None,
        refresh: float = 0.0,
        generator: Generator | None = None,
        bank: LatentBank | None = None,
        verify: bool = False,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"folder needs to be the folder of a pool: got {type(folder).__name__}")
        if isinstance(prob, Mapping):
            raise TypeError("prob needs to be a number: a pool draws its entries whatever the class of the sample")
        if dataset is None and prob != 1:
            raise ValueError(f"prob={prob} needs dataset=, where the other samples come from")
        if dataset is not None:
            check_dataset(dataset)
        share = checked(float, refresh, "refresh")
        self.settings = base.MixSettings(
            prob=prob,
            transform=transform,
            normalize=normalize,
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            target_format=target_format,
            seed=seed,
        )
        self.dataset: Any = dataset
        self._pool = Pool(Path(folder).absolute(), verify=verify)
        self._own = OwnSamples(dataset, self.settings, self._pool.images.shape[1])
        self.num_classes = self._pool.index.num_classes if num_classes is None else num_classes
        for name in ("labels_a", "labels_b"):
            check_labels(self._pool.columns[name], self.num_classes)
        self._length = self._pool.index.num_images if dataset is None else len(cast(Sized, dataset))
        # Shared with worker processes, persistent ones included: [epoch, whether the range was checked].
        self._shared = torch.zeros(2, dtype=torch.int64, device="cpu").share_memory_()
        self._refreshed = Refreshed(self._pool, share, generator, bank) if share or generator is not None else None
        self._allowed = None if dataset is None else _entries_of(self._pool, dataset, generator, bank, share)
        self._repeats = base.Repeats(1 if dataset is None else self._length)
        self._planned: tuple[int, Tensor] | None = None
        self._soft: Tensor | None = None

    @property
    def images_uint8(self) -> Tensor:
        """The pool's images as they were rendered, ``[N, C, H, W]`` uint8, mmapped; without refreshed ones."""
        return self._pool.images

    def images(self, entries: Tensor) -> Tensor:
        """Images of some entries of the pool in this epoch: ``[B, C, H, W]`` uint8."""
        images = self._pool.images[entries]
        return images if self._refreshed is None else self._refreshed.images(entries, images, self.epoch)

    def targets(self, entries: Tensor) -> base.Target:
        """Targets of some entries of the pool in this epoch: see :data:`latent_mixup.augment.base.Target`."""
        columns = [self._pool.columns[name] for name in ("labels_a", "labels_b", "lam")]
        fits = self._pool.index.num_images * self.num_classes <= MAX_TARGETS
        if self._refreshed is None and self.settings.target_format == "soft" and fits:
            if self._soft is None:  # the targets of the whole pool, made once
                self._soft = cast(Tensor, self._targets(columns))
            return self._soft[entries]
        columns = [column[entries] for column in columns]
        return self._targets(self._refreshed.columns(entries, columns, self.epoch) if self._refreshed else columns)

    def _targets(self, columns: list[Tensor]) -> base.Target:
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
        if epoch != self.epoch:
            self._repeats.forget()
        self._shared[0] = epoch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        """One sample: image ``[C, H, W]``, target ``[num_classes]`` or ``(y_a, y_b, lam)``, and its further fields."""
        return self.__getitems__([index])[0]

    @base.long_lived()
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples, read in one batch: what a DataLoader calls."""
        wanted = [self._index(index) for index in indices]
        if self.dataset is None:
            images, targets = self._mixes(torch.tensor(wanted, dtype=torch.int64, device="cpu"))
            return list(zip(images, targets, strict=True))
        if self.settings.prob:
            self._check_range_once()
        entries = self._entries(wanted)
        drawn = entries >= 0
        replaced = [index for index, is_mix in zip(wanted, drawn.tolist(), strict=True) if is_mix]
        mixes = iter(self._own.mixes(replaced, *self._mixes(entries[drawn])) if replaced else [])
        return [
            next(mixes) if entry >= 0 else self._real(index)
            for index, entry in zip(wanted, entries.tolist(), strict=True)
        ]

    def _index(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} is out of range for a data set of {len(self)}")
        return number % len(self)

    def _entries(self, wanted: list[int]) -> Tensor:
        """The pool's entry for each sample; -1: the data set's own."""
        if self.settings.seed is None:
            return self._drawn(len(wanted), sampling.fresh_seeds(1)[0])
        if self._repeats.note(wanted):
            base.warn_of_repeats(self.epoch, stacklevel=5)
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._drawn(len(self), self.settings.seed, self.epoch)
        return self._planned[1][torch.tensor(wanted, dtype=torch.int64, device="cpu")]

    def _drawn(self, n: int, *key: int) -> Tensor:
        stream = sampling.keyed_generator("pool-entries", *key)
        most = self._pool.index.num_images if self._allowed is None else len(self._allowed)
        entries = torch.randint(most, (n,), generator=stream, device="cpu")
        u = torch.rand(n, generator=stream, dtype=torch.float32, device="cpu")
        return torch.where(u < self.settings.prob, entries if self._allowed is None else self._allowed[entries], -1)

    def _mixes(self, entries: Tensor) -> tuple[Tensor, list[Any]]:
        """Images of entries, ``[k, C, H, W]``, and their targets, one by one."""
        if not len(entries):
            return torch.empty(0, dtype=torch.float32, device="cpu"), []
        return self.settings.finished(from_uint8(self.images(entries))), base.split_targets(self.targets(entries))

    def _real(self, index: int) -> Any:
        sample = self._own.read(index)
        soft = self._pool.columns["labels_a"].is_floating_point()
        target = base.split_targets(self.settings.own_targets(sample.label[None], self.num_classes, soft=soft))[0]
        return self._own.replaced(sample, target)

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
            mixes, _ = self._mixes(entries)
            images = [self._own.read(index).image for index in indices.tolist()]
        for image in images:
            check_size(image[None], mixes)
        real = torch.stack(images)
        message = range_mismatch(real, base.in_kind(mixes, real))
        if message is not None:
            warnings.warn(message, RangeMismatchWarning, stacklevel=4)


def _entries_of(
    pool: Pool, dataset: object, generator: Generator | None, bank: LatentBank | None, refresh: float
) -> Tensor | None:
    """Entries of a pool that are mixes of a data set's own images, as far as it can be told, int64; None: all."""
    if pool.index.made_with["policy"].get("prior"):  # no image of the bank is in a fresh one
        return None
    if bank is None:
        if any(isinstance(part, Subset) for part in parts_of(dataset)):
            warnings.warn(
                "it cannot be told which mixes of the pool are of images of this Subset alone, so all are drawn, those "
                "of held-out images included: pass bank=, or render the pool from bank.subset(bank.rows_for(dataset))",
                SplitWarning,
                stacklevel=4,
            )
        return None
    check_digest(pool, "bank", bank.digest())
    rows = bank.rows_of_data(dataset, generator)
    if rows is None:
        raise ValueError(
            f"it cannot be told which rows of the bank are the samples of this {type(dataset).__name__}: pass the data "
            "set that the bank was made of, or a torch.utils.data.Subset of it"
        )
    inside = torch.isin(pool.columns["sources"], rows[rows >= 0]).all(1)
    if not inside.any() or (refresh and not inside.all()):
        what = "its refreshed entries would be as well" if inside.any() else "none is of these images alone"
        raise ValueError(
            f"{int((~inside).sum())} of the pool's {len(inside)} mixes are of images outside this data set, and "
            f"{what}: render the pool from bank.subset(bank.rows_for(dataset))"
        )
    return None if inside.all() else inside.nonzero()[:, 0]
