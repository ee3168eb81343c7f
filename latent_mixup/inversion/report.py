"""``report``: the paper's figures 1 to 6 for any bank, as one PNG page and one JSON."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latent_mixup import hub
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.images import to_uint8
from latent_mixup.inversion.losses import callable_id, pixel_mse
from latent_mixup.inversion.samples import SampleFormat, probe, read_samples
from latent_mixup.sampling import keyed_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE_FILE, NUMBERS_FILE = "report.png", "report.json"
QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # per cent
THRESHOLDS = (0.025, 0.020)  # the paper refines the codes with an mse from here
STATUS_NAMES = {0: "ok", 1: "failed", 2: "skipped"}
CHECKED_ROWS = 256
TOLERANCE = (0.1, 2e-4)  # of a stored mse: relative, for another device; absolute, for codes rounded to float16
MAX_DISAGREEING = 0.1  # share of the checked rows
RANDOM_LINES = 3
BATCH_SIZE = 32  # images in memory at a time
_CHECK, _SHOW = 0, 1  # streams of random rows

Encoder: TypeAlias = Callable[[Tensor], Tensor]


def report(
    bank: LatentBank,
    dataset: Any,
    generator: Generator,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    columns: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Say how good a bank is: the paper's figures 1 to 6 on one page, and their numbers.

    ``report.png`` has the sorted MSE, histograms of MSE and LPIPS, the MSE of each class, and best, median, worst
    and random rows as original | inverted | encoded. ``report.json`` has what this function returns. The same
    input gives the same bytes. Only the rows shown and a sample are decoded.

    Args:
        bank: In any latent space. Where it has no ``mse``, that of every row is computed.
        dataset: What the bank was made from; the bank may be a subset.
        generator: What the bank was made with.
        out: Folder for the two files, made where it is missing.
        encoder: Images ``[B, C, R, R]`` in [-1, 1] to codes. None: the generator's own; where it has none, the
            page shows original | inverted.
        columns: Triptychs in a line.
        seed: Of the choice of the random rows and of the sample.

    Returns:
        What ``report.json`` holds. Quantiles, means and shares are over the rows with status 0 and a finite mse.
        ``check`` compares stored and recomputed mse on a sample.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not there.
        ValueError: Bank, data set and generator do not belong together, by their labels, the generator's digest,
            or a stored mse that is not what the codes decode to; or the bank has no row to report on, or a row
            whose image cannot be read.

    Reference: Latent-Mixup, figures 1 to 6; thresholds: section 2.1.2.2.
    """
    _need_matplotlib()
    if columns < 1:
        raise ValueError(f"columns needs to be at least 1: got {columns}")
    bank.check(generator)
    bank.check(dataset)
    if encoder is None and generator.has_encoder:
        encoder = generator.encode
    source = _Source(bank, dataset, generator, encoder, probe(dataset, generator)[0])
    ok = torch.arange(len(bank)) if bank.status is None else (bank.status == 0).nonzero()[:, 0]
    mse = bank.mse if bank.mse is not None else _computed_mse(source, ok)
    rows = ok[mse[ok].isfinite()]
    if not len(rows):
        raise ValueError(f"none of the bank's {len(bank)} rows has status 0 and a finite mse: invert them again")
    sample = _random_rows(rows, CHECKED_ROWS, keyed_generator(seed, _CHECK))
    sampled = _sample_mse(source, sample)
    record = {
        **_provenance(source),
        "units": "pixel mse in [-1, 1] squared",
        "rows": {"all": len(bank), "reported": len(rows), "status": _status_counts(bank)},
        "mse": {"source": "computed" if bank.mse is None else "stored", **_summary(mse[rows])},
        "lpips": None if bank.lpips is None else _summary(bank.lpips[rows], limits=()),
        "classes": _class_summaries(bank, mse, rows),
        "check": None if bank.mse is None else _checked(mse[sample], sampled[:, 0]),
        "encoded": None if encoder is None else _encoded_summary(encoder, sampled),
        "seed": seed,
    }
    looks = {name: _look(source, chosen) for name, chosen in _chosen_rows(mse, rows, columns, seed).items()}
    record["shown"] = {name: _shown(look, bank, mse) for name, look in looks.items()}
    page = _page(record, _finite_values(mse, bank.lpips, rows), looks, columns)
    numbers = (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
    hub.write_folder(out, {PAGE_FILE: page, NUMBERS_FILE: numbers})
    return record


def report_table(record: dict[str, Any]) -> str:
    """The main numbers of a report as a table of text."""
    named = {"inverted MSE": record["mse"], "LPIPS": record["lpips"], "encoded MSE": record["encoded"]}
    columns = {name: summary for name, summary in named.items() if summary and summary["n"]}
    lines = {"": list(columns), "codes": [f"{summary['n']:,}" for summary in columns.values()]}
    lines["mean"] = [_fixed(summary["mean"]) for summary in columns.values()]
    for per_cent in map(str, QUANTILES):
        label = {"0": "best", "50": "median", "100": "worst"}.get(per_cent, f"{per_cent} % below")
        lines[label] = [_fixed(summary["quantiles"][per_cent]) for summary in columns.values()]
    for limit in THRESHOLDS:
        shares = [summary["above"].get(f"{limit:g}") for summary in columns.values()]
        lines[f"{limit:.3f} or more"] = ["" if share is None else _percent(share) for share in shares]
    return "\n".join(f"{label:14}" + "".join(f"{cell:>14}" for cell in cells) for label, cells in lines.items())


def report_sentence(record: dict[str, Any]) -> str:
    """How many rows a report is about, and whether the bank's MSE was found again."""
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
    """Five decimals, so that a column lines up; what they do not show, as a power of ten."""
    return f"{value:.5f}" if value == 0 or value >= 1e-4 else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


@dataclass(frozen=True)
class _Source:
    """What rows are read from."""

    bank: LatentBank
    dataset: Any
    generator: Generator
    encoder: Encoder | None
    format: SampleFormat

    def originals(self, rows: Tensor) -> Tensor:
        """The data set's images of some rows, ``[B, C, R, R]`` in [-1, 1] on the generator's device."""
        samples = read_samples(self.dataset, self.bank.source_index[rows].tolist(), self.generator, self.format)
        for index, error in samples.errors.items():
            raise ValueError(f"the bank has a code of image {index}, which cannot be read: {error}")
        return samples.images

    def decoded(self, rows: Tensor) -> Tensor:
        """The images of their codes."""
        return self.generator.decode(self.bank[rows][0].to(self.generator.device))

    def batches(self, rows: Tensor) -> Iterator[list[Tensor]]:
        """Original, inverted and, where there is an encoder, encoded images, some rows at a time."""
        for chunk in rows.split(BATCH_SIZE):
            originals = self.originals(chunk)
            encoded = [self.generator.decode(self.encoder(originals))] if self.encoder else []
            yield [originals, self.decoded(chunk), *encoded]


@dataclass(frozen=True)
class _Look:
    """Rows as they are drawn.

    Attributes:
        rows: ``[n]``.
        images: uint8 ``[n, k, H, W, 3]``: original, inverted and, where there is an encoder, encoded.
        mse: Of the inverted and of the encoded images, ``[n, k - 1]``.
    """

    rows: Tensor
    images: Tensor
    mse: Tensor


@torch.no_grad()
def _look(source: _Source, rows: Tensor) -> _Look:
    images, errors = [], []
    for batch in source.batches(rows):
        images.append(torch.stack([_thumbnails(part) for part in batch], dim=1))
        errors.append(_errors(batch))
    return _Look(rows, torch.cat(images), torch.cat(errors))


def _thumbnails(images: Tensor, size: int = 192) -> Tensor:
    """``[B, C, R, R]`` in [-1, 1] to uint8 ``[B, H, W, 3]`` of about ``size`` pixels; small ones in whole zooms."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"the page shows images of 1 or 3 channels: got {images.shape[1]}")
    if images.shape[-1] > size:
        scaled = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    else:
        scaled = F.interpolate(images, scale_factor=size // images.shape[-1], mode="nearest")
    return to_uint8(scaled).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def _computed_mse(source: _Source, rows: Tensor) -> Tensor:
    """The pixel MSE of some rows, in a vector of all rows that is infinite elsewhere, ``[N]``."""
    mse = torch.full((len(source.bank),), torch.inf)
    with tqdm(total=len(rows), desc="report", unit="row", disable=None) as bar:
        for chunk in rows.split(BATCH_SIZE):
            mse[chunk] = pixel_mse(source.decoded(chunk), source.originals(chunk)).cpu().nan_to_num(nan=torch.inf)
            bar.update(len(chunk))
    return mse


@torch.no_grad()
def _sample_mse(source: _Source, rows: Tensor) -> Tensor:
    """Pixel MSE of inverted and, where there is an encoder, of encoded images: ``[B, 1]`` or ``[B, 2]``."""
    return torch.cat([_errors(batch) for batch in source.batches(rows)])


def _errors(batch: list[Tensor]) -> Tensor:
    """Pixel MSE of each of the later images against the first, ``[B, k - 1]``; infinite where it is no number."""
    errors = torch.stack([pixel_mse(images, batch[0]).cpu() for images in batch[1:]], dim=1)
    return errors.nan_to_num(nan=torch.inf)


def _random_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of the rows, in their order."""
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]


def _chosen_rows(mse: Tensor, rows: Tensor, columns: int, seed: int) -> dict[str, Tensor]:
    """The rows that are shown: a line of the best, of those around the median, of the worst, and random ones."""
    ordered = rows[mse[rows].argsort(stable=True)]
    middle = max(0, (len(ordered) - columns) // 2)
    return {
        "best": ordered[:columns],
        "median": ordered[middle : middle + columns],
        "worst": ordered.flip(0)[:columns],
        "random": _random_rows(rows, RANDOM_LINES * columns, keyed_generator(seed, _SHOW)),
    }


def _summary(values: Tensor, limits: Sequence[float] = THRESHOLDS) -> dict[str, Any]:
    """Mean, quantiles and the shares from each limit, of the finite values."""
    numbers = values[values.isfinite()].double().numpy()
    if not len(numbers):
        return {"n": 0}
    quantiles = np.quantile(numbers, [per_cent / 100 for per_cent in QUANTILES]).tolist()
    return {
        "n": len(numbers),
        "mean": float(numbers.mean()),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "above": {f"{limit:g}": float((numbers >= limit).mean()) for limit in limits},
    }


def _finite_values(mse: Tensor, lpips: Tensor | None, rows: Tensor) -> dict[str, Tensor]:
    """What is drawn of some rows: their MSE and, where there is any, their LPIPS."""
    found = {"MSE": mse[rows]}
    if lpips is not None and lpips[rows].isfinite().any():
        found["LPIPS"] = lpips[rows][lpips[rows].isfinite()]
    return found


def _checked(stored: Tensor, decoded: Tensor) -> dict[str, Any]:
    """Stored and recomputed mse of a sample, each ``[n]``; raises where they are not of the same images."""
    relative, absolute = TOLERANCE
    difference = (stored - decoded).abs()
    disagreeing = int((difference > relative * stored + absolute).sum())
    if disagreeing > MAX_DISAGREEING * len(stored):
        raise ValueError(
            f"the bank's mse is not what its codes decode to: of {len(stored)} rows looked at, {disagreeing} differ, "
            f"with a median of {float(stored.median()):.4g} stored and {float(decoded.median()):.4g} recomputed; pass "
            "the generator and the data set the bank was made with, in its order, or a bank without mse"
        )
    return {
        "rows": len(stored),
        "disagreeing": disagreeing,
        "stored_mean": float(stored.double().mean()),
        "recomputed_mean": _number(decoded.double().mean()),
        "largest_difference": _number(difference.max()),
    }


def _encoded_summary(encoder: Encoder, sampled: Tensor) -> dict[str, Any]:
    """What the encoder alone reaches on a sample ``[n, 2]``, and the mean of the same rows' inverted codes.

    Raises:
        ValueError: None of its codes decodes to numbers.
    """
    finite = sampled.isfinite().all(1)
    if not finite.any():
        raise ValueError(f"none of {len(sampled)} encoded images is finite: pass another encoder=")
    inverted, encoded = sampled[finite].unbind(1)
    return {"encoder": callable_id(encoder), **_summary(encoded), "inverted_mean": float(inverted.double().mean())}


def _number(value: Tensor | float) -> float | None:
    """What JSON can say of a number: None for infinity."""
    return float(value) if np.isfinite(float(value)) else None


def _class_summaries(bank: LatentBank, mse: Tensor, rows: Tensor) -> list[dict[str, Any]]:
    """The summary of each class that has a row; label -1 and no name for rows without one."""
    labels = bank.hard_labels[rows]
    found = []
    for label in labels.unique().tolist():
        summary = _summary(mse[rows[labels == label]])
        found.append({"label": label, "name": _class_name(bank.metadata.get("classes"), label), **summary})
    return found


def _class_name(classes: Any, label: int) -> str | None:
    if label < 0:
        return None
    return str(classes[label]) if isinstance(classes, list) and label < len(classes) else str(label)


def _status_counts(bank: LatentBank) -> dict[str, int] | None:
    if bank.status is None:
        return None
    found = dict(zip(*(column.tolist() for column in bank.status.unique(return_counts=True)), strict=True))
    known = {name: found.pop(status, 0) for status, name in STATUS_NAMES.items()}
    return known | {str(status): count for status, count in found.items()}


def _shown(look: _Look, bank: LatentBank, mse: Tensor) -> list[dict[str, Any]]:
    """What is known of the rows of a look."""
    labels = bank.hard_labels
    return [
        {
            "row": row,
            "source_index": int(bank.source_index[row]),
            "label": int(labels[row]),
            "mse": float(mse[row]),
            "decoded_mse": _number(errors[0]),
            "encoded_mse": _number(errors[1]) if len(errors) > 1 else None,
        }
        for row, errors in zip(look.rows.tolist(), look.mse.tolist(), strict=True)
    ]


def _provenance(source: _Source) -> dict[str, Any]:
    """Names and digests of what the report is about."""
    bank, generator, dataset = source.bank, source.generator, source.dataset
    return {
        "bank": {
            "digest": bank.digest(),
            "latent_shape": list(bank.latent_shape),
            "inversion": bank.metadata.get("inversion"),
        },
        "generator": {
            "name": generator.metadata.get("name") or type(generator).__name__,
            "architecture": type(generator).__name__,
            "latent_space": generator.latent_space,
            "digest": generator.digest(),
        },
        "dataset": {"name": _dataset_name(bank, dataset), **fingerprint(dataset)},
        "versions": {name: metadata.version(name) for name in ("latent-mixup", "torch", "matplotlib")},
    }


def _dataset_name(bank: LatentBank, dataset: Any) -> str:
    stated = bank.metadata.get("dataset")
    return str((stated.get("name") if isinstance(stated, dict) else None) or type(dataset).__name__)


WIDTH, MARGIN, DPI = 8.27, 0.45, 200  # inches; A4 is 8.27 wide
PLOT_HEIGHT, CLASS_HEIGHT, CAPTION_LINE = 1.75, 0.17, 0.135
LINE_GAP, STRIP_GAP, NAMES_END, MAX_IMAGE = 0.17, 0.1, 1.0, 0.8  # of the triptychs
CURVE_POINTS, BINS, MAX_CLASSES = 2000, 60, 20
HISTOGRAM_END, MANY = 0.995, 1000  # quantile; of many rows, a few far out would squeeze the others
LOG_FROM = 10  # the ratio of worst and best from which an axis is logarithmic
CAPTION_CHARACTERS = 146
IMAGE_NAMES = ("original", "inverted", "encoded")
BLUE, RED, GREY = "#1f4e79", "#b03a2e", "#777777"
STYLE = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def _need_matplotlib() -> None:
    try:
        import matplotlib.style  # noqa: F401
    except ImportError as cause:
        raise ImportError("report draws with matplotlib: pip install 'latent-mixup[plot]'") from cause


def _page(record: dict[str, Any], values: dict[str, Tensor], looks: dict[str, _Look], columns: int) -> bytes:
    """The page as the bytes of a PNG, whatever style the process has set, and without a global figure."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        classes = _drawn_classes(record)
        class_height = max(PLOT_HEIGHT, CLASS_HEIGHT * len(classes))
        columns = min(columns, max(len(look.rows) for look in looks.values()))
        strips = _strip_size(looks, columns)
        words = _caption(record, values, len(classes)).replace(" %", "\N{NO-BREAK SPACE}%")
        caption = textwrap.wrap(words, CAPTION_CHARACTERS)
        heights = [
            0.75,
            PLOT_HEIGHT + 0.85,
            class_height + 0.8,
            0.4 + _num_lines(looks, columns) * (strips[1] + LINE_GAP),
        ]
        sheet = _Sheet(sum(heights) + CAPTION_LINE * len(caption) + 0.3)
        _draw_head(sheet, record)
        sheet.top = heights[0]
        letters = _letters(values)
        _draw_errors(sheet, values, letters)
        sheet.top += heights[1]
        _draw_classes(sheet, classes, class_height, letters["classes"], logarithmic=_wide(values["MSE"]))
        _draw_numbers(sheet, record, letters["numbers"])
        sheet.top += heights[2]
        _draw_triptychs(sheet, looks, strips, columns, letters["images"])
        sheet.top += heights[3]
        sheet.text(MARGIN, "\n".join(caption), va="top", linespacing=1.35)
        return sheet.png()


class _Sheet:
    """A figure that is filled from the top; positions are in inches."""

    def __init__(self, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.height, self.top = height, 0.0
        self.figure = Figure((WIDTH, height), dpi=DPI)
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, down: float, width: float, height: float) -> Axes:
        """Axes whose upper edge is ``down`` below ``top``."""
        bottom = self.height - self.top - down - height
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def text(self, left: float, content: str, *, down: float = 0.0, **how: Any) -> None:
        """Text at ``left``, ``down`` below ``top``."""
        self.figure.text(left / WIDTH, 1 - (self.top + down) / self.height, content, **how)

    def title(self, left: float, content: str) -> None:
        """The title of a panel, right below ``top``."""
        self.text(left, content, down=0.2, fontsize=7.5, fontweight="bold")

    def png(self) -> bytes:
        """The bytes of a PNG that says neither when nor by what it was made."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _draw_head(sheet: _Sheet, record: dict[str, Any]) -> None:
    generator, bank = record["generator"], record["bank"]
    shape = " x ".join(map(str, bank["latent_shape"]))
    sheet.text(MARGIN, _subject(record), down=0.38, fontsize=11, fontweight="bold")
    lines = [
        f"{generator['architecture']}, digest {generator['digest'][:12]}; codes of {shape} numbers in "
        f"{generator['latent_space']}, bank digest {bank['digest'][:12]}",
        report_sentence(record),
    ]
    sheet.text(MARGIN, "\n".join(lines), down=0.45, va="top", color=GREY, linespacing=1.35)


def _letters(values: dict[str, Tensor]) -> dict[str, str]:
    """The letter of each panel."""
    return dict(zip(["sorted", *values, "classes", "numbers", "images"], "abcdef", strict=False))


def _draw_errors(sheet: _Sheet, values: dict[str, Tensor], letters: dict[str, str]) -> None:
    """The sorted MSE and a histogram of each kind of error, side by side."""
    count, gap = 1 + len(values), 0.55
    width = (WIDTH - 2 * MARGIN - gap * count) / count
    panels = [sheet.axes(MARGIN + gap + n * (width + gap), 0.3, width, PLOT_HEIGHT) for n in range(count)]
    sheet.title(MARGIN, f"({letters['sorted']}) sorted MSE")
    _plot_sorted(panels[0], values["MSE"])
    for number, (name, errors) in enumerate(values.items(), start=1):
        axes = panels[number]
        sheet.title(MARGIN + number * (width + gap), f"({letters[name]}) histogram of {name}")
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
    for limit, side in zip(THRESHOLDS, ("bottom", "top"), strict=True):
        if low < limit < high:
            axes.axhline(limit, color=RED, linewidth=0.7, linestyle="--")
            offset = (0, 1 if side == "bottom" else -1.5)
            axes.annotate(
                f"{limit:.3f}", (1, limit), offset, textcoords="offset points", color=RED, fontsize=6, va=side
            )
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
            axes.axvline(limit, color=RED, linewidth=0.7, linestyle="--")
            axes.text(limit, top, f" {limit:.3f} ", color=RED, fontsize=6, ha=side, va="top")


def _draw_classes(
    sheet: _Sheet, classes: list[dict[str, Any]], height: float, letter: str, *, logarithmic: bool
) -> None:
    """Median, 25 to 75 % and 5 to 95 % of each class's MSE."""
    axes = sheet.axes(MARGIN + 1.15, 0.3, 3.05, height)
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
            axes.axvline(limit, color=RED, linewidth=0.7, linestyle="--", zorder=0)
    sheet.title(MARGIN, f"({letter}) MSE of each class")
    axes.set_xlabel("MSE, [-1, 1] squared")


def _draw_numbers(sheet: _Sheet, record: dict[str, Any], letter: str) -> None:
    left = MARGIN + 4.6
    sheet.title(left, f"({letter}) in numbers")
    sheet.text(left, report_table(record), down=0.34, va="top", family="monospace", fontsize=6.5, linespacing=1.25)


def _draw_triptychs(
    sheet: _Sheet, looks: dict[str, _Look], size: tuple[float, float], columns: int, letter: str
) -> None:
    """A line of triptychs for each group of rows, several for the random ones; in one panel, which is quicker."""
    sheet.title(MARGIN, f"({letter}) " + " | ".join(IMAGE_NAMES[: _images_each(looks)]))
    width, height = WIDTH - MARGIN - NAMES_END, _num_lines(looks, columns) * (size[1] + LINE_GAP)
    axes = sheet.axes(NAMES_END, 0.34, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    how: dict[str, Any] = {"fontsize": min(5.5, 6.5 * size[0]), "ha": "center", "va": "top"}
    down = 0.0
    for name, look in looks.items():
        sheet.text(MARGIN, name, down=0.34 + down + size[1] / 2, va="center")
        for first in range(0, len(look.rows), columns):
            for column, number in enumerate(range(first, min(first + columns, len(look.rows)))):
                left = column * (size[0] + STRIP_GAP)
                extent = (left, left + size[0], down + size[1], down)
                axes.imshow(_side_by_side(look.images[number]), aspect="auto", extent=extent)
                numbers = " | ".join(f"{error:.4f}" for error in look.mse[number].tolist())
                axes.text(left + size[0] / 2, down + size[1] + 0.02, numbers, **how)
            down += size[1] + LINE_GAP


def _num_lines(looks: dict[str, _Look], columns: int) -> int:
    return sum(-(-len(look.rows) // columns) for look in looks.values())


def _side_by_side(images: Tensor) -> Any:
    """uint8 ``[k, H, W, 3]`` to one array, with a white line between two images."""
    spaced = F.pad(images, (0, 0, 0, max(1, images.shape[2] // 40)), value=255)
    return np.concatenate(list(spaced.numpy()), axis=1)[:, : -max(1, images.shape[2] // 40)]


def _strip_size(looks: dict[str, _Look], columns: int) -> tuple[float, float]:
    """Width and height of a triptych, in inches; few columns do not make it huge."""
    width = (WIDTH - MARGIN - NAMES_END - STRIP_GAP * (columns - 1)) / columns
    edge = min(width / _images_each(looks), MAX_IMAGE)
    return edge * _images_each(looks), edge


def _images_each(looks: dict[str, _Look]) -> int:
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
    letters, above = _letters(values), record["mse"]["above"]
    scale = "logarithmic" if _wide(values["MSE"]) else "linear"
    shares = " and ".join(f"{_percent(above[f'{limit:g}'])} from {limit:.3f}" for limit in THRESHOLDS)
    parts = [
        f"{_subject(record)}. (a) Pixel MSE between each original and its inverted image, both in [-1, 1], in "
        f"ascending order; {scale} scale, n = {len(values['MSE']):,}.",
        *(_histogram_sentence(letters[name], name, errors) for name, errors in values.items()),
        f"Dashed: the thresholds from which the paper refines a code ({shares} on).",
        f"({letters['classes']}) Median (white), 25 to 75 % (bar) and 5 to 95 % (line) of each class's MSE, with its "
        f"number of codes{_choice_of_classes(record, num_drawn)}.",
        f"({letters['images']}) {_images_sentence(record)}",
    ]
    return " ".join(parts)


def _histogram_sentence(letter: str, name: str, errors: Tensor) -> str:
    beyond = int((errors.double() > _histogram_range(errors)[1]).sum())
    rest = f", without the {beyond:,} largest" if beyond else ""
    return f"({letter}) Histogram of {name}, n = {len(errors):,}{rest}."


def _choice_of_classes(record: dict[str, Any], num_drawn: int) -> str:
    found = len(record["classes"])
    return "" if num_drawn == found else f"; the {num_drawn} of {found} classes with the largest median"


def _images_sentence(record: dict[str, Any]) -> str:
    encoded = record["encoded"]
    sentence = "Original (left) and inverted image (right), with the MSE between them below."
    if encoded:
        means = f"{encoded['inverted_mean']:.4f} | {encoded['mean']:.4f}"
        sentence = (
            "Original (left), inverted (centre) and encoded image (right), with the MSE of inverted | encoded below; "
            f"their means over {encoded['n']:,} random codes are {means}."
        )
    return f"{sentence} Rows are chosen by MSE (best, around the median, worst) and at random (seed {record['seed']})."


def _short(words: str, length: int) -> str:
    """On one line, with dots for what goes beyond ``length`` characters."""
    words = " ".join(words.split())
    return words if len(words) <= length else f"{words[: length - 3]}..."
