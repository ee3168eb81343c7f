"""A sheet of the mixes that a training sees, and its way to TensorBoard or Weights & Biases."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from latent_mixup.augment import LatentMixupCollate, LatentMixupLoader
from latent_mixup.pictures import png
from latent_mixup.policies import Draw
from latent_mixup.sampling import keyed_generator

Send: TypeAlias = Callable[[str, NDArray[np.uint8], int | None], object]
"""Takes a name, an image ``[H, W, 3]`` and a step."""


def sheet_of(mixup: LatentMixupCollate | LatentMixupLoader, *, columns: int = 8, seed: int = 0) -> bytes:
    """A PNG of mixes as a wrapper makes them: code a decoded, the mix, code b decoded; the weight of a above them.

    Images are shown after ``transform`` and ``normalize``, scaled to the sheet's own least and greatest value. torch's
    random state is not moved.

    Args:
        mixup: A wrapper; its rows, policy and settings are used, and of its ``prob`` only the classes that it names.
        columns: Number of mixes.
        seed: Seed of the choice of mixes.

    Raises:
        ValueError: Images are neither grey nor RGB.
    """
    mixer = mixup._mixer
    stream = keyed_generator("sheet", seed)
    rows = mixer.shown_rows(columns, stream)
    draw = mixer.policy.draw_batch(columns, 1.0, mixer.view, stream, epoch=mixer.epoch, rows=rows)
    num_sources = draw.sources.shape[1]
    draws = [Draw.alone(draw.rows, num_sources), draw, Draw.alone(draw.partners, num_sources)]
    with torch.random.fork_rng(devices=[]):  # a transform may draw
        images = torch.cat([mixer.decode(each)[0] for each in draws]).float()
    low, high = images.aminmax()
    scaled = (images - low) / (high - low).clamp_min(1e-6) * 2 - 1
    headings = ["weight of a", *(f"{lam:.2f}" for lam in draw.lam.tolist())]
    return png(scaled.split(columns), ["a decoded", "mix", "b decoded"], headings=headings)


def log_sheet(logger: Any, sheet: bytes, step: int | None = None, *, name: str = "latent_mixup") -> None:
    """Log a PNG, such as :func:`sheet_of` makes.

    Args:
        logger: A ``SummaryWriter`` of TensorBoard, a run of Weights & Biases, or Lightning's logger of one of them.
        sheet: The bytes of a PNG.
        step: The training step that it belongs to.
        name: What the image is called there.

    Raises:
        TypeError: The logger is of another kind.

    Example:
        >>> log_sheet(SummaryWriter("runs"), sheet_of(loader), step=0)  # doctest: +SKIP
    """
    send = _way_to(logger)
    if send is None:
        raise TypeError(
            f"logger needs to be TensorBoard's SummaryWriter, a W&B run, or Lightning's logger of one of them: got "
            f"{type(logger).__name__}; save the bytes in a file instead"
        )
    send(name, np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB")), step)


def takes_sheets(logger: Any) -> bool:
    """Whether :func:`log_sheet` can log to this."""
    return _way_to(logger) is not None


def _way_to(logger: Any) -> Send | None:
    if hasattr(logger, "log_image"):  # Lightning's WandbLogger
        return lambda name, image, step: logger.log_image(name, [image], step=step)
    writer = getattr(logger, "experiment", logger)  # of Lightning's TensorBoardLogger
    if hasattr(writer, "add_image"):
        return lambda name, image, step: writer.add_image(name, image, step, dataformats="HWC")
    if hasattr(logger, "log") and hasattr(logger, "log_artifact"):  # a W&B run
        import wandb

        return lambda name, image, step: logger.log({name: wandb.Image(image)}, step=step)
    return None
