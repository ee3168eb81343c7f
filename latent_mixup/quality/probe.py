"""The linear probe: how well a linear classifier that has seen a few labels reads the class from codes or pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.runs import Progress
from latent_mixup.sampling import keyed_generator

SIZES = (20, 100)  # labels a class
LEAST_TESTED = 10  # test rows of the rarest class: an accuracy of fewer says little
L2_GRID = (10.0, 1.0, 0.1, 0.01, 0.001)  # from strong to weak: each fit starts from the one before
HELD_OUT = 5  # one label in so many chooses the L2 strength
DEVIATION_FLOOR = 0.1  # of the mean deviation: a pixel that is lit in one of 200 images is not blown up
MAX_ITERATIONS = 200
CHUNK = 500  # rows classified at a time


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, l2: float, start: Tensor | None = None
) -> Tensor:
    """Weights and bias that minimise mean cross-entropy ``+ l2 / 2 |W|^2``, by L-BFGS; the bias is not penalised.

    Args:
        features: ``[n, d]`` float64.
        labels: ``[n]`` int64 in ``[0, num_classes)``.
        num_classes: Number of logits, K.
        l2: Strength of the penalty, above 0.
        start: Weights to start from; None: zeros.

    Returns:
        ``[d + 1, K]`` float64, the bias in the last row.

    Example:
        >>> logistic_regression(torch.eye(4, dtype=torch.float64), torch.tensor([0, 0, 1, 1]), 2, 0.1).shape
        torch.Size([5, 2])
    """
    shape = (features.shape[1] + 1, num_classes)
    weights = features.new_zeros(shape) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(features, weights), labels) + l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weights.detach()


def linear_accuracy(features: Tensor, labels: Tensor, train: Tensor, num_classes: int) -> float:
    """Accuracy of a linear classifier trained on some rows and tested on all others.

    Features are standardised by the training rows. One training row in five chooses the L2 strength of ``L2_GRID`` by
    its cross-entropy; the classifier is then fitted to all of them. Where there are more features than rows, the
    solution lies in the span of the rows, and is found there.

    Args:
        features: ``[N, d]`` of any dtype and scale.
        labels: ``[N]`` int64 in ``[0, num_classes)``.
        train: The training rows, ``[n]`` int64: as many of each class, the classes in turn.
        num_classes: K.
    """
    seen = features[train].double()
    mean, deviation = seen.mean(0), seen.std(0)
    deviation = deviation.clamp_min(max(1e-12, DEVIATION_FLOOR * float(deviation.mean())))
    seen = (seen - mean) / deviation
    coordinates, basis = _in_their_span(seen)
    inner = _best_fit(coordinates, labels[train], num_classes)
    slopes = (inner[:-1] if basis is None else basis @ inner[:-1]) / deviation[:, None]
    weights = torch.cat([slopes, (inner[-1] - mean @ slopes)[None]])
    tested = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    tested[train] = False
    rows = tested.nonzero()[:, 0]
    guesses = [_logits(features[part].double(), weights).argmax(1) for part in rows.split(CHUNK)]
    return float((torch.cat(guesses) == labels[rows]).double().mean())


def probe(
    features: Mapping[str, Tensor], labels: Tensor, *, draws: int = 5, seed: int = 0, progress: bool = True
) -> dict[str, Any] | None:
    """Accuracy of the linear probe on several kinds of features of the same images.

    Args:
        features: Name => ``[N, d]``; the name ``"pixels"`` is what the others are compared with.
        labels: ``[N]`` int64, of two or more classes.
        draws: Draws of the training rows, the same ones for all features.
        seed: Decides the draws.
        progress: Show a bar.

    Returns:
        Labels a class => name => ``mean`` and ``std`` over the draws, with ``NAME_minus_pixels`` beside the names.
        A size of which a class would leave fewer than ``LEAST_TESTED`` rows to test on is left out; None: all are.
    """
    classes, labels = labels.unique(return_inverse=True)
    smallest = int(torch.bincount(labels).min())
    sizes = [size for size in SIZES if size + LEAST_TESTED <= smallest]
    found: dict[str, Any] = {}
    with Progress(len(sizes) * draws * len(features), "probe", "fits", show=progress) as bar:
        for size in sizes:
            scores: dict[str, list[float]] = {name: [] for name in features}
            for draw in range(draws):
                train = _balanced_rows(labels, size, keyed_generator("probe-rows", seed, size, draw))
                for name, values in features.items():
                    scores[name].append(linear_accuracy(values, labels, train, len(classes)))
                    bar.advance()
            found[str(size)] = _summary(scores)
    return found or None


def _summary(scores: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    values = {name: torch.tensor(each, dtype=torch.float64, device="cpu") for name, each in scores.items()}
    pixels = values["pixels"]
    values |= {f"{name}_minus_pixels": each - pixels for name, each in values.items() if name != "pixels"}
    return {name: {"mean": float(each.mean()), "std": float(each.std(correction=0))} for name, each in values.items()}


def _balanced_rows(labels: Tensor, size: int, stream: torch.Generator) -> Tensor:
    """``size`` rows of each class, the classes in turn: ``[size * K]``."""
    chosen = []
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero()[:, 0]
        chosen.append(rows[torch.randperm(len(rows), generator=stream, device="cpu")[:size]])
    return torch.stack(chosen, 1).flatten()


def _best_fit(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The fit to all rows with the L2 strength that does best on the rows held out."""
    rows = len(labels)
    held = torch.arange(rows, device="cpu") // num_classes % HELD_OUT == 0  # whole rounds: each class alike
    weights, losses = None, []
    for l2 in L2_GRID:
        weights = logistic_regression(features[~held], labels[~held], num_classes, l2, weights)
        losses.append(float(F.cross_entropy(_logits(features[held], weights), labels[held])))
    return logistic_regression(features, labels, num_classes, L2_GRID[losses.index(min(losses))])


def _in_their_span(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Coordinates ``[n, r]`` of rows ``[n, d]`` in an orthonormal basis ``[d, r]`` of their span; None: as they are."""
    count, size = rows.shape
    if size <= count:
        return rows, None
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    there = values > 1e-10 * values[-1]
    lengths, vectors = values[there].sqrt(), vectors[:, there]
    return vectors * lengths, rows.T @ (vectors / lengths)


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1])
