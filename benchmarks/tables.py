"""Draw the tables of the README and the docs from the committed JSON files, and from nothing else.

python benchmarks/tables.py                                           # print them
python benchmarks/tables.py --write README.md --write docs/findings.md  # put them between their markers
python benchmarks/tables.py --check README.md --check docs/findings.md  # fail where they differ
python benchmarks/tables.py --json                                    # the aggregated rows, for other programs
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
from rows import DATASETS, NAMES, PRESETS, RESULTS, aggregated, records
from score_tables import (
    best_table,
    differences_table,
    markdown,
    method_time_table,
    policies_table,
    pools_table,
    scores_table,
    search_table,
    summary_table,
)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


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


def published_codes_table() -> str:
    """How good the codes of the published banks are, in units of [-1, 1] squared."""
    body = []
    for dataset in ("mnist", "fashion-mnist"):
        found = json.loads((RESULTS / "published" / f"{dataset}-reconstruction.json").read_text())
        for part in ("train", "test"):
            errors = [f"{found[f'{part}_mse'][name]:.4f}" for name in ("mean", "median", "p95")]
            judged = ("classifier_accuracy_on_real_test_images", "classifier_accuracy_on_reconstructions")
            kept = [f"{found[name]:.4f}" for name in judged] if part == "test" else ["", ""]
            body.append([f"{dataset}, {part}", *errors, *kept])
    heads = ["images", "MSE, mean", "median", "95 %", "a classifier is right on real ones", "on decoded ones"]
    return markdown(heads, body)


def step_time_table(parts: Sequence[str], kinds: Sequence[str] | None = None) -> str:
    """The time of a training step, and the ratio where decode and step multiply at one speed.

    Args:
        parts: Of the measurement.
        kinds: Rows of each; None: all.
    """
    found = json.loads((RESULTS / "step_time.json").read_text())
    names = {
        "standard": "standard",
        "live": "live, `LatentMixupLoader`",
        "live_half": "live, `prob=0.5`",
        "live_batch_by_batch": "live, `decode_batches=1`",
        "live_prefetch_2": "live, `prefetch=2`",
        "pool": "`RenderedMixupDataset`",
        "arithmetic_alone": "standard, and the decode's multiplications alone",
    }
    body = []
    for part in parts:
        record = found[part]
        floors = {"live": "ratio", "live_half": "ratio_half", "arithmetic_alone": "ratio"}
        for name, label in names.items():
            if name in record["rows"] and (kinds is None or name in kinds):
                row = record["rows"][name]
                floor = f"{record['floor'][floors[name]]:.2f}" if name in floors else ""
                first = f"{record['case']}, batch {record['batch_size']}" if name == "standard" else ""
                cells = [f"{row['median_ms']:.1f} ms", f"{row['median_ratio_to_standard']:.2f}", floor]
                body.append([first, label, *cells, str(record["blocks"])])
    return markdown(["training step", "", "median", "ratio to standard", "by multiply-adds", "n"], body)


def step_floor_table() -> str:
    """The multiply-adds of a step and of a decode, and the ratio that follows."""
    found = json.loads((RESULTS / "step_time.json").read_text())
    body = []
    for part in ("bundled", "stylegan2"):
        record, floor = found[part], found[part]["floor"]
        counts = [f"{floor[f'{name}_multiply_adds'] / 1e6:,.0f} M" for name in ("step", "decode")]
        body.append([f"{record['case']}, batch {record['batch_size']}", *counts, f"{floor['ratio']:.2f}"])
    return markdown(["multiply-adds", "a standard step", "a decode", "1 + decode / step"], body)


def step_memory_table() -> str:
    """The greatest memory of a process after a tenth of its steps, and after all of them."""
    found = json.loads((RESULTS / "step_time.json").read_text())["memory"]["runs"]
    body = [
        [run["kind"], str(run["steps"]), f"{run['peak_mib'][0]:.0f} MiB", f"{run['peak_mib'][-1]:.0f} MiB"]
        for run in found
    ]
    return markdown(["training on", "steps", "after a tenth", "at the end"], body)


def decode_time_table() -> str:
    """The time of a decode by images a call, and by option at the smallest call."""
    found = json.loads((RESULTS / "decode_time.json").read_text())["generators"]
    body = []
    for name, rows in found.items():
        for place, row in enumerate(rows):
            moved = f"{row['moves_an_image_by']:.1g}" if row["option"] != "none" else ""
            option = "" if row["option"] == "none" else f"`{row['option']}`"
            cells = [f"{row['ms_an_image']:.3g} ms", f"{row['ratio']:.2f}", moved, str(row["n"])]
            body.append(["" if place else name, str(row["images_a_call"]), option, *cells])
    return markdown(["generator", "images a call", "option", "an image", "ratio", "moves a pixel by", "n"], body)


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


def bank_reading_table() -> str:
    """How a bank is read, in as many worker processes, and what it adds to a reader's memory."""
    found = json.loads((RESULTS / "bank_reading.json").read_text())
    body = []
    for row in found["read"]:
        added = {name: row["memory_of_a_reader_mb"][name] - before for name, before in row["memory_before_mb"].items()}
        body.append(
            [
                f"{row['workers']}, {row['start_method']}" if row["workers"] else "none",
                f"{row['read_median_ms']:.1f} ms",
                f"{row['read_p95_ms']:.1f} ms",
                f"{row['reads_per_second']:.0f}",
                f"{row['first_seconds']:.2f} s",
                f"{added['RssFile']:.0f} MB",
                f"{added['RssAnon']:.0f} MB",
            ]
        )
    read = f"a read of {found['rows_a_read']} rows"
    return markdown(
        ["workers", f"{read}, median", "95 %", "reads a second", "until the first", "pages of the file", "own memory"],
        body,
    )


TABLES: dict[str, Callable[[], str]] = {
    **{
        f"{kind}-{dataset}-{preset}": partial(draw, dataset, preset)
        for dataset in DATASETS
        for preset in PRESETS
        for kind, draw in (("scores", scores_table), ("differences", differences_table))
    },
    "summary": summary_table,
    "search": search_table,
    **{f"best-{dataset}": partial(best_table, dataset) for dataset in ("mnist", "fashion-mnist")},
    "method-time": method_time_table,
    "policies": partial(policies_table, "fashion-mnist"),
    "demo": demo_table,
    "reconstruction": reconstruction_table,
    "published-codes": published_codes_table,
    "step-time": partial(step_time_table, ("bundled", "stylegan2"), ("standard", "live", "live_half", "pool")),
    "step-time-all": partial(step_time_table, ("bundled", "bundled_channels_last", "stylegan2")),
    "step-floor": step_floor_table,
    "step-memory": step_memory_table,
    "decode-time": decode_time_table,
    "pools": pools_table,
    "inversion": inversion_table,
    "stylegan2": stylegan2_table,
    "stylegan2-speed": stylegan2_speed_table,
    "bank-reading": bank_reading_table,
}


def with_tables(text: str) -> str:
    """``text`` with every table between its markers drawn anew."""
    for name in re.findall(r"<!-- table: (\S+) -->", text):
        if name not in TABLES:
            raise click.ClickException(f"there is no table {name!r}: expected one of {', '.join(TABLES)}")
        pattern = rf"(<!-- table: {re.escape(name)} -->\n).*?(\n<!-- end -->)"
        drawn = TABLES[name]()
        text, count = re.subn(pattern, lambda match, drawn=drawn: match[1] + drawn + match[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise click.ClickException(f"the file needs the markers of table {name!r} once: found {count}")
    return text


@click.command()
@click.option("--write", type=FILE, multiple=True, help="Put its tables into this file; may be repeated.")
@click.option("--check", type=FILE, multiple=True, help="Fail where this file differs; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the aggregated rows.")
def main(write: tuple[Path, ...], check: tuple[Path, ...], as_json: bool) -> None:
    """Print the tables, or put them into files, or compare them with files."""
    if as_json:
        click.echo(
            json.dumps([row for dataset in DATASETS for row in aggregated(records(RESULTS / dataset))], indent=2)
        )
    for path in write:
        path.write_text(with_tables(path.read_text()))
    for path in check:
        if path.read_text() != with_tables(path.read_text()):
            raise click.ClickException(f"{path} is not what the results say: run tables.py --write {path}")
    if not (as_json or write or check):
        for name, draw in TABLES.items():
            click.echo(f"{name}\n\n{draw()}\n")


if __name__ == "__main__":
    main()
