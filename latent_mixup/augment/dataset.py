"""LatentMixupDataset: a map-style data set whose samples are decoded mixes."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, get_worker_info

from latent_mixup.augment.base import (
    DrawKey,
    Mixer,
    MixKeywords,
    MixSettings,
    in_kind,
    long_lived,
    split_targets,
    with_shared_keywords,
)
from latent_mixup.augment.batches import OwnSamples
from latent_mixup.augment.showing import ShowsMixes
from latent_mixup.augment.sources import Named, check_dataset, pair_of, parts_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.images import MIN_IMAGES, check_size
from latent_mixup.labels import SampleError, random_states_kept, stacked_labels
from latent_mixup.policies import BankView, Draw, Teacher

if TYPE_CHECKING:
    from typing_extensions import Unpack

NUM_PROBES = 16
MAX_FRAMES = 12  # above a sample: the data sets around this one, and the loader that asks


@with_shared_keywords
class LatentMixupDataset(ShowsMixes, Dataset[Any]):
    """Wrap a data set: sample i is decoded from its own code, mixed with that of a drawn partner.

    Partners are drawn among the samples of ``dataset``; where this data set is asked through a ``Subset``, as
    ``random_split`` gives, among the samples of the ``Subset``. With a ``seed`` the draws of sample i depend on seed,
    epoch, rank and i alone: call ``set_epoch`` before each epoch. A sample without a code in the bank comes through as
    it is. A sample does not know its batch, so ``mode`` is ``"elem"`` here, and ``prob`` the probability of a sample to
    become a mix; ``balance`` is ``"batch"`` by nature, and the class of a sample that of its row. Targets have no batch
    dimension. For speed, and on an accelerator, use :class:`latent_mixup.LatentMixupLoader` instead.

    Args:
        dataset: ``dataset[i] -> (image, label)``, with further fields, or a dict of both; all but image and label come
            through as they are. The image is of the decoded images' size: a float tensor in any range, or uint8, PIL or
            an array, which come out as uint8 tensors ``[C, H, W]`` (an array of floats as floats), and so do mixes. The
            label is an int, or ``[num_classes]`` numbers. None: the bank alone is the data set, sample i is its row i,
            and samples that are not mixes are decoded unmixed.
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
        teacher = settings.policy.labels
        if dataset is None and isinstance(teacher, Teacher) and teacher.min_confidence:
            raise ValueError(
                f"a Teacher with min_confidence={teacher.min_confidence} leaves other samples as they are, and a bank "
                "alone has none: pass dataset="
            )
        if settings.balance == "classes":
            raise ValueError(
                'balance="classes" draws own rows, and here sample i is mixed from its own code: draw samples evenly, '
                "sampler=torch.utils.data.WeightedRandomSampler(...), or use LatentMixupLoader or LatentMixupCollate"
            )
        generator, bank = pair_of(generator, bank)
        if dataset is not None:
            check_dataset(dataset)
        self.dataset: Any = dataset
        self._length = len(bank if dataset is None else cast(Sized, dataset))
        self._own = OwnSamples(dataset, settings, generator.img_channels)
        self._row_of = None if dataset is None else self._find_rows(dataset, generator, bank, settings)
        coded = (
            torch.arange(len(bank), device="cpu") if self._row_of is None else self._row_of[self._row_of >= 0].unique()
        )
        rows = coded if len(coded) < len(bank) else None
        self._mixer = Mixer(generator, bank, settings, rows=rows, repeats_in=len(self))
        self._probes = self._choose_probes()
        self._narrowed: tuple[Any, BankView] | None = None

    @long_lived()
    def _find_rows(self, dataset: Any, generator: Generator, bank: LatentBank, settings: MixSettings) -> Tensor:
        """The bank's row of each sample, ``[N]`` int64, -1 where it has none; shared with worker processes."""
        rows: Tensor | None = bank.rows_of_data(dataset, generator, **settings.keys)
        if rows is None or not (rows >= 0).any():
            with random_states_kept():
                first = range(min(len(dataset), NUM_PROBES))  # where they are to blame, this finds the words
                stacked_labels([self._own.read(index).label for index in first], first)
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

    def __getitem__(self, index: int) -> Any:
        """One sample: image ``[C, H, W]``, target ``[num_classes]`` or ``(y_a, y_b, lam)``, and its further fields.

        Raises:
            SampleError: A sample has no image or no label, or one that cannot be used.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples, decoded in one batch: what a DataLoader calls."""
        return self._samples([self._index(index) for index in indices])

    @long_lived()
    def _samples(self, wanted: list[int]) -> list[Any]:
        self._check_range_once()
        view = self._view()
        plans = [self._plan(index, key, view) for index, key in zip(wanted, self._mixer.keys(wanted), strict=True)]
        mixed = [(index, plan) for index, plan in zip(wanted, plans, strict=True) if plan is not None]
        images, targets, used = self._decode([plan for _, plan in mixed])
        mixed = [each for each, is_used in zip(mixed, used, strict=True) if is_used]
        places = iter(used)
        made = [plan is not None and next(places) for plan in plans]
        mixes = iter(self._placed([index for index, _ in mixed], images, targets) if mixed else [])
        return [
            next(mixes) if is_mix else self._real(index, images) for index, is_mix in zip(wanted, made, strict=True)
        ]

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

    def _decode(self, plans: Sequence[Draw]) -> tuple[Tensor | None, list[Any], list[bool]]:
        """Images ``[k, C, H, W]`` on the CPU, None of none; their targets, one by one; and which plans they are of."""
        if not plans:
            return None, [], []
        images, pair, kept = self._mixer.decode(Draw.cat(plans))
        used = [kept is None] * len(plans)
        for place in [] if kept is None else kept.tolist():
            used[place * len(plans) // sum(map(len, plans))] = True
        targets = self._mixer.settings.mixed_targets(*pair, self._mixer.num_classes)
        return images.cpu(), split_targets(targets), used

    def _placed(self, indices: list[int], images: Tensor | None, targets: list[Any]) -> list[Any]:
        """Mixes as samples."""
        assert images is not None
        if self.dataset is None:
            return list(zip(images, targets, strict=True))
        return self._own.mixes(indices, images, targets)

    def _real(self, index: int, decoded: Tensor | None) -> Any:
        sample = self._own.read(index)
        if decoded is not None:
            check_size(sample.image[None], decoded)
        try:
            targets = self._mixer.unmixed(sample.image[None], sample.label[None])[1]
        except SampleError as cause:
            raise SampleError(f"sample {index}: {cause}") from None
        target = split_targets(targets)[0]
        return self._own.replaced(sample, target)

    def _check_range_once(self) -> None:
        """At first access, compare some samples with their own decodes; in one process."""
        worker = get_worker_info()
        if not len(self._probes) or self._mixer.range_checked or (worker is not None and worker.id != 0):
            return
        rows = self._rows_of(self._probes)
        with random_states_kept():  # a look that leaves no trace in the data set's augmentation
            decoded = self._mixer.decode_alone(rows).cpu()
            images = [self._own.read(index).image for index in self._probes.tolist()]
        for image in images:
            check_size(image[None], decoded)
        real = torch.stack(images)
        self._mixer.check_range(real, in_kind(decoded, real))

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
