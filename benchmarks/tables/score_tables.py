"""The tables of trained classifiers' scores, as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from record import RESULTS, SEARCH_FILE, SEARCHED, read

from tables.rows import (
    BEST,
    NAMES,
    REFERENCES,
    SCORES,
    TITLES,
    UNCHANGED,
    aggregated,
    by_seed,
    difference,
    made_with,
    markdown,
    printed,
    records,
    title,
    with_notes,
)

DIGITS = {"accuracy": 4, "deepfool_score": 3, "blurred_accuracy": 3}
INSTEAD = ("standard", "mixup", "manifold_mixup", "timm_cutmix")  # what a user could pick instead
PAPER_EPOCHS = 50  # of tables 2 and 3
SHOWN = ("standard", "mixup", "gan_mixup", "decoded", BEST, f"{BEST}_low_pass_of_real")  # in the README


def summary_table() -> str:
    """The main methods on Fashion-MNIST, and their controls: mean and standard deviation over the seeds."""
    found = {row["method"]: row for row in aggregated(records(RESULTS / "fashion-mnist", ["fixed"], changed=False))}
    rows = [found[method] for method in SHOWN]
    body = [
        [NAMES[row["method"]], *(_value(row[score], row[f"{score}_std"], DIGITS[score]) for score in SCORES)]
        for row in rows
    ]
    return with_notes(["trained on", *TITLES.values()], body, [row["made_with"] for row in rows])


def demo_table() -> str:
    """The results of ``latent-mixup demo``."""
    record = read(RESULTS / "demo.json")
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


def scores_table(dataset: str, preset: str) -> str:
    """Mean and standard deviation over the seeds beside the paper's."""
    body, rows = [], aggregated(records(RESULTS / dataset, [preset], changed=False))
    for row in rows:
        cells = [title(row)]
        for score in SCORES:
            paper = row["paper"]
            cells.append(_value(row[score], row[f"{score}_std"], DIGITS[score]))
            cells.append(_value(paper[score], paper[f"{score}_std"], DIGITS[score]) if paper else "")
        body.append([*cells, str(row["n_seeds"])])
    titles = [each for score in TITLES.values() for each in (score, "paper")]
    return with_notes(["trained on", *titles, "seeds"], body, [row["made_with"] for row in rows])


def length_table(dataset: str) -> str:
    """One seed a row at the paper's own length, in both presets, beside the paper's.

    A DeepFool score is in units of the range of the row's images. PGD is L-inf.
    """
    names = list(NAMES)
    body, made = [], []
    for preset in ("fixed", "paper_code"):
        found = [run for run in records(RESULTS / dataset, [preset]) if run["budget"]["epochs"] >= PAPER_EPOCHS]
        for run in sorted(found, key=lambda run: (names.index(run["method"]), run["seed"])):
            paper = printed(dataset, preset, run["method"])
            cells = [preset, NAMES[run["method"]], run["deepfool"]["units"]]
            for score, digits in DIGITS.items():
                cells.append(_value(run[score], None, digits))
                cells.append(_value(paper[score], paper[f"{score}_std"], digits) if paper else "")
            body.append([*cells, f"{run['pgd']['linf']['accuracy']:.3f}"])
            made.append(made_with([run]))
    titles = [each for score in TITLES.values() for each in (score, "paper")]
    return with_notes(["preset", "trained on", "images in", *titles, "accuracy under PGD"], body, made)


def differences_table(dataset: str, preset: str) -> str:
    """Differences of each method from standard training and from manifold mixup, with intervals."""
    body, made = [], []
    for row in aggregated(records(RESULTS / dataset, [preset], changed=False)):
        if row["method"] != "standard":
            cells = [title(row)]
            for reference in REFERENCES:
                for score in SCORES:
                    found = row.get(f"{score}_minus_{reference}")
                    cells.append(difference_text(found, DIGITS[score]) if found else "")
            body.append(cells)
            made.append(row["made_with"])
    titles = [
        f"{score}, from {NAMES[reference]}"
        for reference in REFERENCES
        for score in ("accuracy", "DeepFool", "blurred accuracy")
    ]
    return with_notes(["trained on", *titles], body, made)


def search_table() -> str:
    """Plain training and the best ten trials of the search, scored on the validation images."""
    found = read(RESULTS / SEARCHED / SEARCH_FILE)
    trials = sorted(found["trials"], key=lambda trial: -trial["value"])
    shown = [("plain training", "", found["standard"])] + [
        (
            f"trial {trial['number']}: {_settings(trial['params'])}",
            f"{trial['value']:+.3f}",
            trial["scores"],
        )
        for trial in trials[:10]
    ]
    body = [[name, value, *(f"{scores[score]:.{DIGITS[score]}f}" for score in SCORES)] for name, value, scores in shown]
    return markdown([f"the best of {len(trials)} trials", "value", *TITLES.values()], body)


def _settings(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )


def best_table(dataset: str, preset: str = "fixed") -> str:
    """Differences of the searched policy from each method that could be used instead, with intervals."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for trial in records(RESULTS / dataset, [preset], changed=False):
        by_method.setdefault(trial["method"], []).append(trial)
    body, made = [], []
    for method in (*INSTEAD, f"{BEST}_low_pass_of_real"):
        of_best, of_other = ({s: by_seed(by_method[name], s) for s in SCORES} for name in (BEST, method))
        cells = [difference_text(difference(of_best[score], of_other[score]), DIGITS[score]) for score in SCORES]
        body.append([NAMES[method], *cells, str(len(by_method[method]))])
        made.append(made_with([*by_method[BEST], *by_method[method]]))
    return with_notes([f"{NAMES[BEST]}, minus", *TITLES.values(), "seeds"], body, made)


def policies_table(dataset: str) -> str:
    """Policies that differ from the paper's in one part, and the changes of the scores."""
    rows = {row["method"]: row for row in aggregated(records(RESULTS / dataset, ["policies"], changed=False))}
    unchanged = rows[UNCHANGED]
    body = []
    for method, row in rows.items():
        cells = []
        for score in SCORES:
            cells.append(_value(row[score], row[f"{score}_std"], DIGITS[score]))
            gained = row[score] - unchanged[score]
            cells.append("" if row is unchanged else f"{gained:+.{DIGITS[score]}f}")
        body.append([NAMES[method], *cells, str(row["n_seeds"])])
    heads = [head for score in TITLES.values() for head in (score, "change")]
    return with_notes(["policy", *heads, "seeds"], body, [row["made_with"] for row in rows.values()])


def pools_table() -> str:
    """Scores by the size of the pool that half of each batch came from, and the differences from live decoding."""
    trials = [read(path) for path in sorted((RESULTS / "pools").glob("*/*.json"))]
    of: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        of.setdefault(trial["method"], []).append(trial)
    sizes = sorted((name for name in of if name.startswith("pool_")), key=lambda name: int(name.split("_")[1]))
    labels = {"standard": "real images alone", "live": "decoded live"}
    labels |= {name: f"pool of {int(name.split('_')[1]):,}" for name in sizes}
    body, made = [], []
    for name, label in labels.items():
        cells = []
        for score, digits in DIGITS.items():
            values, live = ([trial[score] for trial in of[each]] for each in (name, "live"))
            mean, deviation = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
            cells.append(_value(mean, deviation, digits))
            cells.append("" if name == "live" else f"{mean - statistics.fmean(live):+.{digits}f}")
        body.append([label, *cells, str(len(of[name]))])
        made.append(made_with(of[name]))
    heads = [head for name in ("accuracy", "DeepFool", "blurred") for head in (name, "minus live")]
    return with_notes(["half of each batch", *heads, "seeds"], body, made)


def _value(mean: float, deviation: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def difference_text(found: dict[str, Any], digits: int) -> str:
    """A difference and its interval."""
    text = f"{found['mean']:+.{digits}f}"
    if found["interval"] is None:
        return text
    low, high = found["interval"]
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"
