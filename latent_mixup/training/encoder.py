"""Training of an encoder on generated images, whose codes are known, or on real ones and the decodes of their codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from latent_mixup.encoders import Encoder, MLPEncoder, ReStyleEncoder
from latent_mixup.generators.base import Generator, check_generator
from latent_mixup.images import from_uint8
from latent_mixup.losses.base import Loss, PlainLoss, TargetLoss, callable_id
from latent_mixup.losses.chosen import LossName, chosen_loss
from latent_mixup.networks import eval_mode
from latent_mixup.pictures import png
from latent_mixup.policies.settings import Share
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.run import Run, RunOptions, Training, TrainingRecipe, check_images

Arch: TypeAlias = Literal["mlp", "restyle"]

ARCHES: dict[str, type[Encoder]] = {"mlp": MLPEncoder, "restyle": ReStyleEncoder}
WARM_UP = 0.05  # share of the steps
SHEET_IMAGES = 20


@dataclass(frozen=True)
class EncoderRecipe(TrainingRecipe):
    """Settings of :func:`train_encoder`.

    The defaults show an MLP as many pairs as the paper does, 6 times 64,000, but each pair once.

    Attributes:
        steps: Training steps.
        batch_size: Images a step.
        lr: Peak learning rate of Adam: up over the first twentieth of the steps, down to zero along a half cosine.
        generated: Share of generated images in a batch, beside real ones, for ReStyle. Without real images, and for
            the MLP, all images are generated.
        code_weight: Weight of the MSE of the codes of generated images beside the image loss, for ReStyle.
        mean_weight: Weight of the mean square distance of the codes from the mean code, for ReStyle.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).
    """

    steps: int = 3_000
    batch_size: int = 128
    lr: float = 1e-3
    generated: Share = 0.0
    code_weight: float = 0.1
    mean_weight: float = 1e-4
    seed: int = 0


class EncoderTraining(Training):
    """See :class:`~latent_mixup.training.run.Training`.

    Args:
        encoder: Trained in place.
        recipe: Settings.
        loss: Compares decodes with images, for ReStyle.
        images_uint8: Real images ``[N, C, H, W]`` uint8, or None.
    """

    stateful = ("network", "optimizer")
    network: Encoder
    recipe: EncoderRecipe

    def __init__(self, encoder: Encoder, recipe: EncoderRecipe, loss: Loss, images_uint8: Tensor | None = None) -> None:
        super().__init__(encoder.train().requires_grad_(True), recipe, images_uint8)
        self.loss_id = callable_id(loss)
        self.loss: TargetLoss = loss if isinstance(loss, TargetLoss) else PlainLoss(loss)
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=recipe.lr)

    def identity(self) -> dict[str, Any]:
        """The generator and the loss as well."""
        identity = super().identity()
        identity["network"]["architecture"] = type(self.network).__name__
        return {**identity, "generator": self.network.generator.digest(), "loss": self.loss_id}

    def finish(self) -> dict[str, Any]:
        """Name the loss."""
        return {"loss": self.loss_id if isinstance(self.network, ReStyleEncoder) else "mse of the codes"}

    def advance(self) -> dict[str, float]:
        """One step; returns the loss of the codes, or those of ReStyle's passes, ``"pass 1"`` and so on.

        Each pass has its own gradient, through one decode; the codes that it starts from are constants.

        Reference: ReStyle, section 3.
        """
        images, known = self.batch()
        warm = min(1.0, (self.step + 1) / (WARM_UP * self.recipe.steps))
        ramp = warm * (1 + math.cos(math.pi * self.step / self.recipe.steps)) / 2
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr * ramp
        self.optimizer.zero_grad()
        if isinstance(self.network, ReStyleEncoder):
            losses = self._passes(self.network, images, known)
        else:
            loss = F.mse_loss(self.network(images), known)
            loss.backward()
            losses = {"codes": loss.item()}
        self.optimizer.step()
        self.step += 1
        return losses

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, Tensor]:
        """This step's images ``[B, C, H, W]``, real ones first, and the codes of the generated ones that follow."""
        recipe, generator = self.recipe, self.network.generator
        draw = keyed_generator("train-encoder", recipe.seed, self.step)
        learns_from_real = self.images is not None and isinstance(self.network, ReStyleEncoder)
        num_generated = round(recipe.generated * recipe.batch_size) if learns_from_real else recipe.batch_size
        parts, known = [], generator.mean_latent().new_empty(0, *generator.latent_shape)
        if self.images is not None and num_generated < recipe.batch_size:
            rows = torch.randint(len(self.images), (recipe.batch_size - num_generated,), generator=draw)
            parts.append(from_uint8(self.images[rows].to(generator.device)))
        if num_generated:
            known = generator.sample_latents(num_generated, draw)
            parts.append(generator.decode(known))
        return torch.cat(parts), known

    def _passes(self, encoder: ReStyleEncoder, images: Tensor, known: Tensor) -> dict[str, float]:
        losses = {}
        embedded = self.loss.embed(images)
        codes, decoded = encoder.start(len(images))
        mean = codes
        for number in range(1, encoder.passes + 1):
            codes = codes.detach() + encoder.residual(images, decoded.detach())
            decoded = encoder.generator.decode(codes)
            loss = self.loss.compare(decoded, embedded).mean()
            losses[f"pass {number}"] = loss.item()
            loss = loss + self.recipe.mean_weight * F.mse_loss(codes, mean)
            if len(known):
                loss = loss + self.recipe.code_weight * F.mse_loss(codes[-len(known) :], known)
            loss.backward()
        return losses

    @torch.no_grad()
    def sheet(self) -> bytes:
        """The first real images, or the same generated ones each time, and the decodes of their codes."""
        generator = self.network.generator
        if self.images is not None:
            images = from_uint8(self.images[:SHEET_IMAGES].to(generator.device))
        else:
            images = generator.decode(generator.sample_latents(SHEET_IMAGES, keyed_generator("sheet-encoder")))
        with eval_mode(self.network):
            return encoder_sheet(self.network, images)


def train_encoder(
    generator: Generator,
    out: str | Path,
    *,
    arch: Arch = "mlp",
    images_uint8: Tensor | None = None,
    network: dict[str, Any] | None = None,
    recipe: EncoderRecipe | None = None,
    loss: Loss | LossName | None = None,
    **options: Unpack[RunOptions],
) -> Encoder:
    """Train an encoder for a generator; a killed run goes on from its last checkpoint when it is started again.

    ``"mlp"`` learns the codes of generated images. ``"restyle"`` learns, in each of its passes, codes whose decodes
    are the real images; without real images, the generated ones and their codes.

    Args:
        generator: Draws and decodes the codes.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        arch: ``"mlp"`` or ``"restyle"``.
        images_uint8: Real images ``[N, C, H, W]`` uint8, of the generator's size; for the MLP, on its sheets only.
        network: Arguments of :class:`~latent_mixup.encoders.MLPEncoder` or
            :class:`~latent_mixup.encoders.ReStyleEncoder`.
        recipe: See :class:`EncoderRecipe`.
        loss: ReStyle's: ``"lpips"``, ``"features"``, ``"pixels"``, or a callable
            ``(images, targets) -> [B]``; None: the pixel MSE.
        options: See :class:`~latent_mixup.training.run.Run`; ``checkpoint_every`` is 500, and ``device`` the
            generator's by default.

    Returns:
        The encoder as its files hold it, on the generator's device.

    Raises:
        TypeError: ``generator`` or ``loss`` is something else.
        ValueError: The images are not the generator's, or a setting cannot be.
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.

    Reference: Latent-Mixup, sections 2.1.1 and 2.1.2.1; ReStyle, section 3.
    """
    check_generator(generator)
    if arch not in ARCHES:
        raise ValueError(f"arch needs to be 'mlp' or 'restyle': got {arch!r}")
    if images_uint8 is not None:
        sizes = check_images(images_uint8)
        wanted = {name: getattr(generator, name) for name in sizes}
        if sizes != wanted:
            raise ValueError(f"images need the size of the generator's, {wanted}: got {sizes}")
    options.setdefault("checkpoint_every", 500)
    options.setdefault("device", generator.device)
    run = Run(out, **options)
    generator = generator.to(run.device)
    compared = chosen_loss(generator, loss or "pixels")
    return run.train(
        ARCHES[arch],
        network or {},
        lambda encoder, recipe: EncoderTraining(encoder, recipe, compared, images_uint8),
        recipe or EncoderRecipe(),
        generator,
    )


@torch.no_grad()
def encoder_sheet(encoder: Encoder, images: Tensor) -> bytes:
    """A PNG of ``images``, and what their codes decode to: after each pass, where there are passes."""
    rows = {"original": images}
    if isinstance(encoder, ReStyleEncoder):
        decoded = [encoder.generator.decode(codes) for codes in encoder.trajectory(images)]
        rows |= {"mean code": decoded[0]} | {f"pass {i}": image for i, image in enumerate(decoded[1:], start=1)}
    else:
        rows["encoded"] = encoder.generator.decode(encoder(images))
    return png(list(rows.values()), list(rows))
