"""What the three wrappers share: their keywords, and a batch, from rows of the bank to images and targets."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from latent_mixup import sampling
from latent_mixup.augment.classes import Balance, ByClass, ClassShares
from latent_mixup.augment.transforms import Transform, transformed
from latent_mixup.bank import LatentBank
from latent_mixup.functional import mix_targets, path_named, soft_targets
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.images import (
    MIN_IMAGES,
    Moments,
    RangeMismatchWarning,
    check_size,
    moments_of,
    normalized,
    range_mismatch,
    to_uint8,
)
from latent_mixup.labels import Key, SampleError, check_labels
from latent_mixup.policies import BankView, Beta, Draw, Policy, named
from latent_mixup.policies.policy import LabelPair
from latent_mixup.sampling import Mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

TargetFormat: TypeAlias = Literal["soft", "pair"]
Target: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor]
"""Soft targets ``[B, num_classes]``; or ``(y_a, y_b, lam)``, ``[B]`` each, soft labels ``[B, num_classes]``."""
DrawKey: TypeAlias = tuple[int, ...]
"""Name of a batch's draws: ``(seed, epoch, rank, ...)``."""
C = TypeVar("C", bound=type)

AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


@contextmanager
def long_lived() -> Iterator[None]:
    """Tensors made inside can be used later, outside of the caller's ``torch.inference_mode`` as well."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


class MixKeywords(TypedDict, total=False):
    """Keywords of all three wrappers.

    Attributes:
        alpha: ``lam`` is drawn from Beta(alpha, alpha); above 0.
        prob: Share of samples that become decoded mixes, in [0, 1]; the others are the data set's own. Or a share for
            each class, such as ``{7: 1.0, "bag": 0.5}``, by number or by the bank's name for it: of classes that are
            not named no sample becomes a mix, and a mix is of a row of the class that it replaces, as with
            ``balance="batch"``. None: the share of a policy given by name, else 1.
        balance: Class of the sample's own row in a mix, where it is drawn. None: rows are drawn uniformly from the
            bank, whatever they replace. ``"batch"``: a row of the class of the sample that the mix replaces, so that
            classes are as frequent as the loader gives them, such as by a ``WeightedRandomSampler``. ``"classes"``: a
            row of any class, each as often as the others. Partners are the policy's. A soft label counts as its
            likeliest class.
        mode: ``"elem"`` for one ``lam`` a sample, ``"batch"`` for one ``lam`` a batch, as in the paper.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own.
        policy: How a mix is made, in place of ``alpha``, ``mode`` and ``path``: a :class:`latent_mixup.policies.Policy`
            or its name, ``"paper"`` or ``"robust"``.
        num_classes: Width of the targets; None for the bank's. With soft labels it has to be the bank's.
        label_smoothing: Share of a target that is spread over all classes, in [0, 1):
            ``(1 - label_smoothing) * target + label_smoothing / num_classes``.
        multi_label: Whether a sample may have several classes or none, for ``F.binary_cross_entropy_with_logits``.
            Labels of bank and batches are ``[num_classes]`` numbers in [0, 1], and need not sum to 1; each is mixed for
            itself, and smoothed towards 1/2. As ``multi_label`` of timm's ``Mixup``.
        transform: Applied to each decoded image, a float32 tensor ``[C, H, W]`` in [-1, 1]. One that draws nothing,
            such as torchvision's ``Resize``, ``Normalize`` or a ``Compose`` of these, is called once a batch.
        normalize: ``(mean, std)`` that the data set's images were normalised with, as ``v2.Normalize`` takes them:
            one number each, or one a channel. Applied last to decoded images; None: they stay in [-1, 1].
        target_format: ``"soft"`` for float32 ``[B, num_classes]``; ``"pair"`` for ``(y_a, y_b, lam)``, which
            :func:`latent_mixup.mixup_criterion` takes. Where the bank or the batch has soft labels, so has the pair.
        image_key: Place of the images in a batch: a name in a dict, a number in a tuple. None: the usual names, such as
            ``"image"``, ``"img"`` and ``"pixel_values"``, or the first. Other fields of a batch pass through.
        label_key: Place of the labels, likewise; such as ``"label"``, ``"labels"`` and ``"target"``, or the second.
        seed: None: draws come from torch's global random state, as torchvision's transforms' do; every pass, call and
            worker draws anew, and ``torch.manual_seed`` repeats a run. A number names the draws, together with epoch,
            rank and sample or batch: they do not depend on workers, and are the same until ``set_epoch``. (By class,
            they depend on the classes of the batch as well.)
        rank: Names draws as well; None for this process's rank, so that ranks draw differently. With the same number in
            all of them (and the same random state, without a seed) they draw the same.
    """

    alpha: float
    prob: float | ClassShares | None
    balance: Balance | None
    mode: Mode
    path: PathName | None
    policy: Policy | str | None
    num_classes: int | None
    label_smoothing: float
    multi_label: bool
    transform: Transform | None
    normalize: tuple[Moments, Moments] | None
    target_format: TargetFormat
    image_key: Key | None
    label_key: Key | None
    seed: int | None
    rank: int | None


DEFAULTS: MixKeywords = {
    "alpha": 1.0,
    "prob": None,
    "balance": None,
    "mode": "elem",
    "path": None,
    "policy": None,
    "num_classes": None,
    "label_smoothing": 0.0,
    "multi_label": False,
    "transform": None,
    "normalize": None,
    "target_format": "soft",
    "image_key": None,
    "label_key": None,
    "seed": None,
    "rank": None,
}


def with_shared_keywords(wrapper: C) -> C:
    """Put the docs and defaults of :class:`MixKeywords` where ``help`` shows them, in place of ``**shared``."""
    if wrapper.__doc__ and MixKeywords.__doc__:
        described = inspect.cleandoc(MixKeywords.__doc__).split("Attributes:\n")[1]
        line = "        shared: See :class:`latent_mixup.augment.base.MixKeywords`.\n"
        assert line in wrapper.__doc__
        wrapper.__doc__ = wrapper.__doc__.replace(line, textwrap.indent(described, " " * 4) + "\n")
    own = [parameter for parameter in inspect.signature(wrapper).parameters.values() if parameter.name != "shared"]
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=MixKeywords.__annotations__[name].__forward_arg__,
        )
        for name, default in DEFAULTS.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return wrapper


class MixSettings:
    """The shared keywords, checked.

    Attributes:
        policy: The policy in use.
        prob: The share in use; of shares by class the largest.
        shares: Shares by class, as in :class:`MixKeywords`; None: there is one for all.
        balance: The balance in use.
        moments: ``normalize`` as :func:`latent_mixup.images.normalized` takes it.
        changed: The keywords that were given with another value than their default.

    The others are named as in :class:`MixKeywords`.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A setting is out of its range, or is given beside a policy that has its own.
    """

    def __init__(self, **shared: Unpack[MixKeywords]) -> None:
        for name in shared.keys() - DEFAULTS.keys():
            close = {"p": ["prob"]}.get(
                name, difflib.get_close_matches(name, DEFAULTS, 1)
            )  # p: torchvision's and kornia's
            near = "".join(f": did you mean {each!r}?" for each in close)
            raise TypeError(f"there is no keyword {name!r}{near or ': expected ' + ', '.join(DEFAULTS)}")
        given: MixKeywords = {**DEFAULTS, **shared}
        self.changed = {name: value for name, value in shared.items() if value is not DEFAULTS[name]}  # type: ignore[literal-required]
        alpha, mode, path, policy = given["alpha"], given["mode"], given["path"], given["policy"]
        if not isinstance(policy, Policy | str | None):
            raise TypeError(f"policy needs to be a Policy or the name of one: got {type(policy).__name__}")
        by_name = named(policy) if isinstance(policy, str) else None
        plain = Policy(Beta(alpha, mode), path=path)
        self.policy = by_name.policy if by_name else policy if isinstance(policy, Policy) else plain
        default_prob = by_name.prob if by_name else 1.0
        prob = default_prob if given["prob"] is None else given["prob"]
        self.shares = _class_shares(prob) if isinstance(prob, Mapping) else None
        self.prob = _number("prob", prob) if self.shares is None else max(self.shares.values(), default=0.0)
        self.balance = "batch" if given["balance"] is None and self.shares is not None else given["balance"]
        self.num_classes = _whole("num_classes", given["num_classes"])
        self.label_smoothing = _number("label_smoothing", given["label_smoothing"])
        self.multi_label = given["multi_label"]
        self.transform, self.target_format = given["transform"], given["target_format"]
        self.image_key, self.label_key = given["image_key"], given["label_key"]
        self.moments = None if given["normalize"] is None else moments_of(given["normalize"])
        self.seed, self.rank = _whole("seed", given["seed"]), _whole("rank", given["rank"])
        for share in (self.prob, *(self.shares or {}).values()):
            sampling.check_prob(share)
        if policy is not None and (alpha, mode, path) != (1.0, "elem", None):
            raise ValueError(
                f"alpha, mode and path are parts of a policy: got alpha={alpha}, mode={mode!r}, path={path!r} beside "
                "policy=; say Policy(weights=Beta(alpha, mode), path=path)"
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes needs to be at least 1: got {self.num_classes}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing needs to be in [0, 1): got {self.label_smoothing}")
        if self.transform is not None and not callable(self.transform):
            raise ValueError(f"transform needs to be a callable on one image: got {self.transform!r}")
        if not isinstance(self.multi_label, bool):
            raise TypeError(f"multi_label needs to be True or False: got {self.multi_label!r:.100}")
        if self.balance not in (None, "batch", "classes"):
            raise ValueError(f'balance needs to be "batch", "classes" or None: got {self.balance!r:.100}')
        if self.balance == "classes" and self.shares is not None:
            raise ValueError(
                'prob by class puts a mix in the place of a sample of its class, and balance="classes" in that of any: '
                "leave one of them out"
            )
        if self.balance is not None and self.multi_label:
            raise ValueError(
                "prob by class and balance need one class a sample, and with multi_label=True there may be several: "
                "pass one number as prob, and leave balance out"
            )
        if self.target_format not in ("soft", "pair"):
            raise ValueError(f'target_format needs to be "soft" or "pair": got {self.target_format!r}')
        if self.label_smoothing and self.target_format == "pair":
            raise ValueError(
                'label_smoothing belongs to the criterion with target_format="pair": '
                f"use nn.CrossEntropyLoss(label_smoothing={self.label_smoothing})"
            )

    @property
    def keys(self) -> dict[str, Key | None]:
        """Places of image and label: ``image_key`` and ``label_key``."""
        return {"image_key": self.image_key, "label_key": self.label_key}

    def finished(self, images: Tensor) -> Tensor:
        """Decoded images ``[k, C, H, W]`` in [-1, 1] as the classifier gets them: transformed, then normalised.

        Raises:
            ValueError: The transform does not return equal-sized tensors, or ``normalize`` has other channels.
        """
        if self.transform is not None:
            images = transformed(images, self.transform)
        return images if self.moments is None else normalized(images, self.moments)

    def mixed_targets(
        self, labels_a: Tensor, labels_b: Tensor, lam: Tensor, num_classes: int, *, soft: bool = False
    ) -> Target:
        """Targets of mixes.

        Args:
            labels_a: ``[k]`` integers or soft labels ``[k, num_classes]``.
            labels_b: The partners' labels.
            lam: Weight of ``labels_a``, ``[k]``.
            num_classes: Width of soft labels.
            soft: Whether a pair has soft labels even for classes.
        """
        if self.target_format == "soft":
            return mix_targets(labels_a, labels_b, lam, num_classes, self.label_smoothing, multi_label=self.multi_label)
        soft = soft or labels_a.is_floating_point()
        return self._of_kind(labels_a, num_classes, soft), self._of_kind(labels_b, num_classes, soft), lam

    def own_targets(self, labels: Tensor, num_classes: int, *, soft: bool = False) -> Target:
        """Targets of samples that are not mixed, smoothed, or as the pair ``(labels, labels, 1)``."""
        if self.target_format == "soft":
            return soft_targets(labels, num_classes, self.label_smoothing, multi_label=self.multi_label)
        own = self._of_kind(labels, num_classes, soft or labels.is_floating_point())
        return own, own, torch.ones(len(labels), dtype=torch.float32, device=labels.device)

    def _of_kind(self, labels: Tensor, num_classes: int, soft: bool) -> Tensor:
        """Labels of a pair, soft or int64, checked."""
        if soft or self.multi_label:
            return soft_targets(labels, num_classes, multi_label=self.multi_label)
        check_labels(labels, num_classes)
        return labels.long()


class Decoder:
    """Decodes without gradients, on the generator's device.

    Each option changes images by rounding alone; how much faster it is depends on the device.

    Args:
        generator: Decodes.
        autocast: ``torch.bfloat16`` or ``torch.float16``: run it under ``torch.autocast``; None: in float32.
        channels_last: Keep its weights and its images in ``torch.channels_last``; changes the generator in place.
        compile: Run it through ``torch.compile``; the first decode then takes seconds.

    Raises:
        ValueError: ``autocast`` is another dtype.

    Example:
        >>> Decoder(generator)(torch.randn(2, 128)).shape  # doctest: +SKIP
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        generator: Generator,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        if autocast is not None and autocast not in AUTOCAST_DTYPES:
            raise ValueError(f"autocast needs to be torch.bfloat16, torch.float16 or None: got {autocast}")
        self.generator, self.autocast, self.channels_last, self.compile = generator, autocast, channels_last, compile
        if channels_last:
            generator.to(memory_format=torch.channels_last)

    def __call__(self, latents: Tensor, *targets: Tensor) -> Tensor:
        """Codes ``[k, *latent_shape]`` on any device to images ``[k, C, H, W]``, float32 in [-1, 1].

        Args:
            latents: The codes.
            targets: Soft targets ``[k, num_classes]``, for a generator that takes them.
        """
        device, decode = self.device, self.compiled if self.compile else self.generator.decode
        with torch.no_grad(), torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            images = decode(*[each.to(device) for each in (latents, *targets)]).float()
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    @property
    def device(self) -> torch.device:
        """Where the generator is now."""
        first = next(self.generator.parameters(), None)
        return self.generator.device if first is None else first.device

    @functools.cached_property
    def compiled(self) -> Callable[..., Tensor]:
        """The generator's ``decode``, compiled in this process."""
        return torch.compile(self.generator.decode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "compiled"}


def draws_of(key: DrawKey) -> torch.Generator:
    """The random stream of a batch or sample: ``(seed, epoch, rank, number)``."""
    return sampling.keyed_generator("draws", *key)


class Mixer:
    """Makes mixes of bank rows and puts them into batches. Checks at once what can be checked before training.

    Args:
        generator: Decodes the bank's codes.
        bank: Codes and labels.
        settings: The wrapper's keywords.
        decoder: Calls the generator; None: ``Decoder(generator)``.
        rows: Rows of the bank that may be mixed, int64, ascending; None: all.
        repeats_in: Number of samples to remember, so that draws that are the same again are noticed.

    Attributes:
        num_classes: Width of the targets.
        view: The rows that are mixed.
        by_class: Draws own rows by class, where ``prob`` or ``balance`` ask for it.

    Raises:
        ValueError: The bank is empty or another generator's, has a row without a label or outside ``num_classes``,
            or the policy, or ``prob`` by class, cannot be followed with it.
    """

    @long_lived()
    def __init__(
        self,
        generator: Generator,
        bank: LatentBank,
        settings: MixSettings,
        decoder: Decoder | None = None,
        rows: Tensor | None = None,
        repeats_in: int = 1,
    ) -> None:
        bank.check(generator)
        bank.check_labelled()
        self.bank, self.settings, self.policy = bank, settings, settings.policy
        self.decoder = Decoder(generator) if decoder is None else decoder
        self.num_classes = bank.num_classes if settings.num_classes is None else settings.num_classes
        if bank.multi_label and not settings.multi_label:
            raise ValueError(
                "the labels of this bank are multi-label, and need not sum to 1: pass multi_label=True, and train with "
                "F.binary_cross_entropy_with_logits"
            )
        if settings.multi_label and not bank.labels.is_floating_point():
            raise ValueError(
                "multi_label=True needs a bank of labels [N, num_classes]: got class indices; leave it out, or pass "
                "LatentBank(bank[:][0], F.one_hot(bank.labels).float(), source_index=bank.source_index)"
            )
        check_labels(bank.labels, self.num_classes, multi_label=settings.multi_label)
        self.view = BankView(bank, rows)
        self.by_class: ByClass | None = None
        if settings.balance is not None:
            prob = settings.prob if settings.shares is None else settings.shares
            self.by_class = ByClass(settings.balance, prob, self.view, self.num_classes)
        self.policy.check(self.view, generator)
        self.path = path_named(self.policy.path or generator.preferred_path)
        self._soft = self.policy.soft or bank.labels.is_floating_point()
        self._rank = settings.rank
        # Shared with worker processes, persistent ones included: [epoch, whether the range was checked, on or off].
        self._shared = torch.tensor([0, 0, 1], dtype=torch.int64, device="cpu").share_memory_()
        self._repeats = Repeats(repeats_in)
        self._compared: list[tuple[Tensor, Tensor]] = []  # real and decoded images, until there are enough

    @property
    def epoch(self) -> int:
        """The epoch that draws belong to, in every process that holds a copy."""
        return int(self._shared[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._shared[0] = epoch
        self._repeats.forget()

    @property
    def range_checked(self) -> bool:
        """Whether two batches were compared by :meth:`check_range`, in any process that holds a copy."""
        return bool(self._shared[1])

    @property
    def enabled(self) -> bool:
        """Whether anything is mixed, in every process that holds a copy."""
        return bool(self._shared[2])

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._shared[2] = int(enabled)

    def key(self, seed: int, *parts: int) -> DrawKey:
        """Name of a random stream: ``(seed, epoch, rank, *parts)``."""
        rank = sampling.default_rank() if self._rank is None else self._rank
        return (seed, self.epoch, rank, *parts)

    def keys(self, numbers: list[int], stacklevel: int = 5) -> list[DrawKey]:
        """Names of the draws of samples or batches: of these numbers where there is a seed, else new ones."""
        if self.settings.seed is None:
            return [self.key(seed) for seed in sampling.fresh_seeds(len(numbers))]
        if self.settings.prob and self._repeats.note(numbers):
            warn_of_repeats(self.epoch, stacklevel=stacklevel)
        return [self.key(self.settings.seed, number) for number in numbers]

    def __str__(self) -> str:
        """Generator, rows that are mixed, and the settings that are not their default, for a wrapper's ``repr``."""
        generator = self.decoder.generator
        name = generator.metadata.get("name") or type(generator).__name__
        settings = [f"{keyword}={value!r}" for keyword, value in self.settings.changed.items()]
        return ", ".join([str(name), f"{self.view.num_rows:,} rows of {self.num_classes} classes", *settings])

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker does not know its rank: it is told by the process that pickles this."""
        rank = sampling.default_rank() if self._rank is None else self._rank
        return {**self.__dict__, "_rank": rank, "_compared": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy reaches its own worker processes as well."""
        self.__dict__.update(state)
        self._shared.share_memory_()

    # ---------------------------------------------------------------------------------------------
    # One batch
    # ---------------------------------------------------------------------------------------------

    def shown_rows(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Own rows of mixes of no batch, ``[count]``, of the classes that are mixed; None: the policy draws them."""
        return None if self.by_class is None else self.by_class.shown_rows(count, generator)

    def draw(
        self,
        batch_size: int,
        key: DrawKey,
        rows: Tensor | None = None,
        view: BankView | None = None,
        labels: Tensor | None = None,
    ) -> Draw:
        """Decide what happens to a batch; nothing is decoded.

        Args:
            batch_size: Number of samples.
            key: Names the draws.
            rows: The samples' own rows of the bank, ``[batch_size]``; None: they are drawn.
            view: The rows that others are drawn from; None: :attr:`view`.
            labels: The samples' labels; for own rows that are drawn by class.
        """
        view, stream = view or self.view, draws_of(key)
        if self.by_class is None:
            return self.policy.draw_batch(batch_size, self.settings.prob, view, stream, epoch=key[1], rows=rows)
        slots, own = self.by_class.draw(batch_size, stream, labels, rows)
        draw = self.policy.draw(len(slots), view, stream, epoch=key[1], rows=own)
        return replace(draw, slots=slots[draw.slots])

    def decode(self, draw: Draw) -> tuple[Tensor, LabelPair, Tensor | None]:
        """Mix and decode bank rows, without gradients.

        Args:
            draw: At least one mix.

        Returns:
            Images after transform and normalisation, ``[k, C, H, W]`` on the generator's device; their labels; and
            which of the draws they are, int64 ``[k]``: None for all. There may be none.

        Raises:
            RuntimeError: A worker process would have to decode on an accelerator.
            ValueError: A code is NaN or infinite, or the transform does not return equal-sized tensors.
        """
        if torch.utils.data.get_worker_info() is not None and self.decoder.device.type != "cpu":
            raise RuntimeError(
                f"a DataLoader worker cannot decode on {self.decoder.device}: use LatentMixupLoader, which decodes in "
                "the main process, or num_workers=0"
            )
        images, labels = self._decoded(draw)
        pair = self.policy.label(labels, draw, self.num_classes, images)
        images = self.settings.finished(images)
        kept = self.policy.kept(images, pair, self.num_classes)
        if kept is None:
            return images, pair, None
        own, other, lam = (part[kept.to(part.device)] for part in pair)
        return images[kept.to(images.device)], (own, other, lam), kept

    def decode_alone(self, rows: Tensor) -> Tensor:
        """Bank rows ``[k]`` unmixed, as the classifier would get them, ``[k, C, H, W]``."""
        return self.settings.finished(self._decoded(Draw.alone(rows, self.policy.num_sources))[0])

    def _decoded(self, draw: Draw) -> tuple[Tensor, Tensor]:
        generator = self.decoder.generator
        return self.policy.decoded(draw, self.view, self.path, generator, self.num_classes, self.decoder)

    def blend(self, images: Tensor, labels: Tensor, key: DrawKey) -> tuple[Tensor, Target]:
        """Replace a share ``prob`` of a batch, or of each class in it, by decoded mixes drawn from the bank.

        Args:
            images: The data set's own, ``[B, C, H, W]``, float in any range, on any device; not modified.
            labels: ``[B]`` integers, or soft, ``[B, num_classes]``, as from ``v2.MixUp``.
            key: Names the draws.

        Returns:
            Images, with shape, dtype and device of ``images``; targets on the device of ``labels``.

        Raises:
            SampleError: ``images`` or ``labels`` is not a tensor of the right kind, sizes do not agree, or a label lies
                outside ``num_classes``.
            ValueError: There is no row of a class.
        """
        return self.blend_all([(images, labels, key)])[0]

    @long_lived()
    def blend_all(self, batches: Sequence[tuple[Tensor, Tensor, DrawKey]]) -> list[tuple[Tensor, Target]]:
        """:meth:`blend` for each ``(images, labels, key)``; the mixes of all are decoded in one call.

        The draws are those of each batch alone, and so are the images, up to rounding.
        """
        for images, labels, _ in batches:
            _check_batch(images, labels, normalized=self.settings.moments is not None)
        draws = [self.draw(len(images), key, labels=labels) for images, labels, key in batches]
        sizes = [len(draw.slots) for draw in draws]
        if not any(sizes):
            return [self.unmixed(images, labels) for images, labels, _ in batches]
        decoded, pair, kept = self.decode(Draw.cat(draws) if len(draws) > 1 else draws[0])
        if kept is not None:
            kept = kept.to(draws[0].slots.device)
            owner = torch.arange(len(draws)).repeat_interleave(torch.tensor(sizes))[kept]
            first = torch.tensor([0, *sizes]).cumsum(0)
            draws = [draw.take(kept[owner == number] - first[number]) for number, draw in enumerate(draws)]
            sizes = [len(draw) for draw in draws]
        targets: list[Target]
        if self.settings.target_format == "soft":
            smoothing, multi_label = self.settings.label_smoothing, self.settings.multi_label
            mixed = mix_targets(*pair, self.num_classes, smoothing, multi_label=multi_label)
            targets = [*mixed.split(sizes)]
        else:
            targets = [
                self.settings.mixed_targets(a, b, lam, self.num_classes, soft=self._soft or labels.is_floating_point())
                for a, b, lam, (_, labels, _) in zip(*(part.split(sizes) for part in pair), batches, strict=True)
            ]
        parts = zip(batches, draws, decoded.split(sizes), targets, strict=True)
        return [self._placed(images, labels, draw, *mixes) for (images, labels, _), draw, *mixes in parts]

    def _placed(
        self, images: Tensor, labels: Tensor, draw: Draw, decoded: Tensor, targets: Target
    ) -> tuple[Tensor, Target]:
        """A batch with its mixes in their slots."""
        decoded = in_kind(decoded, images)
        if decoded.shape[1:] != images.shape[1:]:
            check_size(images, decoded)  # which finds the words
        if not self._shared[1]:
            self.check_range(images, decoded)
        if len(draw.slots) == len(images):  # all, in order
            check_labels(labels, self.num_classes, multi_label=self.settings.multi_label)
            placed, targets = decoded, to_device(targets, labels.device)
        else:
            placed = images.index_copy(0, draw.slots.to(images.device), decoded)
            targets = _with_rows(self.unmixed(images, labels)[1], draw.slots, targets)
        return placed if type(images) is Tensor else wrapped(placed, images), targets

    def unmixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Target]:
        """The batch as it is, with targets of its own labels."""
        return images, self.settings.own_targets(labels, self.num_classes, soft=self._soft)

    def check_range(self, real: Tensor, decoded: Tensor) -> None:
        """Warn once where real and decoded images differ in range, as soon as batches have given enough of them.

        Where a small ``prob`` leaves too few decoded images, some more are decoded for this once.
        """
        if self.range_checked:
            return
        if self._compared and self._compared[0][0].shape[1:] != real.shape[1:]:
            self._compared.clear()
        self._compared.append((real.detach().clone(), decoded.detach().clone()))
        real, decoded = (torch.cat(images) for images in zip(*self._compared, strict=True))
        if len(real) < MIN_IMAGES:
            return
        self._shared[1] = 1
        self._compared.clear()
        if len(decoded) < MIN_IMAGES:
            some = torch.linspace(0, self.view.num_rows - 1, MIN_IMAGES, dtype=torch.float64, device="cpu").long()
            rows = some if self.view.rows is None else self.view.rows[some]
            decoded = in_kind(self.decode_alone(rows), real)
        message = range_mismatch(real, decoded)
        if message is not None:
            warnings.warn(message, RangeMismatchWarning, stacklevel=3)


class Repeats:
    """Notices once that named draws come again; shared by all processes that hold a copy.

    Args:
        size: Number of names to remember.
    """

    def __init__(self, size: int) -> None:
        self._names = torch.zeros(size, dtype=torch.int64, device="cpu").share_memory_()
        self._counts = torch.zeros(3, dtype=torch.int64, device="cpu").share_memory_()  # new, again, whether noticed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._names.share_memory_()
        self._counts.share_memory_()

    def forget(self) -> None:
        """Another epoch has been named: nothing has come in it yet."""
        self._names.zero_()
        self._counts[:2] = 0

    def note(self, numbers: Sequence[int]) -> bool:
        """Whether, for the first time, as many names came again as were new, these included."""
        if self._counts[2]:
            return False
        for number in numbers:
            slot = number % len(self._names)
            self._counts[int(self._names[slot] == number + 1)] += 1
            self._names[slot] = number + 1
        self._counts[2] = int(self._counts[1] >= self._counts[0])
        return bool(self._counts[2])


def warn_of_repeats(epoch: int, stacklevel: int) -> None:
    """Say that a pass has the mixes of the pass before."""
    warnings.warn(
        f"epoch {epoch} is drawn a second time, so its mixes are the same: call set_epoch(epoch) before each pass, or "
        "leave seed=None, which draws anew by itself",
        UserWarning,
        stacklevel=stacklevel,
    )


def to_device(targets: Target, device: torch.device) -> Target:
    """Targets on a device."""
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    y_a, y_b, lam = (part.to(device, non_blocking=True) for part in targets)
    return y_a, y_b, lam


def split_targets(targets: Target) -> list[Target]:
    """Targets of a batch, one by one."""
    return list(targets) if isinstance(targets, Tensor) else list(zip(*targets, strict=True))


def in_kind(decoded: Tensor, like: Tensor) -> Tensor:
    """Decoded images in dtype and on the device of the data set's own; uint8 where these are."""
    return decoded.to(like) if like.is_floating_point() else to_uint8(decoded).to(like)


def wrapped(images: Tensor, like: Tensor) -> Tensor:
    """A ``tv_tensors.Image`` where ``like`` is one."""
    tv_tensors = sys.modules.get("torchvision.tv_tensors")  # not there: it is none
    if tv_tensors is None or not isinstance(like, tv_tensors.TVTensor):
        return images
    image: Tensor = tv_tensors.wrap(images.as_subclass(Tensor), like=like)
    return image


def _with_rows(targets: Target, slots: Tensor, rows: Target) -> Target:
    """Targets of a batch with others in some slots."""
    if isinstance(targets, Tensor):
        assert isinstance(rows, Tensor)
        return targets.index_copy(0, slots.to(targets.device), rows.to(targets))
    y_a, y_b, lam = (
        old.index_copy(0, slots.to(old.device), new.to(old)) for old, new in zip(targets, rows, strict=True)
    )
    return y_a, y_b, lam


def is_pair(batch: Any, settings: MixSettings) -> bool:
    """Whether a batch is ``(images, labels)`` and nothing else, in this order."""
    return type(batch) in (tuple, list) and len(batch) == 2 and (settings.image_key, settings.label_key) == (None, None)


def _check_batch(images: object, labels: object, *, normalized: bool) -> None:
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise SampleError(
            f"a batch needs to be (images, labels), two tensors: got {type(images).__name__} "
            f"and {type(labels).__name__}; soft labels need to be tensors as well"
        )
    if not images.is_floating_point():
        check_dtype(images, normalized=normalized)
    if images.ndim != 4:
        raise SampleError(f"images need shape [B, C, H, W]: got {list(images.shape)}")
    if len(images) != len(labels):
        raise SampleError(f"a batch needs one label per image: got {len(labels)} for {len(images)} images")


def check_dtype(images: Tensor, *, normalized: bool) -> None:
    """Raise ``SampleError`` unless images are float, or uint8 and not ``normalized``."""
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise SampleError(
            f"images need a float dtype, or uint8: got {images.dtype}; convert them in the data set, e.g. "
            "v2.ToDtype(torch.float32, scale=True)"
        )
    if normalized and not images.is_floating_point():
        raise SampleError(
            f"normalize= says that images were normalised, and these are {images.dtype}: leave it out, and normalise "
            "batches after they are mixed"
        )


def _number(name: str, value: object) -> float:
    """A keyword's value as a number; raises ``TypeError`` for another type."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} needs to be a number: got {value!r:.100}")
    return float(value)


def _class_shares(prob: Mapping[Any, Any]) -> dict[int | str, float]:
    """Shares by class, checked as far as it goes without a bank; raises ``TypeError`` for another type."""
    shares: dict[int | str, float] = {}
    for key, share in prob.items():
        label = key if isinstance(key, str) else _whole("a class that prob names", key)
        if label is None:
            raise TypeError("a class that prob names needs to be a number or a name: got None")
        shares[label] = _number(f"prob of class {key!r:.80}", share)
    return shares


def _whole(name: str, value: object) -> int | None:
    """A keyword's value as an integer or None; raises ``TypeError`` for another type."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return None if value is None else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} needs to be an integer: got {value!r:.100}") from None
