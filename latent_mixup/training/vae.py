"""How a VAE is trained: the evidence lower bound, nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latent_mixup import hub
from latent_mixup.generators.vae import VAE
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.checkpoints import read_checkpoint, write_checkpoint


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


def train_vae(
    images_uint8: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: VAERecipe | None = None,
    facts: dict[str, Any] | None = None,
    checkpoint_every: int = 1000,
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
        progress: Show a progress bar.

    Raises:
        ValueError: ``out`` holds a run with another recipe, network or data set, or a broken checkpoint.
    """
    recipe, out = recipe or VAERecipe(), Path(out)
    channels, resolution = images_uint8.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = VAE(**{**(network or {}), "img_channels": channels, "img_resolution": resolution})
    vae.requires_grad_(True)
    optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.lr, fused=True)
    identity = {
        "recipe": asdict(recipe),
        "network": vae.arguments(),
        "images": hub.tensors_sha256({"images": images_uint8[::64]}),
    }
    step = 0
    if (state := read_checkpoint(out, identity)) is not None:
        step = state["step"]
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
    with tqdm(initial=step, total=recipe.steps, desc="train", unit="step", disable=None if progress else True) as bar:
        while step < recipe.steps:
            loss = _advance(vae, optimizer, images_uint8, recipe, step)
            step += 1
            bar.update()
            if step % checkpoint_every == 0 or step == recipe.steps:
                bar.set_postfix(nats=f"{loss:.2f}")
                state = {
                    "identity": identity,
                    "step": step,
                    "vae": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                write_checkpoint(out, state, _sheet(vae, from_uint8(images_uint8[:32])))
    vae.freeze()
    vae.metadata = {**(facts or {}), "recipe": asdict(recipe), "versions": {"torch": torch.__version__}}
    vae.save_pretrained(out)
    return VAE.from_pretrained(out)


def _advance(vae: VAE, optimizer: torch.optim.Optimizer, images_uint8: Tensor, recipe: VAERecipe, step: int) -> float:
    draw = keyed_generator(recipe.seed, step)
    images = from_uint8(images_uint8[torch.randint(len(images_uint8), (recipe.batch_size,), generator=draw)])
    mean, log_variance = vae.posterior(images)
    latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw)
    loss = negative_elbo(vae.logits(latents), (images + 1) / 2, mean, log_variance, recipe.kl_weight)
    optimizer.param_groups[0]["lr"] = recipe.lr * min(1.0, 2 * (1 - step / recipe.steps))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


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
