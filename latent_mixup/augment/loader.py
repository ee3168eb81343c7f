"""LatentMixupLoader: wraps a DataLoader and decodes mixes ahead of the training step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from latent_mixup.augment.base import (
    Decoder,
    DrawKey,
    Mixer,
    MixKeywords,
    MixSettings,
    is_pair,
    to_device,
    warn_of_repeats,
    with_shared_keywords,
)
from latent_mixup.augment.batches import Fields, batch_of, read_batch
from latent_mixup.augment.prefetch import ONE_THREAD, has_free_core, run_ahead
from latent_mixup.augment.showing import show_batch, unmoved
from latent_mixup.augment.sources import (
    Named,
    check_dataset,
    check_loader,
    given_indices,
    is_shared_out,
    pair_of,
    parts_of,
    rows_to_mix,
)
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.pictures import notebook_png
from latent_mixup.sampling import fresh_seeds, world_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

Batch: TypeAlias = tuple[Tensor, Any]
"""Images and a :data:`~latent_mixup.augment.base.Target`; ``Any``, since the target's kind depends on an argument."""
State: TypeAlias = dict[str, Any]
"""See :meth:`LatentMixupLoader.state_dict`."""
Call: TypeAlias = tuple[bool, list[tuple[Any, DrawKey, State]]]
"""Whether mixing is on; and batches, each with the name of its draws and the state after it."""

FORWARDED = frozenset(
    (
        *("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "collate_fn", "generator", "in_order"),
        *("num_workers", "persistent_workers", "prefetch_factor", "worker_init_fn", "multiprocessing_context"),
        *("pin_memory", "pin_memory_device", "timeout"),
    )
)


@with_shared_keywords
class LatentMixupLoader:
    """Wrap a ``DataLoader`` of ``(images, labels)``: a share ``prob`` of each batch becomes decoded mixes.

    Mixes are decoded in this process, on the generator's device: by a background thread up to ``prefetch`` batches
    ahead of the training step (on an accelerator in a stream of its own, so beside it), or when a batch is asked for.
    Only images that ``loader`` can give are mixed: those of a ``Subset``, or those that a sampler's indices or weights
    leave. With a ``seed`` the draws depend on seed, epoch, rank and the number of the batch alone; without
    ``set_epoch`` the epoch counts up with every pass, after ``set_epoch`` it stays the one named last. ``len``,
    ``dataset``, ``sampler``, ``batch_size`` and a ``DataLoader``'s other attributes are the wrapped loader's;
    :meth:`state_dict` is its own. With ``prefetch`` a ``transform`` runs in the background thread: random draws in it
    would share torch's global state with the training step, so augment after the loader.

    Args:
        loader: A ``DataLoader``, or any iterable of batches: ``(images, labels)``, a dict, or more fields, which come
            through untouched. Images are float in any range, or uint8; labels ``[B]`` or ``[B, 1]`` integers, one-hot,
            soft or multi-label, ``[B, num_classes]``; both may be arrays or lists. Lists of samples, as of
            ``collate_fn=list``, are collated as :class:`LatentMixupCollate` does it.
        generator: Decodes the bank's codes, moved to ``device`` where one is given; or the name of generator and bank,
            such as ``"fashion-mnist"``, a folder that ``fit`` made, or a Hub id.
        bank: Codes and labels, or their name.
        dataset: The data set of the images that ``loader`` gives; None: ``loader.dataset``. Where it is unknown, or not
            the bank's, any row of the bank is mixed, and a warning says so unless the bank comes from ``bank.subset``.
        device: Where batches come out; None for the generator's.
        prefetch: Batches decoded ahead, rounded up to whole calls; 0 decodes when a batch is asked for. None: 2 on an
            accelerator, and on a CPU with a core that torch's operations leave free; else 0, since the thread would
            take its core from the training step (see ``benchmarks/speed/step_time.py``). 0 on MPS.
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
        TypeError: A keyword is unknown, or an argument is of another kind.
        ValueError: A setting is out of range, a row of the bank has no label, or bank and generator do not belong
            together, or the bank has no code of the loader's images.

    Warns:
        SplitWarning: It cannot be told which rows may be mixed.

    Reference: Latent-Mixup, section 1.1.3.

    Example:
        >>> loader = LatentMixupLoader(DataLoader(dataset, 64), generator, bank)  # doctest: +SKIP
        >>> for images, targets in loader:  # doctest: +SKIP
        ...     loss = F.cross_entropy(model(images), targets)
    """

    def __init__(
        self,
        loader: Iterable[Any],
        generator: Named[Generator],
        bank: Named[LatentBank] | None = None,
        *,
        dataset: Any = None,
        device: torch.device | str | None = None,
        prefetch: int | None = None,
        decode_batches: int | None = None,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
        **shared: Unpack[MixKeywords],
    ) -> None:
        check_loader(loader)
        generator, bank = pair_of(generator, bank)
        if dataset is not None:
            check_dataset(dataset)
        if prefetch is not None and prefetch < 0:
            raise ValueError(f"prefetch needs to be at least 0: got {prefetch}")
        if decode_batches is not None and decode_batches < 1:
            raise ValueError(f"decode_batches needs to be at least 1: got {decode_batches}")
        settings = MixSettings(**shared)
        if settings.policy.follows_training:
            if prefetch or (decode_batches or 1) > 1:
                raise ValueError(
                    "the mixes of Hardest depend on the classifier as it is when a batch is asked for: leave out "
                    f"prefetch={prefetch} and decode_batches={decode_batches}"
                )
            prefetch, decode_batches = 0, 1
        # With its index: another thread need not have the same current device.
        self.device = generator.device if device is None else torch.empty(0, device=device).device
        if prefetch and self.device.type in ONE_THREAD:
            raise ValueError(f"prefetch needs to be 0 on {self.device.type}, where two threads at work end the process")
        if device is not None:
            generator.to(self.device)
        decoder = Decoder(generator, autocast=autocast, channels_last=channels_last, compile=compile)
        data = getattr(loader, "dataset", None) if dataset is None else dataset
        indices = given_indices(loader) if dataset is None else None
        rows = rows_to_mix(bank, generator, data, indices, **settings.keys)
        self._mixer = Mixer(generator, bank, settings, decoder, rows)
        self.loader: Any = loader
        on_cpu = self.device.type == "cpu"
        ahead = has_free_core() if on_cpu else self.device.type not in ONE_THREAD
        self.prefetch = (2 if ahead else 0) if prefetch is None else prefetch
        self.decode_batches = (generator.decode_batches if on_cpu else 1) if decode_batches is None else decode_batches
        self._counts_epochs = True
        self._first_batch = 0
        self._passes = 0
        self._place: State | None = None  # after the batch that was given last; None: between passes
        self._loaded: State | None = None  # until the next pass
        self._given = 0  # batches since the epoch was named
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"LatentMixupLoader({self._mixer})"

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """A ``DataLoader``'s attributes, such as ``dataset``, ``sampler`` and ``batch_size``, of the wrapped loader."""
        if name not in FORWARDED or "loader" not in self.__dict__:  # the second: while being copied or unpickled
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}; its attribute 'loader' is the wrapped one"
            )
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
        """Name the epoch, here and for each part of the wrapped loader with a ``set_epoch``: sampler, data set, ...

        Args:
            epoch: Counted from 0.
            first_batch: Number of the first batch that the wrapped loader gives; above 0 where a run is resumed in the
                middle of an epoch and the wrapped loader skips the batches before it.
        """
        self._counts_epochs = False
        self._first_batch, self._given = first_batch, 0
        self._mixer.epoch = epoch
        for part in parts_of(self.loader):
            if callable(forward := getattr(part, "set_epoch", None)):
                forward(epoch)

    def state_dict(self) -> State:
        """Where this loader is, counted in batches that were given: those read or decoded ahead do not count.

        Returns:
            ``epoch``; ``batch``, the number of the next batch; ``seed``, the one that names the draws of this pass;
            ``loader``, the state that the wrapped loader had after the batch given last, where it has states.
        """
        if self._loaded is not None or self._place is not None:
            return dict(self._loaded or self._place or {})
        epoch = self._passes if self._counts_epochs else self._mixer.epoch
        return {"epoch": epoch, "batch": 0, "seed": None, "loader": self._loaders_state()}

    def load_state_dict(self, state: State) -> None:
        """Go on, with the next pass, after the batch that was given last when :meth:`state_dict` was called.

        A wrapped loader with states of its own (such as torchdata's ``StatefulDataLoader``) goes on by itself; the
        batches of another are read and dropped, so its order needs to be repeatable. The state is forgotten where
        another epoch is named before the next pass.

        Raises:
            ValueError: This is not a state of this class.
        """
        if not isinstance(state, dict) or state.keys() != {"epoch", "batch", "seed", "loader"}:
            found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state needs to be what LatentMixupLoader.state_dict() gave: got {found}")
        self._loaded, self._place = dict(state), None
        self._passes = self._mixer.epoch = state["epoch"]

    def show(self) -> Image.Image:
        """A picture of the batch that a pass would begin with now: its first images, the classes of its targets below.

        Neither draws nor position change: the batch comes from a copy of this loader, whose workers are its own, and
        torch's random state and the generators of the wrapped loader and its samplers are put back. Images in another
        range than [-1, 1] are shown from their darkest to their brightest value, without ``normalize``. With persistent
        workers a loader that shuffles begins its second pass with another batch.

        Returns:
            A picture that notebooks show, and ``save(path)`` writes.

        Raises:
            ValueError: The images are neither grey nor RGB, or the wrapped loader gives no batch.
            TypeError: The batches of the wrapped loader can be read only once.
        """
        if isinstance(self.loader, Iterator):
            raise TypeError(
                f"show would use up a batch of this {type(self.loader).__name__}, which can be read only once: wrap a "
                "DataLoader or a list, or look at a batch of your own loop"
            )
        with unmoved(self.loader):
            batch: Any = next(iter(self._twin()), None)
        if batch is None:
            raise ValueError("show needs a batch: the wrapped loader gives none")
        return show_batch(self._mixer, *Fields.of(batch, self._mixer.settings).pair, "next batch")

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: :meth:`show`."""
        return notebook_png(self.show)

    def _twin(self) -> LatentMixupLoader:
        """A loader like this one, whose passes leave no trace in it; without warnings of its own."""
        twin = copy.copy(self)
        twin._mixer = copy.copy(self._mixer)
        twin._mixer._shared = torch.tensor([self._mixer.epoch, 1, int(self._mixer.enabled)], device="cpu")
        twin.loader = copy.copy(self.loader)
        if isinstance(self.loader, DataLoader):
            twin.loader._iterator = None  # of persistent workers, which go on with their pass
        twin.prefetch, twin.decode_batches, twin._given, twin._warned = 0, 1, 0, {"repeats", "ranks"}
        return twin

    def __iter__(self) -> Iterator[Batch]:
        """One pass; its epoch is the one at its first batch."""
        calls = self._calls(*self._begin())
        ahead = -(-self.prefetch // self.decode_batches)
        mixed = run_ahead(calls, self._mix, ahead, self.device) if ahead else (self._mix(call) for call in calls)
        with closing(mixed):
            for batches, places in mixed:
                for batch, self._place in zip(batches, places, strict=True):
                    self._given += 1
                    yield batch
        self._place = None

    def _begin(self) -> tuple[DrawKey, int, int]:
        """Start a pass, or go on with the loaded one.

        Returns:
            The name of its draws, and two numbers of batches: the first that the wrapped loader gives, and the first
            that is given.
        """
        state, self._loaded = self._loaded, None
        if self._counts_epochs:
            self._mixer.epoch = self._passes
        self._passes += 1
        self._warn(again=state is None)
        seed = self._mixer.settings.seed
        if state is None or state["epoch"] != self._mixer.epoch or self._first_batch:
            return self._mixer.key(fresh_seeds(1)[0] if seed is None else seed), self._first_batch, self._first_batch
        if seed is None:
            seed = fresh_seeds(1)[0] if state["seed"] is None else state["seed"]
        if state["loader"] is None or not self._has_states:
            return self._mixer.key(seed), 0, state["batch"]
        self.loader.load_state_dict(state["loader"])
        return self._mixer.key(seed), state["batch"], state["batch"]

    def _warn(self, *, again: bool) -> None:
        """Say once that draws are the same again, or that ranks train on the same data."""
        if again and not self._counts_epochs and self._mixer.settings.seed is not None and self._given > 1:
            if "repeats" not in self._warned:
                warn_of_repeats(self._mixer.epoch, stacklevel=4)
            self._warned.add("repeats")
        self._given = 0
        if "ranks" not in self._warned and world_size() > 1 and not is_shared_out(self.loader):
            self._warned.add("ranks")
            warnings.warn(
                f"each of {world_size()} ranks gets all of the data: give the wrapped DataLoader sampler="
                "torch.utils.data.DistributedSampler(dataset), since frameworks do not do so for a wrapped loader",
                stacklevel=4,
            )

    @property
    def _has_states(self) -> bool:
        return all(callable(getattr(self.loader, name, None)) for name in ("state_dict", "load_state_dict"))

    def _loaders_state(self) -> Any:
        return self.loader.state_dict() if self._has_states else None

    def _calls(self, key: DrawKey, first: int, start: int) -> Iterator[Call]:
        """The wrapped loader's batches from number ``start``, in lists that are decoded in one call."""
        read: list[tuple[Any, DrawKey, State]] = []
        has_states = self._has_states
        for number, batch in islice(enumerate(self.loader, first), start - first, None):
            loader = self.loader.state_dict() if has_states else None
            read.append(
                (batch, (*key, number), {"epoch": key[1], "batch": number + 1, "seed": key[0], "loader": loader})
            )
            if len(read) == self.decode_batches:
                yield self._mixer.enabled, read
                read = []
        if read:
            yield self._mixer.enabled, read

    def _mix(self, call: Call) -> tuple[list[Batch], list[State]]:
        enabled, read = call
        settings, channels = self._mixer.settings, self._mixer.decoder.generator.img_channels
        forms: list[Fields | None] = []
        batches = []
        for given, key, _ in read:
            batch = batch_of(given, settings, channels)
            form = None if is_pair(batch, settings) else Fields.of(batch, settings)
            images, labels = batch if form is None else form.pair
            images, labels = read_batch(images, labels, settings, channels)
            forms.append(form)
            batches.append((images.to(self.device, non_blocking=True), labels, key))
        if enabled:
            mixed = self._mixer.blend_all(batches)
        else:
            mixed = [self._mixer.unmixed(images, labels) for images, labels, _ in batches]
        given = [
            (images, to_device(targets, self.device))
            if form is None
            else form.replaced(images, to_device(targets, self.device))
            for form, (images, targets) in zip(forms, mixed, strict=True)
        ]
        return given, [place for *_, place in read]
