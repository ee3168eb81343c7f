"""How every figure of the docs looks: one width, one size of letters, and for each method one colour and one marker.

Figures are drawn 13 cm wide in letters of 8 points, so they can be read at half the width of a page. The colours are
those of Okabe and Ito (2008), which people with any kind of colour blindness can tell apart; markers differ as well.
"""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tables.rows import BEST, NAMES

WIDTH, DPI = 5.2, 160  # inches, pixels an inch
LABEL_WIDTH = 28  # characters of a line of a method's name
BLACK, GREY = "#000000", "#8a8a8a"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
RULES: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "text.parse_math": False,
}
MARKS = {  # of methods whose name begins so: the longest that does counts
    "standard": (GREY, "o"),
    "mixup": (ORANGE, "s"),
    "manifold_mixup": (VERMILION, "^"),
    "timm_mixup": (ORANGE, "s"),
    "torchvision_mixup": (ORANGE, "s"),
    "timm_cutmix": (PURPLE, "v"),
    "torchvision_cutmix": (PURPLE, "v"),
    "decoded": (SKY, "D"),
    "pixel_mix_of_decoded": (SKY, "D"),
    "gan_mixup": (BLUE, "P"),
    "vae_mixup": (GREEN, "X"),
    BEST: (BLACK, "*"),
    f"{BEST}_low_pass_of_real": (GREY, "o"),
}
OTHER = (BLACK, "o")  # policies beside each other


def mark(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as keywords of ``plot``."""
    known = max((name for name in MARKS if method.startswith(name)), key=len, default="")
    colour, marker = MARKS.get(known, OTHER)
    return {"color": colour, "marker": marker}


def label(method: str) -> str:
    """The name of a method, without Markdown, in lines that fit beside a panel."""
    return textwrap.fill(NAMES[method].replace("`", ""), LABEL_WIDTH)


def figure(height: float) -> Figure:
    """An empty figure, ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def named(axes: Axes, x: str, y: str = "") -> None:
    """Name the axes, with their units."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def in_style() -> Any:
    """A context in which all is drawn, whatever the style of the process."""
    return matplotlib.style.context(["default", RULES])


def png(drawn: Figure) -> bytes:
    """The bytes of a PNG, the same for the same figure."""
    buffer = io.BytesIO()
    with in_style():
        drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
