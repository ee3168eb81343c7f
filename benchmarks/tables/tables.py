"""Draw the tables of the README and the docs from the committed JSON files alone.

python benchmarks/tables/tables.py                                             # print them
python benchmarks/tables/tables.py --write README.md --write docs/findings.md  # put them between their markers
python benchmarks/tables/tables.py --check README.md --check docs/findings.md  # fail where they differ
python benchmarks/tables/tables.py --json                                      # the aggregated rows
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import RESULTS

from tables.code_tables import (
    artefacts_table,
    codes_table,
    inversion_table,
    knowledge_table,
    stylegan2_table,
)
from tables.robust_tables import adversarial_table, distil_table, unequal_table
from tables.rows import DATASETS, PRESETS, aggregated, records
from tables.score_tables import (
    best_table,
    demo_table,
    differences_table,
    length_table,
    policies_table,
    pools_table,
    scores_table,
    search_table,
    summary_table,
)
from tables.time_tables import (
    bank_reading_table,
    decode_time_table,
    method_time_table,
    step_floor_table,
    step_memory_table,
    step_time_table,
    stylegan2_speed_table,
)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


TABLES: dict[str, Callable[[], str]] = {
    **{
        f"{kind}-{dataset}-{preset}": partial(draw, dataset, preset)
        for dataset in DATASETS
        for preset in PRESETS
        for kind, draw in (("scores", scores_table), ("differences", differences_table))
    },
    **{f"length-{dataset}": partial(length_table, dataset) for dataset in ("mnist", "fashion-mnist")},
    "summary": summary_table,
    "search": search_table,
    **{f"best-{dataset}": partial(best_table, dataset) for dataset in ("mnist", "fashion-mnist")},
    "best-cifar10": partial(best_table, "cifar10", "reduced"),
    **{f"codes-{dataset}": partial(codes_table, dataset) for dataset in ("fashion-mnist", "cifar10")},
    **{
        f"{question}-{dataset}": partial(draw, dataset)
        for dataset in ("fashion-mnist", "cifar10")
        for question, draw in (("adversarial", adversarial_table), ("distil", distil_table), ("unequal", unequal_table))
    },
    "method-time": method_time_table,
    "policies": partial(policies_table, "fashion-mnist"),
    "demo": demo_table,
    "knowledge": knowledge_table,
    "artefacts": artefacts_table,
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
@click.option("--write", type=FILE, multiple=True, help="Draw the tables in this file; may be repeated.")
@click.option("--check", type=FILE, multiple=True, help="Fail where this file differs; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the aggregated rows.")
def main(write: tuple[Path, ...], check: tuple[Path, ...], as_json: bool) -> None:
    """Print the tables, write them into files, or compare them with files."""
    if as_json:
        click.echo(
            json.dumps([row for dataset in DATASETS for row in aggregated(records(RESULTS / dataset))], indent=2)
        )
    for path in write:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    for path in check:
        text = path.read_text(encoding="utf-8")
        if text != with_tables(text):
            raise click.ClickException(
                f"{path} differs from the results: run benchmarks/tables/tables.py --write {path}"
            )
    if not (as_json or write or check):
        for name, draw in TABLES.items():
            click.echo(f"{name}\n\n{draw()}\n")


if __name__ == "__main__":
    main()
