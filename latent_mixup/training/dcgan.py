"""How the paper's GAN is trained: two players, binary cross-entropy, AdamW."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.generators.dcgan import DCGAN
from latent_mixup.images import from_uint8
from latent_mixup.pictures import png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.checkpoints import checkpoints_due, read_checkpoint, write_checkpoint


@dataclass(frozen=True)
class DCGANRecipe:
    """What decides the result of a training run; kept in its checkpoint and compared on resume.

    Attributes:
        epochs: Passes over the images: the paper's 80 for MNIST, 85 for Fashion-MNIST.
        batch_size: Images a step.
        lr: Of AdamW, for both players.
        betas: Of AdamW.
        seed: Of every draw: those of a step depend on (seed, step) alone.

    Reference: Latent-Mixup, section 2.1.1; what it does not say (batch size, discriminator) is ours.
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


class DCGANTraining:
    """Networks, optimisers and the step counter of one run: what a checkpoint holds."""

    def __init__(self, generator: DCGAN, recipe: DCGANRecipe) -> None:
        self.generator, self.recipe, self.step = generator, recipe, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            for module in generator.network.modules():
                if isinstance(module, nn.ConvTranspose2d):
                    nn.init.normal_(module.weight, std=0.02)
            self.discriminator = dcgan_discriminator(generator.img_channels)
        for network in (self.discriminator.to(generator.device), generator.network):
            network.to(memory_format=torch.channels_last)  # faster on a CPU
        generator.network.requires_grad_(True).train()  # the generator itself stays in eval mode for ever
        self.optimizers = [
            torch.optim.AdamW(network.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True)
            for network in (generator.network, self.discriminator)
        ]

    def advance(self, images_uint8: Tensor) -> dict[str, float]:
        """One step of each player on ``[B, C, R, R]`` uint8; returns the losses."""
        of_generator, of_discriminator = self.optimizers
        draw = keyed_generator("train-dcgan", self.recipe.seed, self.step)
        real = from_uint8(images_uint8)
        made = self.generator.decode(self.generator.sample_latents(len(real), draw).to(real))
        judged = non_saturating(self.discriminator(real), True) + non_saturating(
            self.discriminator(made.detach()), False
        )
        _move(of_discriminator, judged)
        fooled = non_saturating(self.discriminator(made), True)
        _move(of_generator, fooled)
        self.step += 1
        return {"discriminator": judged.item(), "generator": fooled.item()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it."""
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)


def non_saturating(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits ``[B, 1]`` with "real" or "made" (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def _move(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=moved)  # the other player needs no gradient
    optimizer.step()


def train_dcgan(
    images_uint8: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: DCGANRecipe | None = None,
    facts: dict[str, Any] | None = None,
    checkpoint_every: int = 1000,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> DCGAN:
    """Train the paper's GAN; a killed run goes on from its last checkpoint when started again.

    ``out`` gets ``checkpoint.pt``, a sheet ``sheet-STEP.png`` of samples with every checkpoint, and the generator.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8.
        out: Folder of the run.
        network: Arguments of :class:`~latent_mixup.generators.DCGAN`; channels and size are the images'.
        recipe: See :class:`DCGANRecipe`.
        facts: What to add to the generator's metadata, e.g. its name and the data set's.
        checkpoint_every: Steps between two checkpoints.
        device: Where to train; the generator that is returned is on the CPU.
        progress: Show a progress bar.

    Raises:
        ValueError: ``out`` holds a run with another recipe, network or data set, or a broken checkpoint; or there
            are fewer images than in a batch.
    """
    recipe, out = recipe or DCGANRecipe(), Path(out)
    per_epoch = len(images_uint8) // recipe.batch_size
    if per_epoch < 1:
        raise ValueError(f"batch_size needs to be at most {len(images_uint8)}, the number of images: got {recipe}")
    channels, resolution = images_uint8.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = DCGAN(**{**(network or {}), "img_channels": channels, "img_resolution": resolution})
    training = DCGANTraining(generator.to(device), recipe)
    identity = {
        "recipe": {**asdict(recipe), "betas": list(recipe.betas)},
        "network": generator.arguments(),
        "images": files.tensors_sha256({"images": images_uint8[::64]}),
    }
    images_uint8 = images_uint8.to(device)
    if (state := read_checkpoint(out, identity)) is not None:
        training.load_state_dict(state)
    steps = recipe.epochs * per_epoch

    def advance() -> dict[str, float]:
        return training.advance(images_uint8[_rows(len(images_uint8), recipe, training.step)])

    for losses, bar in checkpoints_due(training, steps, advance, every=checkpoint_every, progress=progress):
        bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
        write_checkpoint(out, {"identity": identity, **training.state_dict()}, _sheet(generator))
    generator.freeze()
    generator.metadata = {**(facts or {}), "recipe": identity["recipe"], "versions": {"torch": torch.__version__}}
    generator.save_pretrained(out)
    return DCGAN.from_pretrained(out)


def _rows(num_images: int, recipe: DCGANRecipe, step: int) -> Tensor:
    """The images of a step: each epoch in an order of its own."""
    epoch, batch = divmod(step, num_images // recipe.batch_size)
    order = torch.randperm(num_images, generator=keyed_generator("order-dcgan", recipe.seed, epoch))
    return order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]


@torch.no_grad()
def _sheet(generator: DCGAN) -> bytes:
    """A PNG of 64 samples as anybody will get them: in eval mode."""
    generator.network.eval()
    samples = generator.decode(generator.sample_latents(64, keyed_generator("sheet-dcgan")).to(generator.device))
    generator.network.train()
    return png(samples.split(16))
