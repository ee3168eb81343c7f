"""What the scores share: the classifier behind its checks, batches, chunks, and the range of images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latent_mixup.classifiers import logits_of_output
from latent_mixup.networks import eval_mode

Loader: TypeAlias = Iterable[Sequence[Tensor]]
Bounds: TypeAlias = tuple[float, float]  # the values of black and white

CHUNK_IMAGES = 64  # images that one attack holds at most; on a CPU core 32 to 128 are alike
CHUNK_ELSEWHERE = 2048  # the same on a GPU
CHUNK_NUMBERS = 2**22  # the same in numbers (channels x pixels), for large images
BEYOND = 1e-5  # share of the range by which rounding may take an image out of it


class Classifier:
    """A model as the scores call it: in eval mode, its output checked.

    Attributes:
        num_classes: Logits of an image; None before the first call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.num_classes: int | None = None

    def logits(self, images: Tensor, *, finite: bool = True) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, C, H, W]``.

        Args:
            images: Stay as they are.
            finite: Refuse NaN and infinity.

        Raises:
            ValueError: What the model returns are no such logits.
        """
        logits = logits_of_output(self.model(images), len(images), self.num_classes, finite=finite)
        self.num_classes = logits.shape[1]
        return logits

    def with_gradient(self, images: Tensor, *, finite: bool = True) -> tuple[Tensor, Tensor]:
        """The images as a leaf of the graph, and their :meth:`logits`.

        Raises:
            ValueError: As :meth:`logits`; or there is no gradient back to the images.
        """
        images = images.detach().requires_grad_()
        logits = self.logits(images, finite=finite)
        if not logits.requires_grad:
            raise no_gradient()
        return images, logits


@contextlib.contextmanager
def scored(model: nn.Module, *, gradient: bool = False) -> Iterator[Classifier]:
    """The model in eval mode, with gradients or without them, whatever mode the caller is in; as it was afterwards."""
    with eval_mode(model), torch.inference_mode(False), torch.set_grad_enabled(gradient):
        yield Classifier(model)


def no_gradient() -> ValueError:
    """The error for logits that do not depend on the images, as far as autograd knows."""
    return ValueError("the model's logits carry no gradient back to the images: remove a torch.no_grad or detach in it")


def device_of(model: nn.Module, device: torch.device | str | None = None) -> torch.device | str:
    """``device``, or where None that of the model's parameters and buffers."""
    if device is not None:
        return device
    first = next(chain(model.parameters(), model.buffers()), None)
    return "cpu" if first is None else first.device


def batches(
    loader: Loader | Tensor,
    *,
    limit: int | None = None,
    device: torch.device | str | None = None,
    progress: str | Literal[False] = False,
    labelled: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked batches of the first images.

    Args:
        loader: Yields ``(images, labels)``; or images alone as a tensor, where ``labelled`` is False.
        limit: Stop after this many images; None: all.
        device: Where images are moved to; None: they stay.
        progress: Title of a progress bar that counts images; False: none.
        labelled: Refuse images alone.

    Yields:
        Images ``[B, C, H, W]`` and labels, int64 ``[B]`` on the CPU, -1 for images alone.

    Raises:
        ValueError: ``limit`` is below 1, a batch is no such pair, or no image came.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"max_images must be at least 1, or None for all: got {limit}")
    if labelled and isinstance(loader, Tensor):
        raise ValueError("accuracy needs labels: pass a loader of (images, labels), not a tensor")
    source = loader if isinstance(loader, Tensor) else getattr(loader, "dataset", None)
    known = [n for n in (limit, len(source) if isinstance(source, Sized) else None) if n is not None]
    pairs = ((part, None) for part in chunks(loader)) if isinstance(loader, Tensor) else loader
    with tqdm(total=min(known, default=None), unit="image", desc=progress or None, disable=not progress) as bar:
        count = 0
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"the loader must give (images, labels): got {describe(pair)}")
            images, labels = pair
            check_images(images)
            labels = torch.full((len(images),), -1) if labels is None else class_indices(labels, len(images))
            n = len(images) if limit is None else min(limit - count, len(images))
            yield images[:n].to(device), labels[:n]
            bar.update(n)
            count += n
            if count == limit:
                return
    if count == 0:
        raise ValueError("a score needs at least one image: the loader gave none")


def chunks(images: Tensor) -> tuple[Tensor, ...]:
    """``images`` in pieces that an attack can hold."""
    most = CHUNK_IMAGES if images.device.type == "cpu" else CHUNK_ELSEWHERE
    return torch.split(images, max(1, min(most, CHUNK_NUMBERS // images[0].numel())))


def l2_norms(images: Tensor) -> Tensor:
    """L2 norm of each image, ``[B]``."""
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return lengths


def per_image(values: Tensor) -> Tensor:
    """``[B]`` to ``[B, 1, 1, 1]``."""
    return values[:, None, None, None]


def to_unit(images: Tensor, bounds: Bounds) -> Tensor:
    """From ``bounds`` to [0, 1]."""
    low, high = bounds
    return (images - low) / (high - low)


def from_unit(images: Tensor, bounds: Bounds) -> Tensor:
    """From [0, 1] to ``bounds``."""
    low, high = bounds
    return low + (high - low) * images


# --------------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------------


def check_range(bounds: Bounds) -> None:
    """Raise ``ValueError`` unless ``bounds`` are two finite numbers, rising."""
    low, high = bounds
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(f"bounds must be two finite numbers, the values of black and white: got {bounds}")


def check_inside(images: Tensor, bounds: Bounds) -> None:
    """Raise ``ValueError`` unless ``bounds`` are a range and ``images`` keep to it."""
    check_range(bounds)
    low, high = bounds
    least, most = (float(end) for end in images.aminmax())
    beyond = BEYOND * (high - low)
    if least < low - beyond or most > high + beyond:
        raise ValueError(
            f"images must keep to bounds={bounds}: got values from {least:.4g} to {most:.4g}; "
            "pass the range that the model takes"
        )


def check_images(images: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` are float ``[B, C, H, W]``, finite, at least one."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be a float tensor [B, C, H, W]: got {describe(images)}")
    if images.numel() == 0:
        raise ValueError(f"images must not be empty: got {describe(images)}")
    if not images.isfinite().all():
        raise ValueError(f"images must be finite: got {int((~images.isfinite()).sum())} nan or inf numbers")


def class_indices(labels: Tensor, num_images: int) -> Tensor:
    """Labels ``[num_images]`` of any integer type as int64 on the CPU.

    Raises:
        ValueError: They are no integers ``[num_images]``.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (num_images,):
        raise ValueError(f"labels must be class indices [{num_images}]: got {describe(labels)}")
    return labels.cpu().long()


def check_eps(eps: float, norm: str) -> None:
    """Raise ``ValueError`` unless ``eps`` is a positive number and ``norm`` one of two."""
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2": got {norm!r}')
    check_length("eps", eps)


def check_length(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive length in the units of the images: got {value}")


def describe(value: object) -> str:
    """The type and shape of a wrong argument, for its error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
