"""LatentMixupLoader: wraps a DataLoader and decodes mixes ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.mixer import Mixer, MixSettings, Target, TargetFormat, Transform
from latent_mixup.sampling import Mode

Batch: TypeAlias = tuple[Tensor, Any]
"""Images and a :data:`~latent_mixup.mixer.Target`; ``Any``, because which of the two it is follows from an argument."""


class LatentMixupLoader:
    """Wrap a ``DataLoader`` of ``(images, labels)``: a share ``prob`` of each batch becomes decoded mixes.

    Mixes are decoded in this process, on the generator's device: on an accelerator by one background thread that
    runs up to ``prefetch`` batches ahead, on a CPU when a batch is asked for. What is drawn depends on seed, epoch,
    rank and the number of the batch alone. Without ``set_epoch`` the epoch counts up with every pass; once it was
    called, the epoch is what was said last. ``len``, ``dataset``, ``sampler``, ``batch_size`` and what else is asked
    for are the wrapped loader's. With ``prefetch`` a ``transform`` runs in the background thread: keep it free of
    random draws, which would share torch's global state with the training step, and augment after the loader.

    Args:
        loader: A ``DataLoader``, or any iterable of ``(images, labels)``; labels ``[B]`` integers, or soft,
            ``[B, num_classes]``.
        generator: Decodes the bank's codes; moved to ``device`` where one is given.
        bank: Codes and labels.
        device: Where batches come out; None for the generator's.
        prefetch: Batches decoded ahead; 0 decodes when a batch is asked for. None: 2 on an accelerator, 0 on a
            CPU, where a thread ahead takes its cores from the training step (see ``benchmarks/step_time.py``).
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        prob: Share of the batch that becomes mixes.
        mode: ``"elem"``, one ``lam`` a sample, or ``"batch"``, one for the batch.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        num_classes: Width of the targets; None for the bank's.
        label_smoothing: Share of a target that is spread over all classes:
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        transform: What happens to a decoded image, a float32 ``[C, H, W]`` tensor in [-1, 1].
        target_format: ``"soft"``: float32 ``[B, num_classes]``; ``"pair"``: ``(y_a, y_b, lam)``, where bank or
            batch has soft labels with these.
        seed: Names all draws; None for ``torch.initial_seed()``.

    Attributes:
        mixup_enabled: timm's switch. False: the data set's own images with their own labels as targets.

    Raises:
        ValueError: A setting is out of range, a row of the bank has no label, or bank and generator do not
            belong together.

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
        alpha: float = 1.0,
        prob: float = 1.0,
        mode: Mode = "elem",
        path: PathName | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        transform: Transform | None = None,
        target_format: TargetFormat = "soft",
        seed: int | None = None,
    ) -> None:
        settings = MixSettings(
            alpha=alpha,
            prob=prob,
            mode=mode,
            path=path,
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            transform=transform,
            target_format=target_format,
            seed=seed,
        )
        if prefetch is not None and prefetch < 0:
            raise ValueError(f"prefetch needs to be at least 0: got {prefetch}")
        self._mixer = Mixer(generator, bank, settings)
        # With its index: another thread need not have the same current device.
        self.device = generator.device if device is None else torch.empty(0, device=device).device
        if device is not None:
            generator.to(self.device)
        self.loader: Any = loader
        self.prefetch = (0 if self.device.type == "cpu" else 2) if prefetch is None else prefetch
        self.mixup_enabled = True
        self._counts_epochs = True
        self._passes = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """What is not ours is the wrapped loader's: ``dataset``, ``sampler``, ``batch_size``, ..."""
        if name.startswith("__") or "loader" not in self.__dict__:  # while being copied or unpickled
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch, here and for the loader's sampler where that has a ``set_epoch``."""
        self._counts_epochs = False
        self._mixer.epoch = epoch
        forward = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if forward is not None:
            forward(epoch)

    def __iter__(self) -> Iterator[Batch]:
        if self._counts_epochs:
            self._mixer.epoch = self._passes
        self._passes += 1
        return self._batches(self._mixer.epoch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        keyed = ((self._mixer.key(number, epoch=epoch), batch) for number, batch in enumerate(self.loader))
        if self.prefetch == 0:
            yield from (self._mix(batch, key, self.mixup_enabled) for key, batch in keyed)
            return
        ahead: deque[Future[Batch]] = deque()
        # One thread for tensors in there (the number is a thread's own): the training step keeps its cores.
        pool = ThreadPoolExecutor(1, "latent-mixup", initializer=torch.set_num_threads, initargs=(1,))
        try:
            for key, batch in keyed:
                ahead.append(pool.submit(self._mix, batch, key, self.mixup_enabled))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _mix(self, batch: Any, key: tuple[int, ...], enabled: bool) -> Batch:
        if not isinstance(batch, Sequence) or len(batch) != 2:
            found = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
            raise TypeError(f"the loader needs to give (images, labels): got {found}")
        images, labels = batch
        if isinstance(images, Tensor):
            images = images.to(self.device, non_blocking=True)
        blend = self._mixer.blend(images, labels, key) if enabled else self._mixer.unmixed(images, labels)
        images, targets = blend
        return images, self._to_device(targets)

    def _to_device(self, targets: Target) -> Target:
        if isinstance(targets, Tensor):
            return targets.to(self.device, non_blocking=True)
        y_a, y_b, lam = (part.to(self.device, non_blocking=True) for part in targets)
        return y_a, y_b, lam
