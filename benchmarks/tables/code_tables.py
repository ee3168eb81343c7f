"""The tables of generators and of the codes of images."""

from __future__ import annotations

from publish.published import ARTEFACTS, ORGANISATION
from record import RESULTS, read

from latent_mixup.hub import REPO_TYPE
from tables.rows import codes, markdown


def reconstruction_table() -> str:
    """Quality of the codes of Fashion-MNIST."""
    found = read(RESULTS / "published" / "fashion-mnist-reconstruction.json")
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
    """Quality of the codes that ``publish.py`` makes, in units of [-1, 1] squared."""
    body = []
    for dataset in ("mnist", "fashion-mnist"):
        found = read(RESULTS / "published" / f"{dataset}-reconstruction.json")
        for part in ("train", "test"):
            errors = [f"{found[f'{part}_mse'][name]:.4f}" for name in ("mean", "median", "p95")]
            judged = ("classifier_accuracy_on_real_test_images", "classifier_accuracy_on_reconstructions")
            kept = [f"{found[name]:.4f}" for name in judged] if part == "test" else ["", ""]
            body.append([f"{dataset}, {part}", *errors, *kept])
    heads = ["images", "MSE, mean", "median", "95 %", "a classifier is right on real ones", "on decoded ones"]
    return markdown(heads, body)


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
