"""LatentMixupDataset: a map-style data set whose samples are decoded mixes."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, get_worker_info

from latent_mixup.augment.base import (
    DrawKey,
    Mixer,
    MixKeywords,
    MixSettings,
    long_lived,
    split_targets,
    with_shared_keywords,
)
from latent_mixup.augment.showing import show_mixes
from latent_mixup.augment.sources import Named, check_dataset, pair_of, parts_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.images import MIN_IMAGES, check_size
from latent_mixup.labels import MISSING, read_label
from latent_mixup.pictures import notebook_png
from latent_mixup.policies import BankView, Draw

if TYPE_CHECKING:
    from typing_extensions import Unpack

NUM_PROBES = 16
MAX_FRAMES = 12  # above a sample: the data sets around this one, and the loader that asks


@with_shared_keywords
class LatentMixupDataset(Dataset[tuple[Tensor, Any]]):
    """Wrap a data set: sample i is decoded from its own code, mixed with that of a drawn partner.

    Partners are drawn among the samples of ``dataset``; where this data set is asked through a ``Subset``, as
    ``random_split`` gives, among the samples of the ``Subset``. With a ``seed`` the draws of sample i depend on seed,
    epoch, rank and i alone: call ``set_epoch`` before each epoch. A sample without a code in the bank comes through as
    it is. A sample does not know its batch, so ``mode`` is ``"elem"`` here; targets have no batch dimension. For speed,
    and on an accelerator, use :class:`latent_mixup.LatentMixupLoader` instead.

    Args:
        dataset: ``dataset[i] -> (image, label)``, the image a float ``[C, H, W]`` tensor of the decoded images'
            size, the label an int or soft, ``[num_classes]`` floats. None: the bank alone is the data set, sample i is
            its row i, and samples that are not mixes are decoded unmixed.
        generator: Decodes the bank's codes; or the name of generator and bank, such as ``"fashion-mnist"``, a folder
            that ``fit`` made, or a Hub id.
        bank: The codes of ``dataset``, or of a data set that it is a part of; or their name.
        shared: See :class:`latent_mixup.augment.base.MixKeywords`.

    Raises:
        TypeError: A keyword is unknown, or an argument is of another kind.
        ValueError: A setting is out of range, a row of the bank has no label, or data set, bank and generator do not
            belong together.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> image, target = LatentMixupDataset(dataset, generator, bank)[0]  # doctest: +SKIP
        >>> image.shape, target.shape  # doctest: +SKIP
        (torch.Size([1, 28, 28]), torch.Size([10]))
    """

    mixes_labels = True  # of the samples of `dataset`

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any] | None,
        generator: Named[Generator],
        bank: Named[LatentBank] | None = None,
        **shared: Unpack[MixKeywords],
    ) -> None:
        settings = MixSettings(**shared)
        if settings.policy.by_batch:
            raise ValueError(
                'mode="batch" needs a batch, and a data set gives one sample at a time: '
                "use LatentMixupLoader or LatentMixupCollate"
            )
        generator, bank = pair_of(generator, bank)
        if dataset is not None:
            check_dataset(dataset)
        self.dataset: Any = dataset
        self._length = len(bank if dataset is None else cast(Sized, dataset))
        self._row_of = None if dataset is None else self._find_rows(dataset, generator, bank)
        coded = (
            torch.arange(len(bank), device="cpu") if self._row_of is None else self._row_of[self._row_of >= 0].unique()
        )
        rows = coded if len(coded) < len(bank) else None
        self._mixer = Mixer(generator, bank, settings, rows=rows, repeats_in=len(self))
        self._probes = self._choose_probes()
        self._narrowed: tuple[Any, BankView] | None = None

    @long_lived()
    def _find_rows(self, dataset: Any, generator: Generator, bank: LatentBank) -> Tensor:
        """The bank's row of each sample, ``[N]`` int64, -1 where it has none; shared with worker processes."""
        rows: Tensor | None = bank.rows_of_data(dataset, generator)
        if rows is None or not (rows >= 0).any():
            raise ValueError(
                f"it cannot be told which rows of the bank are the samples of this {type(dataset).__name__} "
                f"of {len(dataset)}: pass the data set that the bank was made of, or a torch.utils.data.Subset of it"
            )
        rows.share_memory_()
        return rows

    def _rows_of(self, indices: Tensor) -> Tensor:
        """The bank's row of some samples, -1 where it has none."""
        return indices if self._row_of is None else self._row_of[indices]

    def __repr__(self) -> str:
        return f"LatentMixupDataset({self._mixer})"

    def show(self) -> Image.Image:
        """A picture of sixteen mixes of its bank's rows, with their classes, as notebooks show it.

        Raises:
            ValueError: The images are neither grey nor RGB.
        """
        return show_mixes(self._mixer)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: :meth:`show`."""
        return notebook_png(self.show)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process finds for itself."""
        return {**self.__dict__, "_narrowed": None}

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch for draws with a ``seed``, here and for ``dataset``; reaches worker processes."""
        self._mixer.epoch = epoch
        for part in parts_of(self.dataset):
            if callable(forward := getattr(part, "set_epoch", None)):
                forward(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """One sample: image ``[C, H, W]``, target ``[num_classes]`` or ``(y_a, y_b, lam)``.

        Raises:
            ValueError: A sample that comes through as it is has no label.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """Several samples, decoded in one batch: what a DataLoader calls."""
        return self._samples([self._index(index) for index in indices])

    @long_lived()
    def _samples(self, wanted: list[int]) -> list[tuple[Tensor, Any]]:
        self._check_range_once()
        view = self._view()
        plans = [self._plan(index, key, view) for index, key in zip(wanted, self._mixer.keys(wanted), strict=True)]
        decoded = self._decode([plan for plan in plans if plan is not None])
        fresh = iter(decoded)
        samples = [
            self._real(index) if plan is None else next(fresh) for index, plan in zip(wanted, plans, strict=True)
        ]
        for image, _ in samples if decoded else []:
            check_size(image[None], decoded[0][0][None])
        return samples

    def _index(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} is out of range for a data set of {len(self)}")
        return number % len(self)

    def _plan(self, index: int, key: DrawKey, view: BankView) -> Draw | None:
        """The mix that sample ``index`` becomes; None where the data set's own comes through."""
        row = self._rows_of(torch.tensor([index], device="cpu"))
        if int(row) < 0:
            return None
        draw = self._mixer.draw(1, key, row, view)
        if len(draw):
            return draw
        return None if self.dataset is not None else Draw.alone(row, self._mixer.policy.num_sources)

    def _view(self) -> BankView:
        """The rows that partners are drawn from: of the samples in the ``Subset`` that asks, else of all."""
        around = _data_sets_around(self)
        if not any(isinstance(each, Subset) for each in around):
            return self._mixer.view
        outermost = around[-1]
        if self._narrowed is None or self._narrowed[0] is not outermost:
            indices, inside = list(range(len(outermost))), [self, *around[:-1]]
            for outer, inner in zip(reversed(around), reversed(inside), strict=True):
                if isinstance(outer, Subset):
                    indices = [int(outer.indices[index]) for index in indices]
                else:
                    place = outer.datasets.index(inner)
                    start = outer.cumulative_sizes[place] - len(inner)
                    indices = [index - start for index in indices if start <= index < outer.cumulative_sizes[place]]
            rows = self._rows_of(torch.tensor(indices, dtype=torch.int64, device="cpu"))
            view = BankView(self._mixer.bank, rows[rows >= 0].unique())
            self._mixer.policy.check(view)
            self._narrowed = outermost, view
        return self._narrowed[1]

    def _decode(self, plans: Sequence[Draw]) -> list[tuple[Tensor, Any]]:
        if not plans:
            return []
        images, pair = self._mixer.decode(Draw.cat(plans))
        targets = self._mixer.settings.mixed_targets(*pair, self._mixer.num_classes)
        return list(zip(images.cpu(), split_targets(targets), strict=True))

    def _real(self, index: int) -> tuple[Tensor, Any]:
        image, label = read_sample(self.dataset, index)
        if not label.ndim and label == MISSING:
            raise ValueError(
                f"sample {index} has no label, and no code to mix: leave it out, such as by "
                "sampler=SubsetRandomSampler(labelled_indices)"
            )
        return image, split_targets(self._mixer.unmixed(image[None], label[None])[1])[0]

    def _check_range_once(self) -> None:
        """At first access, compare some samples with their own decodes; in one process."""
        worker = get_worker_info()
        if not len(self._probes) or self._mixer.range_checked or (worker is not None and worker.id != 0):
            return
        rows = self._rows_of(self._probes)
        with torch.random.fork_rng(devices=[]):  # a look that leaves no trace in the data set's augmentation
            decoded = self._mixer.decode(Draw.alone(rows, self._mixer.policy.num_sources))[0].cpu()
            images = [read_sample(self.dataset, index)[0] for index in self._probes.tolist()]
        for image in images:
            check_size(image[None], decoded)
        self._mixer.check_range(torch.stack(images), decoded)

    def _choose_probes(self) -> Tensor:
        """Evenly spaced samples that have a code; none where there is nothing to compare."""
        coded = (
            torch.empty(0, dtype=torch.int64, device="cpu")
            if self._row_of is None
            else (self._row_of >= 0).nonzero()[:, 0]
        )
        if self._mixer.settings.prob == 0 or len(coded) < MIN_IMAGES:
            return coded[:0].clone()
        return coded[
            torch.linspace(0, len(coded) - 1, min(NUM_PROBES, len(coded)), dtype=torch.float64, device="cpu").long()
        ]


def _data_sets_around(dataset: Any) -> list[Any]:
    """``Subset`` and ``ConcatDataset`` objects through which a data set is being asked, from the innermost.

    torch does not tell a data set that it is asked through a ``Subset``, which may have been put around it long after
    it was made; the calling frames do.
    """
    around: list[Any] = []
    frame = sys._getframe(1)
    for _ in range(MAX_FRAMES):
        if (above := frame.f_back) is None:
            break
        frame, caller, inner = above, above.f_locals.get("self"), around[-1] if around else dataset
        of_it = isinstance(caller, Subset) and caller.dataset is inner
        if of_it or (isinstance(caller, ConcatDataset) and any(each is inner for each in caller.datasets)):
            around.append(caller)
    return around


def read_sample(dataset: Any, index: int) -> tuple[Tensor, Tensor]:
    """``dataset[index]`` as a float image, and a label as :func:`read_label` gives it, or a clear error."""
    sample = dataset[index]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise TypeError(
            f"sample {index} needs to be (image, label): got {type(sample).__name__}; dicts and further fields go "
            "through LatentMixupLoader and LatentMixupCollate"
        )
    image, label = sample
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"the image of sample {index} needs to be a float tensor [C, H, W]: got {found}; "
            "give the data set v2.ToImage() and v2.ToDtype(torch.float32, scale=True)"
        )
    try:
        return image, read_label(label)
    except (TypeError, ValueError) as cause:
        raise type(cause)(f"sample {index}: {cause}") from None
