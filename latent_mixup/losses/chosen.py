"""The loss of an inversion by name, and the default for a generator."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import nn

from latent_mixup.generators.base import Generator
from latent_mixup.losses.base import Loss, pixel_mse
from latent_mixup.losses.features import FeatureLoss
from latent_mixup.losses.perceptual import LPIPS, PerceptualLoss, Weights

LossName: TypeAlias = Literal["lpips", "features", "pixels"]


def default_loss(generator: Generator) -> Loss:
    """The loss of ``invert(loss=None)``: what the generator prefers, else LPIPS for RGB and its own features for grey.

    Raises:
        FileNotFoundError: The images are RGB, and the trained backbone of LPIPS is not on this machine.
        ValueError: The generator has no feature network for images that are not RGB, or its images are too small
            for LPIPS. Nothing else is put in its place.
    """
    usual = "lpips" if generator.img_channels == 3 else "features"
    return named_loss(generator, generator.preferred_inversion.get("loss", usual))


def named_loss(
    generator: Generator, name: LossName, *, lpips_weights: Weights | None = None, download: bool = False
) -> Loss:
    """The loss ``"lpips"``, ``"features"`` or ``"pixels"`` for the images of a generator.

    Args:
        generator: Gives size, channels and features.
        name: ``"lpips"``: 0.9 LPIPS + 0.1 MSE. ``"features"``: the generator's own features + MSE.
        lpips_weights: See :class:`LPIPS`, as for ``download``.
        download: Download missing LPIPS weights.

    Raises:
        FileNotFoundError: The weights of LPIPS are not on this machine.
        ValueError: The name is unknown, or the loss does not go with this generator.
    """
    if name == "lpips":
        loss = PerceptualLoss(lpips=LPIPS(weights=lpips_weights, download=download))
        loss.lpips.check_shape((1, *generator.image_shape))
        return loss
    if name == "features":
        if generator.features is None:
            raise ValueError(
                f"{type(generator).__name__} has no trained features for its {generator.img_channels}-channel images: "
                'pass loss="pixels" (--loss pixels), inversion.FeatureLoss(your_network), or any callable '
                "(images, targets) -> [B]"
            )
        return FeatureLoss(generator.features)
    if name == "pixels":
        return pixel_mse
    raise ValueError(f"loss needs one of {', '.join(get_args(LossName))}, or a callable: got {name!r}")


def chosen_loss(generator: Generator, loss: Loss | LossName | None) -> Loss:
    """A loss as users give it, on the generator's device: a callable, a name, or None for the default.

    Raises:
        TypeError: It is none of these.
        ValueError: As for :func:`named_loss`.
    """
    if loss is None:
        chosen = default_loss(generator)
    elif isinstance(loss, str):
        chosen = named_loss(generator, loss)
    elif callable(loss):
        chosen = loss
    else:
        raise TypeError(
            f"loss needs one of {', '.join(get_args(LossName))}, or a callable (images, targets) -> [B]: "
            f"got {type(loss).__name__}"
        )
    return chosen.to(generator.device) if isinstance(chosen, nn.Module) else chosen
