"""torchvision's way of mixing: a call on (images, labels), in a collate_fn or after the loader, chained with v2.CutMix.

In torchvision's own reference scripts the line that makes ``mixup_cutmix`` is the one to replace.

python examples/torchvision_v2.py
python examples/torchvision_v2.py --where after
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.images import to_unit

MEAN, STD = [0.286], [0.353]  # Fashion-MNIST's


def main(where: str = "collate", epochs: int = 2, max_batches: int | None = None) -> float:
    torch.manual_seed(0)
    normalise = v2.Compose([to_unit, v2.Normalize(MEAN, STD)])
    augment = v2.Compose([normalise, v2.RandomHorizontalFlip(), v2.RandomCrop(28, padding=2)])

    images = BundledImages("fashion-mnist", transform=augment)
    generator, bank = lm.load("fashion-mnist")
    mixup = lm.LatentMixupCollate(generator, bank, dataset=images, prob=0.5, normalize=(MEAN, STD))  # was v2.MixUp
    cutmix = v2.CutMix(num_classes=10)  # takes soft targets, and ours takes its
    mixup_cutmix = v2.RandomChoice([mixup, cutmix, lambda images, labels: cutmix(*mixup(images, labels))])

    def collate_fn(samples: list[Any]) -> Any:
        return mixup_cutmix(*default_collate(samples))

    train: DataLoader[Any] = DataLoader(
        images, batch_size=64, shuffle=True, collate_fn=collate_fn if where == "collate" else None
    )
    test = DataLoader(BundledImages("fashion-mnist", train=False, transform=normalise), batch_size=500)

    model = PaperCNN()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)  # takes soft targets as they are
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        model.train()
        for number, (batch, targets) in enumerate(train):
            if where == "after":
                batch, targets = mixup_cutmix(batch, targets)
            step(model, criterion, optimizer, batch, targets)
            if max_batches and number + 1 >= max_batches:
                break
        accuracy = lm.robustness.accuracy(model, test)
        print(f"epoch {epoch + 1}: targets {list(targets.shape)}, accuracy on real test images {accuracy:.4f}")
    return accuracy


def step(model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    criterion(model(images), y).backward()
    optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", choices=["collate", "after"], default="collate")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-batches", type=int, help="stop each epoch early")
    arguments = parser.parse_args()
    main(arguments.where, arguments.epochs, arguments.max_batches)
