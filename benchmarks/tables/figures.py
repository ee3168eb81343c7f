"""Draw the figures of the docs from the committed JSON files alone; needs the extra ``plot``.

    python benchmarks/tables/figures.py --out docs/figures

Figures 4 to 6 of the paper (original, inverted, encoded) show images, which the files do not hold: ``latent-mixup
report`` draws those from a bank and its data set.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure

from latent_mixup import files
from latent_mixup.cli.shared import FOLDER

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import LABEL_TRUTH, RESULTS, read

from tables.rows import BEST, DATASETS, PRESETS, SCORES, TITLES, aggregated, codes, records
from tables.style import BLACK, BLUE, GREY, ORANGE, figure, in_style, label, mark, named, png

SWEPT = ("standard", "mixup", "manifold_mixup", "timm_cutmix", "decoded", "gan_mixup", "vae_mixup", BEST)
UNITS = {
    "accuracy": "share of images",
    "deepfool_score": "L2 norm in [-1, 1]",
    "blurred_accuracy": "share of images",
}
ROW = 0.29  # inches


def scores_figure(rows: list[dict[str, Any]]) -> Figure:
    """Each method's three scores, mean and standard deviation over the seeds; hollow: the paper's."""
    drawn = figure(0.9 + ROW * len(rows))
    panels = drawn.subplots(1, len(SCORES), sharey=True)
    places = list(range(len(rows)))[::-1]
    for axes, score in zip(panels, SCORES, strict=True):
        for place, row in zip(places, rows, strict=True):
            how = mark(row["method"])
            axes.errorbar(row[score], place, xerr=row[f"{score}_std"], capsize=2, elinewidth=0.8, **how)
            if row["paper"]:
                axes.plot(row["paper"][score], place, fillstyle="none", markersize=6, markeredgewidth=0.8, **how)
        axes.set_title(TITLES[score])
        axes.locator_params(axis="x", nbins=3)
        named(axes, UNITS[score])
    panels[0].set_yticks(places, [label(row["method"]) for row in rows])
    drawn.supxlabel("Bars: standard deviation over the seeds. Hollow: printed in the paper.", fontsize=7)
    return drawn


def curves_figure(trials: list[dict[str, Any]]) -> Figure:
    """Accuracy by width of the blur, and by severity of the corruptions; means over the seeds."""
    drawn = figure(3.6)
    blur, corrupted = drawn.subplots(1, 2)
    for method in SWEPT:
        found = [trial for trial in trials if trial["method"] == method]
        if not found:
            continue
        sweeps = [trial["blur_sweep"]["accuracy"] for trial in found]
        blur.plot(found[0]["blur_sweep"]["sigmas"], _mean_curve(sweeps), label=label(method), **mark(method))
        by_severity = [_mean_curve(list(trial["corruptions"]["accuracy"].values())) for trial in found]
        corrupted.plot(found[0]["corruptions"]["severities"], _mean_curve(by_severity), **mark(method))
    named(blur, "Gaussian blur of kernel 5: sigma, pixels", "accuracy, share of images")
    named(corrupted, "C-style corruptions: severity")
    corrupted.xaxis.get_major_locator().set_params(integer=True)
    drawn.legend(*blur.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return drawn


def label_figure(found: dict[str, Any]) -> Figure:
    """Predictions of a classifier of real images for mixes of codes and of pixels, by ``lam``."""
    drawn = figure(3.0)
    share, entropy = drawn.subplots(1, 2)
    for kind, name, colour in (("codes", "mixes of codes, decoded", BLUE), ("pixels", "mixes of pixels", ORANGE)):
        share.plot(found["lam"], found[kind]["own_share"], color=colour, label=name)
        share.plot(found["lam"], found[kind]["neither"], ":", color=colour, label=f"{name}: neither class")
        entropy.plot(found["lam"], found[kind]["entropy"], color=colour)
    share.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="label of the mix")
    named(share, "lam, weight of the first code", "probability of the first class,\nof the two classes' sum")
    named(entropy, "lam, weight of the first code", "entropy of the prediction, nats")
    drawn.legend(*share.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return drawn


def codes_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """The paper's figures 1 to 3 in one: share of the codes with at most this error."""
    drawn = figure(3.2)
    axes = drawn.subplots()
    for name, facts in found.items():
        look = (
            {**mark(f"{name.split('_')[0]}_mixup"), "marker": ""}
            if name.startswith(("gan", "vae"))
            else {"color": BLACK}
        )
        axes.plot(facts["mse_percentiles"], range(101), label=f"{name}: mean {facts['mse_mean']:.4f}", **look)
    for threshold in (0.020, 0.025):
        axes.axvline(threshold, color=GREY, linestyle=":")
    axes.set_xscale("log")
    named(axes, "MSE of a reconstruction in [-1, 1]", "% of the codes have at most this MSE")
    axes.legend(fontsize=7)
    return drawn


def _mean_curve(curves: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*curves, strict=True)]


def figures(results: Path) -> dict[str, Figure]:
    """Every figure for which there are files under ``results``, by its file name."""
    drawn = {}
    with in_style():
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
