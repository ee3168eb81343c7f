"""Training of the compact generator: reconstruction, features, and a critic for the decodes of mixed codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from typing_extensions import Unpack

from latent_mixup.functional import mix_latents, on_sphere
from latent_mixup.generators.compact import CompactGenerator
from latent_mixup.images import from_uint8
from latent_mixup.interpolation import slerp
from latent_mixup.runs import Progress
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.classifier import train_features
from latent_mixup.training.run import (
    Run,
    RunOptions,
    Training,
    TrainingRecipe,
    check_images,
    code_sheet,
    descend,
    first_weights,
)


@dataclass(frozen=True)
class CompactRecipe(TrainingRecipe):
    """Settings of :func:`train_compact`.

    Attributes:
        steps: Training steps.
        batch_size: Images a step; the feature loss is computed on an eighth of them.
        lr: Peak learning rate of decoder and encoder: up over 200 steps, then straight down to 2 %.
        critic_lr: Peak learning rate of the critic, on the same ramp.
        feature_weight: Weight of the feature loss beside the pixel MSE.
        critic_weight: Weight of the critic's score of decoded mixes.
        noise: Largest standard deviation of the noise on the codes of every other image.
        feature_steps: Training steps, of 128 images, of the feature network, which is trained first.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).
    """

    steps: int = 20_000
    batch_size: int = 128
    lr: float = 2e-3
    critic_lr: float = 2e-3
    feature_weight: float = 0.5
    critic_weight: float = 0.03
    noise: float = 0.3
    feature_steps: int = 1_500
    seed: int = 0


class Critic(nn.Sequential):
    """A spectrally normed MLP: images ``[B, C, R, R]`` to one score each.

    (A convolutional critic of the same cost made the mixes grainy: it rewards texture before shape.)
    """

    def __init__(self, img_channels: int, img_resolution: int) -> None:
        super().__init__(
            nn.Flatten(),
            spectral_norm(nn.Linear(img_channels * img_resolution**2, 512)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(512, 256)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(256, 1)),
        )


def critic_loss(real_scores: Tensor, mixed_scores: Tensor) -> Tensor:
    """Hinge loss of the critic (Lim and Ye, "Geometric GAN", 2017, equation 4)."""
    return F.relu(1 - real_scores).mean() + F.relu(1 + mixed_scores).mean()


def add_noise(latents: Tensor, largest: float, draw: torch.Generator) -> Tensor:
    """Noise on every other code, its standard deviation uniform in [0, ``largest``]; back on the sphere."""
    sigma = torch.rand(len(latents), 1, generator=draw) * largest
    sigma[::2] = 0
    return on_sphere(latents + (sigma * torch.randn(latents.shape, generator=draw)).to(latents))


class CompactTraining(Training):
    """See :class:`~latent_mixup.training.run.Training`."""

    stateful = ("network", "critic", "optimizer", "critic_optimizer")
    network: CompactGenerator
    recipe: CompactRecipe
    images: Tensor
    labels: Tensor

    def __init__(self, generator: CompactGenerator, recipe: CompactRecipe, images_uint8: Tensor, labels: Tensor):
        super().__init__(generator, recipe, images_uint8.to(generator.device), labels)
        with first_weights(recipe.seed):
            self.critic = Critic(generator.img_channels, generator.img_resolution).to(generator.device)
        trained = [*generator.decoder.parameters(), *generator.encoder.parameters()]
        for parameter in trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=recipe.critic_lr, betas=(0.0, 0.99))

    def prepare(self, show: bool) -> None:
        """Train the feature network, where the generator has one."""
        if self.network.features is not None:
            images, steps, seed = from_uint8(self.images).cpu(), self.recipe.feature_steps, self.recipe.seed
            with Progress(steps, "train features", "steps", show=show) as bar:
                features = train_features(images, self.labels, steps=steps, seed=seed, on_step=bar.advance)
            self.network.features.load_state_dict(features.state_dict())

    def advance(self) -> dict[str, float]:
        """One step of the critic and one of decoder and encoder, on a batch drawn from the images."""
        recipe, generator = self.recipe, self.network
        ramp = min(1.0, (self.step + 1) / 200) * max(0.02, 1 - self.step / recipe.steps)
        self.optimizer.param_groups[0]["lr"] = recipe.lr * ramp
        self.critic_optimizer.param_groups[0]["lr"] = recipe.critic_lr * ramp
        draw = keyed_generator("train-compact", recipe.seed, self.step)
        real = from_uint8(self.images[torch.randint(len(self.images), (recipe.batch_size,), generator=draw)])
        latents = generator.encode(real)
        rebuilt = generator.decode(add_noise(latents, recipe.noise, draw))
        lam = torch.rand(len(latents), generator=draw)
        partner = torch.randperm(len(latents), generator=draw)
        mixed = generator.decode(mix_latents(latents, partner, lam, slerp))

        judged = critic_loss(self.critic(real), self.critic(mixed.detach()))
        descend(self.critic_optimizer, judged)

        eighth = max(1, recipe.batch_size // 8)
        pixel = F.mse_loss(rebuilt, real)
        feature = real.new_zeros(())
        if generator.features is not None:
            feature = F.mse_loss(generator.features(rebuilt[:eighth]), generator.features(real[:eighth]))
        fooled = -self.critic(mixed).mean()
        descend(self.optimizer, pixel + recipe.feature_weight * feature + recipe.critic_weight * fooled)
        self.step += 1
        return {"pixel": pixel.item(), "feature": feature.item(), "critic": judged.item()}

    @torch.no_grad()
    def finish(self) -> dict[str, Any]:
        """Fit the prior to the codes of all images."""
        parts = self.images.split(4096)
        codes = torch.cat([self.network.encode(from_uint8(part)).cpu() for part in parts])
        self.network.fit_prior(codes)  # in float64, which not every device has
        return {}

    def sheet(self) -> bytes:
        """Real images, decoded ones, decodes of noisy codes, mixes with a partner, and the partner decoded."""

        def noisy(codes: Tensor) -> Tensor:
            draw = keyed_generator("sheet-compact")
            return on_sphere(codes + 0.3 * torch.randn(codes.shape, generator=draw).to(codes))

        return code_sheet(self.network, self.images, {"noise 0.3": noisy})


def train_compact(
    images_uint8: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    recipe: CompactRecipe | None = None,
    z_dim: int = 128,
    network: dict[str, Any] | None = None,
    **options: Unpack[RunOptions],
) -> CompactGenerator:
    """Train a compact generator; a killed run goes on from its last checkpoint when it is started again.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8.
        labels: ``[N]`` int64; only the feature network uses them.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        recipe: See :class:`CompactRecipe`.
        z_dim: Numbers in a code.
        network: More arguments of :class:`~latent_mixup.generators.CompactGenerator`, such as its widths.
        options: See :class:`~latent_mixup.training.run.Run`; ``checkpoint_every`` is 500 by default.

    Returns:
        The generator as its files hold it, its weights rounded to float16, on the CPU.

    Raises:
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.
    """
    arguments = dict(z_dim=z_dim, **(network or {})) | check_images(images_uint8, labels)
    options.setdefault("checkpoint_every", 500)
    return Run(out, **options).train(
        CompactGenerator,
        arguments,
        lambda generator, recipe: CompactTraining(generator, recipe, images_uint8, labels),
        recipe or CompactRecipe(),
        dtype=torch.float16,
    )
