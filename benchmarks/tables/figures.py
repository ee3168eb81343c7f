"""Draw the figures of the docs from the committed JSON files alone; needs the extra ``plot``.

    python benchmarks/tables/figures.py --out docs/figures

Figures 4 to 6 of the paper (original, inverted, encoded) show images, which the files do not hold: ``latent-mixup
report`` draws those from a bank and its data set.
"""

from __future__ import annotations

import io
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latent_mixup import files
from latent_mixup.cli.shared import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import LABEL_TRUTH, RESULTS, read

from tables.rows import BEST, DATASETS, NAMES, PRESETS, SCORES, TITLES, aggregated, codes, records

SWEPT = ("standard", "mixup", "manifold_mixup", "decoded", "gan_mixup", "vae_mixup", "timm_cutmix", BEST)


def scores_figure(rows: list[dict[str, Any]]) -> Figure:
    """Each method's three scores, mean and standard deviation over the seeds; hollow: the paper's."""
    figure = Figure(figsize=(11, 0.8 + 0.34 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharey=True)
    places = list(range(len(rows)))[::-1]
    for axes, score in zip(panels, SCORES, strict=True):
        for place, row in zip(places, rows, strict=True):
            axes.errorbar(row[score], place, xerr=row[f"{score}_std"], fmt="o", color="C0", capsize=3)
            if row["paper"]:
                axes.plot(row["paper"][score], place, "o", color="C1", fillstyle="none")
        axes.set_title(TITLES[score])
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(places, [NAMES[row["method"]] for row in rows])
    return figure


def curves_figure(trials: list[dict[str, Any]]) -> Figure:
    """Accuracy by width of the blur, and by severity of the corruptions; means over the seeds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    blur, corrupted = figure.subplots(1, 2)
    for method in SWEPT:
        found = [trial for trial in trials if trial["method"] == method]
        if not found:
            continue
        sweeps = [trial["blur_sweep"]["accuracy"] for trial in found]
        blur.plot(found[0]["blur_sweep"]["sigmas"], _mean_curve(sweeps), "o-", label=NAMES[method])
        by_severity = [_mean_curve(list(trial["corruptions"]["accuracy"].values())) for trial in found]
        corrupted.plot(found[0]["corruptions"]["severities"], _mean_curve(by_severity), "o-")
    _named(blur, "Gaussian blur, kernel 5: sigma", "accuracy")
    _named(corrupted, "C-style corruptions: severity", "accuracy")
    figure.legend(*blur.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def label_figure(found: dict[str, Any]) -> Figure:
    """Predictions of a classifier of real images for mixes of codes and of pixels, by ``lam``."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    share, entropy = figure.subplots(1, 2)
    for kind, label in (("codes", "mixes of codes, decoded"), ("pixels", "mixes of pixels")):
        (line,) = share.plot(found["lam"], found[kind]["own_share"], "o-", markersize=3, label=label)
        entropy.plot(found["lam"], found[kind]["entropy"], "o-", markersize=3, label=label)
        share.plot(found["lam"], found[kind]["neither"], ":", color=line.get_color(), label=f"{label}: seen as neither")
    share.plot([0, 1], [0, 1], color="grey", linewidth=1)
    _named(share, "lam", "share of the first of the two classes")
    _named(entropy, "lam", "entropy of what is seen, nats")
    share.legend(fontsize="small")
    return figure


def codes_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """The paper's figures 1 to 3 in one: share of the codes with at most this error."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, facts in found.items():
        axes.plot(facts["mse_percentiles"], range(101), label=f"{name}: mean {facts['mse_mean']:.4f}")
    for threshold in (0.020, 0.025):
        axes.axvline(threshold, color="grey", linestyle=":")
    axes.set_xscale("log")
    _named(axes, "MSE of a reconstruction in [-1, 1]", "% of the codes have at most this MSE")
    axes.legend(fontsize="small")
    return figure


def _mean_curve(curves: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*curves, strict=True)]


def _named(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def png(figure: Figure) -> bytes:
    """The bytes of a PNG, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def figures(results: Path) -> dict[str, Figure]:
    """Every figure for which there are files under ``results``, by its file name."""
    drawn = {}
    for dataset in DATASETS:
        for preset in PRESETS:
            trials = records(results / dataset, [preset], changed=False)
            if trials:
                drawn[f"{dataset}-{preset}-scores.png"] = scores_figure(aggregated(trials))
            if any(trial["method"] in SWEPT and "corruptions" in trial for trial in trials):
                drawn[f"{dataset}-{preset}-curves.png"] = curves_figure(trials)
        if (results / dataset / LABEL_TRUTH).is_file():
            drawn[f"{dataset}-labels.png"] = label_figure(read(results / dataset / LABEL_TRUTH))
        if known := codes(results / dataset):
            drawn[f"{dataset}-codes.png"] = codes_figure(known)
    return drawn


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder for the PNGs.")
def main(out: Path) -> None:
    """Draw every figure."""
    drawn = figures(RESULTS)
    files.write_folder(out, {name: png(figure) for name, figure in drawn.items()})
    click.echo(f"{out}: {', '.join(drawn)}")


if __name__ == "__main__":
    main()
