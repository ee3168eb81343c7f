"""LatentMixupLoader: wraps a DataLoader and decodes mixes ahead of the training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.augment.base import Decoder, Key, Mixer, MixKeywords, MixSettings, to_device, with_shared_keywords
from latent_mixup.augment.prefetch import has_free_core, run_ahead
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator

if TYPE_CHECKING:
    from typing_extensions import Unpack

Batch: TypeAlias = tuple[Tensor, Any]
"""Images and a :data:`~latent_mixup.augment.base.Target`; ``Any``, since the target's kind depends on an argument."""
Call: TypeAlias = tuple[bool, list[tuple[Any, Key]]]
"""Whether mixing is on; and batches, each with the name of its draws."""


@with_shared_keywords
class LatentMixupLoader:
    """Wrap a ``DataLoader`` of ``(images, labels)``: a share ``prob`` of each batch becomes decoded mixes.

    Mixes are decoded in this process, on the generator's device: by a background thread up to ``prefetch`` batches
    ahead of the training step (on an accelerator in a stream of its own, so beside it), or when a batch is asked for.
    The draws depend on seed, epoch, rank and the number of the batch alone. Without ``set_epoch`` the epoch counts up
    with every pass; after ``set_epoch`` it stays the one named last. ``len``, ``dataset``, ``sampler``, ``batch_size``
    and other attributes are the wrapped loader's. With ``prefetch`` a ``transform`` runs in the background thread:
    random draws in it would share torch's global state with the training step, so augment after the loader.

    Args:
        loader: A ``DataLoader``, or any iterable of ``(images, labels)``; labels ``[B]`` integers, or soft,
            ``[B, num_classes]``.
        generator: Decodes the bank's codes; moved to ``device`` where one is given.
        bank: Codes and labels.
        device: Where batches come out; None for the generator's.
        prefetch: Batches decoded ahead, rounded up to whole calls; 0 decodes when a batch is asked for. None: 2 on an
            accelerator, and on a CPU with a core that torch's operations leave free; else 0, since the thread would
            take its core from the training step (see ``benchmarks/speed/step_time.py``).
        decode_batches: Batches whose mixes are decoded in one call, which is faster for a small generator; as many are
            read from ``loader`` at a time. None: the generator's ``decode_batches`` on a CPU, 1 on an accelerator.
        autocast: ``torch.bfloat16`` or ``torch.float16``: decode under ``torch.autocast``; None: in float32. On a CPU
            without instructions for bfloat16 it is several times slower.
        channels_last: Keep generator and decoded images in ``torch.channels_last``; changes the generator in place.
        compile: Decode through ``torch.compile``; the first batch then takes seconds.
        shared: See :class:`latent_mixup.augment.base.MixKeywords`.

    Attributes:
        mixup_enabled: timm's switch. False gives the data set's own images with targets of their own labels.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A setting is out of range, a row of the bank has no label, or bank and generator do not belong
            together.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> loader = LatentMixupLoader(DataLoader(dataset, 64), generator, bank)  # doctest: +SKIP
        >>> for images, targets in loader:  # doctest: +SKIP
        ...     loss = F.cross_entropy(model(images), targets)
    """

    def __init__(
        self,
        loader: Iterable[Any],
        generator: Generator,
        bank: LatentBank,
        *,
        device: torch.device | str | None = None,
        prefetch: int | None = None,
        decode_batches: int | None = None,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
        **shared: Unpack[MixKeywords],
    ) -> None:
        if prefetch is not None and prefetch < 0:
            raise ValueError(f"prefetch needs to be at least 0: got {prefetch}")
        if decode_batches is not None and decode_batches < 1:
            raise ValueError(f"decode_batches needs to be at least 1: got {decode_batches}")
        decoder = Decoder(generator, autocast=autocast, channels_last=channels_last, compile=compile)
        self._mixer = Mixer(generator, bank, MixSettings(**shared), decoder)
        # With its index: another thread need not have the same current device.
        self.device = generator.device if device is None else torch.empty(0, device=device).device
        if device is not None:
            generator.to(self.device)
        self.loader: Any = loader
        on_cpu = self.device.type == "cpu"
        self.prefetch = (0 if on_cpu and not has_free_core() else 2) if prefetch is None else prefetch
        self.decode_batches = (generator.decode_batches if on_cpu else 1) if decode_batches is None else decode_batches
        self._counts_epochs = True
        self._first_batch = 0
        self._passes = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Other attributes are the wrapped loader's: ``dataset``, ``sampler``, ``batch_size``, ..."""
        if name.startswith("__") or "loader" not in self.__dict__:  # while being copied or unpickled
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)

    @property
    def mixup_enabled(self) -> bool:
        """The switch of timm's mixing; sets the wrapped loader's own as well, where it has one."""
        return self._mixer.enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._mixer.enabled = enabled
        if hasattr(self.loader, "mixup_enabled"):
            self.loader.mixup_enabled = enabled

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Name the epoch, here and for the loader's sampler where that has a ``set_epoch``.

        Args:
            epoch: Counted from 0.
            first_batch: Number of the first batch that the wrapped loader gives; above 0 where a run is resumed in the
                middle of an epoch and the wrapped loader skips the batches before it.
        """
        self._counts_epochs = False
        self._first_batch = first_batch
        self._mixer.epoch = epoch
        forward = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if forward is not None:
            forward(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; its epoch is the one at its first batch."""
        if self._counts_epochs:
            self._mixer.epoch = self._passes
        self._passes += 1
        calls = self._calls(self._mixer.key())
        ahead = -(-self.prefetch // self.decode_batches)
        mixed = run_ahead(calls, self._mix, ahead, self.device) if ahead else (self._mix(call) for call in calls)
        with closing(mixed):
            for batches in mixed:
                yield from batches

    def _calls(self, key: Key) -> Iterator[Call]:
        """The wrapped loader's batches, each with the name of its draws, in lists that are decoded in one call."""
        numbered = enumerate(self.loader, self._first_batch)
        while batches := list(islice(numbered, self.decode_batches)):
            yield self._mixer.enabled, [(batch, (*key, number)) for number, batch in batches]

    def _mix(self, call: Call) -> list[Batch]:
        enabled, keyed = call
        batches = [(*self._read(batch), key) for batch, key in keyed]
        if enabled:
            mixed = self._mixer.blend_all(batches)
        else:
            mixed = [self._mixer.unmixed(images, labels) for images, labels, _ in batches]
        return [(images, to_device(targets, self.device)) for images, targets in mixed]

    def _read(self, batch: Any) -> tuple[Any, Any]:
        """Images, on the device where they are a tensor, and labels."""
        if not isinstance(batch, Sequence) or len(batch) != 2:
            found = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
            raise TypeError(f"the loader needs to give (images, labels): got {found}")
        images, labels = batch
        return (images.to(self.device, non_blocking=True) if isinstance(images, Tensor) else images), labels
