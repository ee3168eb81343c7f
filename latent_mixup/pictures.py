"""Sheets of images as PNG, and as pictures that a notebook shows; tables as text."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from latent_mixup.functional import path_named
from latent_mixup.images import to_uint8
from latent_mixup.sampling import keyed_generator

CAPTION_WIDTH = 96  # of captions, at least
HEADING_HEIGHT = 20
LINE_HEIGHT = 15  # of a note
MARGIN = 6
FONT_SIZE = 12
COLUMN_WIDTH = 84  # pixels, about: small images with text above or below are enlarged to it
SAMPLES = (2, 8)  # rows and columns
NOTEBOOK_SIZE = 2048  # pixels, the largest side that a notebook gets by itself


class Decodes(Protocol):
    """The parts of a :class:`latent_mixup.generators.Generator` that pictures need."""

    img_channels: int

    @property
    def img_size(self) -> tuple[int, int]:
        """See there, as for the others."""

    @property
    def preferred_path(self) -> str:
        """As there."""

    @property
    def device(self) -> torch.device:
        """As there."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """As there."""

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """As there."""


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


def png(
    rows: Sequence[Tensor],
    captions: Sequence[str] = (),
    *,
    headings: Sequence[str] = (),
    notes: Sequence[str] = (),
    zoom: int = 2,
) -> bytes:
    """Rows of images in [-1, 1], each ``[n, C, H, W]``, as the bytes of a PNG on white.

    Args:
        rows: Of equal length; grey or RGB.
        captions: Text to the left of each row; empty for none.
        headings: Text above each column, after a text above the captions: ``n + 1``; empty for none.
        notes: Lines of text below each image, row by row, cut off where they are wider than it; empty for none.
        zoom: Each pixel becomes ``zoom`` by ``zoom``.

    Raises:
        ValueError: Images are neither grey nor RGB, rows differ in length, or there is not one caption a row, one
            heading a column, or one note an image.
    """
    lengths = {len(row) for row in rows}
    if (
        len(lengths) != 1
        or len(captions) not in (0, len(rows))
        or len(headings) not in (0, len(rows[0]) + 1)
        or len(notes) not in (0, len(rows) * len(rows[0]))
    ):
        raise ValueError(
            f"a sheet needs rows of one length, a caption each, one more heading than columns, and a note an image: "
            f"got rows of {sorted(lengths)}, {len(captions)} captions for {len(rows)} rows, {len(headings)} headings, "
            f"{len(notes)} notes"
        )
    if rows[0].shape[1] not in (1, 3):
        raise ValueError(f"a sheet needs grey or RGB images: got {rows[0].shape[1]} channels")
    enlarged = F.interpolate(torch.cat([row.float().cpu() for row in rows]), scale_factor=zoom, mode="nearest")
    room = LINE_HEIGHT * max((len(note.splitlines()) for note in notes), default=0)
    enlarged = F.pad(enlarged, (0, 0, 0, room), value=1.0)
    grid = to_uint8(make_grid(enlarged, nrow=len(rows[0]), padding=2, pad_value=1.0)).permute(1, 2, 0)
    sheet = Image.fromarray(grid.contiguous().numpy())
    _note(sheet, notes, len(rows[0]), room)
    if captions or headings:
        sheet = _lettered(sheet, captions, headings, len(rows[0]))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def opened(png: bytes) -> Image.Image:
    """The picture of a PNG: notebooks show it, ``save(path)`` writes it."""
    return Image.open(io.BytesIO(png))


def notebook_png(show: Callable[[], Image.Image]) -> bytes | None:
    """The PNG that a notebook shows for an object, by its ``show``; None where it has no picture.

    A notebook then shows the ``repr``, and calling ``show()`` tells the reason. Large pictures are made smaller.
    """
    buffer = io.BytesIO()
    try:
        picture = show()
        picture.thumbnail((NOTEBOOK_SIZE, NOTEBOOK_SIZE))
        picture.save(buffer, "PNG")
    except Exception:  # whatever the reason is, looking at an object is no error
        return None
    return buffer.getvalue()


def _note(sheet: Image.Image, notes: Sequence[str], num_columns: int, room: int) -> None:
    """Write the notes into the white rows below their images."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    width, height = sheet.width / num_columns, num_columns * sheet.height / max(1, len(notes))
    for number, note in enumerate(notes):
        row, column = divmod(number, num_columns)
        for line, text in enumerate(note.splitlines()):
            while font.getlength(text) > width:
                text = text[:-1]
            middle = (row + 1) * height - room + (line + 0.5) * LINE_HEIGHT
            draw.text(((column + 0.5) * width, middle), text, fill="black", font=font, anchor="mm")


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


def sample_sheet(generator: Decodes, *, seed: int = 0) -> bytes:
    """A PNG of two rows of samples: whether they look right, no self-test can tell.

    Raises:
        ValueError: The images are neither grey nor RGB.
    """
    if generator.img_channels not in (1, 3):
        raise ValueError(f"a sheet needs grey or RGB images: this generator has {generator.img_channels} channels")
    num_rows, num_columns = SAMPLES
    codes = generator.sample_latents(num_rows * num_columns, keyed_generator("sample-sheet", seed))
    with torch.no_grad():
        images = torch.cat([generator.decode(code).cpu() for code in codes.split(1)])
    return png(images.split(num_columns), ["samples", ""], zoom=2 if max(generator.img_size) <= 128 else 1)


@torch.no_grad()
def mixes(generator: Decodes, own: Tensor, other: Tensor, lam: float) -> Tensor:
    """Decodes of ``lam * own + (1 - lam) * other`` along the generator's path, ``[n, C, H, W]``."""
    path = path_named(generator.preferred_path)
    return generator.decode(path(own, other, own.new_full((len(own),), lam)).to(generator.device)).cpu()


def mix_sheet(
    generator: Decodes, own: Tensor, other: Tensor, real_own: Tensor, real_other: Tensor, *, zoom: int = 2
) -> bytes:
    """A PNG to judge mixes by: real images, their reconstructions, three mixes, and a pixel mix to compare with.

    Args:
        generator: Decodes the codes.
        own: Codes ``[n, *latent_shape]``; one column each.
        other: Their partners' codes.
        real_own: The images of ``own``, ``[n, C, H, W]`` in [-1, 1].
        real_other: The images of ``other``.
        zoom: Each pixel becomes ``zoom`` by ``zoom``.
    """
    rows = {
        "real a": real_own,
        "a decoded": mixes(generator, own, other, 1.0),
        "mix, lam 0.75": mixes(generator, own, other, 0.75),
        "mix, lam 0.5": mixes(generator, own, other, 0.5),
        "mix, lam 0.25": mixes(generator, own, other, 0.25),
        "b decoded": mixes(generator, own, other, 0.0),
        "real b": real_other,
        "pixels, lam 0.5": (real_own + real_other) / 2,
    }
    return png(list(rows.values()), list(rows), zoom=zoom)


def strip_sheet(
    generator: Decodes, own: Tensor, other: Tensor, captions: Sequence[str], lams: Sequence[float]
) -> bytes:
    """A PNG of a row a pair: from the decode of a code, on the left, through its mixes to the decode of its partner.

    Args:
        generator: Decodes the codes.
        own: Codes ``[n, *latent_shape]``.
        other: Their partners' codes.
        captions: Text to the left of each row.
        lams: Weight of ``own`` in each column, which stands above it.
    """
    strips = torch.stack([mixes(generator, own, other, lam) for lam in lams], dim=1)
    headings = ["lam, weight of the first", *(f"{lam:g}" for lam in lams)]
    zoom = max(1, round(COLUMN_WIDTH / generator.img_size[1]))
    return png([*strips], captions, headings=headings, zoom=zoom)
