"""How an encoder is trained: on generated images, whose codes are known, or on real ones, by what codes decode to."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup import files
from latent_mixup.encoders import Encoder, MLPEncoder, ReStyleEncoder
from latent_mixup.generators.base import Generator
from latent_mixup.images import from_uint8
from latent_mixup.losses.base import Loss, PlainLoss, TargetLoss, callable_id, pixel_mse
from latent_mixup.pictures import png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.checkpoints import checkpoints_due, read_checkpoint, write_checkpoint

Arch: TypeAlias = Literal["mlp", "restyle"]

ARCHES: dict[str, type[Encoder]] = {"mlp": MLPEncoder, "restyle": ReStyleEncoder}
WARM_UP = 0.05  # share of the steps
SHEET_IMAGES = 20


@dataclass(frozen=True)
class EncoderRecipe:
    """What decides the result of a training run; kept in its checkpoint and compared on resume.

    The defaults show an MLP as many pairs as the paper does, 6 times 64,000, but each pair once.

    Attributes:
        steps: Training steps.
        batch_size: Images a step.
        lr: Peak learning rate of Adam: up over the first twentieth of the steps, down to zero along a half cosine.
        generated: Share of generated images in a batch, beside real ones, for ReStyle; all where there are no real
            ones, and for the MLP.
        code_weight: Weight of the MSE of the codes of generated images beside the image loss, for ReStyle.
        mean_weight: Weight of the mean square distance of the codes from the mean code, for ReStyle.
        seed: Of every draw: those of a step depend on (seed, step) alone.
    """

    steps: int = 3_000
    batch_size: int = 128
    lr: float = 1e-3
    generated: float = 0.0
    code_weight: float = 0.1
    mean_weight: float = 1e-4
    seed: int = 0


class EncoderTraining:
    """Network, optimiser and the step counter of one run: what a checkpoint holds.

    Args:
        encoder: Trained in place.
        recipe: How.
        loss: Of what a pass's codes decode to.
    """

    def __init__(self, encoder: Encoder, recipe: EncoderRecipe, loss: Loss) -> None:
        self.encoder, self.recipe, self.step = encoder.train().requires_grad_(True), recipe, 0
        self.loss: TargetLoss = loss if isinstance(loss, TargetLoss) else PlainLoss(loss)
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=recipe.lr)

    def ramp(self) -> float:
        """Share of the peak learning rate at this step."""
        warm = min(1.0, (self.step + 1) / (WARM_UP * self.recipe.steps))
        return warm * (1 + math.cos(math.pi * self.step / self.recipe.steps)) / 2

    def advance(self, images_uint8: Tensor | None) -> dict[str, float]:
        """One training step on real images ``[N, C, R, R]`` uint8 or none; returns the losses, ``"pass 1"`` and so on.

        Each pass has its own gradient, through one decode; the codes that it starts from are constants.

        Reference: ReStyle, section 3.
        """
        images, known = self.batch(images_uint8)
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr * self.ramp()
        self.optimizer.zero_grad()
        encoder = self.encoder
        losses = (
            self._passes(encoder, images, known) if isinstance(encoder, ReStyleEncoder) else self._codes(images, known)
        )
        self.optimizer.step()
        self.step += 1
        return losses

    @torch.no_grad()
    def batch(self, images_uint8: Tensor | None) -> tuple[Tensor, Tensor]:
        """This step's images ``[B, C, R, R]``, real ones first, and the codes of the generated ones that follow."""
        recipe, generator = self.recipe, self.encoder.generator
        draw = keyed_generator("train-encoder", recipe.seed, self.step)
        learns_from_real = images_uint8 is not None and isinstance(self.encoder, ReStyleEncoder)
        num_generated = round(recipe.generated * recipe.batch_size) if learns_from_real else recipe.batch_size
        parts, known = [], generator.mean_latent().new_empty(0, *generator.latent_shape)
        if images_uint8 is not None and num_generated < recipe.batch_size:
            rows = torch.randint(len(images_uint8), (recipe.batch_size - num_generated,), generator=draw)
            parts.append(from_uint8(images_uint8[rows].to(generator.device)))
        if num_generated:
            known = generator.sample_latents(num_generated, draw)
            parts.append(generator.decode(known))
        return torch.cat(parts), known

    def _codes(self, images: Tensor, known: Tensor) -> dict[str, float]:
        loss = F.mse_loss(self.encoder(images), known)
        loss.backward()
        return {"codes": loss.item()}

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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"step": self.step, "encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it."""
        self.step = state["step"]
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])


def train_encoder(
    generator: Generator,
    out: str | Path,
    *,
    arch: Arch = "mlp",
    images_uint8: Tensor | None = None,
    network: dict[str, Any] | None = None,
    recipe: EncoderRecipe | None = None,
    loss: Loss | None = None,
    facts: dict[str, Any] | None = None,
    checkpoint_every: int = 500,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Encoder:
    """Train an encoder for a generator; a killed run goes on from its last checkpoint when started again.

    ``"mlp"`` learns the codes of generated images. ``"restyle"`` learns, in each of its passes, codes whose decodes
    are the real images; or, where there are none, the generated ones and their codes.

    ``out`` gets, with every checkpoint, ``checkpoint.pt``, a sheet ``sheet-STEP.png`` (original, and what the codes
    decode to after each pass) and ``log.json``; in the end the encoder.

    Args:
        generator: Draws and decodes the codes.
        out: Folder of the run.
        arch: ``"mlp"`` or ``"restyle"``.
        images_uint8: Real images ``[N, C, R, R]`` uint8, of the generator's size. The MLP's are for its sheets alone.
        network: Arguments of :class:`~latent_mixup.encoders.MLPEncoder` or
            :class:`~latent_mixup.encoders.ReStyleEncoder`.
        recipe: See :class:`EncoderRecipe`.
        loss: ReStyle's, ``(images, targets) -> [B]``; None: the pixel MSE.
        facts: What to add to the encoder's metadata, e.g. the data set's name.
        checkpoint_every: Steps between two checkpoints.
        device: Where to train. None: where the generator is.
        progress: Show a progress bar.

    Returns:
        The encoder as its files hold it.

    Raises:
        ValueError: The images are not the generator's, a setting cannot be, or ``out`` holds a run with another recipe,
            network, generator, loss or other images, or a broken checkpoint.

    Reference: Latent-Mixup, sections 2.1.1 and 2.1.2.1; ReStyle, section 3.
    """
    recipe, out, loss = recipe or EncoderRecipe(), Path(out), loss or pixel_mse
    _check(generator, arch, images_uint8, recipe)
    generator = generator.to(device or generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        encoder = ARCHES[arch](generator, **(network or {})).to(generator.device)
    if isinstance(loss, torch.nn.Module):
        loss = loss.to(generator.device)
    training = EncoderTraining(encoder, recipe, loss)
    identity = {
        "recipe": asdict(recipe),
        "network": {"arch": arch, **encoder.arguments()},
        "generator": generator.digest(),
        "loss": callable_id(loss),
        "images": None if images_uint8 is None else files.tensors_sha256({"images": images_uint8[::64]}),
    }
    log: list[dict[str, float]] = []
    state = read_checkpoint(out, identity)
    if state is not None:
        training.load_state_dict(state)
        log = state["log"]
    started, before = time.perf_counter(), log[-1]["seconds"] if log else 0.0
    steps = checkpoints_due(
        training, recipe.steps, lambda: training.advance(images_uint8), every=checkpoint_every, progress=progress
    )
    for losses, bar in steps:
        bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})
        seconds = round(before + time.perf_counter() - started, 1)
        log.append({"step": training.step, **losses, "seconds": seconds})
        sheet = encoder_sheet(encoder.eval(), sheet_images(generator, images_uint8))
        encoder.train()
        write_checkpoint(out, {"identity": identity, "log": log, **training.state_dict()}, sheet)
    encoder.freeze().metadata = {
        **(facts or {}),
        "recipe": asdict(recipe),
        "loss": callable_id(loss) if arch == "restyle" else "mse of the codes",
        "versions": {"torch": torch.__version__},
    }
    encoder.save_pretrained(out)
    return type(encoder).from_pretrained(out, generator)


def _check(generator: Generator, arch: str, images_uint8: Tensor | None, recipe: EncoderRecipe) -> None:
    if arch not in ARCHES:
        raise ValueError(f"arch needs to be 'mlp' or 'restyle': got {arch!r}")
    if recipe.steps < 1 or recipe.batch_size < 1 or not recipe.lr > 0 or not 0 <= recipe.generated <= 1:
        raise ValueError(f"steps >= 1, batch_size >= 1, lr > 0 and generated in [0, 1] are needed: got {recipe}")
    if images_uint8 is None:
        return
    size = [generator.img_channels, generator.img_resolution, generator.img_resolution]
    if images_uint8.dtype != torch.uint8 or list(images_uint8.shape[1:]) != size or not len(images_uint8):
        raise ValueError(
            f"images_uint8 needs to be uint8 [N, {', '.join(map(str, size))}], the generator's size: "
            f"got {images_uint8.dtype} {list(images_uint8.shape)}"
        )


@torch.no_grad()
def sheet_images(generator: Generator, images_uint8: Tensor | None) -> Tensor:
    """The first real images, or the same generated ones each time: ``[n, C, R, R]`` in [-1, 1]."""
    if images_uint8 is not None:
        return from_uint8(images_uint8[:SHEET_IMAGES].to(generator.device))
    return generator.decode(generator.sample_latents(SHEET_IMAGES, keyed_generator("sheet-encoder")))


@torch.no_grad()
def encoder_sheet(encoder: Encoder, images: Tensor) -> bytes:
    """A PNG of ``images``, and what their codes decode to: after each pass, where there are passes."""
    rows = {"original": images}
    if isinstance(encoder, ReStyleEncoder):
        decoded = [encoder.generator.decode(codes) for codes in encoder.trajectory(images)]
        rows |= {"mean code": decoded[0]} | {f"pass {i}": image for i, image in enumerate(decoded[1:], start=1)}
    else:
        rows["encoded"] = encoder.generator.decode(encoder(images))
    return png([row.cpu() for row in rows.values()], list(rows))
