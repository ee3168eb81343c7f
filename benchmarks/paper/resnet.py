"""CIFAR-10 as table 1 has it: the images, the ResNet-18, its augmentation and its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from latent_mixup.cli.shared import torchvision_dataset
from latent_mixup.demo.comparison import Budget, Codes, Data, Method, Run, seeded
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.sampling import keyed_generator

CROP = 28  # pixels: what the paper's augmentation leaves of 32


class JPEGs(torch.utils.data.Dataset[tuple[Any, int]]):
    """A folder of 32x32 images for each class, read into memory once, in the form of torchvision's ``CIFAR10``.

    The first image of every class comes first, then the second of each, so that the first ``n`` are of all classes. The
    order is not torchvision's.

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
    """CIFAR-10 in torchvision's files or, where ``root`` has none, in JPEGs.

    Raises:
        FileNotFoundError: ``root`` has neither.
    """
    jpegs = root / "cifar10-jpeg" / ("train" if train else "test")
    if (root / "cifar-10-batches-py").is_dir():
        return torchvision_dataset("cifar10", root, train=train)
    if not jpegs.is_dir():
        raise FileNotFoundError(f"{root} has no CIFAR-10: expected {root / 'cifar-10-batches-py'} or {jpegs.parent}")
    return JPEGs(jpegs)


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
