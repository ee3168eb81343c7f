"""What ``latent-mixup advise`` rests on, drawn from the committed results.

python benchmarks/robust/evidence.py          # write latent_mixup/quality/evidence.json
python benchmarks/robust/evidence.py --check  # fail where it differs
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import RESULTS, as_json, read
from tables.robust_tables import FRESH, UNEQUAL, Runs, runs_of
from tables.rows import BEST, NAMES, by_seed, difference, records

from robust.setting import SETTINGS
from robust.unequal import COMMONEST, RATIO

EVIDENCE = Path(__file__).parents[2] / "latent_mixup" / "quality" / "evidence.json"
NO_GENERATOR = ("plain", "oversample", "weights", "adjusted", "cmo", "pixel_smote")


def findings() -> list[dict[str, Any]]:
    """The differences that decide, each with its interval; nothing of a question that has no results."""
    found = []
    for dataset, setting in SETTINGS.items():
        runs = runs_of(dataset, "adversarial")
        ours = _best(runs, ("prior", "prior_cutmix"), "autoattack")
        for other in ("real", "cutmix"):
            if ours and other in runs:
                facts = {"aim": "robust", "dataset": dataset, "labelled": setting.labelled}
                found.append({**facts, **_difference(runs, ours, other, "autoattack", FRESH)})
        runs = runs_of(dataset, "distil")
        if "prior_0_small" in runs:
            small = {name.removesuffix("_0_small"): each for name, each in runs.items()}
            found.append(
                {"aim": "small-model", "dataset": dataset, **_difference(small, "prior", "gaussian", "accuracy", FRESH)}
            )
        runs = runs_of(dataset, "unequal")
        if "latent_smote" in runs:
            best = _best(runs, NO_GENERATOR, "accuracy")
            facts = {
                "aim": "balance",
                "dataset": f"{dataset}, {COMMONEST:,} images of a class down to {COMMONEST // RATIO}",
            }
            found.append({**facts, **_difference(runs, "latent_smote", best, "accuracy", UNEQUAL)})
    for dataset in ("mnist", "fashion-mnist"):
        by_method: Runs = {}
        for trial in records(RESULTS / dataset, ["fixed"], changed=False):
            by_method.setdefault(trial["method"], []).append(trial)
        facts = {"aim": "accuracy", "dataset": dataset}
        found.append({**facts, **_difference(by_method, BEST, "standard", "accuracy", NAMES)})
    return found


def _best(runs: Runs, names: Sequence[str], score: str) -> str:
    """The one with the highest mean of those that have runs; "" where none has."""
    means = {name: statistics.fmean(run[score] for run in runs[name]) for name in names if name in runs}
    return max(means, key=lambda name: means[name], default="")


def _difference(runs: Runs, method: str, other: str, score: str, names: dict[str, str]) -> dict[str, Any]:
    gain = difference(by_seed(runs[method], score), by_seed(runs[other], score))
    plain = {key: names[key].replace("**", "").removesuffix(" (control)") for key in (method, other)}
    words = {"autoattack": "accuracy under AutoAttack"}
    return {
        "what": plain[method],
        "against": plain[other],
        "score": words.get(score, score),
        "mean": round(gain["mean"], 5),
        "interval": [round(end, 5) for end in gain["interval"]],
        "seeds": len(runs[method]),
    }


@click.command()
@click.option("--check", is_flag=True, help="Fail where the file differs.")
def main(check: bool) -> None:
    """Write the findings into the package, or compare them with the file that is there."""
    record = {"findings": findings()}
    if not check:
        EVIDENCE.write_bytes(as_json(record))
    elif read(EVIDENCE) != record:
        raise click.ClickException(f"{EVIDENCE.name} differs from the results: run benchmarks/robust/evidence.py")


if __name__ == "__main__":
    main()
