"""Lightning: a callback mixes training batches; module and loaders stay as they are.

The module's loss needs to take soft targets: F.cross_entropy does.

python examples/lightning_module.py
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.integrations.lightning import LatentMixup


class Classifier(L.LightningModule):
    """A module as you have it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = PaperCNN()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return F.cross_entropy(self.model(images), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(epochs: int = 2, max_batches: int | None = None) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=max_batches,
        callbacks=[LatentMixup("fashion-mnist", prob=0.5, seed=0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    train = DataLoader(BundledImages("fashion-mnist"), batch_size=64, shuffle=True)
    test = DataLoader(BundledImages("fashion-mnist", train=False), batch_size=500)
    trainer.fit(Classifier(), train, test)
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy on real test images {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-batches", type=int, help="stop each epoch early")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.max_batches)
