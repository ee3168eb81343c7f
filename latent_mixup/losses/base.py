"""What an inversion minimises: ``(images, targets) -> [B]``, one number an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.generators.base import Generator

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class TargetLoss(Protocol):
    """A loss whose work on the targets, which never change, is done once."""

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`compare` needs of targets ``[B, C, H, W]``: tensors of B rows each."""
        ...

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """The loss of each image ``[B, C, H, W]`` against its target's rows: ``[B]``."""
        ...


class PlainLoss:
    """Any ``(images, targets) -> [B]`` as a :class:`TargetLoss` that has nothing to do beforehand."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """The targets themselves."""
        return (targets,)

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """The loss."""
        return self.loss(images, embedded[0])


def pixel_mse(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each image: ``[B, C, H, W]`` twice to ``[B]``, in units of [-1, 1] squared."""
    return (images - targets).square().flatten(1).mean(1)


class FeatureLoss(nn.Module):
    """MSE of a trained network's features plus ``pixel_weight`` times the MSE of the pixels.

    Args:
        features: Images ``[B, C, H, W]`` in [-1, 1] to features of any shape; frozen in place.
        pixel_weight: Weight of the pixel MSE. The paper's experiments use 0; alone, features leave the
            brightness of flat areas open.

    Reference: Latent-Mixup, section 2.1.1 (its features: after conv 2 and the pool).
    """

    def __init__(self, features: nn.Module, pixel_weight: float = 1.0) -> None:
        super().__init__()
        self.features, self.pixel_weight = features.requires_grad_(False).eval(), pixel_weight

    @property
    def loss_name(self) -> str:
        """What is compared, for a bank's metadata."""
        return f"features + {self.pixel_weight:g} mse"

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """``[B, C, H, W]`` twice to ``[B]``."""
        return self.compare(images, self.embed(targets))

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """The targets' features, and the targets."""
        with torch.no_grad():
            return self.features(targets), targets

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Images ``[B, C, H, W]`` against what :meth:`embed` gave: ``[B]``."""
        features, targets = embedded
        return pixel_mse(self.features(images), features) + self.pixel_weight * pixel_mse(images, targets)


def default_loss(generator: Generator) -> Loss:
    """The loss of ``invert(loss=None)``: the paper's for RGB, else the generator's own features plus the pixel MSE.

    Raises:
        FileNotFoundError: RGB images, and the trained backbone of LPIPS is not on this machine.
        ValueError: The generator brings no feature network for images that are not RGB, or its images are too small
            for LPIPS; nothing else is put in its place.
    """
    if generator.img_channels == 3:
        from latent_mixup.losses.perceptual import PerceptualLoss  # it builds on this module

        loss = PerceptualLoss()
        loss.lpips.check_shape((1, 3, generator.img_resolution, generator.img_resolution))
        return loss
    if generator.features is None:
        raise ValueError(
            f"{type(generator).__name__} brings no trained features for its {generator.img_channels}-channel "
            "images: pass loss=, e.g. inversion.pixel_mse, inversion.FeatureLoss(your_network) or any callable "
            "(images, targets) -> [B]"
        )
    return FeatureLoss(generator.features)


def chosen_loss(generator: Generator, loss: Loss | None) -> Loss:
    """``loss``, or the default where it is None; a network on the generator's device."""
    chosen = loss or default_loss(generator)
    return chosen.to(generator.device) if isinstance(chosen, nn.Module) else chosen


def callable_id(function: object) -> str:
    """How a loss or an encoder is written in a bank's metadata, and compared when a run is resumed.

    A network's name carries a digest of its weights, so that another one of the same class is noticed. A loss of
    ours says what it compares in its attribute ``loss_name``.
    """
    owner = getattr(function, "__self__", function)
    name = str(getattr(function, "loss_name", getattr(function, "__name__", type(function).__name__)))
    if owner is not function:
        name = f"{type(owner).__name__}.{name}"
    return f"{name} ({files.tensors_sha256(owner.state_dict())[:12]})" if isinstance(owner, nn.Module) else name
