"""Training of a classifier: one plain loop over batches of images and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.classifiers import PaperCNN, PaperFeatures
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.captured import CapturedSteps
from latent_mixup.training.run import first_weights

Batches: TypeAlias = Iterator[tuple[Tensor, Tensor]]


class Loss(ABC):
    """A training loss in two parts: random draws for a batch, then a function of tensors, which can be captured."""

    def draw(self, images: Tensor, targets: Tensor) -> tuple[int, tuple[Tensor, ...]]:
        """The number of a variant of :meth:`of` for this batch, and its tensors."""
        return 0, (images, targets)

    @abstractmethod
    def of(self, model: nn.Module, variant: int, *tensors: Tensor) -> Tensor:
        """The loss, a scalar."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Draw and compute; each call counts as the next batch."""
        variant, tensors = self.draw(images, targets)
        return self.of(model, variant, *tensors)


class CrossEntropy(Loss):
    """The loss of standard training, and of every method that mixes before the network."""

    def of(self, model: nn.Module, variant: int, *tensors: Tensor) -> Tensor:
        """Cross-entropy on images ``[B, C, H, W]`` and targets, int64 ``[B]`` or soft ``[B, num_classes]``."""
        images, targets = tensors
        return F.cross_entropy(model(images), targets)


cross_entropy = CrossEntropy()


def shuffled_batches(images: Tensor, labels: Tensor, batch_size: int, steps: int, *, seed: int) -> Batches:
    """``steps`` batches of ``batch_size`` rows, epoch after epoch, each epoch in a new order.

    The order depends on (``seed``, epoch) alone; rows left over at the end of an epoch are skipped.
    """
    if not 0 < batch_size <= len(images):
        raise ValueError(f"batch_size needs to be in [1, {len(images)}], the number of images: got {batch_size}")
    per_epoch = len(images) // batch_size
    for step in range(steps):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0:
            order = torch.randperm(len(images), generator=keyed_generator("order", seed, epoch))
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        yield images[rows], labels[rows]


def train_classifier(
    model: nn.Module,
    batches: Batches,
    *,
    lr: float = 1e-3,
    decay: float = 0.9,
    decay_every: int | None = None,
    loss: Loss | None = None,
    on_step: Callable[[], object] | None = None,
) -> None:
    """Adam over ``batches``, the learning rate times ``decay`` every ``decay_every`` steps (the paper: an epoch).

    Args:
        model: Trained in place; left in eval mode.
        batches: ``(images, targets)``; targets are int64 ``[B]`` or soft ``[B, num_classes]``.
        lr: First learning rate.
        decay: Factor on the learning rate.
        decay_every: Steps between two decays; ``None``: never.
        loss: See :class:`Loss`; ``None``: cross-entropy on the logits.
        on_step: Called after each step, for a progress bar.

    On a GPU, where launching its kernels takes longer than running them, a step is captured and replayed.

    Reference: Latent-Mixup, section 2.1.1.1: Adam, 0.001, times 0.9 each epoch.
    """
    device = next(model.parameters()).device
    on_gpu, objective = device.type == "cuda", loss or cross_entropy
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=on_gpu)

    def move(variant: int, tensors: tuple[Tensor, ...]) -> None:
        optimizer.zero_grad()
        objective.of(model, variant, *tensors).backward()
        optimizer.step()

    captured = CapturedSteps(move, device) if on_gpu else None
    model.train()
    with captured.stream() if captured else nullcontext():
        for step, (images, targets) in enumerate(batches, start=1):
            (captured or move)(*objective.draw(images, targets))
            if decay_every and step % decay_every == 0:
                optimizer.param_groups[0]["lr"] *= decay
            if on_step:
                on_step()
    model.eval()


def train_features(
    images: Tensor, labels: Tensor, *, steps: int, seed: int = 0, on_step: Callable[[], object] | None = None
) -> PaperFeatures:
    """A frozen feature network: the convolutions of a :class:`PaperCNN` trained on ``images``.

    Args:
        images: ``[N, 1, 28, 28]`` float32 in [-1, 1].
        labels: ``[N]`` int64.
        steps: Training steps of 128 images, or of all where there are fewer.
        seed: Decides the first weights and the order of the images.
        on_step: Called after each step, for a progress bar.
    """
    with first_weights(seed):
        model = PaperCNN(int(labels.max()) + 1)
        batches = shuffled_batches(images, labels, min(128, len(images)), steps, seed=seed)
        train_classifier(model, batches, on_step=on_step)
    return model.features.requires_grad_(False)
