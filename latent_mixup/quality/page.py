"""The page and the texts of a report: figures, table and caption from its record and a few images."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.pictures import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # per cent
THRESHOLDS = (0.025, 0.020)  # the paper refines the codes with an mse from here

WIDTH, MARGIN, DPI = 8.27, 0.45, 200  # inches; A4 is 8.27 wide
HEAD_HEIGHT, PLOT_HEIGHT, CLASS_HEIGHT, CAPTION_LINE = 0.5, 2.6, 0.17, 0.135
LINE_GAP, STRIP_GAP, NAMES_WIDTH, MAX_IMAGE = 0.17, 0.1, 0.55, 0.8  # of the triptychs
CURVE_POINTS, BINS, MAX_CLASSES = 2000, 60, 20
HISTOGRAM_END, MANY = 0.995, 1000  # quantile; of many rows, a few far out would squeeze the others
LOG_FROM = 10  # the ratio of worst and best from which an axis is logarithmic
CAPTION_CHARACTERS = 146
IMAGE_NAMES = ("original", "inverted", "encoded")
BLUE, RED, GREY = "#1f4e79", "#b03a2e", "#777777"
DASHED: dict[str, Any] = {"color": RED, "linewidth": 0.7, "linestyle": "--"}
STYLE = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """Rows as they are drawn.

    Attributes:
        rows: ``[n]``.
        images: uint8 ``[n, k, H, W, 3]``: original, inverted and, where there is an encoder, encoded.
        mse: Of the inverted and of the encoded images, ``[n, k - 1]``.
    """

    rows: Tensor
    images: Tensor
    mse: Tensor


def report_table(record: dict[str, Any]) -> str:
    """The main numbers of a report as a table of text."""
    named = {"inverted MSE": record["mse"], "LPIPS": record["lpips"], "encoded MSE": record["encoded"]}
    columns = {name: summary for name, summary in named.items() if summary and summary["n"]}
    rows = [["", *columns], ["codes", *(f"{summary['n']:,}" for summary in columns.values())]]
    rows.append(["mean", *(_fixed(summary["mean"]) for summary in columns.values())])
    for per_cent in map(str, QUANTILES):
        label = {"0": "best", "50": "median", "100": "worst"}.get(per_cent, f"{per_cent} % below")
        rows.append([label, *(_fixed(summary["quantiles"][per_cent]) for summary in columns.values())])
    for limit in THRESHOLDS:
        shares = [summary["above"].get(f"{limit:g}") for summary in columns.values()]
        rows.append([f"{limit:.3f} or more", *("" if share is None else _percent(share) for share in shares)])
    return text_table(rows)


def report_sentence(record: dict[str, Any]) -> str:
    """How many rows the report covers, and whether decoding confirms the bank's MSE."""
    rows, check = record["rows"], record["check"]
    others = [f"{count:,} {name}" for name, count in (rows["status"] or {}).items() if name != "ok"]
    noted = ", ".join(others) if others else "the bank notes no failures"
    found = "the bank came without MSE, all computed anew"
    if check is not None:
        largest = check["largest_difference"]
        difference = "" if largest is None else f" (largest difference {largest:.1g})"
        agreeing = check["rows"] - check["disagreeing"]
        found = f"{agreeing:,} of {check['rows']:,} rows decoded again have the bank's MSE{difference}"
    return f"{rows['reported']:,} of {rows['all']:,} rows are ok and have an MSE ({noted}); {found}"


def _fixed(value: float) -> str:
    """Five decimals, so that a column lines up; smaller numbers as a power of ten."""
    return f"{value:.5f}" if value == 0 or value >= 1e-4 else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def need_matplotlib() -> None:
    """Raise ``ImportError``, which names the extra, where matplotlib is not installed."""
    try:
        import matplotlib.style  # noqa: F401
    except ImportError as cause:
        raise ImportError("report draws with matplotlib: pip install 'latent-mixup[plot]'") from cause


def draw_page(record: dict[str, Any], values: dict[str, Tensor], looks: dict[str, Look], columns: int) -> bytes:
    """The page as the bytes of a PNG; independent of the style of the process, without a global figure."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.style.context(["default", STYLE]):
        classes = _drawn_classes(record)
        columns = min(columns, max(len(look.rows) for look in looks.values()))
        lines, size_shown = _num_lines(looks, columns), _shown_size(looks, columns)
        words = _caption(record, values, len(classes)).replace(" %", "\N{NO-BREAK SPACE}%")
        caption = textwrap.wrap(words, CAPTION_CHARACTERS)
        heights = [
            HEAD_HEIGHT,
            PLOT_HEIGHT,
            max(PLOT_HEIGHT, CLASS_HEIGHT * len(classes) + 0.8),
            0.3 + lines * (size_shown[0] + LINE_GAP),
            CAPTION_LINE * len(caption),
        ]
        size = WIDTH, sum(heights) + 2 * MARGIN
        across, up = (MARGIN / inches for inches in size)
        layout = ConstrainedLayoutEngine(rect=(across, up, 1 - 2 * across, 1 - 2 * up), w_pad=0.08, h_pad=0.06)
        figure, letters = Figure(size, dpi=DPI, layout=layout), _letters(values)
        head, errors, middle, images, foot = figure.subfigures(5, 1, squeeze=False, height_ratios=heights).flat
        _draw_head(head, record)
        _draw_errors(errors, values, letters)
        by_class, numbers = middle.subplots(1, 2, width_ratios=(5, 4))
        _draw_classes(by_class, classes, letters["classes"], logarithmic=_wide(values["MSE"]))
        numbers.set_axis_off()
        numbers.set_title(f"({letters['numbers']}) in numbers")
        table = {"family": "monospace", "fontsize": 6.5, "linespacing": 1.25}
        numbers.text(0, 1, report_table(record), va="top", transform=numbers.transAxes, in_layout=False, **table)
        _draw_triptychs(images.subplots(), looks, size_shown, columns, letters["images"])
        foot.text(0, 1, "\n".join(caption), va="top", linespacing=1.35)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})  # neither when nor by what it was made
        return buffer.getvalue()


def _draw_head(head: SubFigure, record: dict[str, Any]) -> None:
    generator, bank = record["generator"], record["bank"]
    shape = " x ".join(map(str, bank["latent_shape"]))
    lines = [
        f"{generator['architecture']}, digest {generator['digest'][:12]}; codes of {shape} numbers in "
        f"{generator['latent_space']}, bank digest {bank['digest'][:12]}",
        report_sentence(record),
    ]
    head.text(0, 1, _subject(record), va="top", fontsize=11, fontweight="bold")
    head.text(0, 0.6, "\n".join(lines), va="top", color=GREY, linespacing=1.35)


def _letters(values: dict[str, Tensor]) -> dict[str, str]:
    """The letter of each panel."""
    return dict(zip(["sorted", *values, "classes", "numbers", "images"], "abcdef", strict=False))


def _draw_errors(panels: SubFigure, values: dict[str, Tensor], letters: dict[str, str]) -> None:
    """The sorted MSE and a histogram of each kind of error, side by side."""
    ordered, *histograms = panels.subplots(1, 1 + len(values))
    ordered.set_title(f"({letters['sorted']}) sorted MSE")
    _plot_sorted(ordered, values["MSE"])
    for axes, (name, errors) in zip(histograms, values.items(), strict=True):
        axes.set_title(f"({letters[name]}) histogram of {name}")
        _plot_histogram(axes, errors, THRESHOLDS if name == "MSE" else ())
        axes.set_xlabel("MSE, [-1, 1] squared" if name == "MSE" else name)


def _plot_sorted(axes: Axes, mse: Tensor) -> None:
    ordered = mse.sort().values.numpy()
    points = np.linspace(0, len(ordered) - 1, min(len(ordered), CURVE_POINTS)).round().astype(int)
    axes.plot(points + 1, ordered[points], color=BLUE, linewidth=1.3, marker="." if len(points) == 1 else None)
    if _wide(mse):
        axes.set_yscale("log")
    _plain_ticks(axes.yaxis, _wide(mse))
    _count_ticks(axes.xaxis)
    low, high = axes.get_ylim()
    for limit, side, down in zip(THRESHOLDS, ("bottom", "top"), (1, -1.5), strict=True):
        if low < limit < high:
            axes.axhline(limit, **DASHED)
            label = f"{limit:.3f}", (1, limit), (0, down)
            axes.annotate(*label, textcoords="offset points", color=RED, fontsize=6, va=side)
    axes.set(xlabel="codes, best first", ylabel="MSE, [-1, 1] squared")


def _plot_histogram(axes: Axes, errors: Tensor, limits: Sequence[float]) -> None:
    counts, edges = np.histogram(errors.double().numpy(), bins=BINS, range=_histogram_range(errors))
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.set(xlim=(edges[0], edges[-1]), ylabel="codes")
    _count_ticks(axes.yaxis)
    _plain_ticks(axes.xaxis, logarithmic=False)
    top, labels_from = axes.get_ylim()[1], edges[0] + 0.1 * (edges[-1] - edges[0])
    for limit, side in zip(limits, ("left", "right"), strict=False):
        if labels_from < limit < edges[-1]:
            axes.axvline(limit, **DASHED)
            axes.text(limit, top, f" {limit:.3f} ", color=RED, fontsize=6, ha=side, va="top")


def _draw_classes(axes: Axes, classes: list[dict[str, Any]], letter: str, *, logarithmic: bool) -> None:
    """Median, 25 to 75 % and 5 to 95 % of each class's MSE."""
    for position, summary in enumerate(classes):
        quantile = summary["quantiles"]
        axes.plot([quantile["5"], quantile["95"]], [position] * 2, color=BLUE, linewidth=0.8)
        axes.plot([quantile["25"], quantile["75"]], [position] * 2, color=BLUE, linewidth=4, solid_capstyle="butt")
        axes.plot(
            quantile["50"], position, "o", color="white", markeredgecolor=BLUE, markersize=3.4, markeredgewidth=0.5
        )
    axes.set_yticks(
        range(len(classes)), [f"{_short(summary['name'] or 'no label', 18)} ({summary['n']:,})" for summary in classes]
    )
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    if logarithmic:
        axes.set_xscale("log")
    _plain_ticks(axes.xaxis, logarithmic)
    low, high = axes.get_xlim()
    for limit in THRESHOLDS:
        if low < limit < high:
            axes.axvline(limit, **DASHED, zorder=0)
    axes.set(title=f"({letter}) MSE of each class", xlabel="MSE, [-1, 1] squared")


def _draw_triptychs(
    axes: Axes, looks: dict[str, Look], size_shown: tuple[float, float], columns: int, letter: str
) -> None:
    """A line of triptychs for each group of rows, several for the random ones; in one panel, which is quicker."""
    edge, width = size_shown[0], size_shown[1] * _images_each(looks)
    axes.set_title(f"({letter}) " + " | ".join(IMAGE_NAMES[: _images_each(looks)]))
    axes.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(_num_lines(looks, columns) * (edge + LINE_GAP), 0), anchor="NW")
    axes.set(aspect="equal", autoscale_on=False)
    axes.set_axis_off()
    how: dict[str, Any] = {"fontsize": min(5.5, 6.5 * width), "ha": "center", "va": "top"}
    down = 0.0
    for name, look in looks.items():
        axes.text(0, down + edge / 2, name, va="center")
        for first in range(0, len(look.rows), columns):
            for column, number in enumerate(range(first, min(first + columns, len(look.rows)))):
                left = NAMES_WIDTH + column * (width + STRIP_GAP)
                extent = (left, left + width, down + edge, down)
                axes.imshow(_side_by_side(look.images[number]), extent=extent)
                numbers = " | ".join(f"{error:.4f}" for error in look.mse[number].tolist())
                axes.text(left + width / 2, down + edge + 0.02, numbers, **how)
            down += edge + LINE_GAP


def _num_lines(looks: dict[str, Look], columns: int) -> int:
    return sum(-(-len(look.rows) // columns) for look in looks.values())


def _side_by_side(images: Tensor) -> Any:
    """uint8 ``[k, H, W, 3]`` to one array, with a white line between two images."""
    line = max(1, max(images.shape[1:3]) // 40)
    spaced = F.pad(images, (0, 0, 0, line), value=255)
    return np.concatenate(list(spaced.numpy()), axis=1)[:, :-line]


def _shown_size(looks: dict[str, Look], columns: int) -> tuple[float, float]:
    """Height and width of an image, in inches; few columns do not make it huge."""
    room = (WIDTH - 2 * MARGIN - NAMES_WIDTH - STRIP_GAP * (columns - 1)) / columns
    height, width = looks["best"].images.shape[2:4]
    scale = min(room / _images_each(looks) / width, MAX_IMAGE / max(height, width))
    return scale * height, scale * width


def _images_each(looks: dict[str, Look]) -> int:
    return looks["best"].images.shape[1]


def _drawn_classes(record: dict[str, Any]) -> list[dict[str, Any]]:
    """All classes, or those of the largest median where there are many."""
    ordered = sorted(record["classes"], key=lambda summary: -summary["quantiles"]["50"])[:MAX_CLASSES]
    return sorted(ordered, key=lambda summary: summary["label"])


def _histogram_range(errors: Tensor) -> tuple[float, float]:
    """From 0 or, where that is far away, from the least error, to where nearly all of many errors lie."""
    numbers = errors.double().numpy()
    low = float(numbers.min())
    high = float(np.quantile(numbers, HISTOGRAM_END) if len(numbers) >= MANY else numbers.max())
    return (low if high > low > high / 2 else 0.0), high or 1.0


def _wide(values: Tensor) -> bool:
    """Whether values need a logarithmic axis."""
    low, high = float(values.min()), float(values.max())
    return low > 0 and high / low >= LOG_FROM


def _count_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _plain_ticks(axis: Any, logarithmic: bool) -> None:
    """Numbers as 0.02, not as powers of ten; at 1, 2 and 5 where there is room for them."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8) if logarithmic else MaxNLocator(5))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:.6g}")


def _subject(record: dict[str, Any]) -> str:
    dataset, generator = (_short(record[what]["name"], 40) for what in ("dataset", "generator"))
    return f"Inversion of {dataset} by {generator}, n = {record['rows']['all']:,}"


def _caption(record: dict[str, Any], values: dict[str, Tensor], num_drawn: int) -> str:
    """What the panels show."""
    letters, above, encoded = _letters(values), record["mse"]["above"], record["encoded"]
    scale = "logarithmic" if _wide(values["MSE"]) else "linear"
    shares = " and ".join(f"{_percent(above[f'{limit:g}'])} from {limit:.3f}" for limit in THRESHOLDS)
    found = len(record["classes"])
    drawn = "" if num_drawn == found else f"; the {num_drawn} of {found} classes with the largest median"
    parts = [
        f"{_subject(record)}. (a) Pixel MSE between each original and its inverted image, both in [-1, 1], in "
        f"ascending order; {scale} scale, n = {len(values['MSE']):,}."
    ]
    for name, errors in values.items():
        beyond = int((errors.double() > _histogram_range(errors)[1]).sum())
        rest = f", without the {beyond:,} largest" if beyond else ""
        parts.append(f"({letters[name]}) Histogram of {name}, n = {len(errors):,}{rest}.")
    parts += [
        f"Dashed: the thresholds from which the paper refines a code ({shares} on).",
        f"({letters['classes']}) Median (white), 25 to 75 % (bar) and 5 to 95 % (line) of each class's MSE, with its "
        f"number of codes{drawn}. ({letters['images']})",
        "Original (left) and inverted image (right), with the MSE between them below."
        if not encoded
        else "Original (left), inverted (centre) and encoded image (right), with the MSE of inverted | encoded below; "
        f"their means over {encoded['n']:,} random codes are {encoded['inverted_mean']:.4f} | {encoded['mean']:.4f}.",
        f"Rows are chosen by MSE (best, around the median, worst) and at random (seed {record['seed']}).",
    ]
    return " ".join(parts)


def _short(words: str, length: int) -> str:
    """On one line, with dots for what goes beyond ``length`` characters."""
    words = " ".join(words.split())
    return words if len(words) <= length else f"{words[: length - 3]}..."
