r"""CIFAR-10: table 1 of the paper.

The full protocol (40,000 training images, ResNet-18, 270 epochs of batch 32, seeds 42, 4711 and 314159, with --augment
the lower half of the table) is for GPUs and for NVIDIA's StyleGAN2, converted, with its banks. Under torchrun each
process takes the next trial that nobody has, on a GPU of its own:

    torchrun --nproc_per_node 4 benchmarks/cifar10.py --data-root data --preset full --device cuda \
        --codes gan=GENERATOR:BANK --codes gan_0.025=GENERATOR:BANK --codes gan_0.020=GENERATOR:BANK

``reduced``, the default, is what a CPU can do in an afternoon: a ResNet-18 of a quarter of the width, 10,000 training
images, 12 epochs at batch 64, and a compact generator that is trained here, on no other images than the classifiers. It
shows that the whole pipeline works and how the methods compare at that budget; its numbers do not belong beside the
paper's. Where --data-root has ``cifar10-jpeg/`` instead of torchvision's files, images come from JPEGs, and the results
say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import running
import timm
import torch
from codes import MAKERS, Effort, Workshop
from methods import methods as fixed_methods
from rows import RESULTS, SEARCHED
from settings import searched
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from trials import Benchmark, Classifier, Preset, split, stored_codes

from latent_mixup import LatentBank, load_generator
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.demo.comparison import Budget, Codes, Data, Method, Run, seeded
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.sampling import keyed_generator

CROP = 28  # pixels: what the paper's augmentation leaves of 32
COMPACT = {"z_dim": 256, "network": {"decoder_widths": (1024, 1024), "encoder_widths": (1024, 1024)}}
METHODS = {  # all but the paper's GAN for the MNIST family, and the policy that was searched, untouched
    name: (how, codes)
    for name, (how, codes) in fixed_methods(1.0, searched(RESULTS / SEARCHED)).items()
    if codes != "dcgan"
}
CODES = list(dict.fromkeys(codes for _, codes in METHODS.values() if codes))


# ---- images ----------------------------------------------------------------------------------------


class JPEGs(torch.utils.data.Dataset[tuple[Any, int]]):
    """A folder of 32x32 images for each class, read into memory once; in the form of torchvision's ``CIFAR10``.

    The first image of every class comes first, then the second of each: the first so many are of all classes.

    Attributes:
        data: ``[N, 32, 32, 3]`` uint8.
        targets: ``[N]`` int64.
    """

    def __init__(self, folder: Path) -> None:
        files = ImageFolder(str(folder))
        targets = torch.tensor(files.targets)
        place_in_class = nn.functional.one_hot(targets).cumsum(0)[torch.arange(len(targets)), targets]
        order = place_in_class.argsort(stable=True)
        data = torch.stack([v2.functional.pil_to_tensor(image) for image, _ in files]).permute(0, 2, 3, 1)
        self.data, self.targets = data[order], targets[order]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.data[index].numpy(), int(self.targets[index])


@cache
def cifar10(root: Path, *, train: bool) -> Any:
    """CIFAR-10 as torchvision has it, or from JPEGs where ``root`` has no more.

    Raises:
        FileNotFoundError: It has neither.
    """
    jpegs = root / "cifar10-jpeg" / ("train" if train else "test")
    original = (root / "cifar-10-batches-py").is_dir() or not jpegs.is_dir()
    return torchvision_dataset("cifar10", root, train=train) if original else JPEGs(jpegs)


# ---- the classifier --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a ResNet is trained.

    Attributes:
        width: Channels of its first stage; 64 is ResNet-18.
        plateau: The paper's schedule: a tenth of the learning rate after ten epochs without a better validation
            loss. False: straight down to zero.
        augment: Flips, AutoAugment, and a crop to 28x28; the middle 28x28 of a test image, but blurred images whole.
    """

    width: int = 64
    plateau: bool = True
    augment: bool = False


def resnet18(num_classes: int, plan: Plan) -> nn.Module:
    """ResNet-18 whose first convolution is 3x3 with stride 1; its max-pool of stride 2 stays, as in the paper."""
    widths = tuple(plan.width * factor for factor in (1, 2, 4, 8))
    model: Any = timm.create_model("resnet18", num_classes=num_classes, channels=widths)
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
    network: nn.Module = model.to(memory_format=torch.channels_last)
    return nn.Sequential(v2.CenterCrop(CROP), network) if plan.augment else network


def whole(model: nn.Module) -> nn.Module:
    """The network without the crop before it."""
    return model[-1] if isinstance(model, nn.Sequential) else model


def resnet_points(model: nn.Module) -> list[nn.Module | None]:
    """Where the paper mixes hidden layers: the input, the stem, and the first three stages."""
    resnet: Any = whole(model)
    return [None, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3]


def train_resnet(
    method: Method,
    data: Data,
    codes: Codes | None,
    budget: Budget,
    *,
    seed: int,
    plan: Plan,
    validation: Data,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> nn.Module:
    """SGD with momentum 0.9 and weight decay 1e-4, as in the paper; images are augmented before they are mixed."""
    with seeded(seed, device):
        model = resnet18(data.num_classes, plan).to(device)
        run = Run(
            data.training_on(device),
            codes and codes.decode_on(device),
            budget,
            seed,
            model,
            resnet_points(model),
            Augmentation(seed) if plan.augment else None,
        )
        batches, loss = method(run)
        optimizer = torch.optim.SGD(model.parameters(), lr=budget.lr, momentum=0.9, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
        model.train()
        for step, (images, targets) in enumerate(batches, start=1):
            if not plan.plateau:
                optimizer.param_groups[0]["lr"] = budget.lr * (1 - (step - 1) / run.steps)
            optimizer.zero_grad()
            loss(model, images, targets.to(device)).backward()
            optimizer.step()
            if plan.plateau and step % run.steps_per_epoch == 0:
                scheduler.step(validation_loss(model, validation, device))
            if on_step:
                on_step()
    return model.eval()


class Augmentation:
    """AutoAugment for CIFAR-10, a flip and a crop to 28x28 of an image ``[3, 32, 32]`` in [-1, 1].

    The draws of an image depend on (``seed``, its number in the run) alone.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._numbers = seed, count()
        self._change = v2.Compose(
            [v2.RandomHorizontalFlip(), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.RandomCrop(CROP)]
        )

    def __call__(self, image: Tensor) -> Tensor:
        """``[3, 28, 28]`` in [-1, 1]."""
        draw = keyed_generator("augment", self._seed, next(self._numbers))
        with seeded(int(torch.randint(2**31, (), generator=draw))):
            return from_uint8(self._change(to_uint8(image[None]))[0])


@torch.no_grad()
def validation_loss(model: nn.Module, validation: Data, device: torch.device | str) -> float:
    """Mean cross-entropy on the validation images; the model goes back to training mode."""
    model.eval()
    total = sum(
        float(nn.functional.cross_entropy(model(images.to(device)), labels.to(device), reduction="sum"))
        for images, labels in zip(validation.test_images.split(500), validation.test_labels.split(500), strict=True)
    )
    model.train()
    return total / len(validation.test_labels)


# ---- codes -----------------------------------------------------------------------------------------


def given_codes(pairs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """``NAME=GENERATOR:BANK`` to name, generator and bank.

    Raises:
        click.BadParameter: A pair has another form, or a name is not one of :data:`CODES`.
    """
    found = {}
    for pair in pairs:
        name, equals, where = pair.partition("=")
        generator, colon, bank = where.partition(":")
        if not (equals and colon and generator and bank) or name not in CODES:
            raise click.BadParameter(f"expected NAME=GENERATOR:BANK with a name of {', '.join(CODES)}: got {pair!r}")
        found[name] = (generator, bank)
    return found


# ---- the command line ------------------------------------------------------------------------------


REDUCED = Effort(compact_steps=7500, vae_steps=3000, steps=60, refine_steps=400, images=12_500)
PLANS = {
    "reduced": (Budget(epochs=12, lr=0.1), Plan(width=16, plateau=False), REDUCED),
    "full": (Budget(epochs=270, batch_size=32, lr=0.1), Plan(), Effort()),
}
PAPER_SEEDS = "42,4711,314159"


@click.command()
@click.option(
    "--data-root", type=FOLDER, required=True, help="Where torchvision finds CIFAR-10, or cifar10-jpeg/ lies."
)
@click.option("--work", type=FOLDER, help="For codes and classifiers; default: runs/cifar10.")
@click.option("--out", type=FOLDER, help="For results; default: benchmarks/results/cifar10.")
@click.option("--preset", "name", type=click.Choice(list(PLANS)), default="reduced", show_default=True)
@click.option("--methods", help=f"With commas between; default: all of {', '.join(METHODS)}.")
@click.option("--seeds", default=PAPER_SEEDS, show_default=True)
@click.option("--augment", is_flag=True, help="Flips, AutoAugment and crops: the lower half of table 1.")
@click.option("--codes", multiple=True, metavar="NAME=GENERATOR:BANK", help="Instead of making the codes of that name.")
@running.options
def main(
    data_root: Path,
    work: Path | None,
    out: Path | None,
    name: str,
    methods: str | None,
    seeds: str,
    augment: bool,
    codes: tuple[str, ...],
    grid: bool,
    threads: int | None,
    device: str,
    tf32: bool,
    **given: int | None,
) -> None:
    """Train and score each method with each seed; several processes share the work."""
    device = running.set_up(device, threads, tf32=tf32)
    own, plan, effort = PLANS[name]
    budget, preset = running.changed(own, **given), f"{name}_augmented" if augment else name
    bench = benchmark(
        preset,
        budget,
        replace(plan, augment=augment),
        effort,
        data_root,
        work or Path("runs/cifar10"),
        out or RESULTS / "cifar10",
        given_codes(codes),
        device,
        running.folder_of(preset, own, budget),
    )
    running.run_all(bench, methods, seeds, grid=grid)


def benchmark(
    name: str,
    budget: Budget,
    plan: Plan,
    effort: Effort,
    data_root: Path,
    work: Path,
    out: Path,
    given: dict[str, tuple[str, str]],
    device: str = "cpu",
    folder: str = "",
) -> Benchmark:
    """The benchmark under a preset called ``name``; ``given``: generator and bank of codes that are not made here."""
    train, test = (cifar10(data_root, train=part) for part in (True, False))
    images = split("cifar10", train, test, effort.images)
    shop = Workshop("cifar10", train, work, effort, COMPACT, device)

    def make(wanted: str) -> Codes:
        if wanted not in given:
            return MAKERS[wanted](shop)
        generator, bank = given[wanted]
        codes = Codes(load_generator(generator), LatentBank.from_pretrained(bank))
        codes.bank.check(codes.generator)
        return codes

    classifier = Classifier(
        partial(resnet18, plan=plan), partial(train_resnet, plan=plan, validation=images.validation), whole
    )
    facts = {
        "images": "JPEG" if isinstance(train, JPEGs) else "original",
        "classifier": f"ResNet-18, width {plan.width}",
        "augment": plan.augment,
    }
    scores = {"deepfool_images": 1000 if name.startswith("reduced") else 5000}
    preset = Preset(budget, METHODS, classifier, facts=facts, scores=scores, folder=folder)
    return Benchmark(images, name, preset, stored_codes(make, images, out), work, out, device)


if __name__ == "__main__":
    main()
