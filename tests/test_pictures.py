"""Sheets of images as PNG, tables as text."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from latent_mixup.pictures import (
    CAPTION_WIDTH,
    HEADING_HEIGHT,
    LINE_HEIGHT,
    NOTEBOOK_SIZE,
    notebook_png,
    opened,
    png,
    text_table,
)

BLACK = torch.full((3, 3, 4, 4), -1.0)


def drawn(*args, **settings) -> Image.Image:
    return opened(png(*args, **settings))


@pytest.mark.parametrize("captions", [(), ("one", "two")])
@pytest.mark.parametrize("headings", [(), ("weight", "1", "0.5", "0")])
def test_a_picture_is_white_between_its_images(captions, headings):
    sheet = drawn([BLACK, BLACK], captions, headings=headings, zoom=3)
    left, top = CAPTION_WIDTH if captions or headings else 0, HEADING_HEIGHT if headings else 0
    assert (sheet.mode, sheet.size) == ("RGB", (left + 3 * 14 + 2, top + 2 * 14 + 2))
    assert sheet.getpixel((left, top)) == sheet.getpixel((left + 15, top + 5)) == (255, 255, 255)
    assert sheet.getpixel((left + 2, top + 2)) == sheet.getpixel((left + 13, top + 13)) == (0, 0, 0)


@pytest.mark.parametrize("text", ["t-shirt/top to ankle boot", "x" * 80])
def test_no_caption_is_cut_off(text):
    sheet = drawn([BLACK], [text]).convert("L")
    first = torch.tensor(list(sheet.crop((0, 0, 5, sheet.height)).tobytes()))
    assert (first == 255).all()  # the margin: a caption that reached it would go on outside
    assert sheet.width > 6 * len(text) * 0.7


@pytest.mark.parametrize("captions", [(), ("one", "two")])
def test_notes_stand_below_their_images_and_not_beside_them(captions):
    """Six columns of 32 px: each note has room of its own, however long it is."""
    notes = [""] * 6
    notes[1], notes[5] = "x" * 80 + "\nsecond", "short"
    sheet = drawn([BLACK, BLACK], captions, notes=notes, zoom=8).convert("L")
    left, step, room = CAPTION_WIDTH if captions else 0, 34, 2 * LINE_HEIGHT
    assert sheet.size == (left + 3 * step + 2, 2 * (step + room) + 2)
    for number, note in enumerate(notes):
        row, column = divmod(number, 3)
        start, top = left + 2 + column * step, 34 + row * (step + room)
        below = torch.tensor(list(sheet.crop((start, top, start + 32, top + room)).tobytes()))
        assert bool((below < 128).any()) == bool(note)
        image = sheet.crop((start, top - 32, start + 32, top))
        assert set(image.tobytes()) == {0}


def test_a_note_is_wanted_for_each_image():
    with pytest.raises(ValueError, match=r"a note an image: .*5 notes"):
        png([BLACK, BLACK], notes=["note"] * 5)


def test_a_notebook_gets_a_png_or_nothing():
    picture = drawn([BLACK])
    content = notebook_png(lambda: picture)
    assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()
    assert notebook_png(lambda: drawn([torch.zeros(3, 2, 4, 4)])) is None
    large = notebook_png(lambda: drawn([torch.zeros(3, 1, 4, 8)], zoom=200))
    assert Image.open(io.BytesIO(large)).size[0] == NOTEBOOK_SIZE


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
