"""Train a classifier on mixes of latent codes, on what comes with the package.

python examples/quickstart.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN


def main(epochs: int = 3, max_batches: int | None = None) -> float:
    torch.manual_seed(0)
    train = DataLoader(BundledImages("fashion-mnist", train=True), batch_size=64, shuffle=True)
    test = DataLoader(BundledImages("fashion-mnist", train=False), batch_size=500)
    model = PaperCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    batches = lm.LatentMixupLoader(train, "fashion-mnist", prob=0.5)  # the line that changes

    for epoch in range(epochs):
        model.train()
        for number, (images, targets) in enumerate(batches):
            loss = F.cross_entropy(model(images), targets)  # takes soft targets as they are
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if max_batches and number + 1 >= max_batches:
                break
        accuracy = lm.robustness.accuracy(model, test)
        print(f"epoch {epoch + 1}: accuracy on real test images {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-batches", type=int, help="stop each epoch early")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.max_batches)
