"""Training of the paper's GAN: binary cross-entropy and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from latent_mixup.generators.dcgan import DCGAN
from latent_mixup.images import from_uint8
from latent_mixup.networks import eval_mode
from latent_mixup.pictures import png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.run import Run, RunOptions, Training, TrainingRecipe, check_images, descend, first_weights


@dataclass(frozen=True)
class DCGANRecipe(TrainingRecipe):
    """Settings of :func:`train_dcgan`.

    Attributes:
        epochs: Passes over the images: the paper's 80 for MNIST, 85 for Fashion-MNIST.
        batch_size: Images a step.
        lr: Learning rate of AdamW, for both networks.
        betas: Betas of AdamW.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).

    Reference: Latent-Mixup, section 2.1.1; batch size and discriminator are not given there, and are ours.
    """

    epochs: int = 80
    batch_size: int = 128
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    seed: int = 0


def dcgan_discriminator(img_channels: int) -> nn.Sequential:
    """Images ``[B, C, 28, 28]`` to one logit each, ``[B, 1]``: three convolutions of stride 2 and a linear layer."""
    widths = (img_channels, 16, 32, 64)
    layers: list[nn.Module] = []
    for number in range(3):
        layers.append(nn.Conv2d(widths[number], widths[number + 1], 4, stride=2, padding=1, bias=number == 0))
        layers += [nn.BatchNorm2d(widths[number + 1])] if number else []
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * widths[-1], 1))


class DCGANTraining(Training):
    """See :class:`~latent_mixup.training.run.Training`."""

    stateful = ("network", "discriminator", "optimizer", "discriminator_optimizer")
    network: DCGAN
    recipe: DCGANRecipe
    images: Tensor

    def __init__(self, generator: DCGAN, recipe: DCGANRecipe, images_uint8: Tensor) -> None:
        super().__init__(generator, recipe, images_uint8.to(generator.device))
        self.per_epoch = len(images_uint8) // recipe.batch_size
        if self.per_epoch < 1:
            raise ValueError(
                f"batch_size needs to be at most {len(images_uint8)}, the number of images: got {recipe.batch_size}"
            )
        with first_weights(recipe.seed):
            for module in generator.network.modules():
                if isinstance(module, nn.ConvTranspose2d):
                    nn.init.normal_(module.weight, std=0.02)
            self.discriminator = dcgan_discriminator(generator.img_channels)
        for network in (self.discriminator.to(generator.device), generator.network):
            network.to(memory_format=torch.channels_last)  # faster on a CPU
        generator.network.requires_grad_(True).train()  # the generator around it is always in eval mode
        self.optimizer, self.discriminator_optimizer = (
            torch.optim.AdamW(network.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True)
            for network in (generator.network, self.discriminator)
        )

    @property
    def steps(self) -> int:
        """The last step: whole epochs, without the images left over at the end of each."""
        return self.recipe.epochs * self.per_epoch

    def rows(self) -> Tensor:
        """Rows of this step's images; each epoch has an order of its own."""
        epoch, batch = divmod(self.step, self.per_epoch)
        order = torch.randperm(len(self.images), generator=keyed_generator("order-dcgan", self.recipe.seed, epoch))
        rows: Tensor = order.split(self.recipe.batch_size)[batch]
        return rows

    def advance(self) -> dict[str, float]:
        """One step of each network, on the next batch of the epoch."""
        draw = keyed_generator("train-dcgan", self.recipe.seed, self.step)
        real = from_uint8(self.images[self.rows()])
        made = self.network.decode(self.network.sample_latents(len(real), draw).to(real))
        judged = non_saturating(self.discriminator(real), True)
        judged = judged + non_saturating(self.discriminator(made.detach()), False)
        descend(self.discriminator_optimizer, judged)
        fooled = non_saturating(self.discriminator(made), True)
        descend(self.optimizer, fooled)
        self.step += 1
        return {"discriminator": judged.item(), "generator": fooled.item()}

    @torch.no_grad()
    def sheet(self) -> bytes:
        """64 samples, in eval mode, as they will be decoded later."""
        with eval_mode(self.network.network):
            latents = self.network.sample_latents(64, keyed_generator("sheet-dcgan"))
            return png(self.network.decode(latents.to(self.network.device)).split(16), ["samples", "", "", ""])


def non_saturating(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits ``[B, 1]`` with "real" or "made" (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def train_dcgan(
    images_uint8: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: DCGANRecipe | None = None,
    **options: Unpack[RunOptions],
) -> DCGAN:
    """Train the paper's GAN; a killed run goes on from its last checkpoint when it is started again.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8, at least a batch of them.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        network: Arguments of :class:`~latent_mixup.generators.DCGAN`; channels and size are the images'.
        recipe: See :class:`DCGANRecipe`.
        options: See :class:`~latent_mixup.training.run.Run`.

    Returns:
        The generator as its files hold it, on the CPU.

    Raises:
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.
    """
    arguments = {**(network or {}), **check_images(images_uint8)}
    return Run(out, **options).train(
        DCGAN, arguments, lambda dcgan, recipe: DCGANTraining(dcgan, recipe, images_uint8), recipe or DCGANRecipe()
    )
