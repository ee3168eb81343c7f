"""Hugging Face Trainer: training batches are mixed in the training step, evaluation stays as it is.

python examples/hf_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.integrations.transformers import LatentMixupTrainer


class Pictures(Dataset[dict[str, Any]]):
    """Samples as Trainer takes them: dicts of pixel_values and labels."""

    def __init__(self, train: bool, count: int) -> None:
        source = BundledImages("fashion-mnist", train=train)
        self.source = torch.utils.data.Subset(source, torch.randperm(len(source))[:count].tolist())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.source[index]
        return {"pixel_values": image, "labels": label}


def main(count: int = 4000, epochs: int = 2) -> dict[str, float]:
    set_seed(0)
    network = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=10,
    )
    images = Pictures(True, count)
    with tempfile.TemporaryDirectory() as out:
        options = TrainingArguments(
            out,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=500,
            num_train_epochs=epochs,
            learning_rate=2e-3,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = LatentMixupTrainer(
            ViTForImageClassification(network),
            options,
            train_dataset=images,
            eval_dataset=Pictures(False, 1000),
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
            mixup=lm.LatentMixupCollate("fashion-mnist", dataset=images.source, prob=0.5),
        )
        trainer.train()
        scores: dict[str, float] = trainer.evaluate()
    print(f"accuracy on real test images {scores['eval_accuracy']:.4f}, loss on them {scores['eval_loss']:.3f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="training images used")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.count, arguments.epochs)
