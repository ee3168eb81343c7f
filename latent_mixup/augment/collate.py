"""LatentMixupCollate: replaces part of a batch by decoded mixes, as a ``collate_fn`` or after the loader."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_mixup.augment.base import Mixer, MixKeywords, MixSettings, is_pair, with_shared_keywords
from latent_mixup.augment.batches import Fields, batch_of, is_batch, read_batch
from latent_mixup.augment.showing import ShowsMixes
from latent_mixup.augment.sources import Named, check_dataset, pair_of, rows_to_mix
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.labels import hard_labels

if TYPE_CHECKING:
    from typing_extensions import Unpack

NUM_PROBES = 4096
NUM_REMEMBERED = 2**16  # batches of an epoch, of which repeated ones are noticed


@with_shared_keywords
class LatentMixupCollate(ShowsMixes, nn.Module):
    """A ``collate_fn`` over any data set of ``(image, label)``, dicts or named tuples.

    It is also a call after the loader, as torchvision's ``v2.MixUp`` is: ``images, targets = mixup(images, labels)``,
    and stands wherever one of torchvision's transforms may, such as in ``v2.RandomChoice``, ``v2.Compose`` and
    ``nn.Sequential``. ``to`` moves the generator, which stays in float32 and in eval mode; a state dict is empty.
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
        collate_fn: Makes a batch of a list of samples: ``(images, labels)``, a dict, or more fields. None: torch's
            ``default_collate``, after PIL images, arrays and labels in lists have become tensors.
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
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **shared: Unpack[MixKeywords],
    ) -> None:
        super().__init__()
        self.collate_fn = collate_fn
        generator, bank = pair_of(generator, bank)
        if dataset is not None:
            check_dataset(dataset)
        settings = MixSettings(**shared)
        rows = rows_to_mix(bank, generator, dataset, None, **settings.keys)
        self._mixer = Mixer(generator, bank, settings, rows=rows, repeats_in=NUM_REMEMBERED)

    def __repr__(self) -> str:
        return f"LatentMixupCollate({self._mixer})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentMixupCollate:
        """What ``to``, ``cuda`` and the like call, also those of a module around this one: the generator is moved.

        It is no submodule, so that its weights are in no optimizer and no checkpoint.
        """
        generator = self._mixer.decoder.generator
        generator.to(fn(torch.empty(0, device=generator.device)).device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
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

    def forward(self, samples: Any, labels: Any = None, *more: Any) -> Any:
        """A list of samples, or images and labels of a batch, to images ``[B, C, H, W]`` and their targets.

        A whole batch, a tuple or a dict, may be given as well; its images and labels may be arrays or lists. Where it
        has more than a pair, the same comes back with images and targets in place. Images and targets of a batch stay
        on their devices.

        Raises:
            SampleError: A sample or a batch has no images or no labels, or such as cannot be used.
        """
        if labels is not None and not more:
            return self._mix(samples, labels)
        settings = self._mixer.settings
        batch: Any = (samples, labels, *more) if more else samples
        if self.collate_fn is not None and not is_batch(batch, settings.image_key):
            batch = self.collate_fn(batch)
        batch = batch_of(batch, settings, self._channels)
        if is_pair(batch, settings):
            return self._mix(*batch)
        fields = Fields.of(batch, settings)
        return fields.replaced(*self._mix(*fields.pair))

    @property
    def _channels(self) -> int:
        return self._mixer.decoder.generator.img_channels

    def _mix(self, images: Any, labels: Any) -> tuple[Tensor, Any]:
        images, labels = read_batch(images, labels, self._mixer.settings, self._channels)
        if not self.mixup_enabled:
            return self._mixer.unmixed(images, labels)
        number = 0 if self._mixer.settings.seed is None else _fingerprint(images, labels)
        return self._mixer.blend(images, labels, *self._mixer.keys([number], stacklevel=7))  # two are nn.Module's


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
