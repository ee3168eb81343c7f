"""Training of a VAE on the evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from latent_mixup.generators.vae import VAE
from latent_mixup.images import from_uint8, to_unit
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.run import Run, RunOptions, Training, TrainingRecipe, check_images, code_sheet, descend


@dataclass(frozen=True)
class VAERecipe(TrainingRecipe):
    """Settings of :func:`train_vae`.

    Attributes:
        steps: Training steps.
        batch_size: Images a step.
        lr: Learning rate of Adam; straight down to zero over the last half.
        kl_weight: Weight of the divergence from the prior; 1 is the lower bound itself.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).
    """

    steps: int = 10_000
    batch_size: int = 128
    lr: float = 1e-3
    kl_weight: float = 1.0
    seed: int = 0


def negative_elbo(
    logits: Tensor, targets: Tensor, mean: Tensor, log_variance: Tensor, kl_weight: float = 1.0
) -> Tensor:
    """Reconstruction error plus divergence from the prior, in nats an image, mean over the batch.

    Args:
        logits: ``[B, C, R, R]``, whose sigmoid is the reconstruction.
        targets: ``[B, C, R, R]`` in [0, 1].
        mean: Of the code's distribution, ``[B, z_dim]``.
        log_variance: Logarithm of its variance, ``[B, z_dim]``.
        kl_weight: Of the divergence.

    Reference: Kingma and Welling 2014, equations 3 and 10, with a Bernoulli decoder.
    """
    error = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return (error + kl_weight * divergence) / len(targets)


class VAETraining(Training):
    """See :class:`~latent_mixup.training.run.Training`."""

    stateful = ("network", "optimizer")
    network: VAE
    recipe: VAERecipe
    images: Tensor

    def __init__(self, vae: VAE, recipe: VAERecipe, images_uint8: Tensor) -> None:
        super().__init__(vae.requires_grad_(True), recipe, images_uint8.to(vae.device))
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.lr, fused=True)

    def advance(self) -> dict[str, float]:
        """One step on a batch drawn from the images."""
        recipe, draw = self.recipe, keyed_generator("train-vae", self.recipe.seed, self.step)
        images = from_uint8(self.images[torch.randint(len(self.images), (recipe.batch_size,), generator=draw)])
        mean, log_variance = self.network.posterior(images)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        loss = negative_elbo(self.network.logits(latents), to_unit(images), mean, log_variance, recipe.kl_weight)
        self.optimizer.param_groups[0]["lr"] = recipe.lr * min(1.0, 2 * (1 - self.step / recipe.steps))
        descend(self.optimizer, loss)
        self.step += 1
        return {"nats": loss.item()}

    def sheet(self) -> bytes:
        """Real images, decoded ones, mixes with a partner, and the partner decoded."""
        return code_sheet(self.network, self.images)


def train_vae(
    images_uint8: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: VAERecipe | None = None,
    **options: Unpack[RunOptions],
) -> VAE:
    """Train a VAE; a killed run goes on from its last checkpoint when it is started again.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        network: Arguments of :class:`~latent_mixup.generators.VAE`; channels and size are the images'.
        recipe: See :class:`VAERecipe`.
        options: See :class:`~latent_mixup.training.run.Run`.

    Returns:
        The VAE as its files hold it, on the CPU.

    Raises:
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.
    """
    arguments = {**(network or {}), **check_images(images_uint8)}
    return Run(out, **options).train(
        VAE, arguments, lambda vae, recipe: VAETraining(vae, recipe, images_uint8), recipe or VAERecipe()
    )
