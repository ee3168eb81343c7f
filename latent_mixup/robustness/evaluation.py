"""All scores of one classifier in one call, as a dictionary that JSON can hold."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_mixup.networks import eval_mode
from latent_mixup.robustness.accuracy import logits_of, share_right
from latent_mixup.robustness.blur import SIGMAS, blur_sweep
from latent_mixup.robustness.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from latent_mixup.robustness.corruptions import SEVERITIES, corruption_accuracy
from latent_mixup.robustness.deepfool import deepfool_score
from latent_mixup.robustness.pgd import Norm, pgd_accuracy
from latent_mixup.robustness.shared import Bounds, check_images, check_inside, check_labels, device_of

BATCH = 128  # of 128 images on a CPU core a small CNN takes half the time of 500
BATCH_ELSEWHERE = 2048
NUM_BINS = 15
KERNEL_SIZE, SIGMA = 5, 5.0  # the paper's
DEEPFOOL_CLASSES = 10


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: Bounds = (-1.0, 1.0),
    deepfool_images: int = 5000,
    sigmas: Sequence[float] = SIGMAS,
    pgd_images: int = 1000,
    pgd_steps: int = 20,
    linf_eps: float = 8 / 255,
    l2_eps: float = 0.5,
    corruption_images: int = 1000,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracy, DeepFool, blur, PGD, C-style corruptions and calibration of a classifier on test images.

    Accuracy, blurred accuracy and calibration take all images; the rest the first so many, and 0 leaves a part out.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        images: Float ``[N, C, H, W]`` within ``bounds``.
        labels: Class indices ``[N]``.
        bounds: What black and white are in ``images``.
        deepfool_images: How many images get a DeepFool score (the paper: 5,000); over the 10 likeliest classes.
        sigmas: Widths of the blur's sweep, in pixels; empty: none.
        pgd_images: How many images are attacked by PGD, in both norms, from one random start.
        pgd_steps: Steps of PGD.
        linf_eps: Radius of its L-inf ball, in units of images in [0, 1].
        l2_eps: Radius of its L2 ball, in the same units.
        corruption_images: How many images are corrupted.
        severities: Of the corruptions.
        seed: Of PGD's starts and the corruptions' noise.
        device: Where images are moved to; None: the device of the model's parameters.
        progress: Show a progress bar for each part.

    Returns:
        ``accuracy``, ``blurred_accuracy`` (kernel 5, sigma 5), ``deepfool_score`` (in units of ``bounds``), and beside
        them ``calibration``, ``blur_sweep``, ``deepfool`` (in both units, over all and over correctly classified
        images, with counts), ``pgd``, ``corruptions``, the images of each, and the ``seconds`` that each took.
        Numbers that no image gave are None.

    Raises:
        ValueError: ``images`` are not a finite float batch within ``bounds``, ``labels`` are not class indices for
            them, or what a part refuses.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> found = evaluate(net, torch.rand(5, 3, 4, 4), torch.arange(5), corruption_images=0)
        >>> sorted(found)[:4]
        ['accuracy', 'blur_sweep', 'blurred_accuracy', 'bounds']
    """
    check_images(images)
    check_labels(labels, len(images))
    check_inside(images, bounds)
    counts = {"deepfool_images": deepfool_images, "pgd_images": pgd_images, "corruption_images": corruption_images}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be at least 0: got {count}")
    test = _Test(model, images, labels, bounds, seed, device, progress)
    radii: dict[Norm, float] = {"linf": linf_eps, "l2": l2_eps}
    parts: list[tuple[str, bool, Callable[[], dict[str, Any]]]] = [
        ("accuracy", True, partial(_clean, test)),
        ("blur", True, partial(_blur, test, sigmas)),
        ("deepfool", deepfool_images > 0, partial(_deepfool, test, deepfool_images)),
        ("pgd", pgd_images > 0, partial(_pgd, test, pgd_images, pgd_steps, radii)),
        ("corruptions", corruption_images > 0, partial(_corruptions, test, corruption_images, severities)),
    ]
    found: dict[str, Any] = {"test_images": len(images), "bounds": list(bounds)}
    seconds = {}
    for name, wanted, part in parts:
        if wanted:
            started = time.perf_counter()
            found.update(part())
            seconds[name] = round(time.perf_counter() - started, 2)
    return {**found, "seconds": seconds}


@dataclass(frozen=True, eq=False)
class _Test:
    """What every part of :func:`evaluate` is given."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    bounds: Bounds
    seed: int
    device: torch.device | str | None
    progress: bool

    def first(self, n: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Batches of the first ``n`` images; None: of all."""
        on_cpu = torch.device(device_of(self.model, self.device)).type == "cpu"
        size = BATCH if on_cpu else BATCH_ELSEWHERE
        return list(zip(self.images[:n].split(size), self.labels[:n].split(size), strict=True))


def _clean(test: _Test) -> dict[str, Any]:
    logits, labels = logits_of(test.model, test.first(), device=test.device)
    calibration = {
        "expected_calibration_error": expected_calibration_error(logits, labels, NUM_BINS),
        "num_bins": NUM_BINS,
        "brier_score": brier_score(logits, labels),
        "negative_log_likelihood": negative_log_likelihood(logits, labels),
    }
    return {"accuracy": share_right(logits, labels), "calibration": calibration}


def _blur(test: _Test, sigmas: Sequence[float]) -> dict[str, Any]:
    swept = {SIGMA, *sigmas}
    by_sigma = blur_sweep(test.model, test.first(), sorted(swept), kernel_size=KERNEL_SIZE, device=test.device)
    sweep = {
        "kernel_size": KERNEL_SIZE,
        "sigmas": list(sigmas),
        "accuracy": [by_sigma[sigma] for sigma in sigmas],
    }
    return {"blurred_accuracy": by_sigma[SIGMA], **({"blur_sweep": sweep} if sigmas else {})}


def _deepfool(test: _Test, n: int) -> dict[str, Any]:
    with eval_mode(test.model), torch.no_grad():
        num_classes = test.model(test.images[:1].to(device_of(test.model, test.device))).shape[1]
    score = deepfool_score(
        test.model,
        test.first(n),
        num_classes=min(DEEPFOOL_CLASSES, num_classes),
        device=test.device,
        progress=test.progress,
    )
    unit = score.in_unit_range(test.bounds)
    scores = {
        "score_correct": score.score_correct,
        "score_unit_range": unit.score,
        "score_correct_unit_range": unit.score_correct,
    }
    low, high = test.bounds
    return {
        "deepfool_score": score.score,
        "deepfool": {
            **asdict(score),
            "input_size": list(score.input_size),
            **{name: value if math.isfinite(value) else None for name, value in scores.items()},
            "units": f"[{low:g}, {high:g}]",
        },
    }


def _pgd(test: _Test, n: int, steps: int, radii: dict[Norm, float]) -> dict[str, Any]:
    width = test.bounds[1] - test.bounds[0]
    accuracies = {
        norm: pgd_accuracy(
            test.model,
            test.first(n),
            bounds=test.bounds,
            eps=eps * width,
            norm=norm,
            steps=steps,
            seed=test.seed,
            device=test.device,
            progress=test.progress,
        )
        for norm, eps in radii.items()
    }
    record = {norm: {"eps_unit_range": eps, "accuracy": accuracies[norm]} for norm, eps in radii.items()}
    return {"pgd": {"n_images": len(test.images[:n]), "steps": steps, "restarts": 1, "seed": test.seed, **record}}


def _corruptions(test: _Test, n: int, severities: Sequence[int]) -> dict[str, Any]:
    accuracies = corruption_accuracy(
        test.model,
        test.first(n),
        bounds=test.bounds,
        severities=severities,
        seed=test.seed,
        device=test.device,
        progress=test.progress,
    )
    return {
        "corruptions": {
            "n_images": len(test.images[:n]),
            "severities": list(severities),
            "seed": test.seed,
            "mean_accuracy": statistics.fmean(value for row in accuracies.values() for value in row),
            "accuracy": accuracies,
        }
    }
