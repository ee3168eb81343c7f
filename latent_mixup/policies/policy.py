"""A policy: what is mixed with what, by how much, and what label it gets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from latent_mixup.functional import soft_targets
from latent_mixup.generators.base import PathName
from latent_mixup.interpolation import Path, path_named
from latent_mixup.policies.blending import Channels, Layers, Whole
from latent_mixup.policies.draws import Draw
from latent_mixup.policies.labelling import Curve, Teacher
from latent_mixup.policies.partners import Anyone, ClassPairs, Farthest, Nearest, OtherClass, SameClass
from latent_mixup.policies.rows import Rows
from latent_mixup.policies.vicinity import LowPass, Noise, Truncation
from latent_mixup.policies.weights import Beta, Dirichlet, NearEnds, Scheduled, Uniform, on_own
from latent_mixup.sampling import draw_slots, draw_some

AnyWeights: TypeAlias = Beta | Uniform | NearEnds | Dirichlet | Scheduled
AnyPartners: TypeAlias = Anyone | SameClass | OtherClass | ClassPairs | Nearest | Farthest
AnyBlend: TypeAlias = Whole | Layers | Channels
Parts: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Labels of two, ``[k]`` or soft ``[k, num_classes]``, and the weight of the first, ``[k]``."""


@dataclass(frozen=True)
class Policy:
    """How a mix is made of bank rows; ``Policy()`` is the paper's, with a ``lam`` a sample.

    Whatever it is made of, a label sums to 1, and where the sample's own weight is 1 the mix is the sample's own code
    with its own label, but for what noise, truncation and low-pass are asked to change.

    Args:
        weights: How the weights of a mix are drawn.
        partners: What a sample is mixed with.
        blend: How the weights are spread over a code.
        path: ``"lerp"``, ``"slerp"``, or None for the generator's own; of more than two codes, and of weights that are
            not the same everywhere, it is ``"lerp"``.
        unmixed: Share of the decoded samples that are not mixed, in [0, 1].
        noise: On the mixed code.
        truncation: Of the mixed code.
        low_pass: Of the decoded image.
        labels: What label a mix has; None: the weights of its code.

    Raises:
        ValueError: ``unmixed`` is out of range, or the path needs two codes with one weight.

    Example:
        >>> Policy(weights=Beta(0.4), partners=OtherClass(), noise=Noise(0.3)).num_sources
        2
    """

    weights: AnyWeights = field(default_factory=Beta)
    partners: AnyPartners = field(default_factory=Anyone)
    blend: AnyBlend = field(default_factory=Whole)
    path: PathName | None = None
    unmixed: float = 0.0
    noise: Noise | None = None
    truncation: Truncation | None = None
    low_pass: LowPass | None = None
    labels: Curve | Teacher | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.unmixed <= 1:
            raise ValueError(f"unmixed needs to be in [0, 1]: got {self.unmixed}")
        if self.path is not None:
            path_named(self.path)
        if self.path == "slerp" and not self._has_path:
            raise ValueError(
                'path="slerp" is between two codes with one weight: use path="lerp" with '
                f"{type(self.weights).__name__} of {self.num_sources} and {type(self.blend).__name__}"
            )

    @property
    def num_sources(self) -> int:
        """How many codes are mixed."""
        return self.weights.num_sources

    @property
    def soft(self) -> bool:
        """Whether labels are soft ones, even of classes: no pair says what more than two are."""
        return self.num_sources != 2 or isinstance(self.labels, Teacher)

    @property
    def by_batch(self) -> bool:
        """Whether all mixes of a batch have one ``lam``."""
        weights = self.weights.weights if isinstance(self.weights, Scheduled) else self.weights
        return not isinstance(weights, Dirichlet) and weights.mode == "batch"

    @property
    def _has_path(self) -> bool:
        return self.num_sources == 2 and isinstance(self.blend, Whole)

    def check(self, bank: Rows) -> None:
        """Raise ``ValueError`` where the policy cannot be followed with this bank."""
        self.partners.check(bank)
        self.blend.check(bank.bank.latent_shape)
        if self.truncation is not None:
            self.truncation.check(bank.bank.latent_shape)

    def draw(
        self, k: int, bank: Rows, generator: torch.Generator, *, epoch: int = 0, rows: Tensor | None = None
    ) -> Draw:
        """Decide about ``k`` mixes; nothing is decoded.

        Args:
            k: How many.
            bank: What is known of the bank, which is not empty.
            generator: The stream drawn from; the same draws for the same stream.
            epoch: Counted from 0, for what is :class:`Scheduled`.
            rows: The samples' own rows, ``[k]``; None: drawn uniformly.
        """
        if not len(bank):
            raise ValueError("a mix needs at least one row in the bank: got 0")
        latent_shape = bank.bank.latent_shape
        drawn = torch.randint(len(bank), (k,), generator=generator, device=generator.device)
        own = drawn if rows is None else rows
        partners = self.partners.draw(own, self.num_sources - 1, bank, generator)
        weights = self.weights.draw(k, generator, epoch)
        fresh = self.weights.draw(k, generator, epoch) if self.blend.needs_fresh else weights
        if self.unmixed:
            alone = draw_some(k, self.unmixed, generator)
            weights, fresh = (each.index_copy(0, alone, on_own(each[alone])) for each in (weights, fresh))
        shares, label_weights = self.blend.draw(weights, fresh, latent_shape, generator)
        return Draw(
            torch.arange(k, device=generator.device),
            torch.cat([own[:, None], partners], 1),
            weights,
            self.labels(label_weights) if isinstance(self.labels, Curve) else label_weights,
            shares,
            None if self.noise is None else self.noise.draw(k, latent_shape, bank.spread, generator),
            None if self.low_pass is None else self.low_pass.draw(k, generator),
        )

    def draw_batch(
        self,
        batch_size: int,
        prob: float,
        bank: Rows,
        generator: torch.Generator,
        *,
        epoch: int = 0,
        rows: Tensor | None = None,
    ) -> Draw:
        """Decide what happens to a batch: which of its samples become mixes, and of what.

        Args:
            batch_size: Number of samples in it.
            prob: Share of them that become mixes, in [0, 1].
            bank: As in :meth:`draw`, as are the next two.
            generator: See there.
            epoch: See there.
            rows: The samples' own rows, ``[batch_size]``; None: drawn uniformly.
        """
        slots = draw_slots(batch_size, prob, generator)
        own = None if rows is None else rows[slots]
        return replace(self.draw(len(slots), bank, generator, epoch=epoch, rows=own), slots=slots)

    def mix(self, codes: Tensor, draw: Draw, bank: Rows, path: Path) -> Tensor:
        """The codes of mixes.

        Args:
            codes: Of the sources, ``[k, n, *latent_shape]``.
            draw: What was decided about them.
            bank: What is known of the bank.
            path: Between two codes.

        Returns:
            ``[k, *latent_shape]``.
        """
        if self._has_path:
            mixed = path(codes[:, 0], codes[:, 1], draw.lam)
        else:
            shares = draw.weights if draw.shares is None else draw.shares
            mixed = (shares.view(*shares.shape, *[1] * (codes.ndim - shares.ndim)).to(codes) * codes).sum(1)
        if draw.noise is not None:
            mixed = mixed + draw.noise.to(mixed)
        return mixed if self.truncation is None else self.truncation(mixed, bank.mean)

    def finish(self, images: Tensor, draw: Draw) -> Tensor:
        """Decoded images ``[k, C, R, R]`` in [-1, 1] as they are shown."""
        if self.low_pass is None or draw.sigma is None:
            return images
        return self.low_pass(images, draw.sigma)

    def label(self, labels: Tensor, draw: Draw, num_classes: int, images: Tensor | None = None) -> Parts:
        """Labels of mixes, as two labels and the weight of the first.

        Args:
            labels: Of the sources, ``[k, n]`` int64 or soft, ``[k, n, num_classes]``.
            draw: What was decided about them.
            num_classes: Width of soft labels.
            images: The mixes as they are shown, ``[k, C, R, R]`` in [-1, 1], which a :class:`Teacher` needs.

        Returns:
            See :data:`Parts`; where :attr:`soft`, both are the whole soft label and the weight is 1.
        """
        if not self.soft:
            return labels[:, 0], labels[:, 1], draw.label_weights[:, 0]
        each = soft_targets(labels.flatten(0, 1), num_classes).view(*draw.sources.shape, num_classes)
        soft = (draw.label_weights[..., None].to(each) * each).sum(1)
        if isinstance(self.labels, Teacher):
            assert images is not None
            is_one = draw.label_weights.amax(1).to(soft) == 1
            soft = torch.where(is_one[:, None], soft, self.labels(images).to(soft))
        return soft, soft, torch.ones(len(draw), device=soft.device)
