"""timm's parts put together as its train.py does, with latent mixup in it: its loaders, losses, optimiser, schedule.

In train.py itself the same two lines are added: see the README. The images are the bundled ones.

python examples/timm_train.py
python examples/timm_train.py --no-prefetcher --loss bce --mixup-off-epoch 1
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image
from timm.data import create_loader
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from latent_mixup.bundled import BundledImages
from latent_mixup.integrations.timm import use_latent_mixup

MEAN, STD = (0.286,), (0.353,)  # Fashion-MNIST's
LOSSES = {"ce": SoftTargetCrossEntropy, "bce": BinaryCrossEntropy}


class Pictures(Dataset[tuple[Any, int]]):
    """The bundled images as timm's data sets give them: PIL pictures, and a ``transform`` that its loader sets."""

    def __init__(self, train: bool, count: int) -> None:
        source = BundledImages("fashion-mnist", train=train)
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:count]
        self.images, self.labels = source.data[order], source.targets[order]
        index = source.source_index  # tells a bank which images these are; of the test images it has none
        self.source_index = None if index is None else index[order]
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture: Image.Image = to_pil_image(self.images[index])
        return self.transform(picture), int(self.labels[index])


def main(arguments: argparse.Namespace) -> float:
    random_seed(0)
    arguments.prefetcher = not arguments.no_prefetcher
    model = create_model(arguments.model, num_classes=10, in_chans=1)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    data_config = {"mean": MEAN, "std": STD}
    shared: dict[str, Any] = {
        "input_size": (1, 28, 28),
        "batch_size": arguments.batch_size,
        "use_prefetcher": arguments.prefetcher,
        "num_workers": arguments.workers,
        "device": torch.device(arguments.device),
        **data_config,
    }
    train: Any = create_loader(
        Pictures(True, arguments.count), is_training=True, scale=(0.7, 1.0), color_jitter=None, **shared
    )
    test = create_loader(Pictures(False, 500), is_training=False, crop_pct=1.0, **shared)

    # The line that is added. With the prefetcher ``mixup_fn`` is None. The third is train.py's ``mixup_active``: the
    # targets are soft, and smoothed already, hence a loss for soft targets.
    train, mixup_fn, _ = use_latent_mixup(train, arguments, data_config, "fashion-mnist", prob=0.5)

    loss_fn = LOSSES[arguments.loss]()
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=arguments.epochs, warmup_epochs=0)
    top1 = 0.0
    for epoch in range(epochs):
        if arguments.mixup_off_epoch and epoch >= arguments.mixup_off_epoch:
            if arguments.prefetcher and train.mixup_enabled:
                train.mixup_enabled = False
            elif mixup_fn is not None:
                mixup_fn.mixup_enabled = False
        losses, mixed = AverageMeter(), AverageMeter()
        model.train()
        for images, targets in train:
            if mixup_fn is not None:
                images, targets = mixup_fn(images, targets)
            loss = loss_fn(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            two = (targets > targets.min(1, keepdim=True).values + 1e-6).sum(1) > 1
            mixed.update(two.float().mean().item(), len(images))
        scheduler.step(epoch + 1)
        top1 = evaluate(model, test)
        print(f"Train: {epoch}  loss {losses.avg:.3f}  of two classes {mixed.avg:.0%}  Acc@1: {top1:.1f}")
    return top1


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: Any) -> float:
    model.eval()
    top1 = AverageMeter()
    for images, labels in loader:
        top1.update(accuracy(model(images), labels)[0].item(), len(images))
    return float(top1.avg)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.set_defaults(device="cpu", mixup=0.0, cutmix=0.0, cutmix_minmax=None)  # train.py has options for them
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--loss", choices=list(LOSSES), default="ce")
    parser.add_argument("--no-prefetcher", action="store_true")
    parser.add_argument("--mixup-off-epoch", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000, help="training images used")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
