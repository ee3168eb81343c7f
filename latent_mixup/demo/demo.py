"""``latent-mixup demo``: latent mixup beside other methods on the bundled data, in a few minutes on two cores."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latent_mixup import files
from latent_mixup.bank import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.demo.comparison import CODE_METHODS, METHODS, Budget, Codes, Data, circumstances, train_and_score
from latent_mixup.generators import load_generator
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mix_sheet, text_table
from latent_mixup.runs import Progress

NAME = "fashion-mnist"
BUDGET = Budget(epochs=6, deepfool_images=500)


def bundled_data() -> Data:
    """The 10,000 training and 2,000 test images that come with the package."""
    train, test = BundledImages(NAME, train=True), BundledImages(NAME, train=False)
    return Data(from_uint8(train.data), train.targets, from_uint8(test.data), test.targets)


def bundled_codes() -> Codes:
    """The generator and the bank of 10,000 codes that come with the package."""
    return Codes(load_generator(NAME), LatentBank.from_pretrained(NAME))


def run_demo(out: Path, *, seed: int = 0, budget: Budget = BUDGET, progress: bool = True) -> dict[str, Any]:
    """Train the paper's small classifier in every way on equal budgets; write ``demo.json`` and ``mixes.png``.

    Args:
        out: Folder for the two files.
        seed: Seed of all draws.
        budget: Training budget of every method.
        progress: Show a progress bar on a terminal, elsewhere a line a minute.

    Returns:
        The content of ``demo.json``.
    """
    started = time.perf_counter()
    data, codes = bundled_data(), bundled_codes()
    files.write_folder(out, {"mixes.png": demo_sheet(data, codes)})
    steps = budget.steps(data.train_images)
    results = []
    with Progress(len(METHODS) * steps, "demo", "steps", show=progress) as bar:
        for method in METHODS:
            used = codes if method in CODE_METHODS else None
            advance = partial(bar.advance, 1, method)
            results.append(train_and_score(method, data, used, budget, seed=seed, on_step=advance))
    record = {
        "dataset": NAME,
        "train_images": len(data.train_images),
        "results": results,
        **circumstances(codes, budget),
        "seconds": round(time.perf_counter() - started, 1),
    }
    files.write_folder(out, {"demo.json": (json.dumps(record, indent=2) + "\n").encode()})
    return record


def demo_sheet(data: Data, codes: Codes) -> bytes:
    """A PNG of sixteen bank rows, their partners and their mixes. Bank rows and bundled images are in one order."""
    rows, partners = torch.randint(len(codes.bank), (2, 16), generator=torch.Generator().manual_seed(0), device="cpu")
    own, other = codes.bank[rows][0], codes.bank[partners][0]
    return mix_sheet(codes.generator, own, other, data.train_images[rows], data.train_images[partners])


def demo_table(record: dict[str, Any]) -> str:
    """The results as a table of text."""
    shown = record["results"]
    deepfool = shown[0]["deepfool"]
    numbers = [
        (row["method"], f"{row['accuracy']:.4f}", f"{row['blurred_accuracy']:.4f}", f"{row['deepfool_score']:.3f}")
        for row in shown
    ]
    return f"""\
{record["dataset"]}: {record["train_images"]:,} training images, {shown[0]["steps"]:,} steps of \
{record["budget"]["batch_size"]} each, seed {shown[0]["seed"]}

{text_table([("", "accuracy", "blurred", "DeepFool"), *numbers])}

accuracy and blurred accuracy (kernel 5, sigma 5): {shown[0]["test_images"]:,} test images. DeepFool: mean L2 norm
of the smallest fooling perturbation found, in units of {deepfool["units"]}, first {deepfool["n_images"]:,} images.
decoded: codes decoded without mixing, the control. One seed is one seed: see the README for several."""
