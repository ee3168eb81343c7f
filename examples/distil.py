"""Teach a small classifier without a single real image: samples of a generator, labelled by a large classifier.

python examples/distil.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.images import from_uint8
from latent_mixup.policies import Teacher


def student() -> nn.Module:
    """About 5,000 weights; the teacher has 600,000."""
    layers = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(144, 24), nn.ReLU(), nn.Linear(24, 10))


def main(steps: int) -> tuple[float, float]:
    torch.manual_seed(0)
    data = BundledImages("fashion-mnist")
    test = DataLoader(BundledImages("fashion-mnist", train=False), 500)
    images, labels = from_uint8(data.data), data.targets

    large = PaperCNN()
    optimizer = torch.optim.Adam(large.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(large(images[rows]), labels[rows]).backward()
        optimizer.step()
    teacher = Teacher(large, temperature=2.0)

    generator, small = lm.load_generator("fashion-mnist"), student()  # from here on no real image is seen
    optimizer = torch.optim.Adam(small.parameters(), lr=2e-3)
    for step in range(2 * steps):
        with torch.no_grad():
            made = generator.decode(generator.sample_latents(64))
        loss = F.cross_entropy(small(made), teacher(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    scores = lm.robustness.accuracy(large, test), lm.robustness.accuracy(small, test)
    print(f"on real test images: teacher {scores[0]:.3f}, student {scores[1]:.3f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of the teacher; the student takes twice as many")
    main(parser.parse_args().steps)
