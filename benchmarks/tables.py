"""Draw the tables of the README from the committed JSON files, and from nothing else.

python benchmarks/tables.py                     # print them
python benchmarks/tables.py --write README.md   # put them between their markers
python benchmarks/tables.py --check README.md   # fail where they differ
python benchmarks/tables.py --json              # the aggregated rows, for other programs
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from latent_mixup.comparison import METHODS

RESULTS = Path(__file__).parent / "results"
SCORES = ("accuracy", "blurred_accuracy", "deepfool_score")
NAMES = {
    "standard": "standard",
    "mixup": "mixup",
    "manifold_mixup": "manifold mixup",
    "decoded": "decoded, not mixed (control)",
    "latent_mixup": "latent mixup, all decoded",
    "latent_mixup_half_real": "latent mixup, half real",
}


def aggregated(folder: Path) -> list[dict[str, Any]]:
    """One row a (dataset, preset, method, epochs): means and standard deviations (ddof 1) over the seeds."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        key = (run["dataset"], run["preset"], run["method"], run["budget"]["epochs"], run["train_images"])
        groups.setdefault(key, []).append(run)
    rows = []
    for (dataset, preset, method, epochs, train_images), found in groups.items():
        row: dict[str, Any] = {
            "dataset": dataset,
            "preset": preset,
            "method": method,
            "n_seeds": len(found),
            "epochs": epochs,
            "train_images": train_images,
        }
        for score in SCORES:
            values = [run[score] for run in found]
            row[score] = statistics.fmean(values)
            row[f"{score}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: list(METHODS).index(row["method"]))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def comparison_table() -> str:
    """All of Fashion-MNIST: mean and standard deviation over the seeds."""
    rows = aggregated(RESULTS / "fashion-mnist")

    def cell(row: dict[str, Any], score: str, digits: int) -> str:
        spread = row[f"{score}_std"]
        return f"{row[score]:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")

    body = [
        [
            NAMES[row["method"]],
            cell(row, "accuracy", 4),
            cell(row, "blurred_accuracy", 3),
            cell(row, "deepfool_score", 3),
            str(row["n_seeds"]),
        ]
        for row in rows
    ]
    return markdown(["trained on", "accuracy", "blurred accuracy", "DeepFool score", "seeds"], body)


def demo_table() -> str:
    """What ``latent-mixup demo`` wrote."""
    record = json.loads((RESULTS / "demo.json").read_text())
    body = [
        [
            NAMES[row["method"]],
            f"{row['accuracy']:.4f}",
            f"{row['blurred_accuracy']:.3f}",
            f"{row['deepfool_score']:.3f}",
        ]
        for row in record["results"]
    ]
    return markdown(["trained on", "accuracy", "blurred accuracy", "DeepFool score"], body)


def reconstruction_table() -> str:
    """How good the codes are."""
    found = json.loads((RESULTS / "reconstruction.json").read_text())
    kept = (
        f"{found['classifier_accuracy_on_reconstructions']:.4f} of "
        f"{found['classifier_accuracy_on_real_test_images']:.4f} ({found['share_of_accuracy_kept']:.1%})"
    )
    body = [
        *(
            [f"MSE of the reconstructions, {name}", *(f"{mse[part]:.4f}" for part in ("mean", "median", "p95"))]
            for name, mse in (("60,000 training images", found["train_mse"]), ("10,000 test images", found["test_mse"]))
        ),
        ["the same of a linear code (PCA) of as many numbers", f"{found['pca_mse_of_as_many_numbers']:.4f}", "", ""],
        ["accuracy kept on reconstructions of test images", kept, "", ""],
    ]
    return markdown(["", "mean", "median", "95 %"], body)


def step_time_table() -> str:
    """The time of a training step."""
    found = json.loads((RESULTS / "step_time.json").read_text())
    names = {
        "standard": "standard",
        "latent_mixup": "latent mixup, `LatentMixupLoader`",
        "latent_mixup_prefetch_2": "the same, `prefetch=2`: decoded ahead by a thread",
    }
    body = [
        [label, f"{found[name]['median_ms']:.1f} ms", f"{found[name]['median_ratio_to_standard']:.2f}"]
        for name, label in names.items()
    ]
    return markdown(["training step, batch 64", "median", "ratio to standard"], body)


def stylegan2_table() -> str:
    """How far the samples of two StyleGAN2 were from Fashion-MNIST in the course of their training.

    For the one with classes also how much its last samples of a class differ, relative to real images: near 0 there is
    one image a class.
    """
    logs = {
        run: json.loads((RESULTS / "stylegan2" / run / "log.json").read_text())
        for run in ("unconditional", "conditional")
    }
    counts = [row["images"] for row in min(logs.values(), key=len)]  # one run may have been longer
    shown = [counts[position * (len(counts) - 1) // 4] for position in range(5)]
    body = []
    for run, rows in logs.items():
        distances = {row["images"]: row["feature_distance"] for row in rows}
        last = rows[-1]
        spread = f"{last['class_deviation'] / last['real_class_deviation']:.0%}" if "class_deviation" in last else ""
        end = f"{last['feature_distance']:.1f} after {last['images']:,}"
        body.append([run, *(f"{distances[n]:.1f}" for n in shown), end, spread])
    header = ["after so many images", *(f"{n:,}" for n in shown), "at its end", "spread within a class"]
    return markdown(header, body)


def stylegan2_speed_table() -> str:
    """How close the CIFAR-10-size StyleGAN2 comes to the speed of its convolutions on a CPU."""
    found = json.loads((RESULTS / "stylegan2_speed.json").read_text())
    body = [
        [
            str(row["batch_size"]),
            *(
                cell
                for direction in ("forward", "forward_backward")
                for cell in (
                    f"{1e3 * row[direction]['seconds_an_image']:.0f} ms",
                    f"{row[direction]['share_of_their_speed']:.0%}",
                )
            ),
            str(row["n"]),
        ]
        for row in found["rows"]
    ]
    share = "of the convolutions' speed"
    return markdown(["batch size", "forward, an image", share, "and backward", share, "n"], body)


def inversion_table() -> str:
    """Gradients and errors of inversion, relative to the authors' loop."""
    found = json.loads((RESULTS / "inversion.json").read_text())
    body = []
    for problem in found["problems"]:
        ways = problem["ways"]
        authors = ways["authors"]
        for way, row in ways.items():
            if way == "authors":
                continue
            less = authors["gradients_an_image"] / row["gradients_an_image"]
            shorter = authors["seconds"] / row["seconds"]
            body.append(
                [
                    f"{problem['problem']} (n = {problem['n']})",
                    way,
                    f"{less:.1f}",
                    f"{shorter:.1f}",
                    *(f"{row['mse'][part] / authors['mse'][part] - 1:+.1%}" for part in ("median", "p95")),
                ]
            )
    return markdown(["images", "", "times fewer gradients", "times less time", "median MSE", "95 % MSE"], body)


TABLES: dict[str, Callable[[], str]] = {
    "comparison": comparison_table,
    "demo": demo_table,
    "reconstruction": reconstruction_table,
    "step-time": step_time_table,
    "inversion": inversion_table,
    "stylegan2": stylegan2_table,
    "stylegan2-speed": stylegan2_speed_table,
}


def with_tables(text: str) -> str:
    """``text`` with every table between its markers drawn anew."""
    for name, draw in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda match, d=draw: match[1] + d() + match[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise click.ClickException(f"the file needs the markers of table {name!r} once: found {count}")
    return text


@click.command()
@click.option("--write", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Put the tables there.")
@click.option("--check", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Fail where they differ.")
@click.option("--json", "as_json", is_flag=True, help="Print the aggregated rows.")
def main(write: Path | None, check: Path | None, as_json: bool) -> None:
    """Print the tables, or put them into a file, or compare them with it."""
    if as_json:
        click.echo(json.dumps(aggregated(RESULTS / "fashion-mnist"), indent=2))
    elif write:
        write.write_text(with_tables(write.read_text()))
    elif check:
        if check.read_text() != with_tables(check.read_text()):
            raise click.ClickException(f"{check} is not what the results say: run tables.py --write {check}")
    else:
        for name, draw in TABLES.items():
            click.echo(f"{name}\n\n{draw()}\n")


if __name__ == "__main__":
    main()
