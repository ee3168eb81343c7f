"""Sheets of images as PNG, tables as text."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from latent_mixup.pictures import CAPTION_WIDTH, HEADING_HEIGHT, png, text_table

BLACK = torch.full((3, 3, 4, 4), -1.0)


def opened(*args, **settings) -> Image.Image:
    return Image.open(io.BytesIO(png(*args, **settings)))


@pytest.mark.parametrize("captions", [(), ("one", "two")])
@pytest.mark.parametrize("headings", [(), ("weight", "1", "0.5", "0")])
def test_a_picture_is_white_between_its_images(captions, headings):
    sheet = opened([BLACK, BLACK], captions, headings=headings, zoom=3)
    left, top = CAPTION_WIDTH if captions or headings else 0, HEADING_HEIGHT if headings else 0
    assert (sheet.mode, sheet.size) == ("RGB", (left + 3 * 14 + 2, top + 2 * 14 + 2))
    assert sheet.getpixel((left, top)) == sheet.getpixel((left + 15, top + 5)) == (255, 255, 255)
    assert sheet.getpixel((left + 2, top + 2)) == sheet.getpixel((left + 13, top + 13)) == (0, 0, 0)


@pytest.mark.parametrize("text", ["t-shirt/top to ankle boot", "x" * 80])
def test_no_caption_is_cut_off(text):
    sheet = opened([BLACK], [text]).convert("L")
    first = torch.tensor(list(sheet.crop((0, 0, 5, sheet.height)).tobytes()))
    assert (first == 255).all()  # the margin: a caption that reached it would go on outside
    assert sheet.width > 6 * len(text) * 0.7


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([BLACK, BLACK[:2]], {}, r"got rows of \[2, 3\], 0 captions"),
        ([BLACK, BLACK], {"captions": ["one"]}, "1 captions for 2 rows"),
        ([BLACK], {"headings": ["1", "0.5", "0"]}, "3 headings"),
        ([], {}, r"got rows of \[\]"),
    ],
)
def test_a_picture_needs_even_rows_and_a_caption_each(rows, more, message):
    with pytest.raises(ValueError, match=f"a sheet needs rows of one length.*{message}"):
        png(rows, **more)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_picture_is_grey_or_rgb(channels):
    with pytest.raises(ValueError, match=f"grey or RGB images: got {channels} channels"):
        png([torch.zeros(3, channels, 4, 4)])


def test_a_table_lines_its_columns_up():
    rows = [("", "mse", "n"), ("median", 0.25, "1,000"), ("all",)]
    assert text_table(rows) == "         mse      n\nmedian  0.25  1,000\nall"
    assert text_table([("ok", "a"), ("FAILED", "bc")], "<") == "ok      a\nFAILED  bc"
    assert text_table([]) == ""
