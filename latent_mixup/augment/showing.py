"""Pictures of mixes: the next batch of a loader, and what a wrapper makes of rows of its bank."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from latent_mixup.augment.base import Mixer, Target
from latent_mixup.augment.sources import parts_of
from latent_mixup.functional import mix_targets
from latent_mixup.images import from_uint8
from latent_mixup.pictures import notebook_png, opened, png
from latent_mixup.sampling import keyed_generator

COLUMNS, ROWS = 8, 2
IMAGE_WIDTH = 96  # pixels, at least: small images are enlarged to it, so that there is room for names of classes
MAX_CLASSES = 3  # named below an image
NAME_LENGTH = 30
LEAST_WEIGHT = 0.005  # of a class that is named: no more than 0.00 would be shown


class ShowsMixes:
    """A wrapper that shows itself: mixes of its bank's rows."""

    _mixer: Mixer

    def show(self) -> Image.Image:
        """A picture of sixteen mixes of its bank's rows, with their classes, as notebooks show it.

        They are drawn from a stream of their own; torch's random state, which a ``transform`` may use, stays.

        Raises:
            ValueError: The images are neither grey nor RGB.
        """
        mixer, settings = self._mixer, self._mixer.settings
        with torch.random.fork_rng(devices=[]):
            stream = keyed_generator("show-mixes")
            rows = mixer.shown_rows(COLUMNS * ROWS, stream)
            draw = mixer.policy.draw(COLUMNS * ROWS, mixer.view, stream, epoch=mixer.epoch, rows=rows)
            images, pair, _ = mixer.decode(draw)
        if not len(images):
            raise ValueError("the Teacher is sure of none of sixteen mixes: lower its min_confidence")
        targets = mix_targets(*pair, mixer.num_classes, settings.label_smoothing, multi_label=settings.multi_label)
        return show_batch(mixer, images, targets, "mixes")

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: :meth:`show`."""
        return notebook_png(self.show)


def show_batch(mixer: Mixer, images: Tensor, targets: Target, caption: str) -> Image.Image:
    """The first images of a batch, sixteen or whole rows of eight, with the classes of their targets.

    Args:
        mixer: Made the batch: knows the range of its images and the names of its classes.
        images: ``[B, C, H, W]``.
        targets: Of the images.
        caption: To the left of the images.
    """
    if not isinstance(targets, Tensor):
        targets = mix_targets(*targets, mixer.num_classes, multi_label=mixer.settings.multi_label)
    columns = min(COLUMNS, len(images))
    count = min(COLUMNS * ROWS, len(images) // columns * columns)
    rows = _signed(mixer, images[:count]).split(columns)
    zoom = max(1, -(-IMAGE_WIDTH // images.shape[-1]))
    return opened(png(rows, [caption, ""][: len(rows)], notes=_notes(mixer, targets[:count]), zoom=zoom))


def _signed(mixer: Mixer, images: Tensor) -> Tensor:
    """Images as a classifier gets them, in [-1, 1]: what goes beyond it is scaled into it."""
    images, moments = images.as_subclass(Tensor).cpu(), mixer.settings.moments
    if not images.is_floating_point():
        return from_uint8(images)
    images = images.float()
    if moments is not None:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (moments.mean, moments.std))
        return (images * std + mean) * 2 - 1
    low, high = images.min().clamp_max(-1), images.max().clamp_min(1)
    return (images - low) / (high - low) * 2 - 1


def _notes(mixer: Mixer, targets: Tensor) -> list[str]:
    """The classes of each target, the likeliest first, with their weights where there are several."""
    names = dict(enumerate(mixer.bank.class_names))
    least = mixer.settings.label_smoothing / mixer.num_classes + LEAST_WEIGHT
    weights, classes = targets.cpu().topk(min(MAX_CLASSES, targets.shape[1]), dim=1)
    notes = []
    for row, indices in zip(weights.tolist(), classes.tolist(), strict=True):
        shown = [textwrap.shorten(names.get(index, str(index)), NAME_LENGTH, placeholder=" ...") for index in indices]
        named = [(weight, name) for weight, name in zip(row, shown, strict=True) if weight > least]
        notes.append("\n".join(f"{weight:.2f} {name}" if len(named) > 1 else name for weight, name in named))
    return notes


@contextmanager
def unmoved(loader: Any) -> Iterator[None]:
    """Inside, a loader may be read; then torch's random state and the generators of its parts are what they were."""
    found = [getattr(part, "generator", None) for part in parts_of(loader)]
    states = [(stream, stream.get_state()) for stream in found if isinstance(stream, torch.Generator)]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for stream, state in states:
            stream.set_state(state)
