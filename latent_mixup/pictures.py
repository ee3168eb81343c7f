"""Sheets of images as PNG, tables as text."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from latent_mixup.functional import path_named
from latent_mixup.generators.base import Generator
from latent_mixup.images import to_uint8

CAPTION_WIDTH = 96  # of captions, at least
HEADING_HEIGHT = 20
MARGIN = 6
FONT_SIZE = 12


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


def png(rows: Sequence[Tensor], captions: Sequence[str] = (), *, headings: Sequence[str] = (), zoom: int = 2) -> bytes:
    """Rows of images in [-1, 1], each ``[n, C, H, W]``, as the bytes of a PNG on white.

    Args:
        rows: Of equal length; grey or RGB.
        captions: Text to the left of each row; empty for none.
        headings: Text above each column, after a text above the captions: ``n + 1``; empty for none.
        zoom: Each pixel becomes ``zoom`` by ``zoom``.

    Raises:
        ValueError: Images are neither grey nor RGB, rows differ in length, or there is not one caption a row, or one
            heading a column.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or len(captions) not in (0, len(rows)) or len(headings) not in (0, len(rows[0]) + 1):
        raise ValueError(
            f"a sheet needs rows of one length, a caption each, and one more heading than columns: got rows of "
            f"{sorted(lengths)}, {len(captions)} captions for {len(rows)} rows, {len(headings)} headings"
        )
    if rows[0].shape[1] not in (1, 3):
        raise ValueError(f"a sheet needs grey or RGB images: got {rows[0].shape[1]} channels")
    enlarged = F.interpolate(torch.cat([row.float().cpu() for row in rows]), scale_factor=zoom, mode="nearest")
    grid = to_uint8(make_grid(enlarged, nrow=len(rows[0]), padding=2, pad_value=1.0)).permute(1, 2, 0)
    sheet = Image.fromarray(grid.contiguous().numpy())
    if captions or headings:
        sheet = _lettered(sheet, captions, headings, len(rows[0]))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _lettered(sheet: Image.Image, captions: Sequence[str], headings: Sequence[str], num_columns: int) -> Image.Image:
    """The sheet with room for its captions on the left and its headings above."""
    font = ImageFont.load_default(FONT_SIZE)
    widest = max(font.getlength(text) for text in [*captions, *headings[:1]])
    left, top = max(CAPTION_WIDTH, math.ceil(widest) + 2 * MARGIN), HEADING_HEIGHT if headings else 0
    canvas = Image.new("RGB", (sheet.width + left, sheet.height + top), "white")
    canvas.paste(sheet, (left, top))
    draw = ImageDraw.Draw(canvas)
    for number, caption in enumerate(captions):
        middle = top + (number + 0.5) * sheet.height / len(captions)
        draw.text((left - MARGIN, middle), caption, fill="black", font=font, anchor="rm")
    for number, heading in enumerate(headings):
        middle = left + (number - 0.5) * sheet.width / num_columns
        place, anchor = ((left - MARGIN, top / 2), "rm") if number == 0 else ((middle, top / 2), "mm")
        draw.text(place, heading, fill="black", font=font, anchor=anchor)
    return canvas


@torch.no_grad()
def mixes(generator: Generator, own: Tensor, other: Tensor, lam: float) -> Tensor:
    """Decodes of ``lam * own + (1 - lam) * other`` along the generator's path, ``[n, C, R, R]``."""
    path = path_named(generator.preferred_path)
    return generator.decode(path(own, other, own.new_full((len(own),), lam)).to(generator.device)).cpu()


def mix_sheet(
    generator: Generator, own: Tensor, other: Tensor, real_own: Tensor, real_other: Tensor, *, zoom: int = 2
) -> bytes:
    """A PNG to judge mixes by: real images, their reconstructions, three mixes, and a pixel mix to compare with.

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
