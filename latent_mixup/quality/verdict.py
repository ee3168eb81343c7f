"""What a check of codes says in the end: go or no-go, and a table that can be read."""

from __future__ import annotations

from typing import Any

from latent_mixup.pictures import text_table
from latent_mixup.quality.info import short_number

KEPT_LEAST = 0.8  # share of images that keep their class; below it one label in five is wrong before anything is mixed
PROBE_MARGIN = 0.01  # of accuracy: what differs by less than a point counts as the same
FRECHET_MARGIN = 0.1  # of the control's distance: what differs by less counts as the same

NAMES = {
    "reconstructions": "reconstructions",
    "prior": "prior samples",
    "mixes_between": "half-way mixes, two classes",
    "mixes_within": "half-way mixes, one class",
    "mixes": "half-way mixes",
    "mixes_projected": "half-way mixes, projected",
}
COLUMNS = ("ours", "pca", "pixels")


def verdict(record: dict[str, Any]) -> dict[str, Any]:
    """Whether a record of :func:`latent_mixup.quality.check_codes` speaks for training on mixes of these codes.

    It speaks against it ("no-go") where one of these holds, and for it ("go") otherwise:

    - fewer than ``KEPT_LEAST`` of the images keep their class when they are decoded;
    - codes know less of the class than pixels, by more than ``PROBE_MARGIN``, at the most labels that were tried;
    - half-way mixes (of two classes, where there are classes; projected, where that is nearer to the data) are not
      nearer to the data than PCA's and those of pixels, by ``FRECHET_MARGIN`` of the nearer one's distance.

    What cannot be measured without labels does not count. Prior samples are described, and decide nothing. The three
    limits are chosen, not fitted to trainings: a go says that nothing speaks against it, not how much it will gain.

    Returns:
        ``go``; ``against``, the reasons, empty for go; ``text``, two sentences.
    """
    kept, frechet = record["reconstruction"]["ours"]["kept"], record["frechet"]
    gain = _gain(record["probe"])
    mixes = frechet["mixes_between"] or frechet["mixes"]
    ours = min([mixes["ours"], *(frechet["mixes_projected"] or {}).values()])
    control = min(mixes["pca"], mixes["pixels"])
    reasons = {
        "too few images keep their class": kept is not None and kept < KEPT_LEAST,
        "codes know less than pixels": gain is not None and gain[1] < -PROBE_MARGIN,
        "mixes are no nearer to the data than the controls": not ours < (1 - FRECHET_MARGIN) * control,
    }
    against = [reason for reason, holds in reasons.items() if holds]
    known = []
    if gain is not None:
        known.append(f"codes know {_knowledge(gain[1])} at {gain[0]} labels a class")
    if kept is not None:
        known.append(f"{kept:.0%} of the images keep their class when they are decoded")
    prior, prior_control = frechet["prior"]["ours"], frechet["prior"]["pca"]
    text = f"no-go ({'; '.join(against)})" if against else "go"
    text += f": {', and '.join(known)}." if known else "."
    text += (
        f" Half-way mixes are {_nearness(ours, control)} the better of PCA's and pixel mixes (Fréchet distance "
        f"{ours:.3g} against {control:.3g}), prior samples {_nearness(prior, prior_control)} PCA's ({prior:.3g} "
        f"against {prior_control:.3g})."
    )
    return {"go": not against, "against": against, "text": text}


def _gain(probe: dict[str, Any] | None) -> tuple[str, float] | None:
    """The largest number of labels a class that was tried, and by how much codes are better than pixels there."""
    if probe is None:
        return None
    size = max(probe, key=int)
    return size, float(probe[size]["codes_minus_pixels"]["mean"])


def _knowledge(gain: float) -> str:
    if abs(gain) <= PROBE_MARGIN:
        return "as much of the class as pixels"
    return f"{abs(gain) * 100:.1f} points {'more' if gain > 0 else 'less'} of the class than pixels"


def _nearness(ours: float, control: float) -> str:
    if ours < (1 - FRECHET_MARGIN) * control:
        return "nearer to the data than"
    return "as near to the data as" if ours <= (1 + FRECHET_MARGIN) * control else "farther from the data than"


def check_text(record: dict[str, Any]) -> str:
    """A record of :func:`latent_mixup.quality.check_codes` as a table, ours beside PCA and pixels, and the verdict."""
    judge, rows, numbers = record["judge"], record["rows"], record["numbers"]
    title = (
        f"codes of {rows['examined']:,} images; the judge learnt the {judge['learns']} of {rows['others']:,} others, "
        f"{judge['accuracy']:.1%} right on unseen ones"
    )
    table = [["", "ours", "PCA", "pixels"], ["numbers", numbers["ours"], numbers["pca"], numbers["pixels"]]]
    costs = record["decode_multiply_adds"]
    table.append(["multiply-adds of a decode", *(short_number(costs[who]) for who in COLUMNS[:2])])
    made = record["reconstruction"]
    table.append(["mean squared error", *(f"{made[who]['mse']['mean']:.4f}" for who in COLUMNS[:2])])
    table.append(["  95 % below", *(f"{made[who]['mse']['quantiles']['0.95']:.4f}" for who in COLUMNS[:2])])
    if made["ours"]["kept"] is not None:
        table.append(["class kept by a decode", *(_percent(made[who]["kept"]) for who in COLUMNS[:2])])
    for size, scores in (record["probe"] or {}).items():
        cells = (f"{scores[who]['mean']:.1%} ± {scores[who]['std'] * 100:.1f}" for who in ("codes", "pca", "pixels"))
        gain = scores["codes_minus_pixels"]
        table.append([f"linear probe, {size} labels a class", *cells])
        table.append(["  codes minus pixels", f"{gain['mean'] * 100:+.1f} ± {gain['std'] * 100:.1f}"])
    table.append(["Fréchet distance from the images"])
    for kind, distances in record["frechet"].items():
        if kind in NAMES and distances is not None:
            table.append([f"  {NAMES[kind]}", *(_cell(distances.get(who), "{:.3g}") for who in COLUMNS)])
    table.append(["  other real images", "", "", f"{record['frechet']['other_images']:.3g}"])
    if neither := record["neither"]:
        table.append(["mixes that look like neither class", *(_percent(neither[who]) for who in COLUMNS)])
        if "projected" in neither:
            table.append(["  projected", _percent(neither["projected"])])
    return f"{title}\n{text_table(table)}\n{record['verdict']['text']}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
