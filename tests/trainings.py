"""One small training of each kind, for the laws that all of them keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

from latent_mixup import training
from latent_mixup.generators import CompactGenerator
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.compact import CompactTraining
from latent_mixup.training.conv import ConvTraining
from latent_mixup.training.dcgan import DCGANTraining
from latent_mixup.training.encoder import EncoderTraining
from latent_mixup.training.stylegan2.train import StyleGAN2Training
from latent_mixup.training.vae import VAETraining

RESTYLE = {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}
STYLEGAN2 = {"z_dim": 4, "w_dim": 8, "channel_max": 4, "c_dim": 2}
# the probability of augmentation rises to 0.5 after the fourth step
STYLEGAN2_RECIPE = {
    "steps": 6, "batch_size": 4, "r1_every": 2, "ada_target": -1.5, "ada_images": 32, "feature_steps": 2,
}  # fmt: skip


def seeded(make, seed=0):
    """A network with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def compact(seed=0):
    """Codes of 4 numbers to 8x8 grey images; its mean code is not zero."""
    generator = seeded(lambda: CompactGenerator(4, 1, 8, (32,), (16,)), seed)
    generator.latent_mean.copy_(torch.randn(4, generator=keyed_generator("test", seed)))
    return generator


def halves(n=256, size=8):
    """Grey images of two classes, the right half bright or the lower one, with noise; and their labels."""
    labels = torch.arange(n) % 2
    images = torch.randint(10, 50, (n, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[labels == 0, :, :, size // 2 :] += 190
    images[labels == 1, :, size // 2 :] += 190
    return images, labels


@dataclass(frozen=True)
class Kind:
    """A training of six steps with a checkpoint at every second one.

    Attributes:
        function: ``train_...``.
        owner: The class whose ``advance`` takes a step.
        recipe: Class of its settings.
        settings: Values of its settings.
        options: Further keywords.
        takes_labels: Whether images come with labels.
        size: Height and width of its images.
    """

    function: Any
    owner: type
    recipe: type
    settings: dict[str, Any]
    options: dict[str, Any]
    takes_labels: bool = False
    size: int = 8

    def data(self, n=130):
        """The images, with labels where it takes them."""
        images, labels = halves(n, self.size)
        return (images, labels) if self.takes_labels else (images,)

    def train(self, out, data=None, *, settings=None, **options):
        """A run in the folder ``out``."""
        data = self.data() if data is None else data
        given = {"checkpoint_every": 2, "progress": False, **self.options, **options}
        given["recipe"] = self.recipe(**{**self.settings, **(settings or {})})
        if self.function is training.train_encoder:
            return training.train_encoder(given.pop("generator", compact()), out, **{"images_uint8": data[0], **given})
        return self.function(*data, out, **given)

    def stop(self, out, step, **options):
        """A run that Ctrl-C ends in the place of its step number ``step``; returns what it says."""
        advance = self.owner.advance

        def stops(state):
            if state.step == step:
                raise KeyboardInterrupt
            return advance(state)

        with mock.patch.object(self.owner, "advance", stops), pytest.raises(KeyboardInterrupt) as stopped:
            self.train(out, **options)
        return str(stopped.value)


SIX = {"steps": 6, "batch_size": 8}
KINDS = {
    "compact": Kind(
        training.train_compact, CompactTraining, training.CompactRecipe, {**SIX, "feature_steps": 1}, {"z_dim": 8},
        True, 28,
    ),
    "compact on pixels": Kind(
        training.train_compact, CompactTraining, training.CompactRecipe, SIX, {"z_dim": 8}, True
    ),
    "vae": Kind(
        training.train_vae, VAETraining, training.VAERecipe, SIX, {"network": {"z_dim": 4, "hidden": (16,)}}
    ),
    "conv": Kind(  # two of its steps are the prior's
        training.train_conv, ConvTraining, training.ConvRecipe, {"steps": 4, "prior_steps": 2, "batch_size": 8},
        {"network": {"z_dim": 4, "width": 8, "flow_width": 8}}, False, 16,
    ),
    "dcgan": Kind(  # three steps an epoch
        training.train_dcgan, DCGANTraining, training.DCGANRecipe, {"epochs": 2, "batch_size": 40},
        {"network": {"z_dim": 4, "channels": (8, 4, 4, 4)}},
    ),
    "stylegan2": Kind(
        training.train_stylegan2, StyleGAN2Training, training.StyleGAN2Recipe, STYLEGAN2_RECIPE,
        {"network": STYLEGAN2, "distance_samples": 20}, True,
    ),
    "stylegan2 without classes": Kind(
        training.train_stylegan2, StyleGAN2Training, training.StyleGAN2Recipe, {"steps": 6, "batch_size": 4},
        {"network": {**STYLEGAN2, "c_dim": 0}, "distance_samples": 0}, True,
    ),
    "mlp": Kind(training.train_encoder, EncoderTraining, training.EncoderRecipe, SIX, {"network": {"widths": (7,)}}),
    "restyle": Kind(
        training.train_encoder, EncoderTraining, training.EncoderRecipe, SIX,
        {"arch": "restyle", "network": RESTYLE},
    ),
    "restyle without images": Kind(
        training.train_encoder, EncoderTraining, training.EncoderRecipe, SIX,
        {"arch": "restyle", "network": RESTYLE, "images_uint8": None},
    ),
}  # fmt: skip
