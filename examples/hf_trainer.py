"""Hugging Face Trainer: training batches are mixed where the loss is computed, evaluation stays as it is.

One collator serves training and evaluation alike, so it is not the place to mix. The loss has to be given: for float
labels the models' own is a binary cross-entropy for each class.

python examples/hf_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import latent_mixup as lm
from latent_mixup.bundled import BundledImages


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


class MixingTrainer(Trainer):
    """Trainer, with latent mixup in its training step."""

    def __init__(self, *args: Any, mixup: lm.LatentMixupCollate, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=soft_cross_entropy, **kwargs)
        self.mixup = mixup

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, mixed where the model is being trained."""
        if model.training:
            inputs["pixel_values"], inputs["labels"] = self.mixup(inputs["pixel_values"], inputs["labels"])
        return super().compute_loss(model, inputs, *args, **kwargs)


def soft_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy, soft targets or not; averaged over all accumulated batches where Trainer says how many."""
    total = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


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
    generator, bank = lm.load("fashion-mnist")
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
        trainer = MixingTrainer(
            ViTForImageClassification(network),
            options,
            train_dataset=images,
            eval_dataset=Pictures(False, 1000),
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
            mixup=lm.LatentMixupCollate(generator, bank, dataset=images.source, prob=0.5),
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
