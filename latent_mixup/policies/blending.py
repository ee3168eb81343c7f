"""How the weights of a mix are spread over a code: evenly, by layers, or entry by entry.

A blend turns weights ``[k, n]`` into shares, the weight of each source in each entry of the code, and into the label
weights that go with them. Where a source has weight 1 it has every share, and its label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.policies.weights import on_own


class Blend(Protocol):
    """What a policy asks of its blend."""

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` where codes of this shape cannot be blended so."""

    def draw(
        self, weights: Tensor, fresh: Tensor, latent_shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        """Shares and label weights.

        Args:
            weights: ``[k, n]``, rows sum to 1.
            fresh: The same, drawn once more.
            latent_shape: Of a code.
            generator: The stream drawn from.

        Returns:
            Shares that broadcast to ``[k, n, *latent_shape]`` and sum to 1 over n, None: the weights everywhere; label
            weights ``[k, n]``.
        """


@dataclass(frozen=True)
class Whole:
    """The weights everywhere: the paper's.

    Example:
        >>> Whole().draw(weights, weights, (512,), torch.Generator())  # doctest: +SKIP
        (None, tensor([[1., 0.]]))
    """

    needs_fresh = False

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Codes of any shape can be."""

    def draw(
        self, weights: Tensor, fresh: Tensor, latent_shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        """No shares of their own."""
        return None, weights


@dataclass(frozen=True)
class Layers:
    """W+: coarse layers (shape and pose) and fine ones (texture and colour) each with weights of their own.

    Args:
        coarse: How many layers, from the first, are coarse.
        label_share: How much of the label the coarse layers decide, in [0, 1]; the fine ones decide the rest.
        mixed: ``"both"``: with weights drawn for each; ``"coarse"`` or ``"fine"``: these alone, and the others are the
            sample's own.

    Raises:
        ValueError: A setting is out of its range.

    Reference: style mixing, Karras et al. 2019 (arXiv 1812.04948), section 3.1.

    Example:
        >>> Layers(coarse=4).draw(weights, weights, (8, 512), torch.Generator())[0].shape  # doctest: +SKIP
        torch.Size([5, 2, 8, 1])
    """

    coarse: int
    label_share: float = 0.5
    mixed: Literal["both", "coarse", "fine"] = "both"

    def __post_init__(self) -> None:
        if self.coarse < 1:
            raise ValueError(f"coarse needs to be at least 1 layer: got {self.coarse}")
        if not 0 <= self.label_share <= 1:
            raise ValueError(f"label_share needs to be in [0, 1]: got {self.label_share}")
        if self.mixed not in ("both", "coarse", "fine"):
            raise ValueError(f'mixed needs to be "both", "coarse" or "fine": got {self.mixed!r}')

    @property
    def needs_fresh(self) -> bool:
        """Whether the fine layers need weights of their own."""
        return self.mixed == "both"

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` where codes have no layers, or not so many."""
        if len(latent_shape) != 2:
            raise ValueError(f"Layers needs codes of W+, [num_ws, w_dim]: got {list(latent_shape)}")
        if self.coarse >= latent_shape[0]:
            raise ValueError(f"coarse={self.coarse} leaves no fine layer: codes have {latent_shape[0]}")

    def draw(
        self, weights: Tensor, fresh: Tensor, latent_shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        """Shares ``[k, n, num_ws, 1]``."""
        own = on_own(weights)
        coarse = own if self.mixed == "fine" else weights
        fine = {"both": fresh, "coarse": own, "fine": weights}[self.mixed]
        is_coarse = torch.arange(latent_shape[0], device=weights.device) < self.coarse
        shares = torch.where(is_coarse, coarse[:, :, None], fine[:, :, None])[..., None]
        return shares, self.label_share * coarse + (1 - self.label_share) * fine


@dataclass(frozen=True)
class Channels:
    """Each entry of the last dimension is one source's alone, by a mask that W+'s layers share.

    The label weight of a source is its share of the mask.

    Reference: CutMix in a code's channels, after Yun et al. 2019 (arXiv 1905.04899), equation 1.

    Example:
        >>> Channels().draw(weights, weights, (512,), torch.Generator())[0].shape  # doctest: +SKIP
        torch.Size([5, 2, 512])
    """

    needs_fresh = False

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Codes of any shape can be."""

    def draw(
        self, weights: Tensor, fresh: Tensor, latent_shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        """Shares ``[k, n, 1, ..., C]``, each 0 or 1."""
        k, n = weights.shape
        u = torch.rand(k, latent_shape[-1], generator=generator, dtype=torch.float64, device=weights.device)
        edges = weights.double().cumsum(1)[:, :-1].contiguous()
        chosen = torch.searchsorted(edges, u, right=True)
        mask = F.one_hot(chosen, n).transpose(1, 2).to(weights)
        return mask.view(k, n, *[1] * (len(latent_shape) - 1), latent_shape[-1]), mask.mean(2)
