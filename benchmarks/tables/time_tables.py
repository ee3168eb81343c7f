"""The tables of what things cost, in time and memory."""

from __future__ import annotations

from collections.abc import Sequence

from record import RESULTS, read

from tables.rows import NAMES, PAPER, markdown


def method_time_table() -> str:
    """Milliseconds of a training step by each method, and what the paper says of two."""
    found = read(RESULTS / "method_time.json")
    paper = read(PAPER)["milliseconds a batch, RTX 2080 Ti, ResNet-18 and StyleGAN2"]
    body = [
        [
            NAMES[row["method"]],
            f"{row['median_ms']:.1f} ms",
            f"{row['median_ratio_to_standard']:.2f}",
            f"{paper[row['method']]} ms" if row["method"] in paper else "",
            str(row["n"]),
        ]
        for row in found["rows"]
    ]
    return markdown(["training step", "median", "ratio to standard", "paper", "n"], body)


def step_time_table(parts: Sequence[str], kinds: Sequence[str] | None = None) -> str:
    """The time of a training step, and the ratio where decode and step multiply at one speed.

    Args:
        parts: Of the measurement.
        kinds: Rows of each; None: all.
    """
    found = read(RESULTS / "step_time.json")
    names = {
        "standard": "standard",
        "live": "live, `LatentMixupLoader`",
        "live_half": "live, `prob=0.5`",
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
    found = read(RESULTS / "step_time.json")
    body = []
    for part in ("bundled", "stylegan2"):
        record, floor = found[part], found[part]["floor"]
        counts = [f"{floor[f'{name}_multiply_adds'] / 1e6:,.0f} M" for name in ("step", "decode")]
        body.append([f"{record['case']}, batch {record['batch_size']}", *counts, f"{floor['ratio']:.2f}"])
    return markdown(["multiply-adds", "a standard step", "a decode", "1 + decode / step"], body)


def step_memory_table() -> str:
    """The greatest memory of a process after a tenth of its steps, and after all of them."""
    found = read(RESULTS / "step_time.json")["memory"]["runs"]
    body = [
        [run["kind"], str(run["steps"]), f"{run['peak_mib'][0]:.0f} MiB", f"{run['peak_mib'][-1]:.0f} MiB"]
        for run in found
    ]
    return markdown(["training on", "steps", "after a tenth", "at the end"], body)


def decode_time_table() -> str:
    """The time of a decode by images a call, and by option at the smallest call."""
    found = read(RESULTS / "decode_time.json")["generators"]
    body = []
    for name, rows in found.items():
        for place, row in enumerate(rows):
            moved = f"{row['moves_an_image_by']:.1g}" if row["option"] != "none" else ""
            option = "" if row["option"] == "none" else f"`{row['option']}`"
            cells = [f"{row['ms_an_image']:.3g} ms", f"{row['ratio']:.2f}", moved, str(row["n"])]
            body.append(["" if place else name, str(row["images_a_call"]), option, *cells])
    return markdown(["generator", "images a call", "option", "an image", "ratio", "moves a pixel by", "n"], body)


def stylegan2_speed_table() -> str:
    """How close the CIFAR-10-size StyleGAN2 comes to the speed of its convolutions on a CPU."""
    found = read(RESULTS / "stylegan2_speed.json")
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


def bank_reading_table() -> str:
    """How a bank is read, in as many worker processes, and what it adds to a reader's memory."""
    found = read(RESULTS / "bank_reading.json")
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
    a_read = f"a read of {found['rows_a_read']} rows"
    return markdown(
        [
            "workers",
            f"{a_read}, median",
            "95 %",
            "reads a second",
            "until the first",
            "pages of the file",
            "own memory",
        ],
        body,
    )
