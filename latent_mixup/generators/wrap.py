"""Anybody's decoder as a generator: an ``nn.Module`` or any callable from codes to images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latent_mixup.generators.base import Generator, LatentSpace, PathName


class WrappedGenerator(Generator):
    """A callable from codes to images, under the contract of :class:`Generator`. Made by :func:`wrap`."""

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        latent_shape: tuple[int, ...],
        image_range: tuple[float, float],
        latent_space: LatentSpace,
        encoder: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        low, high = image_range
        if not low < high:
            raise ValueError(f"image_range needs (low, high) with low < high: got {image_range}")
        self.latent_shape = tuple(latent_shape)
        self.latent_space = latent_space
        self.preferred_path: PathName = "slerp" if latent_space == "z" else "lerp"
        self.image_range = (float(low), float(high))
        self.module, self.encoder = module, encoder
        self.freeze()
        with torch.no_grad():
            image = self.decode(self.mean_latent()[None])
        self.img_channels, self.img_resolution = int(image.shape[1]), int(image.shape[2])

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, *latent_shape]`` to float32 images in [-1, 1], whatever range the module has."""
        self.check_latents(latents)
        low, high = self.image_range
        images = self.module(latents)
        if images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"the wrapped module needs to return square images [B, C, R, R]: got {list(images.shape)} "
                f"for latents {list(latents.shape)}"
            )
        return (images.float() - low) * (2 / (high - low)) - 1

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to codes, by the ``encoder`` that :func:`wrap` was given (it sees ``image_range``)."""
        if self.encoder is None:
            return super().encode(images)
        low, high = self.image_range
        return self.encoder((images + 1) * ((high - low) / 2) + low)

    @property
    def has_encoder(self) -> bool:
        """Whether :func:`wrap` was given an encoder."""
        return self.encoder is not None

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal codes ``[n, *latent_shape]``."""
        return torch.randn(n, *self.latent_shape, generator=generator).to(self.device)

    def mean_latent(self) -> Tensor:
        """Zeros ``[*latent_shape]``."""
        return torch.zeros(self.latent_shape, device=self.device)


def wrap(
    module: nn.Module | Callable[[Tensor], Tensor],
    *,
    latent_shape: tuple[int, ...],
    image_range: tuple[float, float] = (-1, 1),
    latent_space: LatentSpace = "z",
    encoder: nn.Module | Callable[[Tensor], Tensor] | None = None,
) -> Generator:
    """Make a :class:`Generator` of any ``nn.Module`` or callable that decodes codes.

    Args:
        module: Codes ``[B, *latent_shape]`` to square images ``[B, C, R, R]``. A module is put in eval mode
            and frozen in place.
        latent_shape: Shape of one code.
        image_range: What the module's black and white are, e.g. ``(0, 1)``.
        latent_space: ``"z"`` mixes along the sphere unless told otherwise; ``"w"``, ``"w+"``, ``"vae"`` straight.
        encoder: Images, in ``image_range``, to codes.

    Returns:
        A generator with standard normal ``sample_latents`` and a mean latent of zeros.

    Raises:
        ValueError: ``image_range`` is empty, or the module does not return square images.

    Example:
        >>> decoder = nn.Sequential(nn.Linear(8, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
        >>> wrap(decoder, latent_shape=(8,), image_range=(0, 1)).decode(torch.randn(2, 8)).shape
        torch.Size([2, 1, 8, 8])
    """
    return WrappedGenerator(module, tuple(latent_shape), image_range, latent_space, encoder)
