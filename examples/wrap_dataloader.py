"""Your own data set and your own DataLoader: invert the images once, then change one line.

The images here are the package's test images, in the place of your own; with another data set pass a generator of
its own kind (``latent-mixup train-generator``, or ``latent_mixup.generators.wrap(your_decoder, ...)``).

python examples/wrap_dataloader.py --out my-bank
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.images import to_unit


class MyImages(Dataset[tuple[torch.Tensor, int]]):
    """Any map-style data set of (image, int label); its images are normalised in its own way."""

    def __init__(self, images_uint8: torch.Tensor, labels: torch.Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images_uint8, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def main(out: Path, count: int = 500, steps: int = 100, epochs: int = 2) -> lm.LatentBank:
    torch.manual_seed(0)
    source = BundledImages("fashion-mnist", train=False)
    images, labels = source.data[:count], source.targets[:count]

    # Once: find the latent code of every image, as uint8 without augmentation. A killed run resumes from `out`.
    generator = lm.load_generator("fashion-mnist")
    plain = MyImages(images, labels, v2.Identity())
    bank = lm.invert(plain, generator, steps=steps, out=out)

    # Your script: images in [0, 1], normalised. `to_mine` brings decoded images, in [-1, 1], to the same range.
    normalise = v2.Normalize(mean=[0.286], std=[0.353])
    to_mine = v2.Compose([to_unit, normalise])
    mine = MyImages(images, labels, v2.Compose([v2.ToDtype(torch.float32, scale=True), normalise]))
    loader = DataLoader(mine, batch_size=50, shuffle=True)
    mixed = lm.LatentMixupLoader(loader, generator, bank, prob=0.5, transform=to_mine)  # the line that changes

    model = PaperCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for batch, targets in mixed:
            loss = F.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    return bank


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("my-bank"), help="folder for the bank")
    parser.add_argument("--count", type=int, default=500, help="images used")
    parser.add_argument("--steps", type=int, default=100, help="gradient steps an image")
    arguments = parser.parse_args()
    bank = main(arguments.out, arguments.count, arguments.steps)
    print(f"{bank} in {arguments.out}, mean mse {bank.mse.mean() if bank.mse is not None else float('nan'):.4f}")
