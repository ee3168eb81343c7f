"""A policy: partners, weights, path and label of a mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latent_mixup.functional import Path, mix_latents
from latent_mixup.generators.base import Generator, PathName
from latent_mixup.labels import label_rows
from latent_mixup.policies.blending import Channels, Layers, Whole
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

    Raises:
        ValueError: A field is of another type or out of range, or ``"slerp"`` would be between more than two codes or
            weights that differ within a code.

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

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """
        if not bank.num_rows:
            raise ValueError("a mix needs at least one row in the bank: got 0")
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
        return Draw(
            torch.arange(k, device=generator.device),
            sources,
            weights,
            self.labels(label_weights) if isinstance(self.labels, Curve) else label_weights,
            shares,
            None if self.noise is None else self.noise.draw(k, bank.bank.latent_shape, bank.spread, generator),
            None if self.low_pass is None else self.low_pass.draw(k, generator),
            *(self._draw_projection(k, bank, generator) if self.project else (None, None)),
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
        return replace(self.draw(len(slots), bank, generator, epoch=epoch, rows=own), slots=slots)

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
            is_one = draw.label_weights.amax(1).to(soft) == 1
            soft = torch.where(is_one[:, None], soft, self.labels(images, num_classes).to(soft))
        return soft, soft, torch.ones(len(draw), dtype=torch.float32, device=soft.device)

    def soft_label(self, labels: Tensor, draw: Draw, num_classes: int) -> Tensor:
        """Labels of mixes by those of their sources alone, ``[k, num_classes]``; ``labels`` as in :meth:`label`."""
        each = label_rows(labels.flatten(0, 1), num_classes).view(*draw.sources.shape, num_classes)
        return (draw.label_weights[..., None].to(each) * each).sum(1)


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

    Raises:
        ValueError: Its labels come from a :class:`Teacher`, a network.

    Example:
        >>> to_config(Policy(noise=Noise(0.5)))["noise"]
        {'kind': 'Noise', 'scale': 0.5}
    """
    policy = checked(Policy, policy, "to_config")
    if isinstance(policy.labels, Teacher):
        raise ValueError("a policy with a Teacher holds a network, which JSON cannot hold: pass it in Python")
    config = {name: value for name, value in as_json(policy).items() if name != "kind"}
    if not policy.project:
        del config["project"]  # pools of 0.1.0 were made without it, and go on
    return config


def from_config(config: Mapping[str, Any]) -> Policy:
    """The policy that :func:`to_config` wrote.

    Raises:
        ValueError: A field, a kind or a setting is unknown, has another type or is out of its range.

    Example:
        >>> from_config({"weights": {"kind": "Beta", "alpha": 0.4}}).weights
        Beta(alpha=0.4, mode='elem')
    """
    return from_json(Policy, config, "a policy")
