"""Blends: how the weights of a mix are spread over a code: evenly, by layers, or entry by entry.

Each class has ``check(latent_shape)``, which raises ``ValueError`` where codes of this shape cannot be blended so, and
``draw(weights, fresh, latent_shape, generator) -> (shares, label_weights)``. Weights are ``[k, n]``, rows sum to 1;
``fresh`` are the same drawn once more. Shares are the weight of each source in each entry of the code, which broadcasts
to ``[k, n, *latent_shape]`` and sums to 1 over n; None stands for the weights everywhere. Label weights are ``[k, n]``.
A source of weight 1 has every share and the whole label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.policies.settings import Setting, Share
from latent_mixup.policies.weights import on_own


class _OfAnyCode(Setting):
    needs_fresh = False

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Codes of any shape can be blended."""


@dataclass(frozen=True)
class Whole(_OfAnyCode):
    """The same weights in every entry of a code: the paper's.

    Example:
        >>> Whole().draw(weights, weights, (512,), torch.Generator())  # doctest: +SKIP
        (None, tensor([[1., 0.]]))
    """

    def draw(
        self, weights: Tensor, fresh: Tensor, latent_shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor]:
        """No shares, and the weights."""
        return None, weights


@dataclass(frozen=True)
class Layers(Setting):
    """Separate weights for the coarse layers (shape and pose) and the fine layers (texture and colour) of W+.

    Args:
        coarse: Number of layers, from the first, that are coarse.
        label_share: Share of the label that the coarse layers decide, in [0, 1]; the fine ones decide the rest.
        mixed: Layers that are mixed: ``"both"``, with weights drawn for each, ``"coarse"`` or ``"fine"``; the others
            are the sample's own.

    Raises:
        ValueError: A setting is out of its range.

    Reference: style mixing, Karras et al. 2019 (arXiv 1812.04948), section 3.1.

    Example:
        >>> Layers(coarse=4).draw(weights, weights, (8, 512), torch.Generator())[0].shape  # doctest: +SKIP
        torch.Size([5, 2, 8, 1])
    """

    coarse: int
    label_share: Share = 0.5
    mixed: Literal["both", "coarse", "fine"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse < 1:
            raise ValueError(f"coarse needs to be at least 1 layer: got {self.coarse}")

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
class Channels(_OfAnyCode):
    """Each channel (last dimension) comes from one source alone, by a random mask that the layers of W+ share.

    The label weight of a source is its share of the mask.

    Reference: CutMix in a code's channels, after Yun et al. 2019 (arXiv 1905.04899), equation 1.

    Example:
        >>> Channels().draw(weights, weights, (512,), torch.Generator())[0].shape  # doctest: +SKIP
        torch.Size([5, 2, 512])
    """

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
