"""LatentMixupCollate: replaces part of a batch by decoded mixes, as a ``collate_fn`` or after the loader."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from latent_mixup.augment.base import Mixer, MixKeywords, MixSettings, batch_labels, is_pair, with_shared_keywords
from latent_mixup.augment.batches import fields_of
from latent_mixup.augment.showing import show_mixes
from latent_mixup.augment.sources import Named, check_dataset, pair_of, rows_to_mix
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.labels import hard_labels
from latent_mixup.pictures import notebook_png

if TYPE_CHECKING:
    from typing_extensions import Unpack

NUM_PROBES = 4096
NUM_REMEMBERED = 2**16  # batches of an epoch, of which repeated ones are noticed


@with_shared_keywords
class LatentMixupCollate:
    """A ``collate_fn`` over any data set of ``(image, label)``; the label is an int, or a tensor of soft labels.

    It is also a call after the loader, as torchvision's ``v2.MixUp`` is: ``images, targets = mixup(images, labels)``.
    A share ``prob`` of each batch is replaced by mixes drawn from the bank: from the rows of ``dataset``, where that is
    given. With a ``seed`` the draws depend on seed, epoch, rank and the batch itself, so neither on the number of
    workers nor on where a run was resumed (as long as the data set's own images do not). Decodes where it is called, in
    a worker process on the CPU only: on an accelerator use :class:`latent_mixup.LatentMixupLoader`.

    Args:
        generator: Decodes the bank's codes; or the name of generator and bank, such as ``"fashion-mnist"``, a folder
            that ``fit`` made, or a Hub id.
        bank: Codes and labels, or their name.
        dataset: The data set that is trained on, such as a ``Subset``: its images alone are mixed. None: any row of the
            bank is mixed, and a warning says so unless the bank comes from ``bank.subset``.
        collate_fn: Makes a batch of a list of samples: ``(images, labels)``, a dict, or more fields.
        shared: See :class:`latent_mixup.augment.base.MixKeywords`.

    Attributes:
        mixup_enabled: timm's switch. False gives the data set's own images with targets of their own labels; reaches
            worker processes.

    Raises:
        TypeError: A keyword is unknown, or an argument is of another kind.
        ValueError: A setting is out of range, a row of the bank has no label, or bank and generator do not belong
            together, or ``dataset`` is not the bank's.

    Warns:
        SplitWarning: It cannot be told which rows may be mixed.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> mixup = LatentMixupCollate(generator, bank, dataset=dataset, prob=0.5)  # doctest: +SKIP
        >>> images, targets = next(iter(DataLoader(dataset, 64, collate_fn=mixup)))  # doctest: +SKIP
        >>> images.shape, targets.shape  # doctest: +SKIP
        (torch.Size([64, 1, 28, 28]), torch.Size([64, 10]))
    """

    def __init__(
        self,
        generator: Named[Generator],
        bank: Named[LatentBank] | None = None,
        *,
        dataset: Any = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        **shared: Unpack[MixKeywords],
    ) -> None:
        self.collate_fn = collate_fn
        generator, bank = pair_of(generator, bank)
        if dataset is not None:
            check_dataset(dataset)
        rows = rows_to_mix(bank, generator, dataset)
        self._mixer = Mixer(generator, bank, MixSettings(**shared), rows=rows, repeats_in=NUM_REMEMBERED)

    def __repr__(self) -> str:
        return f"LatentMixupCollate({self._mixer})"

    def show(self) -> Image.Image:
        """A picture of sixteen mixes of its bank's rows, with their classes, as notebooks show it.

        Raises:
            ValueError: The images are neither grey nor RGB.
        """
        return show_mixes(self._mixer)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: :meth:`show`."""
        return notebook_png(self.show)

    def to(self, device: torch.device | str) -> LatentMixupCollate:
        """Move the generator, for a call after the loader; decodes happen there, images stay where they are."""
        self._mixer.decoder.generator.to(device)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch for draws with a ``seed``; reaches worker processes, persistent ones included."""
        self._mixer.epoch = epoch

    @property
    def mixup_enabled(self) -> bool:
        """The switch of timm's mixing."""
        return self._mixer.enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._mixer.enabled = enabled

    def __call__(self, samples: Any, labels: Any = None) -> Any:
        """A list of samples, or images and labels of a batch, to images ``[B, C, H, W]`` and their targets.

        A batch in a dict may be given as well. Where ``collate_fn`` makes more than a pair, such as a dict, the same
        comes back with images and targets in place. Images and targets of a batch stay on their devices.
        """
        if labels is not None:
            return self._mix(samples, labels)
        batch = samples if isinstance(samples, Mapping) else self.collate_fn(samples)
        if is_pair(batch, self._mixer.settings):
            return self._mix(*batch)
        fields = fields_of(batch, self._mixer.settings)
        return fields.replaced(*self._mix(*fields.pair))

    def _mix(self, images: Any, labels: Any) -> tuple[Tensor, Any]:
        labels = batch_labels(labels)
        if not self.mixup_enabled:
            return self._mixer.unmixed(images, labels)
        number = 0 if self._mixer.settings.seed is None else _fingerprint(images, labels)
        return self._mixer.blend(images, labels, *self._mixer.keys([number]))


def _fingerprint(images: Any, labels: Any) -> int:
    """CRC-32 of the classes and of some 4096 evenly spaced values of the images; anything but tensors is ignored."""
    checksum = 0
    if isinstance(labels, Tensor) and labels.ndim == 2:
        labels = hard_labels(labels)  # so that one-hot rows draw what class indices do
    for tensor in (labels, images):
        if isinstance(tensor, Tensor):
            values = tensor.detach().flatten()
            probe = values[:: max(1, len(values) // NUM_PROBES)].cpu().contiguous()
            checksum = zlib.crc32(probe.view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
