"""All scores of one classifier in one call, as a dictionary that is also a table and JSON."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_mixup.pictures import text_table
from latent_mixup.robustness import calibration
from latent_mixup.robustness.accuracy import logits_of, share_right
from latent_mixup.robustness.blur import SIGMAS, blur_sweep
from latent_mixup.robustness.classifier import check_model, device_of, warning_once
from latent_mixup.robustness.corruptions import SEVERITIES, corruption_accuracy
from latent_mixup.robustness.deepfool import deepfool_score
from latent_mixup.robustness.pgd import Norm, pgd_accuracy
from latent_mixup.robustness.ranges import Bounds, FromUnit, Range
from latent_mixup.robustness.shared import Loader, batches, check_eps, check_images, check_list, class_indices

BATCH = 128  # on a CPU core a small CNN takes half the time for 128 images that it takes for batches of 500
BATCH_ELSEWHERE = 2048
NUM_BINS = 15
KERNEL_SIZE, SIGMA = 5, 5.0  # the paper's
DEEPFOOL_CLASSES = 10

Batches = list[tuple[Tensor, Tensor]]


class Scores(dict[str, Any]):
    """What :func:`evaluate` found, by name: ``print(scores)`` shows a table, ``scores.to_json()`` is for a file."""

    def to_json(self) -> str:
        """All of it as JSON; a mean over no image is null."""
        return json.dumps(self, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """A table of the main scores, each with the number of images that it is of."""
        everything = self["test_images"]
        rows = [["accuracy", self["accuracy"], everything]]
        rows.append(
            [f"accuracy, blurred (kernel {KERNEL_SIZE}, sigma {SIGMA:g})", self["blurred_accuracy"], everything]
        )
        for name, score in self["calibration"].items():
            if name != "num_bins":
                rows.append([name.replace("_", " "), score, everything])
        if (deepfool := self.get("deepfool")) is not None:
            rows.append(["DeepFool, mean L2 norm in [0, 1]", deepfool["score_unit_range"], deepfool["n_images"]])
        if (pgd := self.get("pgd")) is not None:
            for norm, name in (("linf", "L-inf"), ("l2", "L2")):
                title = f"accuracy, PGD {name} {pgd[norm]['eps_unit_range']:.4g} in [0, 1], {pgd['steps']} steps"
                rows.append([title, pgd[norm]["accuracy"], pgd["n_images"]])
        if (corruptions := self.get("corruptions")) is not None:
            rows.append(["accuracy, C-style corruptions", corruptions["mean_accuracy"], corruptions["n_images"]])
        return text_table([["", "score", "images"], *([name, f"{score:.4f}", f"{n:,}"] for name, score, n in rows)])


def evaluate(
    model: nn.Module,
    images: Tensor | Loader,
    labels: Tensor | None = None,
    *,
    bounds: Bounds | None = None,
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
) -> Scores:
    """Accuracy, calibration, blur, DeepFool, PGD and C-style corruptions of a classifier on test images.

    Accuracy, calibration and blurred accuracy use all images; each of the others the first ones, and 0 leaves it out.

    Args:
        model: Images to logits ``[B, K]``; stays on its device.
        images: Float ``[N, C, H, W]`` within ``bounds``; or a loader of ``(images, labels)``, which is read once.
        labels: Class indices ``[N]``; None with a loader.
        bounds: The values of black and white in ``images``, such as ``(0, 1)``; where the model takes images with
            another mean and deviation for each channel, two lists with a number per channel. None: ``(-1, 1)``, refused
            where no value is below 0.
        deepfool_images: Number of images for DeepFool (the paper: 5,000), over the 10 likeliest classes.
        sigmas: Widths for the blur sweep, in pixels; empty: no sweep.
        pgd_images: Number of images for PGD, in both norms, from one random start.
        pgd_steps: Steps of PGD.
        linf_eps: Radius of its L-inf ball, in units of images in [0, 1].
        l2_eps: Radius of its L2 ball, in the same units.
        corruption_images: Number of images for corruptions.
        severities: Severities of the corruptions.
        seed: Seed of PGD's starts and of the corruptions' noise.
        device: Where images are moved to; None: the device of the model's parameters.
        progress: Show a progress bar for each part.

    Returns:
        A dictionary that prints as a table and has ``to_json()``: ``accuracy``, ``blurred_accuracy`` (kernel 5, sigma
        5), ``deepfool_score`` (in units of ``bounds``; of images in [0, 1] where ``bounds`` are per channel), and
        beside them ``calibration``, ``blur_sweep``, ``deepfool`` (in both units, over all and over correctly
        classified images, with counts), ``pgd``, ``corruptions``, the number of images and the ``seconds`` of each. A
        mean over no image is None.

    Raises:
        ValueError: ``images`` are not a finite float batch within ``bounds``, ``labels`` are not class indices for
            them, ``bounds`` are missing for images without a value below 0, or a score refuses its settings.
        TypeError: ``model`` is not a module, or labels came beside a loader.

    Warns:
        UserWarning: The model returns probabilities in the place of logits.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> found = evaluate(net, torch.rand(5, 3, 4, 4), torch.arange(5), bounds=(0, 1), corruption_images=0)
        >>> sorted(found)[:4]
        ['accuracy', 'blur_sweep', 'blurred_accuracy', 'bounds']
    """
    check_model(model)
    if not isinstance(images, Tensor) and labels is not None:
        raise TypeError("a loader gives the labels itself: leave labels out, or pass images as a tensor")
    if not isinstance(images, Tensor) or labels is None:
        images, labels = (torch.cat(column) for column in zip(*batches(images), strict=True))
    check_images(images)
    labels = class_indices(labels, len(images))
    span = Range.of(bounds, images)
    counts = {"deepfool_images": deepfool_images, "pgd_images": pgd_images, "corruption_images": corruption_images}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be at least 0: got {count}")
    check_list("sigmas", sigmas, may_be_empty=True)
    if corruption_images:
        check_list("severities", severities)
    radii: dict[Norm, float] = {"linf": linf_eps, "l2": l2_eps}
    for norm, eps in radii.items():
        check_eps(eps, norm)
    found: dict[str, Any] = {"test_images": len(images), "bounds": span.to_list()}
    if isinstance(span.low, Tensor):
        model, images, span = FromUnit(model, span, images.dtype), span.to_unit(images).clamp(0, 1), Range(0.0, 1.0)
    size = BATCH if torch.device(device_of(model, device)).type == "cpu" else BATCH_ELSEWHERE

    def first(count: int) -> Batches:
        return list(zip(images[:count].split(size), labels[:count].split(size), strict=True))

    how: dict[str, Any] = {"bounds": (span.low, span.high), "seed": seed, "device": device, "progress": progress}
    parts: dict[str, tuple[int, Callable[[Batches], dict[str, Any]]]] = {
        "accuracy": (len(images), partial(_clean, model, device=device)),
        "blur": (len(images), partial(_blur, model, sigmas=sigmas, device=device)),
        "deepfool": (deepfool_images, partial(_deepfool, model, span=span, device=device, progress=progress)),
        "pgd": (pgd_images, partial(_pgd, model, radii=radii, steps=pgd_steps, **how)),
        "corruptions": (corruption_images, partial(_corruptions, model, severities=severities, **how)),
    }
    seconds = {}
    with warning_once():
        for name, (count, part) in parts.items():
            if count > 0:
                started = time.perf_counter()
                found.update(part(first(count)))
                seconds[name] = round(time.perf_counter() - started, 2)
    return Scores(found, seconds=seconds)


def _clean(model: nn.Module, test: Batches, *, device: Any) -> dict[str, Any]:
    logits, labels = logits_of(model, test, device=device)
    scores = {
        "expected_calibration_error": calibration.expected_calibration_error(logits, labels, NUM_BINS),
        "num_bins": NUM_BINS,
        "brier_score": calibration.brier_score(logits, labels),
        "negative_log_likelihood": calibration.negative_log_likelihood(logits, labels),
    }
    return {"accuracy": share_right(logits, labels), "calibration": scores}


def _blur(model: nn.Module, test: Batches, *, sigmas: Sequence[float], device: Any) -> dict[str, Any]:
    by_sigma = blur_sweep(model, test, sorted({SIGMA, *sigmas}), kernel_size=KERNEL_SIZE, device=device)
    accuracy = [by_sigma[sigma] for sigma in sigmas]
    sweep = {"kernel_size": KERNEL_SIZE, "sigmas": [float(sigma) for sigma in sigmas], "accuracy": accuracy}
    return {"blurred_accuracy": by_sigma[SIGMA], **({"blur_sweep": sweep} if len(sigmas) else {})}


def _deepfool(model: nn.Module, test: Batches, *, span: Range, device: Any, progress: bool) -> dict[str, Any]:
    num_classes = logits_of(model, [(test[0][0][:1], test[0][1][:1])], device=device)[0].shape[1]
    num_classes = min(DEEPFOOL_CLASSES, num_classes)
    score = deepfool_score(model, test, num_classes=num_classes, device=device, progress=progress)
    unit = score.in_unit_range((span.low, span.high))
    scores = {
        "score_correct": score.score_correct,
        "score_unit_range": unit.score,
        "score_correct_unit_range": unit.score_correct,
    }
    record = {
        **asdict(score),
        "input_size": list(score.input_size),
        "input_range": list(score.input_range),
        **{name: value if math.isfinite(value) else None for name, value in scores.items()},
        "units": f"[{span.low:g}, {span.high:g}]",
    }
    return {"deepfool_score": score.score, "deepfool": record}


def _pgd(
    model: nn.Module, test: Batches, *, radii: dict[Norm, float], steps: int, seed: int, **how: Any
) -> dict[str, Any]:
    black, white = how["bounds"]
    record: dict[str, Any] = {"n_images": _num_images(test), "steps": steps, "restarts": 1, "seed": seed}
    for norm, eps in radii.items():
        accuracy = pgd_accuracy(model, test, eps=eps * (white - black), norm=norm, steps=steps, seed=seed, **how)
        record[norm] = {"eps_unit_range": eps, "accuracy": accuracy}
    return {"pgd": record}


def _corruptions(
    model: nn.Module, test: Batches, *, severities: Sequence[int], seed: int, **how: Any
) -> dict[str, Any]:
    accuracies = corruption_accuracy(model, test, severities=severities, seed=seed, **how)
    record = {"n_images": _num_images(test), "severities": [int(severity) for severity in severities], "seed": seed}
    mean = statistics.fmean(accuracy for row in accuracies.values() for accuracy in row)
    return {"corruptions": {**record, "mean_accuracy": mean, "accuracy": accuracies}}


def _num_images(test: Batches) -> int:
    return sum(len(labels) for _, labels in test)
