"""Hugging Face: a Trainer whose training step mixes the batch; evaluation and prediction are left alone."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.augment import LatentMixupCollate

try:
    from transformers import Trainer, TrainerCallback, TrainerState
except ImportError as cause:
    raise ImportError(f'{__name__} needs transformers: pip install "latent-mixup[integrations]"') from cause


def soft_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """A ``compute_loss_func``: cross-entropy of ``outputs.logits``, averaged over all accumulated batches.

    Models' own loss for float labels is a binary cross-entropy for each class.

    Args:
        outputs: Of a model, with ``logits`` ``[B, num_classes]``.
        labels: ``[B]`` integers or soft targets ``[B, num_classes]``.
        num_items_in_batch: Samples in all batches that are accumulated; None: those in this one.
    """
    total = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class LatentMixupTrainer(Trainer):
    """``Trainer`` with one keyword more; also the first base beside a Trainer of your own.

    Batches are mixed in the training step alone, on their device, and :func:`soft_cross_entropy` is the loss, unless
    ``compute_loss_func`` is given.

    Args:
        args: As of ``Trainer``.
        mixup: Mixes batches; its generator is moved to the Trainer's device. Its ``dataset=`` names the images that may
            be mixed.
        kwargs: As of ``Trainer``.

    Raises:
        ValueError: Labels would have to be smoothed by the Trainer.

    Example:
        >>> class MyTrainer(LatentMixupTrainer, YourTrainer): ...  # doctest: +SKIP
        >>> mixup = lm.LatentMixupCollate("fashion-mnist", dataset=images, prob=0.5)  # doctest: +SKIP
        >>> MyTrainer(model, args, train_dataset=images, mixup=mixup).train()  # doctest: +SKIP
    """

    def __init__(self, *args: Any, mixup: LatentMixupCollate, **kwargs: Any) -> None:
        kwargs["compute_loss_func"] = kwargs.get("compute_loss_func") or soft_cross_entropy
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"the loss of soft targets does not smooth them: got label_smoothing_factor="
                f"{self.args.label_smoothing_factor}; pass LatentMixupCollate(label_smoothing=) instead"
            )
        self.mixup = mixup.to(self.args.device)
        self.add_callback(_Epochs(mixup))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """A step on the mixed batch."""
        loss: Tensor = super().training_step(model, self.mixup(self._prepare_inputs(inputs)), *args, **kwargs)
        return loss


class _Epochs(TrainerCallback):
    """Names the epoch, in which a run that goes on may be in the middle."""

    def __init__(self, mixup: LatentMixupCollate) -> None:
        self.mixup = mixup

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.mixup.set_epoch(int(state.epoch or 0))
