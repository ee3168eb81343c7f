"""What the trials' JSON files say together: means, deviations, differences with intervals, and the paper's rows."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import read
from scipy.stats import t as student_t

PAPER = Path(__file__).parent / "paper.json"
DATASETS = ("mnist", "fashion-mnist", "cifar10")
PRESETS = ("fixed", "paper_code", "policies", "reduced", "reduced_augmented", "full", "full_augmented")
TITLES = {"accuracy": "accuracy", "deepfool_score": "DeepFool score", "blurred_accuracy": "blurred accuracy"}
SCORES = tuple(TITLES)
REFERENCES = ("standard", "manifold_mixup")  # what every method's difference is taken from
BEST = "latent_mixup_best"
UNCHANGED = "policy_paper"  # what the other policies are compared with
NAMES = {
    "standard": "standard",
    "standard_90_epochs": "standard, 90 epochs, images in [0, 1]",
    "standard_softmax_twice": "standard, with the second softmax (control)",
    "mixup": "mixup",
    "manifold_mixup": "manifold mixup",
    "timm_mixup": "timm `Mixup`",
    "timm_cutmix": "timm `Mixup(cutmix_alpha=1)`",
    "torchvision_mixup": "torchvision `MixUp`",
    "torchvision_cutmix": "torchvision `CutMix`",
    "decoded": "decoded, not mixed (control)",
    "pixel_mix_of_decoded": "decoded, pixels mixed (control)",
    "gan_mixup": "GAN-MIXUP, our generator",
    "gan_mixup_0.025": "the same, codes refined at 0.025",
    "gan_mixup_0.020": "the same, codes refined at 0.020",
    "gan_mixup_dcgan": "GAN-MIXUP, the paper's GAN, inverted our way",
    "gan_mixup_as_published": "GAN-MIXUP, the paper's GAN, inverted as published",
    "vae_mixup": "VAE-MIXUP",
    "vae_mixup_sharpened": "VAE-MIXUP, sharpened",
    "latent_mixup_best": "latent mixup, the policy that was searched",
    "latent_mixup_best_without_mixing": "the same without mixing",
    "latent_mixup_best_without_noise": "the same without noise on the code",
    "latent_mixup_best_without_low_pass": "the same without the low-pass",
    "latent_mixup_best_with_mixing": "the same, all decoded ones mixed",
    "latent_mixup_best_with_noise": "the same with noise on the code",
    "latent_mixup_best_with_low_pass": "the same with a low-pass",
    "latent_mixup_best_decoded_alone": "the same, decoded and nothing else",
    "latent_mixup_best_low_pass_of_real": "real images through the same low-pass (control)",
    "policy_paper": "`Policy()`: the paper's, one `lam` a sample",
    "policy_lam_of_batch": '`Beta(mode="batch")`: one `lam` a batch',
    "policy_alpha_0.2": "`Beta(0.2)`",
    "policy_alpha_4": "`Beta(4)`",
    "policy_near_ends": "`NearEnds()`",
    "policy_three_codes": "`Dirichlet()`: of three codes",
    "policy_rising_over_10_epochs": "`Scheduled(Beta())`: rising over ten epochs, of which six are run",
    "policy_straight_line": '`path="lerp"`',
    "policy_channels": "`Channels()`",
    "policy_same_class": "`SameClass()`",
    "policy_other_class": "`OtherClass()`",
    "policy_nearest_of_16": "`Nearest()`",
    "policy_farthest_of_16": "`Farthest()`",
    "policy_half_unmixed": "`unmixed=0.5`",
    "policy_noise_0.3": "`Noise(0.3)`",
    "policy_noise_0.6": "`Noise(0.6)`",
    "policy_truncation_0.7": "`Truncation(0.7)`",
    "policy_low_pass_2": "`LowPass(0, 2)`",
    "policy_label_curve": "`Curve` of what a classifier sees",
    "latent_mixup": "latent mixup, all decoded",
    "latent_mixup_half_real": "latent mixup, half real",
    "robust": '`policy="robust"`',
}


def records(folder: Path, presets: Sequence[str] = PRESETS, *, changed: bool = True) -> list[dict[str, Any]]:
    """All trials in the presets' folders of a data set; ``changed``: also those with another budget."""
    folders = [folder / preset for preset in presets]
    if changed:
        folders += [found for preset in presets for found in sorted(folder.glob(f"{preset}-*"))]
    paths = [path for found in folders for path in sorted(found.glob("*.json"))]
    return [read(path) for path in paths if not path.name.startswith("grid-")]


def codes(folder: Path, kind: str = "codes") -> dict[str, dict[str, Any]]:
    """Facts of each kind of codes of a data set; ``codes_augmented``: those of ``cifar10.py --augment``."""
    return {path.stem: read(path) for path in sorted((folder / kind).glob("*.json"))}


def aggregated(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a (data set, preset, method, epochs, codes that were given).

    A row has means and standard deviations (ddof 1) over the seeds, the difference of each score from ``standard`` and
    from ``manifold_mixup`` with its interval, the paper's row, and hardware and versions.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in trials:
        setting = run["budget"]["epochs"], run["train_images"]
        groups.setdefault((run["dataset"], run["preset"], run["method"], *setting, run.get("codes_from")), []).append(
            run
        )
    rows = []
    for key, found in groups.items():
        dataset, preset, method, epochs, train_images, codes_from = key
        row: dict[str, Any] = {
            "dataset": dataset,
            "preset": preset,
            "method": method,
            "codes_from": codes_from,
            "made_with": made_with(found),
            "n_seeds": len(found),
            "epochs": epochs,
            "train_images": train_images,
            "ddof": 1,
        }
        for score in SCORES:
            values = [run[score] for run in found]
            row[score] = statistics.fmean(values)
            row[f"{score}_std"] = statistics.stdev(values) if len(values) > 1 else None
            for reference in REFERENCES:
                others = groups.get((dataset, preset, reference, epochs, train_images, None), [])
                if method != reference and others:
                    row[f"{score}_minus_{reference}"] = difference(by_seed(found, score), by_seed(others, score))
        row["paper"] = printed(dataset, preset, method)
        rows.append(row)
    order = list(NAMES)
    return sorted(rows, key=lambda row: (row["preset"], row["epochs"], order.index(row["method"])))


def title(row: dict[str, Any]) -> str:
    """A row's name; with codes that were given it names them in the place of our generator."""
    given = row.get("codes_from")
    return (
        f"{NAMES[row['method']].removesuffix(', our generator')}, codes of `{given}`" if given else NAMES[row["method"]]
    )


def made_with(runs: Sequence[dict[str, Any]]) -> str:
    """Hardware and versions of trials; "" where they state none."""
    texts = set()
    for run in runs:
        if hardware := run.get("hardware"):
            device = str(hardware.get("device", "cpu")).replace("cpu", "CPU") + " in TF32" * bool(hardware.get("tf32"))
            threads = f", {hardware['threads']} threads" if device == "CPU" and hardware["threads"] > 1 else ""
            versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
            texts.add(f"{device}{threads}, {versions}")
    return "; ".join(sorted(texts))


def with_notes(header: list[str], body: list[list[str]], made: Sequence[str]) -> str:
    """A Markdown table; a row that was not made as most rows were is marked, and a line below says how it was made."""
    usual = Counter(made).most_common(1)[0][0] if made else ""
    notes = {
        text: f"[{number}]" for number, text in enumerate(dict.fromkeys(each for each in made if each != usual), 1)
    }
    marked = [
        [f"{name} {notes[how]}" if how in notes else name, *rest] for (name, *rest), how in zip(body, made, strict=True)
    ]
    below = "".join(f"\n\n{mark} {text}; the other rows: {usual}." for text, mark in notes.items())
    return markdown(header, marked) + below


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> dict[str, Any]:
    """Mean of ``values`` minus mean of ``others``, both by seed, with a 95 % t-interval of the seeds' differences.

    What is left of a seed's luck after it is taken from both is what the interval is made of. Only seeds that both have
    count; without any, it is the difference of the means. The interval is None for fewer than two.

    Reference: Student, "The probable error of a mean" (1908), section 9, for pairs.
    """
    pairs = [values[seed] - others[seed] for seed in values.keys() & others.keys()]
    if not pairs:
        return {"mean": statistics.fmean(values.values()) - statistics.fmean(others.values()), "interval": None}
    mean, interval = statistics.fmean(pairs), None
    if len(pairs) > 1:
        half = float(student_t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval}


def by_seed(runs: Sequence[dict[str, Any]], score: str) -> dict[int, float]:
    """A score of each run, by its seed."""
    return {run["seed"]: run[score] for run in runs}


def printed(dataset: str, preset: str, method: str) -> dict[str, float] | None:
    """The paper's row: each score and, as ``_std``, the number in brackets (ddof 0); None if it has no such row."""
    name = {
        "standard_90_epochs": "standard",
        "gan_mixup_dcgan": "gan_mixup",
        "gan_mixup_as_published": "gan_mixup",
    }.get(method, method)
    table = f"{dataset}, flips + AutoAugment" if preset.endswith("_augmented") else dataset
    row = read(PAPER)[table].get(name)
    if row is None:
        return None
    return {f"{score}{part}": row[score][place] for score in SCORES for place, part in enumerate(("", "_std"))}


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *body])
