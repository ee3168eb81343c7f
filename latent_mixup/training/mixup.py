"""Baselines: mixup (pixels) and manifold mixup (hidden layers)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.functional import Criterion, mix_latents, mix_targets
from latent_mixup.sampling import Mode, draw_lam, keyed_generator
from latent_mixup.training.classifier import Batches, Loss


def mixup_batches(batches: Batches, num_classes: int, *, alpha: float = 1.0, seed: int = 0) -> Batches:
    """Mix the images of each batch with a permutation of it, one ``lam`` an image.

    Args:
        batches: ``(images [B, C, H, W], labels [B])``.
        num_classes: Width of the soft targets.
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        seed: A batch's draws depend on (seed, its number) alone.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, equation 1.
    """
    for number, (images, labels) in enumerate(batches):
        partner, lam = _pairing(len(images), alpha, seed, number)
        yield mix_latents(images, partner, lam), mix_targets(labels, labels[partner], lam, num_classes)


class ManifoldMixup(Loss):
    """Mixes the output of one module of the network; which one is drawn for each batch.

    Args:
        points: Modules of the network whose output may be mixed; None for the network's input.
        num_classes: Width of the soft targets.
        alpha: ``lam`` is drawn from Beta(alpha, alpha).
        mode: ``"elem"``, one ``lam`` an image, or ``"batch"``, one for the batch.
        criterion: ``(logits, soft targets) -> scalar``.
        seed: A batch's draws depend on (seed, its number) alone.

    Reference: Verma et al., "Manifold Mixup", 2019, section 2, equation 1.
    """

    def __init__(
        self,
        points: Sequence[nn.Module | None],
        num_classes: int,
        *,
        alpha: float = 1.0,
        mode: Mode = "elem",
        criterion: Criterion = F.cross_entropy,
        seed: int = 0,
    ) -> None:
        self.points, self.num_classes, self.criterion = points, num_classes, criterion
        self._alpha, self._mode, self._seed = alpha, mode, seed
        self._number = 0

    def draw(self, images: Tensor, targets: Tensor) -> tuple[int, tuple[Tensor, ...]]:
        """Number of the point; images, partners ``[B]``, ``lam`` ``[B]``, and soft targets for int64 labels."""
        partner, lam = _pairing(len(images), self._alpha, self._seed, self._number, self._mode)
        chosen = int(torch.randint(len(self.points), (), generator=keyed_generator("layer", self._seed, self._number)))
        self._number += 1
        return chosen, (images, partner, lam, mix_targets(targets, targets[partner], lam, self.num_classes))

    def of(self, model: nn.Module, variant: int, *tensors: Tensor) -> Tensor:
        """The criterion on the output of the network, mixed at the point of that number."""
        images, partner, lam, targets = tensors
        point = self.points[variant]
        if point is None:
            return self.criterion(model(mix_latents(images, partner, lam)), targets)
        hook = point.register_forward_hook(lambda _module, _inputs, output: mix_latents(output, partner, lam))
        try:
            return self.criterion(model(images), targets)
        finally:
            hook.remove()


def _pairing(size: int, alpha: float, seed: int, number: int, mode: Mode = "elem") -> tuple[Tensor, Tensor]:
    draw = keyed_generator("pixel-mix", seed, number)
    return torch.randperm(size, generator=draw), draw_lam(size, alpha, draw, mode)
