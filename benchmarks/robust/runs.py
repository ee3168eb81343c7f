"""One run a (method, option, seed), each in a JSON file; processes share the work, finished runs are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from record import as_json, circumstances, claimed, read, write

CHOOSING_SEED = 100  # of the runs that options are chosen by; its labelled images are no other seed's
SEEDS = "0,1,2,3,4"


def run_each(out: Path, names: Sequence[str], seeds: Sequence[int], run: Callable[[str, int], dict[str, Any]]) -> None:
    """Every name with every seed that has no file yet, all names of one seed before the next."""
    for seed in seeds:
        for name in names:
            path = out / f"{name}-{seed}.json"
            with claimed(path.with_suffix(".lock")) as mine:
                if not mine or path.is_file():
                    continue
                began = time.monotonic()
                record = {"method": name, "seed": seed, **run(name, seed)}
                record["seconds"] = round(time.monotonic() - began, 1)
                write(path, {**record, **circumstances()})
                click.echo(as_json({key: record[key] for key in ("method", "seed", "scores", "seconds")}))


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(part) for part in text.split(",")]


def best_options(out: Path, methods: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The option of each method with the best validation score in the runs of the choosing seed."""
    best = {}
    for method, options in methods.items():
        found = [read(out / f"{method}-{number}-{CHOOSING_SEED}.json")["validation"] for number in range(len(options))]
        best[method] = options[found.index(max(found))]
    return best
