"""The form of an inversion loss, ``(images, targets) -> [B]``, and the pixel MSE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from latent_mixup import files

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class TargetLoss(Protocol):
    """A loss that processes its targets, which never change, once."""

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """Everything :meth:`compare` needs of targets ``[B, C, H, W]``: tensors of B rows each."""
        ...

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Loss of each image ``[B, C, H, W]`` against its target's rows: ``[B]``."""
        ...


class PlainLoss:
    """Any ``(images, targets) -> [B]`` as a :class:`TargetLoss` without work on the targets."""

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


def callable_id(function: object) -> str:
    """The name of a loss or an encoder in a bank's metadata; a run that resumes compares it.

    The name of a network carries a digest of its weights, so that another one of the same class is noticed. Our
    losses give their name as the attribute ``loss_name``.
    """
    owner = getattr(function, "__self__", function)
    name = str(getattr(function, "loss_name", getattr(function, "__name__", type(function).__name__)))
    if owner is not function:
        name = f"{type(owner).__name__}.{name}"
    return f"{name} ({files.tensors_sha256(owner.state_dict())[:12]})" if isinstance(owner, nn.Module) else name
