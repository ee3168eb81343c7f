"""How the compact generator is trained: reconstruct, keep features, and make mixed codes decode to images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latent_mixup import files
from latent_mixup.functional import mix_latents
from latent_mixup.generators.compact import CompactGenerator, on_sphere
from latent_mixup.images import from_uint8
from latent_mixup.interpolation import slerp
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.checkpoints import checkpoints_due, read_checkpoint, write_checkpoint
from latent_mixup.training.classifier import train_features


@dataclass(frozen=True)
class CompactRecipe:
    """What decides the result of a training run; kept in its checkpoint and compared on resume.

    Attributes:
        steps: Training steps.
        batch_size: Images a step; the feature loss is computed on an eighth of them.
        lr: Peak learning rate of decoder and encoder: up over 200 steps, then straight down to 2 %.
        critic_lr: Peak learning rate of the critic, on the same ramp.
        feature_weight: Weight of the feature loss beside the pixel MSE.
        critic_weight: Weight of the critic's judgement of decoded mixes.
        noise: Largest standard deviation of the noise on the codes of every other image.
        feature_steps: Steps of 128 images that the feature network is trained for beforehand.
        seed: Of every draw: those of a step depend on (seed, step) alone.
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

    It sees the whole image at once. (A convolutional critic of the same cost made the mixes grainy: it rewards
    texture before shape.)
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


class CompactTraining:
    """Networks, optimisers and the step counter of one run: what a checkpoint holds.

    Args:
        generator: Trained in place.
        recipe: How.
    """

    def __init__(self, generator: CompactGenerator, recipe: CompactRecipe) -> None:
        self.generator, self.recipe, self.step = generator, recipe, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.critic = Critic(generator.img_channels, generator.img_resolution).to(generator.device)
        trained = [*generator.decoder.parameters(), *generator.encoder.parameters()]
        for parameter in trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=recipe.critic_lr, betas=(0.0, 0.99))

    def ramp(self) -> float:
        """Share of the peak learning rate at this step."""
        warm = min(1.0, (self.step + 1) / 200)
        return warm * max(0.02, 1 - self.step / self.recipe.steps)

    def advance(self, images_uint8: Tensor) -> dict[str, float]:
        """One training step on a batch drawn from ``[N, C, R, R]`` uint8; returns the losses."""
        recipe, generator = self.recipe, self.generator
        draw = keyed_generator("train-compact", recipe.seed, self.step)
        real = from_uint8(images_uint8[torch.randint(len(images_uint8), (recipe.batch_size,), generator=draw)])
        latents = generator.encode(real)
        rebuilt = generator.decode(add_noise(latents, recipe.noise, draw))
        lam = torch.rand(len(latents), generator=draw)
        partner = torch.randperm(len(latents), generator=draw)
        mixed = generator.decode(mix_latents(latents, partner, lam, slerp))

        judged = critic_loss(self.critic(real), self.critic(mixed.detach()))
        self._move(self.critic_optimizer, recipe.critic_lr, judged)

        eighth = max(1, recipe.batch_size // 8)
        pixel = F.mse_loss(rebuilt, real)
        feature = self.feature_loss(rebuilt[:eighth], real[:eighth])
        fooled = -self.critic(mixed).mean()
        loss = pixel + recipe.feature_weight * feature + recipe.critic_weight * fooled
        self._move(self.optimizer, recipe.lr, loss)
        self.step += 1
        return {"pixel": pixel.item(), "feature": feature.item(), "critic": judged.item()}

    def _move(self, optimizer: torch.optim.Optimizer, peak: float, loss: Tensor) -> None:
        optimizer.param_groups[0]["lr"] = peak * self.ramp()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def feature_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """MSE of the feature network's outputs; zero where the generator has none."""
        if self.generator.features is None:
            return images.new_zeros(())
        with torch.no_grad():
            wanted = self.generator.features(targets)
        return F.mse_loss(self.generator.features(images), wanted)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it."""
        self.step = state["step"]
        for name in ("generator", "critic", "optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])


def train_compact(
    images_uint8: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    recipe: CompactRecipe | None = None,
    z_dim: int = 128,
    network: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    checkpoint_every: int = 500,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> CompactGenerator:
    """Train a compact generator; a killed run goes on from its last checkpoint when started again.

    ``out`` gets ``checkpoint.pt``, a sheet ``sheet-STEP.png`` with every checkpoint (real, reconstructed, with
    noise on the code, mixes), and in the end the generator, its weights rounded to float16.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8.
        labels: ``[N]`` int64; only the feature network uses them.
        out: Folder of the run.
        recipe: See :class:`CompactRecipe`.
        z_dim: Numbers in a code.
        network: More arguments of :class:`~latent_mixup.generators.CompactGenerator`, such as its widths.
        facts: What to add to the generator's metadata, e.g. its name and the data set's.
        checkpoint_every: Steps between two checkpoints.
        device: Where to train; the generator that is returned is on the CPU.
        progress: Show a progress bar.

    Returns:
        The generator as its files hold it.

    Raises:
        ValueError: ``out`` holds a run with another recipe, network or data set, or a broken checkpoint.
    """
    recipe, out = recipe or CompactRecipe(), Path(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = CompactGenerator(z_dim, *images_uint8.shape[1:3], **(network or {}))
    training = CompactTraining(generator.to(device), recipe)
    identity = {
        "recipe": asdict(recipe),
        "network": generator.arguments(),
        "images": files.tensors_sha256({"images": images_uint8[::64]}),
    }
    images_uint8 = images_uint8.to(device)
    state = read_checkpoint(out, identity)
    if state is not None:
        training.load_state_dict(state)
    elif generator.features is not None:
        images = from_uint8(images_uint8).cpu()
        features = train_features(images, labels, steps=recipe.feature_steps, seed=recipe.seed)
        generator.features.load_state_dict(features.state_dict())
    steps = checkpoints_due(
        training, recipe.steps, lambda: training.advance(images_uint8), every=checkpoint_every, progress=progress
    )
    for losses, bar in steps:
        bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})
        sheet = training_sheet(generator, from_uint8(images_uint8[:32]))
        write_checkpoint(out, {"identity": identity, **training.state_dict()}, sheet)
    return _finish(generator.freeze(), images_uint8, out, {**(facts or {}), "recipe": asdict(recipe)})


@torch.no_grad()
def _finish(generator: CompactGenerator, images_uint8: Tensor, out: Path, facts: dict[str, Any]) -> CompactGenerator:
    """Fit the prior, round to what the file holds, and write it."""
    latents = torch.cat([generator.encode(from_uint8(chunk)) for chunk in images_uint8.split(4096)])
    generator.fit_prior(latents)
    generator.metadata = {**facts, "versions": {"torch": torch.__version__}}
    generator.save_pretrained(out, dtype=torch.float16)
    return CompactGenerator.from_pretrained(out)


@torch.no_grad()
def training_sheet(generator: CompactGenerator, images: Tensor) -> bytes:
    """A PNG of the first half of ``images`` with their second half as partners: see :func:`train_compact`."""
    own, other = generator.encode(images).chunk(2)
    noisy = on_sphere(own + 0.3 * torch.randn(own.shape, generator=keyed_generator("sheet-compact")).to(own))
    rows = {
        "real": images[: len(own)],
        "decoded": generator.decode(own),
        "noise 0.3": generator.decode(noisy),
        **{f"mix {lam}": mixes(generator, own, other, lam) for lam in (0.75, 0.5, 0.25)},
        "partner": generator.decode(other),
    }
    return png(list(rows.values()), list(rows))
