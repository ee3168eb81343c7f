"""The tables of generators and of the codes of images."""

from __future__ import annotations

from typing import Any

from publish.published import ARTEFACTS, ORGANISATION
from record import RESULTS, read

from latent_mixup.hub import REPO_TYPE
from tables.rows import codes, markdown


def knowledge_table() -> str:
    """What codes of test images are worth: the shipped generators', those of 0.1, and PCA's of as many numbers."""
    body = []
    for dataset in ("mnist", "fashion-mnist", "cifar10"):
        found = read(RESULTS / "generators" / f"{dataset}.json")
        before = RESULTS / "generators" / f"{dataset}-0.1.json"
        body.append([f"**{dataset}**, {found['numbers']['ours']} numbers", *_worth(found, "ours", "codes")])
        if before.is_file():
            body.append([f"{dataset} of 0.1", *_worth(read(before), "ours", "codes")])
        body.append([f"PCA, {found['numbers']['pca']} numbers", *_worth(found, "pca", "pca")])
    heads = ["codes of", "codes - pixels", "MSE", "class kept", "prior", "mixes", "projected", "neither class"]
    return markdown(heads, body)


def _worth(found: dict[str, Any], who: str, features: str) -> list[str]:
    """The columns of :func:`knowledge_table` after the first."""
    gains = [100 * found["probe"][size][f"{features}_minus_pixels"]["mean"] for size in ("20", "100")]
    frechet, error = found["frechet"], found["reconstruction"][who]
    projected = (frechet["mixes_projected"] or {}).get(who)
    return [
        " / ".join(f"{gain:+.1f}" for gain in gains),
        f"{error['mse']['mean']:.4f}",
        f"{error['kept']:.1%}",
        *(f"{frechet[kind][who]:.0f}" for kind in ("prior", "mixes_between")),
        "" if projected is None else f"{projected:.0f}",
        f"{found['neither'][who]:.0%}",
    ]


def codes_table(dataset: str) -> str:
    """The errors of the codes that a benchmark's classifiers were trained on, in units of [-1, 1] squared."""
    body = [
        [
            name,
            f"{facts['rows']:,}",
            f"{facts['mse_mean']:.4f}",
            f"{facts['mse_percentiles'][50]:.4f}",
            f"{facts['share_from_0.020']:.2%}",
            f"{facts['share_from_0.025']:.2%}",
        ]
        for name, facts in codes(RESULTS / dataset).items()
    ]
    return markdown(["codes", "images", "MSE, mean", "median", "from 0.020", "from 0.025"], body)


def inversion_table() -> str:
    """Gradients, time and errors of inversion, relative to the authors' loop.

    Gradients and seconds that a run spends before its first image, to learn the curvature, are shared out among the
    ``n`` images.
    """
    found = read(RESULTS / "inversion.json")
    body = []
    for problem in found["problems"]:
        ways = problem["ways"]
        authors = ways["authors"]
        learning = problem["learning"]
        for way, row in ways.items():
            if way == "authors":
                continue
            first = {"gradients": 0, "seconds": 0.0} if way.startswith("authors") else learning
            less = authors["gradients_an_image"] / (row["gradients_an_image"] + first["gradients"] / problem["n"])
            shorter = authors["seconds"] / (row["seconds"] + first["seconds"])
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


def stylegan2_table() -> str:
    """Distances of the samples of two StyleGAN2 from Fashion-MNIST in the course of their training.

    For the one with classes also the spread of its last samples within a class, relative to real images: near 0 it
    draws one image a class.
    """
    logs = {run: read(RESULTS / "stylegan2" / run / "log.json") for run in ("unconditional", "conditional")}
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


def artefacts_table() -> str:
    """What ``publish.py`` makes and may push: no artefact whose authors gave no licence."""
    body = [
        [f"`{ORGANISATION}/{artefact.name}`", REPO_TYPE[artefact.kind], artefact.what, artefact.licence]
        for artefact in ARTEFACTS
        if artefact.licensed
    ]
    return markdown(["name", "kind of repository", "what it is", "licence"], body)
