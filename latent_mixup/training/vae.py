"""How a VAE is trained: the evidence lower bound, nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup import files
from latent_mixup.generators.vae import VAE
from latent_mixup.images import from_uint8, to_unit
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.checkpoints import checkpoints_due, read_checkpoint, write_checkpoint


@dataclass(frozen=True)
class VAERecipe:
    """What decides the result of a training run; kept in its checkpoint and compared on resume.

    Attributes:
        steps: Training steps.
        batch_size: Images a step.
        lr: Learning rate of Adam; straight down to zero over the last half.
        kl_weight: Of the divergence from the prior; 1 is the lower bound itself.
        seed: Of every draw: those of a step depend on (seed, step) alone.
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


class VAETraining:
    """Network, optimiser and the step counter of one run: what a checkpoint holds."""

    def __init__(self, vae: VAE, recipe: VAERecipe) -> None:
        self.vae, self.recipe, self.step = vae.requires_grad_(True), recipe, 0
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.lr, fused=True)

    def advance(self, images_uint8: Tensor) -> dict[str, float]:
        """One training step on a batch drawn from ``[N, C, R, R]`` uint8; returns the loss."""
        recipe, draw = self.recipe, keyed_generator("train-vae", self.recipe.seed, self.step)
        images = from_uint8(images_uint8[torch.randint(len(images_uint8), (recipe.batch_size,), generator=draw)])
        mean, log_variance = self.vae.posterior(images)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw).to(mean)
        loss = negative_elbo(self.vae.logits(latents), to_unit(images), mean, log_variance, recipe.kl_weight)
        self.optimizer.param_groups[0]["lr"] = recipe.lr * min(1.0, 2 * (1 - self.step / recipe.steps))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"nats": loss.item()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"step": self.step, "vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it."""
        self.step = state["step"]
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])


def train_vae(
    images_uint8: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: VAERecipe | None = None,
    facts: dict[str, Any] | None = None,
    checkpoint_every: int = 1000,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> VAE:
    """Train a VAE; a killed run goes on from its last checkpoint when started again.

    ``out`` gets ``checkpoint.pt``, a sheet ``sheet-STEP.png`` with every checkpoint (real, reconstructed, mixes), and
    in the end the VAE.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8.
        out: Folder of the run.
        network: Arguments of :class:`~latent_mixup.generators.VAE`; channels and size are the images'.
        recipe: See :class:`VAERecipe`.
        facts: What to add to the VAE's metadata, e.g. its name and the data set's.
        checkpoint_every: Steps between two checkpoints.
        device: Where to train; the VAE that is returned is on the CPU.
        progress: Show a progress bar.

    Raises:
        ValueError: ``out`` holds a run with another recipe, network or data set, or a broken checkpoint.
    """
    recipe, out = recipe or VAERecipe(), Path(out)
    channels, resolution = images_uint8.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = VAE(**{**(network or {}), "img_channels": channels, "img_resolution": resolution})
    training = VAETraining(vae.to(device), recipe)
    identity = {
        "recipe": asdict(recipe),
        "network": vae.arguments(),
        "images": files.tensors_sha256({"images": images_uint8[::64]}),
    }
    images_uint8 = images_uint8.to(device)
    if (state := read_checkpoint(out, identity)) is not None:
        training.load_state_dict(state)
    steps = checkpoints_due(
        training, recipe.steps, lambda: training.advance(images_uint8), every=checkpoint_every, progress=progress
    )
    for losses, bar in steps:
        bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
        state = {"identity": identity, **training.state_dict()}
        write_checkpoint(out, state, _sheet(vae, from_uint8(images_uint8[:32])))
    vae.freeze()
    vae.metadata = {**(facts or {}), "recipe": asdict(recipe), "versions": {"torch": torch.__version__}}
    vae.save_pretrained(out)
    return VAE.from_pretrained(out)


@torch.no_grad()
def _sheet(vae: VAE, images: Tensor) -> bytes:
    """A PNG of the first half of ``images`` with their second half as partners."""
    own, other = vae.encode(images).chunk(2)
    rows = {
        "real": images[: len(own)],
        "decoded": vae.decode(own),
        **{f"mix {lam}": mixes(vae, own, other, lam) for lam in (0.75, 0.5, 0.25)},
        "partner": vae.decode(other),
    }
    return png(list(rows.values()), list(rows))
