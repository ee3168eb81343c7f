"""Anybody's decoder as a generator: an ``nn.Module`` or any callable from codes to images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latent_mixup.generators.base import Generator, LatentSpace, PathName
from latent_mixup.networks import eval_mode

Decoding: TypeAlias = Callable[[Tensor], Any]  # gives a tensor, or an object whose ``sample`` is one


class WrappedGenerator(Generator):
    """A callable from codes to images, under the contract of :class:`Generator`. Made by :func:`wrap`."""

    def __init__(
        self,
        module: Decoding,
        latent_shape: tuple[int, ...],
        image_range: tuple[float, float],
        latent_space: LatentSpace,
        encoder: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        low, high = image_range
        if not low < high:
            raise ValueError(f"image_range needs (low, high) with low < high: got {image_range}")
        self.latent_shape, self.latent_space = latent_shape, latent_space
        self.preferred_path: PathName = "slerp" if latent_space == "z" else "lerp"
        self.image_range = (float(low), float(high))
        self.module, self.encoder = module, encoder
        owners = (getattr(part, "__self__", None) for part in (module, encoder))
        self.owners = nn.ModuleList(owner for owner in owners if isinstance(owner, nn.Module))  # of bound methods
        self.freeze()
        try:
            with torch.no_grad():
                image = self.decode(self.mean_latent()[None])
        except (RuntimeError, IndexError, TypeError) as cause:
            raise ValueError(
                f"the module cannot decode one code of zeros, [1, {', '.join(map(str, latent_shape))}]{_hint(module)}: "
                f"{' '.join(str(cause).split()):.200}"
            ) from cause
        self.img_channels, *size = map(int, image.shape[1:])
        self.img_size = size[0], size[1]

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, *latent_shape]`` to float32 images in [-1, 1], whatever range the module has.

        In eval mode, also where the module's owner has called ``.train()`` on it since.
        """
        self.check_latents(latents)
        low, high = self.image_range
        with eval_mode(self):
            found = self.module(latents.to(self.dtype))
        images = found if isinstance(found, Tensor) else getattr(found, "sample", found)
        if not isinstance(images, Tensor):
            raise ValueError(
                f"the wrapped module needs to return a tensor of images [B, C, H, W]: got a {type(images).__name__}; "
                "wrap a function that takes the images out of it, such as lambda codes: module(codes)[0]"
            )
        if images.ndim != 4:
            raise ValueError(
                f"the wrapped module needs to return images [B, C, H, W]: got {list(images.shape)} "
                f"for latents {list(latents.shape)}"
            )
        return (images.float() - low) * (2 / (high - low)) - 1

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to codes, by the ``encoder`` that :func:`wrap` was given (it sees ``image_range``)."""
        if self.encoder is None:
            return super().encode(images)
        low, high = self.image_range
        with eval_mode(self):
            return self.encoder((images.to(self.dtype) + 1) * ((high - low) / 2) + low).float()

    def arguments(self) -> dict[str, Any]:
        """Raise ``NotImplementedError``: somebody else's module has no file format of ours."""
        raise self.no_format()

    @property
    def has_encoder(self) -> bool:
        """Whether :func:`wrap` was given an encoder."""
        return self.encoder is not None


def _hint(module: object) -> str:
    """What a module's first layer takes, for the error about a wrong ``latent_shape``."""
    layers = module.modules() if isinstance(module, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
    return "" if first is None else f" (its first linear layer takes {first.in_features} numbers)"


def wrap(
    module: nn.Module | Decoding,
    *,
    latent_shape: tuple[int, ...],
    image_range: tuple[float, float] = (-1, 1),
    latent_space: LatentSpace = "z",
    encoder: nn.Module | Callable[[Tensor], Tensor] | None = None,
) -> Generator:
    """Make a :class:`Generator` of any ``nn.Module`` or callable that decodes codes.

    Args:
        module: Codes ``[B, *latent_shape]`` to images ``[B, C, H, W]``, or to an object whose ``sample`` they are, as
            diffusers' decoders give. A module, or that of a bound method such as ``vae.decode``, is frozen in place,
            and decodes in eval mode.
        latent_shape: Shape of one code.
        image_range: What the module's black and white are, e.g. ``(0, 1)``.
        latent_space: ``"z"`` mixes along the sphere unless told otherwise; ``"w"``, ``"w+"``, ``"vae"`` straight.
        encoder: Images, in ``image_range``, to codes.

    Returns:
        A generator with standard normal ``sample_latents`` and a mean latent of zeros. A bank knows it by the weights
        of ``module``, or of a bound method's owner; of another callable, such as a lambda, no weights are seen, and a
        bank cannot tell two of them apart.

    Raises:
        ValueError: ``image_range`` is empty, the module does not take codes of ``latent_shape``, or does not return
            images.

    Example:
        >>> decoder = nn.Sequential(nn.Linear(8, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
        >>> wrap(decoder, latent_shape=(8,), image_range=(0, 1)).decode(torch.randn(2, 8)).shape
        torch.Size([2, 1, 8, 8])
    """
    if isinstance(module, Generator):
        raise TypeError(f"wrap takes a module that is no Generator yet: got a {type(module).__name__}, use it as it is")
    if not callable(module):
        raise TypeError(f"wrap takes an nn.Module or a callable: got {type(module).__name__}")
    return WrappedGenerator(module, tuple(latent_shape), image_range, latent_space, encoder)
