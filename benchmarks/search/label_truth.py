"""Does a mix with weight lam look like its label? A classifier of real images judges mixes of codes and of pixels.

Pairs of codes of two classes are mixed with each weight and decoded; beside them the pixels of the same two real images
are mixed. The judge is the paper's small CNN, trained on real images, its temperature set on the validation images
(Guo et al. 2017, arXiv 1706.04599; an overconfident judge makes every curve a step). For each weight: the probabilities
of the two classes, the first one's share of them, how often neither is predicted, and the entropy. The resulting curve,
lam to label weight, is an argument of ``policies.Curve``.

    python benchmarks/search/label_truth.py fashion-mnist --data-root data --bank runs/fashion-mnist/gan-bank
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup import LatentBank, load_generator
from latent_mixup.augment.base import Decoder
from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.interpolation import path_named
from latent_mixup.policies import OtherClass, Policy, Rows
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import shuffled_batches, train_classifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import code_options
from paper.trials import split
from record import LABEL_TRUTH, RESULTS, write

POINTS = 21  # weights that are looked at
TEMPERATURES = torch.logspace(-1, 1, 201, dtype=torch.float64)


def reference_classifier(images: Tensor, labels: Tensor, epochs: int = 5) -> PaperCNN:
    """The paper's classifier, trained on real images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN()
        per_epoch = len(images) // 64
        batches = shuffled_batches(images, labels, 64, epochs * per_epoch, seed=0)
        train_classifier(model, batches, decay_every=per_epoch)
    return model


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits with the least cross-entropy."""
    losses = torch.stack([F.cross_entropy(logits.double() / each, labels) for each in TEMPERATURES])
    return float(TEMPERATURES[losses.argmin()])


@torch.no_grad()
def judged(judge: nn.Module, images: Tensor, heat: float) -> Tensor:
    """Probabilities ``[N, K]``."""
    return torch.cat([torch.softmax(judge(chunk).double() / heat, 1) for chunk in images.split(500)])


def seen(probabilities: Tensor, own: Tensor, other: Tensor) -> dict[str, float]:
    """Means over images between two classes, ``own`` and ``other`` ``[N]``: probabilities, share, misses, entropy."""
    of_own, of_other = (probabilities.gather(1, label[:, None])[:, 0] for label in (own, other))
    best = probabilities.argmax(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1)
    return {
        "own": float(of_own.mean()),
        "other": float(of_other.mean()),
        "own_share": float((of_own / (of_own + of_other).clamp_min(1e-12)).mean()),
        "neither": float(((best != own) & (best != other)).double().mean()),
        "entropy": float(entropy.mean()),
    }


def symmetric_curve(shares: list[float]) -> list[float]:
    """Label weights at equal steps of ``lam``: 0 to 1, never falling, and the same from either side.

    The mean of a curve and its mirror image; pool-adjacent-violators makes it rise.
    """
    found = torch.tensor(shares, dtype=torch.float64)
    blocks: list[list[float]] = []
    for value in ((found + 1 - found.flip(0)) / 2).tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, n), (last, m) = blocks[-2:]
            blocks[-2:] = [[(mean * n + last * m) / (n + m), n + m]]
    rising = torch.tensor([value for value, count in blocks for _ in range(int(count))], dtype=torch.float64)
    scaled = (rising - rising[0]) / (rising[-1] - rising[0])
    return [round(value, 4) for value in scaled.tolist()]


def looked_at(
    judge: nn.Module, heat: float, generator: Generator, bank: LatentBank, images: Tensor, pairs: int
) -> dict[str, Any]:
    """Both kinds of mixes along ``lam``.

    Args:
        judge: Images to logits.
        heat: Temperature of the judge.
        generator: Decodes the bank's codes.
        bank: Codes of ``images``.
        images: ``[N, C, H, W]`` in [-1, 1], indexed by the bank's ``source_index``.
        pairs: Number of pairs of codes of two classes.
    """
    rows, path, decoder = Rows(bank), path_named(generator.preferred_path), Decoder(generator)
    draw = Policy(partners=OtherClass()).draw(pairs, rows, keyed_generator("label-truth", 0))
    own, other = rows.codes(draw.rows), rows.codes(draw.partners)
    labels = rows.classes[draw.rows], rows.classes[draw.partners]
    real = [images[bank.source_index[each]] for each in (draw.rows, draw.partners)]
    lams = torch.linspace(0, 1, POINTS)
    found: dict[str, list[dict[str, float]]] = {"codes": [], "pixels": []}
    for lam in lams:
        weights = lam.expand(pairs)
        decoded = torch.cat(
            [decoder(path(*each)) for each in zip(own.split(1000), other.split(1000), weights.split(1000), strict=True)]
        )
        for kind, shown in (("codes", decoded), ("pixels", lam * real[0] + (1 - lam) * real[1])):
            found[kind].append(seen(judged(judge, shown, heat), *labels))
    columns = {kind: {name: [row[name] for row in along] for name in along[0]} for kind, along in found.items()}
    return {
        "lam": [round(value, 4) for value in lams.tolist()],
        **columns,
        "curve": symmetric_curve(columns["codes"]["own_share"]),
        "pixel_curve": symmetric_curve(columns["pixels"]["own_share"]),
    }


@click.command()
@code_options
@click.option("--out", type=FOLDER, help="Folder for the JSON file; default: benchmarks/results/DATASET.")
@click.option("--pairs", type=click.IntRange(1), default=5000, show_default=True, help="Pairs of codes.")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True, help="Training epochs of the judge.")
def main(
    dataset: str,
    data_root: Path,
    generator: str | None,
    bank: str,
    out: Path | None,
    pairs: int,
    epochs: int,
    limit: int | None,
) -> None:
    """Write label-truth.json."""
    train = torchvision_dataset(dataset, data_root, train=True)
    images = split(dataset, train, torchvision_dataset(dataset, data_root, train=False), limit)
    decodes, codes = load_generator(generator or dataset), LatentBank.from_pretrained(bank)
    codes.check(decodes)
    judge = reference_classifier(images.train.train_images, images.train.train_labels, epochs)
    held_out, labels = images.validation.test_images, images.validation.test_labels
    logits = torch.cat([judge(chunk).detach() for chunk in held_out.split(500)])
    heat = temperature(logits, labels)
    record = {
        "dataset": dataset,
        "pairs": pairs,
        "judge": {
            "epochs": epochs,
            "validation_accuracy": float((logits.argmax(1) == labels).double().mean()),
            "temperature": round(heat, 4),
        },
        **looked_at(judge, heat, decodes, codes, from_uint8(train.data[:, None]), pairs),
        "generator_digest": decodes.digest(),
        "bank_digest": codes.digest(),
    }
    write((out or RESULTS / dataset) / LABEL_TRUTH, record)
    click.echo(json.dumps({name: record[name] for name in ("judge", "lam", "curve", "pixel_curve")}))


if __name__ == "__main__":
    main()
