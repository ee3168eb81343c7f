"""Lightning: a data module mixes training batches after their transfer to the device, or its loader decodes ahead.

The LightningModule stays as it is, if its loss takes soft targets: F.cross_entropy does.

python examples/lightning_module.py
python examples/lightning_module.py --ahead
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

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN


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


class Fashion(L.LightningDataModule):
    """The bundled images."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = lm.load_generator("fashion-mnist")
        self.bank = lm.LatentBank.from_pretrained("fashion-mnist")
        self.images = BundledImages("fashion-mnist")

    def train_dataloader(self) -> Any:
        return DataLoader(self.images, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(BundledImages("fashion-mnist", train=False), batch_size=500)


class MixedOnDevice(Fashion):
    """Works with any strategy: Lightning still gives its own loader its distributed sampler."""

    def setup(self, stage: str) -> None:
        generator = self.generator.to(self.trainer.strategy.root_device)
        self.mixup = lm.LatentMixupCollate(generator, self.bank, dataset=self.images, prob=0.5, seed=0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.mixup(*batch) if self.trainer.training else batch


class MixedAhead(Fashion):
    """Decodes ahead of the training step. On several devices, give the DataLoader a DistributedSampler."""

    def train_dataloader(self) -> Any:
        self.mixup = lm.LatentMixupLoader(super().train_dataloader(), self.generator, self.bank, prob=0.5, seed=0)
        return self.mixup


class SetEpoch(L.Callback):
    """With a seed, a run that goes on from a checkpoint has the mixes that the whole run would have had."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.datamodule.mixup.set_epoch(trainer.current_epoch)


def main(ahead: bool = False, epochs: int = 2, max_batches: int | None = None) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=max_batches,
        callbacks=[SetEpoch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(), datamodule=MixedAhead() if ahead else MixedOnDevice())
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy on real test images {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ahead", action="store_true", help="by LatentMixupLoader")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-batches", type=int, help="stop each epoch early")
    arguments = parser.parse_args()
    main(arguments.ahead, arguments.epochs, arguments.max_batches)
