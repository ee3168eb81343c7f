"""Adversarial training where labelled images are few: half of each batch are fresh samples with a teacher's labels.

The teacher is trained on the same few images. Weights are averaged, as robust training needs.

python examples/adversarial_training.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.images import from_uint8
from latent_mixup.policies import Teacher

EPS = 0.1  # L-inf, in images from -1 to 1


def train_plain(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model


def main(count: int, steps: int, fresh: bool, tested: int) -> tuple[float, float]:
    torch.manual_seed(0)
    data, test = BundledImages("fashion-mnist"), BundledImages("fashion-mnist", train=False)
    images, labels = from_uint8(data.data[:count]), data.targets[:count]
    generator = lm.load_generator("fashion-mnist")
    teacher = Teacher(train_plain(PaperCNN(), images, labels, steps // 2))

    model = PaperCNN()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        rows = torch.randint(count, (32 if fresh else 64,))
        batch, targets = images[rows], F.one_hot(labels[rows], 10).float()
        if fresh:
            with torch.no_grad():
                made = generator.decode(generator.sample_latents(32))
            batch, targets = torch.cat([batch, made]), torch.cat([targets, teacher(made)])
        batch = lm.robustness.adversarial(model, batch, targets, eps=EPS, steps=3)  # the line that makes it robust
        loss = F.cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    examined = DataLoader(TensorDataset(from_uint8(test.data[:tested]), test.targets[:tested]), 250)
    clean = lm.robustness.accuracy(averaged, examined)
    robust = lm.robustness.pgd_accuracy(averaged, examined, eps=EPS, steps=20)
    print(f"accuracy {clean:.3f}, under PGD {robust:.3f}")
    return clean, robust


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="labelled images")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--no-samples", dest="fresh", action="store_false", help="the same without fresh samples")
    parser.add_argument("--tested", type=int, default=1000, help="test images")
    arguments = parser.parse_args()
    main(arguments.count, arguments.steps, arguments.fresh, arguments.tested)
