"""The contract of a generator: latent codes in, images in [-1, 1] out."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from latent_mixup import hub
from latent_mixup.networks import SavedNetwork

LatentSpace: TypeAlias = Literal["z", "w", "w+", "vae"]
PathName: TypeAlias = Literal["lerp", "slerp"]

G = TypeVar("G", bound="Generator")


class Generator(SavedNetwork, ABC):
    """A frozen network that decodes latent codes into images.

    A generator is always in eval mode and its parameters take no gradient; ``decode`` is
    differentiable in its latents. Training happens on the networks inside it (``latent_mixup.training``).
    ``latent_mixup.load_generator`` reads any, ``from_pretrained`` those of its class.

    Attributes:
        latent_shape: Shape of one code, without the batch; ``(num_ws, w_dim)`` in W+.
        latent_space: ``"z"``, ``"w"``, ``"w+"`` or ``"vae"``.
        img_channels: Channels of a decoded image.
        img_resolution: Height and width of a decoded image, in pixels.
        preferred_path: How two codes of this space are mixed when nobody says: ``"lerp"`` or ``"slerp"``.
        decode_batches: How many training batches :class:`latent_mixup.LatentMixupLoader` decodes in one call on a CPU,
            when nobody says: more than 1 where the network is so small that a call's fixed cost shows.
        features: A frozen feature network for images of this kind, where one comes with the generator.
        metadata: How the generator came to be; kept in its ``config.json``. Read from the Hub, ``metadata["hub"]`` says
            of which ``repo`` and ``commit``.
    """

    hub_kind: ClassVar[hub.Kind] = "generator"
    latent_shape: tuple[int, ...]
    latent_space: LatentSpace
    img_channels: int
    img_resolution: int
    preferred_path: PathName
    decode_batches: int = 1
    features: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.features = None
        self.metadata: dict[str, Any] = {}

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, *latent_shape]`` to images, float32 ``[B, img_channels, R, R]`` in [-1, 1]."""

    @abstractmethod
    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` codes from the prior: ``[n, *latent_shape]`` float32."""

    @abstractmethod
    def mean_latent(self) -> Tensor:
        """The code an inversion without an encoder starts from: ``[*latent_shape]`` float32."""

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, R, R]`` in [-1, 1] to codes, where the generator has an encoder.

        Raises:
            NotImplementedError: This generator has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder: pass encoder= to latent_mixup.invert, or start from its mean latent"
        )

    @property
    def has_encoder(self) -> bool:
        """Whether ``encode`` works."""
        return type(self).encode is not Generator.encode

    @property
    def device(self) -> torch.device:
        """Where the parameters live; the CPU for a generator without any."""
        first = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def forward(self, latents: Tensor) -> Tensor:
        """The same as :meth:`decode`."""
        return self.decode(latents)

    def train(self, mode: bool = True) -> Generator:
        """Stay in eval mode: a generator inside a model that is being trained must not change."""
        super().train(False)
        return self

    def freeze(self: G) -> G:
        """Eval mode, and no gradient for the parameters. Constructors end with it."""
        self.requires_grad_(False)
        self.train(False)
        return self

    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this network again; only JSON values.

        Raises:
            NotImplementedError: This generator cannot be written to a folder.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot be saved: only latent_mixup's own generators have a file format; "
            "save your network in its own, and wrap it again where you have read it"
        )

    def check_latents(self, latents: Tensor) -> None:
        """Raise ``ValueError`` unless ``latents`` is ``[B, *latent_shape]``."""
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"latents need shape [B, {', '.join(map(str, self.latent_shape))}]: got {list(latents.shape)}"
            )
