"""Training of the convolutional generator without labels: pixels, two views of an image, then a flow of the codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from latent_mixup.functional import on_sphere
from latent_mixup.generators.conv import ConvGenerator
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.run import Run, RunOptions, Training, TrainingRecipe, check_images, descend, first_weights

MAX_CODES = 200_000  # of the images that the flow learns from
BATCH_SIZE, FLOW_BATCH = 128, 512
SHEET_COLUMNS, SHEET_T = 12, 0.4
HEAD = (256, 64)  # hidden numbers and outputs of the projection head
AREA = (0.5, 1.0)  # of a view's crop
TURN = math.radians(12)  # greatest rotation of a view
CONTRAST, BRIGHTNESS, TINT = 0.4, 0.3, 0.15  # greatest changes of a view


@dataclass(frozen=True)
class ConvRecipe(TrainingRecipe):
    """Settings of :func:`train_conv`.

    Attributes:
        steps: Training steps of encoder and decoder.
        prior_steps: Training steps of the flow, of 512 codes, after them.
        batch_size: Images a step.
        lr: Peak learning rate: up over 200 steps, then straight down to 2 %.
        prior_lr: Likewise, of the flow.
        contrast_weight: Weight of the contrastive loss beside the pixel MSE. More makes codes that know more of the
            content and less of the pixels.
        temperature: Of the contrastive loss.
        noise: Largest standard deviation of the noise on the codes of every other image.
        flip: Whether a mirrored image is still the same thing; not so for digits and text.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).
    """

    steps: int = 6_000
    prior_steps: int = 4_000
    batch_size: int = BATCH_SIZE
    lr: float = 2e-3
    prior_lr: float = 1e-3
    contrast_weight: float = 0.1
    temperature: float = 0.5
    noise: float = 0.1
    flip: bool = False
    seed: int = 0


def augmented(images: Tensor, draw: torch.Generator, *, flip: bool) -> Tensor:
    """Another view of each image: a turned crop of half its area or more, with other contrast, brightness and tint.

    Args:
        images: ``[B, C, R, R]`` in [-1, 1].
        draw: The CPU random stream.
        flip: Mirror half of them.

    Returns:
        As ``images``.
    """
    num_images, channels = images.shape[:2]

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return torch.rand(num_images, *size, generator=draw, dtype=torch.float32, device="cpu") * (high - low) + low

    scale, angle = uniform(*AREA).sqrt(), uniform(-TURN, TURN)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(num_images)
    centre = uniform(-1, 1, 2) * (1 - scale)[:, None]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)]
    affine = torch.cat([torch.stack(rows, 1), centre[:, :, None]], dim=2).to(images)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, shift = 1 + uniform(-CONTRAST, CONTRAST, 1, 1, 1), uniform(-BRIGHTNESS, BRIGHTNESS, 1, 1, 1)
    tint = uniform(-TINT, TINT, channels, 1, 1) if channels > 1 else torch.zeros(1)
    return (turned * gain.to(images) + (shift + tint).to(images)).clamp(-1, 1)


def contrastive_loss(codes: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each code's partner among all, both ways; ``[B, D]`` each; a scalar.

    Reference: van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018), equation 4,
    with the cosine similarity of Chen et al., "SimCLR" (2020), equation 1.
    """
    similarity = F.normalize(codes, dim=1) @ F.normalize(others, dim=1).T / temperature
    own = torch.arange(len(codes), device=codes.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def projection_head(z_dim: int) -> nn.Sequential:
    """What the contrastive loss compares, so that the codes themselves may keep what the views differ in.

    Reference: Chen et al., "SimCLR" (2020), section 4.2.
    """
    return nn.Sequential(nn.Linear(z_dim, HEAD[0]), nn.SiLU(), nn.Linear(*HEAD))


class ConvTraining(Training):
    """See :class:`~latent_mixup.training.run.Training`."""

    stateful = ("network", "head", "optimizer", "prior_optimizer")
    network: ConvGenerator
    recipe: ConvRecipe
    images: Tensor

    def __init__(self, generator: ConvGenerator, recipe: ConvRecipe, images_uint8: Tensor) -> None:
        super().__init__(generator, recipe, images_uint8)
        for parameter in generator.parameters():
            parameter.requires_grad_(True)
        with first_weights(recipe.seed):
            self.head = projection_head(generator.z_dim).to(generator.device)
        networks = (generator.encoder, generator.decoder, self.head)
        trained = [parameter for network in networks for parameter in network.parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.prior_optimizer = torch.optim.AdamW(generator.flow.parameters(), lr=recipe.prior_lr, weight_decay=1e-4)
        self._codes: Tensor | None = None

    @property
    def steps(self) -> int:
        """The last step of the flow."""
        return self.recipe.steps + self.recipe.prior_steps

    def advance(self) -> dict[str, float]:
        """One step of encoder and decoder; after the last of these, one of the flow."""
        losses = self.rebuild() if self.step < self.recipe.steps else self.learn_prior(self.step - self.recipe.steps)
        self.step += 1
        return losses

    def rebuild(self) -> dict[str, float]:
        """One step of encoder and decoder on images drawn at random."""
        recipe, generator = self.recipe, self.network
        self.optimizer.param_groups[0]["lr"] = recipe.lr * _ramp(self.step, recipe.steps)
        draw = keyed_generator("train-conv", recipe.seed, self.step)
        rows = torch.randint(len(self.images), (recipe.batch_size,), generator=draw)
        images = from_uint8(self.images[rows].to(generator.device))
        view = augmented(images, draw, flip=recipe.flip)
        sigma = torch.rand(len(images), 1, generator=draw) * recipe.noise
        sigma[::2] = 0
        noise = (sigma * torch.randn(len(images), generator.z_dim, generator=draw)).to(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            codes, others = generator.encode(torch.cat([images, view])).chunk(2)
            pixel = F.mse_loss(generator.decode(codes + noise), images)
            contrast = contrastive_loss(self.head(codes), self.head(others), recipe.temperature)
        descend(self.optimizer, pixel + recipe.contrast_weight * contrast)
        return {"pixel": pixel.item(), "contrast": contrast.item()}

    def learn_prior(self, step: int) -> dict[str, float]:
        """One step of the flow on codes drawn at random."""
        recipe, generator, codes = self.recipe, self.network, self.codes
        self.prior_optimizer.param_groups[0]["lr"] = recipe.prior_lr * _ramp(step, recipe.prior_steps)
        draw = keyed_generator("train-flow", recipe.seed, step)
        rows = torch.randint(len(codes), (FLOW_BATCH,), generator=draw)
        noise, t = torch.randn(FLOW_BATCH, codes.shape[1], generator=draw), torch.rand(FLOW_BATCH, generator=draw)
        loss = generator.flow.loss(codes[rows.to(codes.device)], noise.to(codes), t.to(codes))
        descend(self.prior_optimizer, loss)
        return {"prior": loss.item()}

    @property
    def codes(self) -> Tensor:
        """The codes of the training images, at most ``MAX_CODES`` evenly spaced ones, ``[N, z_dim]``."""
        if self._codes is None:
            stride = math.ceil(len(self.images) / MAX_CODES)
            with torch.no_grad():
                parts = self.images[::stride].split(512)
                encoded = [self.network.encode(from_uint8(part.to(self.network.device))) for part in parts]
            self._codes = torch.cat(encoded)
        return self._codes

    def finish(self) -> dict[str, Any]:
        """Keep the mean of the codes."""
        self.network.latent_mean.copy_(self.codes.mean(0))
        return {"trained_with_labels": False}

    @torch.no_grad()
    def sheet(self) -> bytes:
        """Real images, decoded ones, mixes with a partner, the middle one projected, the partner, and samples."""
        generator = self.network
        columns = min(SHEET_COLUMNS, len(self.images) // 2)
        images = from_uint8(self.images[: 2 * columns].to(generator.device))
        own, other = generator.encode(images).chunk(2)
        half = on_sphere(own + other)
        draw = keyed_generator("sheet-conv")
        rows = {
            "real a": images[:columns],
            "a decoded": generator.decode(own),
            **{f"mix, lam {lam}": mixes(generator, own, other, lam) for lam in (0.75, 0.5, 0.25)},
            f"lam 0.5, prior t {SHEET_T}": generator.decode(generator.project(half, SHEET_T, generator=draw)),
            "b decoded": generator.decode(other),
            "samples": generator.decode(generator.sample_latents(columns, draw)),
        }
        return png([row.cpu() for row in rows.values()], list(rows))


def _ramp(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over 200 steps, straight down to 2 %."""
    return min(1.0, (step + 1) / 200) * max(0.02, 1 - step / steps)


def train_conv(
    images_uint8: Tensor,
    out: str | Path,
    *,
    recipe: ConvRecipe | None = None,
    network: dict[str, Any] | None = None,
    **options: Unpack[RunOptions],
) -> ConvGenerator:
    """Train a convolutional generator and its prior without labels; a killed run goes on from its last checkpoint.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8; may be mapped from a file.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        recipe: See :class:`ConvRecipe`.
        network: More arguments of :class:`~latent_mixup.generators.ConvGenerator`, such as ``z_dim`` and ``width``.
        options: See :class:`~latent_mixup.training.run.Run`; ``checkpoint_every`` is 500 by default.

    Returns:
        The generator as its files hold it, its weights rounded to float16, on the CPU.

    Raises:
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.
    """
    arguments = dict(network or {}) | check_images(images_uint8)
    options.setdefault("checkpoint_every", 500)
    return Run(out, **options).train(
        ConvGenerator,
        arguments,
        lambda generator, recipe: ConvTraining(generator, recipe, images_uint8),
        recipe or ConvRecipe(),
        dtype=torch.float16,
    )
