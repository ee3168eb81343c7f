"""Is DeepFool on a batch the same as one image at a time, and how much faster is it?

The paper's small classifier, trained on Fashion-MNIST for two epochs, and the first 1,000 test images in [-1, 1]: the
norms, perturbations and steps of ``latent_mixup.robustness.deepfool`` beside those of a plain loop over images, and of
foolbox where it is installed. In float64 only the method can make a difference; in float32 an image on the kink of a
ReLU may go the other way. The three take turns on blocks of images in float32, and the ratio is taken block by block,
so that a machine whose speed drifts does not decide.

    python benchmarks/speed/deepfool.py --data-root data --out benchmarks/results/deepfool.json
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm

from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import torchvision_dataset
from latent_mixup.images import from_uint8
from latent_mixup.robustness import accuracy, deepfool
from latent_mixup.training.classifier import shuffled_batches, train_classifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, data_option, out_option, publish

NUM_CLASSES, OVERSHOOT, MAX_ITER = 10, 0.02, 50  # the paper's
BLOCK, BATCH = 128, 64  # images at a time: side by side, and in training

Attack: TypeAlias = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]  # perturbations, steps


def batched(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """``latent_mixup.robustness.deepfool``."""
    found = deepfool(model, images, num_classes=NUM_CLASSES, overshoot=OVERSHOOT, max_iter=MAX_ITER)
    return found.perturbations, found.iterations


def one_by_one(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Algorithm 2 of the DeepFool paper, image after image, a backward pass for each class."""
    found = [one_image(model, image) for image in images]
    return torch.stack([r for r, _ in found]), torch.tensor([steps for _, steps in found])


def one_image(model: nn.Module, image: Tensor) -> tuple[Tensor, int]:
    """The perturbation of ``image`` ``[C, H, W]``, overshoot included, and the steps taken."""
    total, steps = torch.zeros_like(image), 0
    x = image.clone().requires_grad_()
    logits = model(x[None])[0]
    own, *others = logits.argsort(descending=True, stable=True)[:NUM_CLASSES].tolist()
    while steps < MAX_ITER and int(logits.argmax()) == own:
        gradients = {k: torch.autograd.grad(logits[k], x, retain_graph=True)[0] for k in (own, *others)}
        nearest, step = float("inf"), torch.zeros_like(image)
        for k in others:
            normal = gradients[k] - gradients[own]
            distance = abs(logits[k].item() - logits[own].item()) / normal.norm().item()
            if distance < nearest:
                nearest, step = distance, (distance + 1e-4) * normal / normal.norm()
        total, steps = total + step, steps + 1
        x = (image + (1 + OVERSHOOT) * total).requires_grad_()
        logits = model(x[None])[0]
    return (1 + OVERSHOOT) * total, steps


def foolbox_batched(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Foolbox with the same settings: its labels are the predictions, and its bounds clip nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names of SciPy that are going away
        from foolbox.attacks.deepfool import L2DeepFoolAttack
        from foolbox.models.pytorch import PyTorchModel

        wrapped = PyTorchModel(model, bounds=(-1e6, 1e6), device="cpu")
        attack = L2DeepFoolAttack(steps=MAX_ITER, candidates=NUM_CLASSES, overshoot=OVERSHOOT)
        fooling, _, _ = attack(wrapped, images, model(images).argmax(1), epsilons=None)
    return fooling - images, None


def agreement(reference: tuple[Tensor, Tensor | None], found: tuple[Tensor, Tensor | None]) -> dict[str, Any]:
    """How far perturbations are from those of the loop over images."""
    own, other = (perturbations.double().flatten(1) for perturbations, _ in (reference, found))
    norms, others = own.norm(dim=1), other.norm(dim=1)
    record: dict[str, Any] = {
        "mean_norm": others.mean().item(),
        "largest_norm_difference": (norms - others).abs().max().item(),
        "largest_relative_norm_difference": ((norms - others).abs() / norms).max().item(),
        "largest_pixel_difference": (own - other).abs().max().item(),
    }
    if reference[1] is not None and found[1] is not None:
        record["share_with_same_steps"] = (reference[1] == found[1]).double().mean().item()
    return record


def side_by_side(
    attacks: dict[str, Attack], model: nn.Module, images: Tensor, title: str
) -> tuple[dict[str, tuple[Tensor, Tensor | None]], dict[str, list[float]]]:
    """Results of each attack, and its milliseconds an image on each block."""
    results: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in attacks}
    milliseconds: dict[str, list[float]] = {name: [] for name in attacks}
    with tqdm(total=len(images), desc=title, unit="image", disable=None) as bar:
        for block in images.split(BLOCK):
            for name, attack in attacks.items():
                started = time.perf_counter()
                results[name].append(attack(model, block))
                milliseconds[name].append(1000 * (time.perf_counter() - started) / len(block))
            bar.update(len(block))
    return {name: joined(parts) for name, parts in results.items()}, milliseconds


def joined(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The blocks of one attack as one."""
    steps = [part for _, part in parts if part is not None]
    return torch.cat([perturbations for perturbations, _ in parts]), torch.cat(steps) if steps else None


def measure(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Agreement in both precisions, and speed in float32."""
    attacks: dict[str, Attack] = {"one_by_one": one_by_one, "batched": batched}
    if importlib.util.find_spec("foolbox"):
        attacks["foolbox"] = foolbox_batched
    for attack in attacks.values():
        attack(model, images[:8])  # warm
    found, milliseconds = side_by_side(attacks, model, images, "float32")
    others = [name for name in attacks if name != "one_by_one"]
    record: dict[str, Any] = {"float32": {name: agreement(found["one_by_one"], found[name]) for name in others}}
    speed_ups = {
        name: [slow / fast for slow, fast in zip(milliseconds["one_by_one"], milliseconds[name], strict=True)]
        for name in attacks
    }
    record["speed"] = {
        name: {
            "milliseconds_an_image": statistics.median(milliseconds[name]),
            "speed_up": statistics.median(speed_ups[name]),
            "least_and_greatest_speed_up": [min(speed_ups[name]), max(speed_ups[name])],
        }
        for name in attacks
    }
    exact, _ = side_by_side(attacks, model.double(), images.double(), "float64")
    record["float64"] = {name: agreement(exact["one_by_one"], exact[name]) for name in others}
    return record


def trained(images: Tensor, labels: Tensor, epochs: int) -> PaperCNN:
    """The paper's classifier and training, in batches of 64 instead of 16; in eval mode and without gradients."""
    per_epoch = len(images) // BATCH
    with torch.random.fork_rng(devices=[]), tqdm(total=epochs * per_epoch, desc="training", disable=None) as bar:
        torch.manual_seed(0)
        model = PaperCNN()
        batches = shuffled_batches(images, labels, BATCH, epochs * per_epoch, seed=0)
        train_classifier(model, batches, decay_every=per_epoch, on_step=bar.update)
    return model.eval().requires_grad_(False)


@click.command()
@data_option
@out_option
@click.option("--images", type=click.IntRange(2), default=1_000, show_default=True, help="The first test images.")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True, help="Training epochs.")
def main(data_root: Path, out: Path, images: int, epochs: int) -> None:
    """Train, compare, print and write."""
    train, test = (torchvision_dataset("fashion-mnist", data_root, train=part) for part in (True, False))
    model = trained(from_uint8(train.data[:, None]), train.targets, epochs)
    tested, labels = from_uint8(test.data[:images, None]), test.targets[:images]
    packages = ["foolbox"] if importlib.util.find_spec("foolbox") else []
    record = {
        "dataset": "fashion-mnist",
        "epochs": epochs,
        "batch_size": BATCH,
        "test_images": len(tested),
        "units": "[-1, 1]",
        "block": BLOCK,
        "accuracy": accuracy(model, [(tested, labels)]),
        **measure(model, tested),
        **circumstances(*packages),
    }
    publish(out, record)


if __name__ == "__main__":
    main()
