"""The tables of ``benchmarks/robust``: what fresh samples with a teacher's labels buy, beside their controls."""

from __future__ import annotations

import statistics
from typing import Any

from record import RESULTS, read

from tables.rows import by_seed, difference, markdown
from tables.score_tables import difference_text

FRESH = {
    "real": "labelled images alone",
    "cutmix": "CutMix of them",
    "cutmix_taught": "CutMix, the teacher's labels",
    "prior": "**samples of the prior**",
    "prior_cutmix": "**samples of the prior, CutMix of the labelled**",
    "prior_of_few": "samples of a generator that saw the labelled images alone",
    "mixes": "mixes of their codes",
    "projected": "the same, brought back to the prior",
    "pixel_mixes": "mixes of their pixels (control)",
    "gaussian": "a Gaussian on principal components (control)",
    "gaussian_codes": "a Gaussian on codes, decoded (control)",
    "decodes": "decoded real images (control)",
    "unlabelled": "unlabelled real images (control)",
    "unlabelled_cutmix": "the same, CutMix of the labelled (control)",
}
UNDER = {"accuracy": "accuracy", "pgd": "PGD-50", "autoattack": "AutoAttack"}
Runs = dict[str, list[dict[str, Any]]]


def runs_of(dataset: str, question: str) -> Runs:
    """The scores of each method's runs of a question, with their seeds."""
    found: Runs = {}
    for path in sorted((RESULTS / "robust" / dataset / question).glob("*.json")):
        run = read(path)
        found.setdefault(run["method"], []).append({**run["scores"], "seed": run["seed"]})
    return found


def adversarial_table(dataset: str) -> str:
    """Accuracy of adversarial training, clean and under attack, and the differences under AutoAttack."""
    runs = runs_of(dataset, "adversarial")
    body = []
    for method, name in FRESH.items():
        if method in runs:
            cells = [_mean(runs[method], score) for score in UNDER]
            gains = ["" if method == other else _gain(runs, method, other) for other in ("real", "cutmix")]
            body.append([name, *cells, *gains, str(len(runs[method]))])
    return markdown(["half or more of a batch", *UNDER.values(), "minus labelled alone", "minus CutMix", "seeds"], body)


def distil_table(dataset: str) -> str:
    """Accuracy of students by the real images that they see and by their fresh ones."""
    runs = runs_of(dataset, "distil")
    body = []
    for name, found in sorted(runs.items(), key=lambda item: _order(item[0])):
        method, real, size = name.rsplit("_", 2)
        ceiling, control = (f"{other}_{real}_{size}" for other in ("unlabelled", "gaussian"))
        share = ""
        if ceiling in runs and name != ceiling:
            share = f"{_value(found, 'accuracy') / _value(runs[ceiling], 'accuracy'):.1%}"
        gain = _gain(runs, name, control, "accuracy") if control in runs and name != control else ""
        cells = [real, size, FRESH[method], _mean(found, "accuracy"), share, gain, _mean(found, "teacher")]
        body.append([*cells, str(len(found))])
    heads = [
        "real images",
        "student",
        "fresh images",
        "accuracy",
        "of unlabelled",
        "minus Gaussian",
        "teacher",
        "seeds",
    ]
    return markdown(heads, body)


UNEQUAL = {
    "plain": "all as they come",
    "oversample": "classes drawn evenly",
    "weights": "class weights",
    "adjusted": "logit adjustment",
    "cmo": "CMO",
    "pixel_smote": "even classes, pixels mixed with neighbours of the class",
    "decodes": "even classes, decoded (control)",
    "latent_smote": "**even classes, codes mixed with neighbours of the class**",
}


def unequal_table(dataset: str) -> str:
    """Balanced accuracy and the worst class where classes are 100 : 1, and the difference from even draws."""
    runs = runs_of(dataset, "unequal")
    body = []
    for method, name in UNEQUAL.items():
        if method in runs:
            cells = [_mean(runs[method], score) for score in ("accuracy", "worst_class")]
            gains = [
                "" if method == other else _gain(runs, method, other, "accuracy")
                for other in ("oversample", "adjusted")
            ]
            body.append([name, *cells, *gains, str(len(runs[method]))])
    heads = ["trained on", "balanced accuracy", "worst class", "minus even classes", "minus logit adjustment", "seeds"]
    return markdown(heads, body)


def _order(name: str) -> tuple[int, str, int]:
    method, real, size = name.rsplit("_", 2)
    return int(real), size, list(FRESH).index(method)


def _value(runs: list[dict[str, Any]], score: str) -> float:
    return statistics.fmean(run[score] for run in runs)


def _mean(runs: list[dict[str, Any]], score: str) -> str:
    values = [run[score] for run in runs]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _gain(runs: Runs, method: str, other: str, score: str = "autoattack") -> str:
    if other not in runs:
        return ""
    return difference_text(difference(by_seed(runs[method], score), by_seed(runs[other], score)), 3)
