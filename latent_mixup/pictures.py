"""What a command shows: sheets of images as PNG, tables as text."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from latent_mixup.generators.base import Generator
from latent_mixup.images import to_uint8
from latent_mixup.interpolation import path_named

CAPTION_WIDTH = 96


def text_table(rows: Sequence[Sequence[object]], align: str = "<>") -> str:
    """Rows of cells as lines of text, each column as wide as its widest cell, two spaces apart.

    Args:
        rows: Cells are shown as ``str`` gives them; a short row ends early.
        align: ``<`` or ``>`` for each column; the last one also holds for the columns after it. The default puts the
            first column to the left and the others to the right.

    Example:
        >>> print(text_table([["", "mse"], ["median", "0.013"]]))
                  mse
        median  0.013
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*cells, fillvalue="")]
    sides = align + align[-1] * len(widths)
    lines = ("  ".join(f"{cell:{side}{n}}" for cell, side, n in zip(row, sides, widths, strict=False)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def png(rows: Sequence[Tensor], captions: Sequence[str] = (), *, zoom: int = 2) -> bytes:
    """Rows of images in [-1, 1], each ``[n, C, H, W]``, as the bytes of a PNG on white.

    Args:
        rows: Of equal length; grey or RGB.
        captions: What is written to the left of each row; empty for none.
        zoom: Each pixel becomes ``zoom`` by ``zoom``.

    Raises:
        ValueError: Rows differ in length, or there is not one caption a row.
    """
    if len({len(row) for row in rows}) != 1 or (captions and len(captions) != len(rows)):
        raise ValueError(
            f"a sheet needs rows of one length and a caption each: got {[len(row) for row in rows]} "
            f"and {len(captions)} captions"
        )
    enlarged = F.interpolate(torch.cat([row.float().cpu() for row in rows]), scale_factor=zoom, mode="nearest")
    grid = to_uint8(make_grid(enlarged, nrow=len(rows[0]), padding=2, pad_value=1.0)).permute(1, 2, 0)
    sheet = Image.fromarray(grid.contiguous().numpy())
    buffer = io.BytesIO()
    (_captioned(sheet, captions) if captions else sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _captioned(sheet: Image.Image, captions: Sequence[str]) -> Image.Image:
    canvas = Image.new("RGB", (sheet.width + CAPTION_WIDTH, sheet.height), "white")
    canvas.paste(sheet, (CAPTION_WIDTH, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for number, caption in enumerate(captions):
        middle = (number + 0.5) * sheet.height / len(captions)
        draw.text((CAPTION_WIDTH - 6, middle), caption, fill="black", font=font, anchor="rm")
    return canvas


@torch.no_grad()
def mixes(generator: Generator, own: Tensor, other: Tensor, lam: float) -> Tensor:
    """Decodes of ``lam * own + (1 - lam) * other`` along the generator's path, ``[n, C, R, R]``."""
    path = path_named(generator.preferred_path)
    return generator.decode(path(own, other, torch.full((len(own),), lam)).to(generator.device)).cpu()


def mix_sheet(
    generator: Generator, own: Tensor, other: Tensor, real_own: Tensor, real_other: Tensor, *, zoom: int = 2
) -> bytes:
    """A PNG that lets one judge the mixes: real, reconstructed, three mixes, and a pixel mix to compare with.

    Args:
        generator: Decodes the codes.
        own: Codes ``[n, *latent_shape]``; one column each.
        other: Their partners' codes.
        real_own: The images of ``own``, ``[n, C, R, R]`` in [-1, 1].
        real_other: The images of ``other``.
        zoom: Each pixel becomes ``zoom`` by ``zoom``.
    """
    rows = {
        "real a": real_own,
        "a decoded": mixes(generator, own, other, 1.0),
        "mix 0.75": mixes(generator, own, other, 0.75),
        "mix 0.5": mixes(generator, own, other, 0.5),
        "mix 0.25": mixes(generator, own, other, 0.25),
        "b decoded": mixes(generator, own, other, 0.0),
        "real b": real_other,
        "pixel mix 0.5": (real_own + real_other) / 2,
    }
    return png(list(rows.values()), list(rows), zoom=zoom)
