"""Accelerate: mixed in the collate_fn, so that its loader, its samplers and ``skip_first_batches`` stay as they are.

python examples/accelerate_loop.py
accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN


def main(epochs: int = 2, max_batches: int | None = None) -> float:
    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    images = BundledImages("fashion-mnist")
    mixup = lm.LatentMixupCollate("fashion-mnist", dataset=images, prob=0.5, seed=0)
    train = DataLoader(images, batch_size=64, shuffle=True, collate_fn=mixup)  # the line that changes
    test = DataLoader(BundledImages("fashion-mnist", train=False), batch_size=500)
    model = PaperCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

    for epoch in range(epochs):
        mixup.set_epoch(epoch)
        model.train()
        for number, (batch, targets) in enumerate(train):
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(batch), targets))
                optimizer.step()
                optimizer.zero_grad()
            if max_batches and number + 1 >= max_batches:
                break
        accuracy = evaluate(accelerator, model, test)
        accelerator.print(f"epoch {epoch + 1}: accuracy on real test images {accuracy:.4f}")
    accelerator.end_training()
    return accuracy


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, test: DataLoader[tuple[torch.Tensor, int]]) -> float:
    model.eval()
    right = [accelerator.gather_for_metrics(model(images).argmax(1) == labels) for images, labels in test]
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-batches", type=int, help="stop each epoch early")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.max_batches)
