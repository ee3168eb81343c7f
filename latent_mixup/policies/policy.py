"""A policy: partners, weights, path and label of a mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.functional import Path, mix_latents
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.labels import label_rows
from latent_mixup.policies.blending import Channels, Layers, Whole
from latent_mixup.policies.choosing import Hardest
from latent_mixup.policies.draws import Draw
from latent_mixup.policies.labelling import Curve, Teacher
from latent_mixup.policies.partners import Anyone, BankView, ClassPairs, Farthest, Nearest, OtherClass, SameClass
from latent_mixup.policies.settings import Setting, Share, as_json, checked, from_json
from latent_mixup.policies.vicinity import LowPass, Noise, Truncation
from latent_mixup.policies.weights import Beta, Dirichlet, NearEnds, Scheduled, Uniform, on_own
from latent_mixup.sampling import draw_slots

AnyWeights: TypeAlias = Beta | Uniform | NearEnds | Dirichlet | Scheduled
AnyPartners: TypeAlias = Anyone | SameClass | OtherClass | ClassPairs | Nearest | Farthest
AnyBlend: TypeAlias = Whole | Layers | Channels
LabelPair: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Two labels of each mix, ``[k]`` or soft ``[k, num_classes]``, and the weight of the first, ``[k]``."""


@dataclass(frozen=True)
class Policy(Setting):
    """How a mix is made of bank rows; ``Policy()`` is the paper's, with one ``lam`` a sample.

    A label sums to 1, unless those of the bank are multi-label. Where the sample's own weight is 1, the mix is the
    sample's own code with its own label, apart from noise, truncation, projection and low-pass.

    Args:
        weights: Distribution of the weights of a mix.
        partners: Choice of the rows that a sample is mixed with.
        blend: How the weights are spread over a code.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own. More than two codes, and blends other than
            :class:`Whole`, are always mixed by ``"lerp"``.
        unmixed: Share of the decoded samples that are not mixed, in [0, 1].
        noise: Noise on the mixed code; None: none.
        truncation: Truncation of the mixed code; None: none.
        project: Time ``t`` to which a mixed code is noised before the generator's prior brings it back to likely codes,
            in [0, 1]; 0: not. Needs a generator that has a prior, such as those that ``fit`` makes; see
            :meth:`latent_mixup.generators.Generator.project`.
        low_pass: Low-pass of the decoded image; None: none.
        labels: Label of a mix; None: the weights of its code.
        prior: Whether a mixed code is replaced by a fresh one, drawn from the generator's prior: see :func:`Prior`.
        choose: Which of several mixes of a sample is kept; None: there is one.

    Raises:
        ValueError: A field is of another type or out of range, ``"slerp"`` would be between more than two codes or
            weights that differ within a code, or a fresh code would be mixed.

    Example:
        >>> Policy(weights=Beta(0.4), partners=OtherClass(), noise=Noise(0.3)).num_sources
        2
    """

    weights: AnyWeights = field(default_factory=Beta)
    partners: AnyPartners = field(default_factory=Anyone)
    blend: AnyBlend = field(default_factory=Whole)
    path: PathName | None = None
    unmixed: Share = 0.0
    noise: Noise | None = None
    truncation: Truncation | None = None
    project: Share = 0.0
    low_pass: LowPass | None = None
    labels: Curve | Teacher | None = None
    prior: bool = False
    choose: Hardest | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior and (self.unmixed != 1 or self.noise is not None or self.project):
            raise ValueError(
                "a fresh code of the prior is not mixed: say Prior(labels=...), which has no such settings"
            )
        if self.path == "slerp" and not (self.num_sources == 2 and isinstance(self.blend, Whole)):
            raise ValueError(
                'path="slerp" is between two codes with one weight: use path="lerp" with '
                f"{type(self.weights).__name__} of {self.num_sources} and {type(self.blend).__name__}"
            )

    @property
    def num_sources(self) -> int:
        """Number of codes that are mixed."""
        return self.weights.num_sources

    @property
    def soft(self) -> bool:
        """Whether labels are always soft: a pair of classes cannot express more than two, nor a classifier's output."""
        return self.num_sources != 2 or isinstance(self.labels, Teacher)

    @property
    def follows_training(self) -> bool:
        """Whether mixes depend on a classifier that is being trained, so that none can be decoded ahead."""
        return self.choose is not None

    @property
    def by_batch(self) -> bool:
        """Whether all mixes of a batch have one ``lam``."""
        weights = self.weights.weights if isinstance(self.weights, Scheduled) else self.weights
        return not isinstance(weights, Dirichlet) and weights.mode == "batch"

    def check(self, bank: BankView, generator: Generator | None = None) -> None:
        """Raise ``ValueError`` where the policy cannot be followed with this bank, or with this generator."""
        if self.project and generator is not None and not generator.has_prior:
            raise ValueError(
                f"Policy(project={self.project}) needs a generator with a learnt prior, as latent_mixup.fit makes it: "
                f"{type(generator).__name__} has none"
            )
        if self.prior and not isinstance(self.labels, Teacher) and generator is not None and not generator.has_classes:
            raise ValueError(
                f"a fresh sample of {type(generator).__name__}, which has no classes, needs a label: pass "
                "Prior(labels=Teacher(classifier))"
            )
        if bank.bank.multi_label and (self.choose is not None or self.prior):
            what = "Hardest" if self.choose is not None else "Prior"
            raise ValueError(f"{what} needs labels that sum to 1: this bank is multi-label")
        if bank.bank.multi_label and isinstance(self.labels, Teacher):
            raise ValueError(
                "a Teacher says one class of an image, by a softmax: leave it out where labels are multi-label"
            )
        if bank.bank.multi_label and generator is not None and generator.takes_targets:
            raise ValueError(
                f"{type(generator).__name__} is told weights of classes that sum to 1, which multi-label ones do not: "
                "use a generator that decodes from codes alone"
            )
        self.partners.check(bank)
        self.blend.check(bank.bank.latent_shape)
        if self.truncation is not None:
            self.truncation.check(bank.bank.latent_shape)

    def draw(
        self, k: int, bank: BankView, generator: torch.Generator, *, epoch: int = 0, rows: Tensor | None = None
    ) -> Draw:
        """Decide about ``k`` mixes; nothing is decoded.

        Args:
            k: Number of mixes.
            bank: At least one row.
            generator: Random stream; the same stream gives the same draws.
            epoch: Counted from 0, for :class:`Scheduled` weights.
            rows: The samples' own rows, ``[k]``; None: drawn uniformly.

        Returns:
            The draws of ``k`` mixes; with ``choose``, of all candidates, a sample's in a row: :meth:`kept` keeps one.
        """
        if not bank.num_rows:
            raise ValueError("a mix needs at least one row in the bank: got 0")
        slots = torch.arange(k, device=generator.device)
        if self.choose is not None:
            if rows is None:
                rows = bank.draw(k, 1, generator)[:, 0]
            rows, slots = (each.repeat_interleave(self.choose.candidates) for each in (rows, slots))
            k = len(slots)
        num_sources = self.weights.num_sources
        sources = torch.randint(bank.num_rows, (num_sources, k), generator=generator, device=generator.device).T
        if bank.rows is not None:
            sources = bank.rows[sources]
        if rows is not None:
            sources[:, 0] = rows
        if not isinstance(self.partners, Anyone):
            sources[:, 1:] = self.partners.draw(sources[:, 0], num_sources - 1, bank, generator)
        weights = self.weights.draw(k, generator, epoch)
        fresh = self.weights.draw(k, generator, epoch) if self.blend.needs_fresh else weights
        if self.unmixed:
            alone = draw_slots(k, self.unmixed, generator)
            weights, fresh = (each.index_copy(0, alone, on_own(each[alone])) for each in (weights, fresh))
        shares, label_weights = None, weights
        if not isinstance(self.blend, Whole):
            shares, label_weights = self.blend.draw(weights, fresh, bank.bank.latent_shape, generator)
        times, jitter = self._draw_projection(k, bank, generator) if self.project else (None, None)
        return Draw(
            slots,
            sources,
            weights,
            self.labels(label_weights) if isinstance(self.labels, Curve) else label_weights,
            shares,
            None if self.noise is None else self.noise.draw(k, bank.bank.latent_shape, bank.spread, generator),
            None if self.low_pass is None else self.low_pass.draw(k, generator),
            times,
            jitter,
            torch.randint(2**62, (k,), generator=generator, device=generator.device) if self.prior else None,
        )

    def _draw_projection(self, k: int, bank: BankView, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``[k]`` and noise ``[k, *latent_shape]``."""
        options: dict[str, Any] = {"dtype": torch.float32, "device": generator.device}
        noise = torch.randn(k, *bank.bank.latent_shape, generator=generator, **options)
        return torch.full((k,), self.project, **options), noise

    def draw_batch(
        self,
        batch_size: int,
        prob: float,
        bank: BankView,
        generator: torch.Generator,
        *,
        epoch: int = 0,
        rows: Tensor | None = None,
    ) -> Draw:
        """Decide what happens to a batch: which of its samples become mixes, and of what.

        Args:
            batch_size: Number of samples in it.
            prob: Share of them that become mixes, in [0, 1].
            bank: See :meth:`draw`.
            generator: See :meth:`draw`.
            epoch: See :meth:`draw`.
            rows: The samples' own rows, ``[batch_size]``; None: drawn uniformly.
        """
        slots = draw_slots(batch_size, prob, generator)
        own = None if rows is None else rows[slots]
        draw = self.draw(len(slots), bank, generator, epoch=epoch, rows=own)
        return replace(draw, slots=slots[draw.slots])

    def latents(
        self, draw: Draw, bank: BankView, path: Path, generator: Generator, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """The codes of mixes, noised, truncated and projected, or those of the prior, and the labels of their sources.

        Args:
            draw: The draws of the mixes.
            bank: Where the sources come from.
            path: Interpolation between two codes.
            generator: Decodes them.
            num_classes: Width of soft labels.

        Returns:
            Codes ``[k, *latent_shape]``; labels ``[k, n]`` int64 or soft, ``[k, n, num_classes]``.

        Raises:
            ValueError: A code is NaN or infinite.
        """
        codes, labels = (part.unflatten(0, draw.sources.shape) for part in bank.bank[draw.sources.flatten()])
        mixed = self.mix(codes, draw, bank, path)
        if draw.seeds is not None:
            fresh = (draw.seeds >= 0).nonzero()[:, 0]
            targets = self.soft_label(labels, draw, num_classes)[fresh] if generator.samples_classes else None
            latents = generator.latents_of(draw.seeds[fresh].tolist(), targets)
            latents = latents if self.truncation is None else self.truncation(latents, bank.mean)
            mixed = mixed.to(latents).index_copy(0, fresh.to(latents.device), latents)
        if not mixed.isfinite().all():
            raise ValueError("a code in the bank is NaN or infinite: open it with verify=True, or invert it again")
        return self.projected(mixed, draw, generator), labels

    def mix(self, codes: Tensor, draw: Draw, bank: BankView, path: Path) -> Tensor:
        """The codes of mixes.

        Args:
            codes: Codes of the sources, ``[k, n, *latent_shape]``.
            draw: The draws of the mixes.
            bank: Where the sources come from.
            path: Interpolation between two codes.

        Returns:
            ``[k, *latent_shape]``.
        """
        if codes.shape[1] == 2 and draw.shares is None:
            mixed = mix_latents(codes[:, 0], codes[:, 1], draw.weights[:, 0], path)
        else:
            shares = draw.weights if draw.shares is None else draw.shares
            mixed = (shares.view(*shares.shape, *[1] * (codes.ndim - shares.ndim)).to(codes) * codes).sum(1)
        if draw.noise is not None:
            mixed = mixed + draw.noise.to(mixed)
        return mixed if self.truncation is None else self.truncation(mixed, bank.mean)

    def projected(self, codes: Tensor, draw: Draw, generator: Generator) -> Tensor:
        """The mixed codes ``[k, *latent_shape]`` brought back to likely ones by the generator's prior."""
        if draw.times is None:
            return codes
        return generator.project(codes.to(generator.device), draw.times, noise=draw.jitter)

    def decoded(
        self,
        draw: Draw,
        bank: BankView,
        path: Path,
        generator: Generator,
        num_classes: int,
        decode: Callable[..., Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Mixes decoded.

        Args:
            draw: The draws of the mixes.
            bank: Where the sources come from.
            path: Interpolation between two codes.
            generator: The bank's.
            num_classes: Width of soft labels.
            decode: Its ``decode``, with whatever makes it faster around it.

        Returns:
            Images ``[k, C, R, R]`` in [-1, 1], on the generator's device; labels of the sources as of :meth:`latents`.

        Raises:
            ValueError: A code is NaN or infinite.
        """
        latents, labels = self.latents(draw, bank, path, generator, num_classes)
        given = [self.soft_label(labels, draw, num_classes)] if generator.takes_targets else []
        return self.finish(decode(latents, *given), draw), labels

    def finish(self, images: Tensor, draw: Draw) -> Tensor:
        """Decoded images ``[k, C, H, W]`` in [-1, 1] after the low-pass."""
        return images if self.low_pass is None or draw.sigma is None else self.low_pass(images, draw.sigma)

    def label(self, labels: Tensor, draw: Draw, num_classes: int, images: Tensor | None = None) -> LabelPair:
        """Labels of mixes, as two labels and the weight of the first.

        Args:
            labels: Labels of the sources, ``[k, n]`` int64 or soft, ``[k, n, num_classes]``.
            draw: The draws of the mixes.
            num_classes: Width of soft labels.
            images: The mixes after :meth:`finish`, which a :class:`Teacher` needs.

        Returns:
            See :data:`LabelPair`; where :attr:`soft`, both are the whole soft label and the weight is 1.
        """
        if not self.soft:
            return labels[:, 0], labels[:, 1], draw.label_weights[:, 0]
        soft = self.soft_label(labels, draw, num_classes)
        if isinstance(self.labels, Teacher):
            assert images is not None
            is_own = draw.label_weights.amax(1) == 1
            if draw.seeds is not None:
                is_own &= draw.seeds < 0
            soft = torch.where(is_own.to(soft.device)[:, None], soft, self.labels(images, num_classes).to(soft))
        return soft, soft, torch.ones(len(draw), dtype=torch.float32, device=soft.device)

    def soft_label(self, labels: Tensor, draw: Draw, num_classes: int) -> Tensor:
        """Labels of mixes by those of their sources alone, ``[k, num_classes]``; ``labels`` as in :meth:`label`."""
        each = label_rows(labels.flatten(0, 1), num_classes).view(*draw.sources.shape, num_classes)
        return (draw.label_weights[..., None].to(each) * each).sum(1)

    def kept(self, images: Tensor, pair: LabelPair, num_classes: int) -> Tensor | None:
        """Which mixes are used: the hardest candidates, and of these the ones that a :class:`Teacher` is sure of.

        Args:
            images: As the wrapper gives them, ``[k, C, H, W]``.
            pair: Their labels, as from :meth:`label`.
            num_classes: Width of soft labels.

        Returns:
            Places, int64, ascending; None: all.
        """
        places = None
        if self.choose is not None:
            first, second, lam = pair
            own, other = (label_rows(labels, num_classes) for labels in (first, second))
            share = lam[:, None].to(own)
            places = self.choose(images, share * own + (1 - share) * other)
        if isinstance(self.labels, Teacher) and self.labels.min_confidence:
            sure = pair[0].amax(1) >= self.labels.min_confidence
            places = sure.nonzero()[:, 0] if places is None else places[sure.to(places.device)[places]]
        return places


def Prior(  # noqa: N802 - reads like the parts of a policy
    *, labels: Teacher | None = None, truncation: Truncation | None = None, low_pass: LowPass | None = None
) -> Policy:
    """The policy that decodes fresh codes of the generator's prior in the place of mixes.

    Args:
        labels: Labels them. None: they are of the classes of the bank's rows, for a generator that has classes.
        truncation: Truncation of a code; None: none.
        low_pass: Low-pass of the decoded image; None: none.

    Example:
        >>> Prior(low_pass=LowPass(0, 1)).prior
        True
    """
    return Policy(unmixed=1.0, prior=True, labels=labels, truncation=truncation, low_pass=low_pass)


@dataclass(frozen=True)
class Named:
    """A policy and the share of samples that it is meant for.

    Attributes:
        prob: Share of samples that are decoded mixes.
        policy: How they are made.
    """

    prob: float
    policy: Policy


NAMED = {
    "paper": Named(1.0, Policy(weights=Beta(1.0, "batch"))),
    "robust": Named(0.2, Policy(unmixed=1.0, low_pass=LowPass(0.0, 1.0))),
}
"""``"paper"``: every sample a mix, one ``lam`` a batch. ``"robust"``: what ``benchmarks/search/search.py`` chose on
Fashion-MNIST: one sample in five is decoded, unmixed, through a low-pass; see ``docs/findings.md``."""


def named(name: str) -> Named:
    """The policy of a name.

    Raises:
        ValueError: No policy has this name.

    Example:
        >>> named("robust").prob
        0.2
    """
    if name not in NAMED:
        raise ValueError(f"no policy is called {name!r}: expected one of {', '.join(NAMED)}, or a Policy")
    return NAMED[name]


def to_config(policy: Policy) -> dict[str, Any]:
    """A policy as JSON can hold it: each part with its ``kind`` and its settings, defaults included.

    Of a :class:`Teacher` it has the digest of the weights, from which nothing can be made again.

    Raises:
        ValueError: It chooses by a classifier that is being trained.

    Example:
        >>> to_config(Policy(noise=Noise(0.5)))["noise"]
        {'kind': 'Noise', 'scale': 0.5}
    """
    policy = checked(Policy, policy, "to_config")
    if policy.choose is not None:
        raise ValueError("Hardest asks a classifier that is being trained, which JSON cannot hold: pass it in Python")
    plain = replace(policy, labels=None) if isinstance(policy.labels, Teacher) else policy
    config = {name: value for name, value in as_json(plain).items() if name not in ("kind", "choose")}
    if isinstance(policy.labels, Teacher):
        config["labels"] = policy.labels.facts()
    for name in ("project", "prior"):
        if not config[name]:
            del config[name]  # pools of 0.1.0 were made without it, and go on
    return config


def from_config(config: Mapping[str, Any]) -> Policy:
    """The policy that :func:`to_config` wrote.

    Raises:
        ValueError: A field, a kind or a setting is unknown, has another type or is out of its range.

    Example:
        >>> from_config({"weights": {"kind": "Beta", "alpha": 0.4}}).weights
        Beta(alpha=0.4, mode='elem')
    """
    labels = config.get("labels") if isinstance(config, Mapping) else None
    if isinstance(labels, Mapping) and labels.get("kind") == "Teacher":
        raise ValueError("labels of a Teacher need its network, which JSON does not hold: pass the policy in Python")
    return from_json(Policy, config, "a policy")
