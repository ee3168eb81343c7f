"""Training of StyleGAN2: logistic loss with an R1 penalty, and a running mean of the generator.

As in the paper's and StyleGAN2-ADA's CIFAR-10 setting there is no style mixing and no path length penalty.

References: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), its lazy regularisation
and implementation details; Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), its
setting for CIFAR-10.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from latent_mixup.generators.stylegan2 import StyleGAN2
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.frechet import FeatureDistance
from latent_mixup.training.run import Run, RunOptions, Training, TrainingRecipe, check_images, descend, first_weights
from latent_mixup.training.stylegan2.augment import adapt, augment
from latent_mixup.training.stylegan2.discriminator import STD_GROUP, Discriminator

ADAPT_EVERY = 4  # steps between two adjustments of the augmentation
W_AVG_DECAY = 0.998


@dataclass(frozen=True)
class StyleGAN2Recipe(TrainingRecipe):
    """Settings of :func:`train_stylegan2`.

    Attributes:
        steps: Training steps, each of both networks.
        batch_size: Images a step.
        lr: Learning rate of both networks (Adam, betas 0 and 0.99).
        r1_gamma: Weight of the R1 penalty.
        r1_every: Steps between two computations of the penalty; its weight is multiplied by this number.
        ema_images: Half-life of the running mean of the generator, in images.
        ema_ramp: Largest half-life as a share of the images seen so far.
        ada_target: Mean sign of the discriminator's scores of real images that augmentation aims at; None: no
            augmentation.
        ada_images: Number of images that take the probability of augmentation from 0 to 1.
        feature_steps: Training steps, of 128 images, of the classifier whose features measure progress.
        seed: The first weights depend on it alone, the draws of a step on (seed, step).
    """

    steps: int = 25_000
    batch_size: int = 32
    lr: float = 2.5e-3
    r1_gamma: float = 0.01
    r1_every: int = 16
    ema_images: int = 500_000
    ema_ramp: float = 0.05
    ada_target: float | None = None
    ada_images: int = 500_000
    feature_steps: int = 1_500
    seed: int = 0


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Non-saturating logistic loss (Goodfellow et al. 2014): ``-log sigmoid(D(G(z)))``."""
    return F.softplus(-fake_scores).mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Logistic loss: ``-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z))))``."""
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


def r1_penalty(real_scores: Tensor, real: Tensor) -> Tensor:
    """Half the mean squared norm of the gradient at real images (R1 of Mescheder et al. 2018)."""
    (slope,) = torch.autograd.grad(real_scores.sum(), real, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def draw_rows_by_class(labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows of a batch, each image as likely as any other, where the images of a deviation group share a class.

    Across classes, the standard deviation over the batch hardly depends on how images of one class differ: a generator
    that makes one image a class would go unpunished.

    Args:
        labels: ``[N]`` int64.
        batch_size: A multiple of four.
        generator: The random stream drawn from.

    Returns:
        ``[batch_size]``: rows i, i + B / 4, i + B / 2, ... are of one class, as
        :func:`~latent_mixup.training.stylegan2.discriminator.with_batch_deviation` groups them.
    """
    groups = []
    for label in labels[torch.randint(len(labels), (batch_size // STD_GROUP,), generator=generator)]:
        members = (labels == label).nonzero()[:, 0]
        groups.append(members[torch.randint(len(members), (STD_GROUP,), generator=generator)])
    return torch.stack(groups, 1).flatten()


class StyleGAN2Training(Training):
    """See :class:`~latent_mixup.training.run.Training`.

    Args:
        averaged: The running mean of the generator; its weights are where the generator starts.
        recipe: Settings.
        images_uint8: ``[N, C, R, R]`` uint8, on the CPU.
        labels: ``[N]`` int64.
        distance_samples: Generated images that the distance in the log is computed from; 0: measure nothing.

    Attributes:
        generator: The network being trained.
        p: Probability of each augmentation.
        signs: Sum of the mean signs of real scores since ``p`` was last adjusted.

    Raises:
        ValueError: The network has classes, and the batch size is not a multiple of four, or a label is not a class.
    """

    stateful = ("generator", "network", "discriminator", "optimizer", "discriminator_optimizer")
    counters = ("step", "p", "signs")
    network: StyleGAN2
    recipe: StyleGAN2Recipe
    images: Tensor
    labels: Tensor

    def __init__(
        self,
        averaged: StyleGAN2,
        recipe: StyleGAN2Recipe,
        images_uint8: Tensor,
        labels: Tensor,
        distance_samples: int = 0,
    ) -> None:
        super().__init__(averaged, recipe, images_uint8, labels)
        if averaged.c_dim and recipe.batch_size % STD_GROUP:
            raise ValueError(
                f"batch_size needs to be a multiple of {STD_GROUP} for a network with classes, "
                f"so that groups of {STD_GROUP} images share a class: got {recipe.batch_size}"
            )
        if averaged.c_dim and int(labels.max()) >= averaged.c_dim:
            raise ValueError(
                f"labels need to be in [0, {averaged.c_dim}), the network's c_dim: got {int(labels.max())}"
            )
        self.distance_samples, self.p, self.signs = distance_samples, 0.0, 0.0
        self.generator = copy.deepcopy(averaged).requires_grad_(True)
        with first_weights(recipe.seed + 1):
            self.discriminator = Discriminator(
                averaged.img_resolution,
                averaged.img_channels,
                averaged.c_dim,
                averaged.channel_base,
                averaged.channel_max,
            ).to(averaged.device)
        # where a penalty comes every k steps, k + 1 updates do the work of k (StyleGAN2, lazy regularisation)
        lazy = recipe.r1_every / (recipe.r1_every + 1)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=recipe.lr, betas=(0.0, 0.99))
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=recipe.lr * lazy, betas=(0.0, 0.99**lazy)
        )

    def advance(self) -> dict[str, float]:
        """One step of the discriminator, then one of the generator, on a batch drawn from the images."""
        recipe, device, c_dim = self.recipe, self.network.device, self.network.c_dim
        draw = keyed_generator("train-stylegan2", recipe.seed, self.step)
        if c_dim:
            rows = draw_rows_by_class(self.labels, recipe.batch_size, draw)
        else:
            rows = torch.randint(len(self.labels), (recipe.batch_size,), generator=draw)
        real = from_uint8(self.images[rows].to(device))
        classes = F.one_hot(self.labels[rows], c_dim).float().to(device) if c_dim else None
        z = torch.randn(recipe.batch_size, self.network.z_dim, generator=draw).to(device)

        ws = self.generator.mapping(z, classes)
        fake = self.generator.synthesis(ws, "random", draw)
        judged = self._move_discriminator(real, augment(fake.detach(), self.p, draw), classes, draw)
        fooled = generator_loss(self.discriminator(augment(fake, self.p, draw), classes))
        descend(self.optimizer, fooled)

        self.step += 1
        self._average(ws[:, 0].detach())
        return {"generator": fooled.item(), "discriminator": judged}

    def _move_discriminator(self, real: Tensor, fake: Tensor, classes: Tensor | None, draw: torch.Generator) -> float:
        """A step on the loss, and a second one on the penalty where it is due; returns the loss."""
        recipe = self.recipe
        real = augment(real, self.p, draw)
        scores = self.discriminator(real, classes)
        loss = discriminator_loss(scores, self.discriminator(fake, classes))
        descend(self.discriminator_optimizer, loss)
        if self.step % recipe.r1_every == 0:
            real = real.detach().requires_grad_(True)
            penalty = r1_penalty(self.discriminator(real, classes), real)
            descend(self.discriminator_optimizer, recipe.r1_gamma * recipe.r1_every * penalty)
        if recipe.ada_target is not None:
            self._adapt(scores, recipe.ada_target)
        return loss.item()

    def _adapt(self, real_scores: Tensor, target: float) -> None:
        self.signs += float(real_scores.detach().sign().mean())
        if (self.step + 1) % ADAPT_EVERY == 0:
            seen = ADAPT_EVERY * self.recipe.batch_size
            self.p = adapt(self.p, self.signs / ADAPT_EVERY, seen, target=target, images_to_one=self.recipe.ada_images)
            self.signs = 0.0

    @torch.no_grad()
    def _average(self, w: Tensor) -> None:
        """Move the running means of the weights, and of w, ``[B, w_dim]``."""
        recipe = self.recipe
        half_life = min(recipe.ema_images, recipe.ema_ramp * self.step * recipe.batch_size)
        share = 1 - 0.5 ** (recipe.batch_size / half_life)
        w_avg = self.generator.mapping.w_avg
        w_avg.lerp_(w.mean(0), 1 - W_AVG_DECAY)
        for mean, value in zip(self.network.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(value, share)
        self.network.mapping.w_avg.copy_(w_avg)

    def measure(self) -> dict[str, float]:
        """The Fréchet distance of samples, and :func:`class_deviations` of a network with classes.

        Where the generated images' deviation is far below the real ones', there is little but one image a class.
        """
        row = {"images": self.step * self.recipe.batch_size, "p": self.p}
        if self.distance_samples:
            row["feature_distance"] = round(self.distance(samples(self.network, self.distance_samples)), 4)
            row["classifier_accuracy"] = self.distance.accuracy
            if self.network.c_dim:
                row |= class_deviations(self.network, self.images, self.labels)
        return row

    @functools.cached_property
    def distance(self) -> FeatureDistance:
        """The distance from the training images; trains the classifier that it needs when it is first asked for."""
        return FeatureDistance(self.images, self.labels, steps=self.recipe.feature_steps, seed=self.recipe.seed)

    def sheet(self) -> bytes:
        """See :func:`training_sheet`."""
        return training_sheet(self.network)


def train_stylegan2(
    images_uint8: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    network: dict[str, Any] | None = None,
    recipe: StyleGAN2Recipe | None = None,
    distance_samples: int = 5_000,
    **options: Unpack[RunOptions],
) -> StyleGAN2:
    """Train a StyleGAN2; a killed run goes on from its last checkpoint when it is started again.

    The rows of its ``log.json`` have the probability of augmentation, the Fréchet distance of
    :mod:`latent_mixup.training.frechet`, and for a network with classes :func:`class_deviations` as well.

    Args:
        images_uint8: ``[N, C, R, R]`` uint8, R a power of two from 8: see :func:`pad_to_power_of_two`.
        labels: ``[N]`` int64; used by a network with classes, and by the classifier that measures progress.
        out: Folder of the run: see :class:`~latent_mixup.training.run.Run`.
        network: Arguments of :class:`~latent_mixup.generators.StyleGAN2`; channels and size are the images'.
        recipe: See :class:`StyleGAN2Recipe`.
        distance_samples: Generated images that the distance is computed from; 0: measure nothing.
        options: See :class:`~latent_mixup.training.run.Run`.

    Returns:
        The running mean of the generator as its files hold it, on the CPU.

    Raises:
        ValueError: The images have another size, or there is not one label an image.
        ValueError, RuntimeError, OSError: See :meth:`~latent_mixup.training.run.Run.train`.
    """
    arguments = {**(network or {}), **check_images(images_uint8, labels)}
    if distance_samples == 1:
        raise ValueError("distance_samples needs to be 0 or from 2: got 1")
    return Run(out, **options).train(
        StyleGAN2,
        arguments,
        lambda averaged, recipe: StyleGAN2Training(averaged, recipe, images_uint8, labels, distance_samples),
        recipe or StyleGAN2Recipe(),
    )


@torch.no_grad()
def samples(generator: StyleGAN2, n: int, batch_size: int = 250) -> Iterator[Tensor]:
    """``n`` generated images in batches, on the CPU: the same codes in every call, classes in turn."""
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        classes = torch.arange(start, start + size) % generator.c_dim if generator.c_dim else None
        yield generator.decode(generator.sample_latents(size, keyed_generator("frechet-samples", start), classes)).cpu()


@torch.no_grad()
def class_deviations(
    generator: StyleGAN2, images_uint8: Tensor, labels: Tensor, images_a_class: int = 64
) -> dict[str, float]:
    """Variety within a class: the standard deviation of each pixel, averaged over all pixels, then over classes.

    Args:
        generator: A network with classes.
        images_uint8: Real images ``[N, C, R, R]`` uint8.
        labels: ``[N]`` int64.
        images_a_class: Generated and real images per class; fewer where a class has fewer.

    Returns:
        ``"class_deviation"`` of generated images and ``"real_class_deviation"``, in the units of [-1, 1].
    """
    found: dict[str, list[float]] = {"class_deviation": [], "real_class_deviation": []}
    for label in labels.unique():
        shown = from_uint8(images_uint8[(labels == label).nonzero()[:images_a_class, 0]])
        draw = keyed_generator("class-samples", int(label))
        codes = generator.sample_latents(len(shown), draw, label.expand(len(shown)))
        for name, images in zip(found, (generator.decode(codes), shown), strict=True):
            found[name].append(float(images.std(0, correction=0).mean()))
    return {name: round(statistics.fmean(deviations), 4) for name, deviations in found.items()}


@torch.no_grad()
def training_sheet(generator: StyleGAN2, columns: int = 20) -> bytes:
    """A PNG of samples, the same ones truncated, and mixes in W of one sample with another."""
    classes = torch.arange(2 * columns) % generator.c_dim if generator.c_dim else None
    own, other = generator.sample_latents(2 * columns, keyed_generator("sheet-stylegan2"), classes).chunk(2)
    mean = generator.mean_latent()
    other = other.roll(1, 0)
    rows = {
        "samples": generator.decode(own),
        "psi 0.7": generator.decode(mean + 0.7 * (own - mean)),
        "psi 0.5": generator.decode(mean + 0.5 * (own - mean)),
        **{f"mix, lam {lam}": mixes(generator, own, other, lam) for lam in (1.0, 0.75, 0.5, 0.25, 0.0)},
    }
    return png(list(rows.values()), list(rows))


def pad_to_power_of_two(images_uint8: Tensor) -> Tensor:
    """Add a black border to ``[N, C, R, R]`` up to the next power of two, evenly: 28 px become 32.

    Raises:
        ValueError: The border cannot be even, or the images are not square.
    """
    height, width = images_uint8.shape[2:]
    if height != width or height % 2 or height > 1024:
        raise ValueError(
            f"images need to be square, of an even size up to 1024 px: got {height}x{width}; crop or resize them"
        )
    border = (max(8, 1 << (height - 1).bit_length()) - height) // 2
    return F.pad(images_uint8, (border,) * 4)
