"""``latent-mixup demo``: the main job on what comes with the package, in a few minutes on two cores."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latent_mixup import files
from latent_mixup.bank import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.demo.comparison import CODE_METHODS, METHODS, Budget, Codes, Data, circumstances, train_and_score
from latent_mixup.generators import load_generator
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mix_sheet

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
        seed: Of everything that is drawn.
        budget: What every method gets.
        progress: Show a progress bar.

    Returns:
        What ``demo.json`` holds.
    """
    started = time.perf_counter()
    data, codes = bundled_data(), bundled_codes()
    files.write_folder(out, {"mixes.png": demo_sheet(data, codes)})
    steps = budget.steps(data.train_images)
    results = []
    with tqdm(total=len(METHODS) * steps, unit="step", disable=None if progress else True) as bar:
        for method in METHODS:
            bar.set_description(method)
            used = codes if method in CODE_METHODS else None
            results.append(train_and_score(method, data, used, budget, seed=seed, on_step=bar.update))
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
    rows, partners = torch.randint(len(codes.bank), (2, 16), generator=torch.Generator().manual_seed(0))
    own, other = codes.bank[rows][0], codes.bank[partners][0]
    return mix_sheet(codes.generator, own, other, data.train_images[rows], data.train_images[partners])


def demo_table(record: dict[str, Any]) -> str:
    """The results as a table of text."""
    shown, test = record["results"], record["results"][0]["test_images"]
    lines = [
        f"{record['dataset']}: {record['train_images']:,} training images, {shown[0]['steps']:,} steps of "
        f"{record['budget']['batch_size']} each, seed {shown[0]['seed']}",
        "",
        f"{'':24}{'accuracy':>10}{'blurred':>10}{'DeepFool':>10}",
    ]
    for row in shown:
        lines.append(
            f"{row['method']:24}{row['accuracy']:10.4f}{row['blurred_accuracy']:10.4f}{row['deepfool_score']:10.3f}"
        )
    deepfool = shown[0]["deepfool"]
    lines += [
        "",
        f"accuracy and blurred accuracy (kernel 5, sigma 5): {test:,} test images. DeepFool: mean L2 norm of the",
        f"smallest fooling perturbation found, in units of {deepfool['units']}, first {deepfool['n_images']:,} images.",
        "decoded: codes decoded without mixing, the control. One seed is one seed: see the README for several.",
    ]
    return "\n".join(lines)
