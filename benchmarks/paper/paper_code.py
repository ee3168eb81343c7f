"""The ``paper_code`` preset: the published tables' runs, mistakes included.

One ``lam`` a batch everywhere. In the branch that mixes pixels or layers the network ends in a softmax, and
cross-entropy takes its output for logits. The generator is in train mode: BatchNorm uses the statistics of the batch.
On Fashion-MNIST images are in [0, 1], and a coin decides for each batch whether it is real. The preset explains the
printed numbers; draw conclusions from ``fixed``. Plain training with the second softmax is a control, not in the paper.

GAN-MIXUP has three rows. ``gan_mixup`` decodes our generator. ``gan_mixup_dcgan`` decodes the paper's GAN from codes
that were found our way, which nobody published. ``gan_mixup_as_published`` decodes it from codes that were found as
published, by the functions at the end of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.demo.comparison import Data, Method, Run, seeded, standard
from latent_mixup.encoders import MLPEncoder
from latent_mixup.functional import mix_targets, soft_targets
from latent_mixup.generators import Generator
from latent_mixup.images import to_unit
from latent_mixup.interpolation import lerp
from latent_mixup.sampling import draw_lam, keyed_generator
from latent_mixup.training.classifier import Batches, Loss, cross_entropy
from latent_mixup.training.mixup import ManifoldMixup

BEFORE_NORMALISATION = "standard_90_epochs"  # the Standard row of table 2: images in [0, 1], and 90 epochs


def methods(dataset: str) -> dict[str, tuple[Method, str | None]]:
    """Each row of tables 2 and 3, and the name of its codes."""
    mnist = dataset == "mnist"
    rows: dict[str, tuple[Method, str | None]] = {
        "standard": (standard, None),
        "standard_softmax_twice": (lambda run: (run.real(), UnmixedTwiceSoftmaxed()), None),
        "mixup": (lambda run: (run.real(), twice_softmaxed(run, [None])), None),
        "manifold_mixup": (lambda run: (run.real(), twice_softmaxed(run, run.points)), None),
        "gan_mixup": (gan_mixup(coin=not mnist), "gan"),
        "gan_mixup_dcgan": (gan_mixup(coin=not mnist), "dcgan_kept"),
        "gan_mixup_as_published": (gan_mixup(coin=not mnist), "dcgan_as_published_kept"),
    }
    return {**rows, BEFORE_NORMALISATION: (standard, None)} if mnist else rows


def in_unit_range(data: Data) -> Data:
    """The same images in [0, 1]."""
    return replace(data, train_images=to_unit(data.train_images), test_images=to_unit(data.test_images))


def twice_softmaxed(run: Run, points: Sequence[nn.Module | None]) -> Loss:
    """Mixup at one of ``points`` a batch (None: the input), with a softmax before cross-entropy's own."""
    return ManifoldMixup(
        points,
        run.data.num_classes,
        alpha=run.budget.alpha,
        mode="batch",
        criterion=cross_entropy_of_softmax,
        seed=run.seed,
    )


def cross_entropy_of_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, which takes a softmax, of the softmax of the logits."""
    return F.cross_entropy(logits.softmax(1), targets)


class UnmixedTwiceSoftmaxed(Loss):
    """Two softmaxes without any mixing: a control, not in the paper."""

    def of(self, model: nn.Module, variant: int, *tensors: Tensor) -> Tensor:
        """The loss of images ``[B, C, H, W]`` and targets, int64 ``[B]`` or soft ``[B, num_classes]``."""
        images, targets = tensors
        return cross_entropy_of_softmax(model(images), targets)


def gan_mixup(coin: bool) -> Method:
    """Decoded mixes along a straight line, one ``lam`` a batch; with a coin, every other batch is real."""

    def batches(run: Run) -> Batches:
        codes = run.needed_codes()
        in_unit = bool(run.data.train_images.min() >= 0)
        for number, (images, labels) in enumerate(run.real()):
            draw = keyed_generator("coin", run.seed, number)
            if coin and torch.rand((), generator=draw) < 0.5:
                yield images, soft_targets(labels, run.data.num_classes)
                continue
            rows, partners = torch.randint(len(codes.bank), (2, len(images)), generator=draw)
            lam = draw_lam(len(images), run.budget.alpha, draw, "batch")
            (own, labels_a), (other, labels_b) = codes.bank[rows], codes.bank[partners]
            with torch.no_grad(), batch_statistics(codes.generator):
                decoded = codes.generator.decode(lerp(own, other, lam).to(images.device))
            yield (
                to_unit(decoded) if in_unit else decoded,
                mix_targets(labels_a, labels_b, lam, run.data.num_classes),
            )

    return lambda run: (batches(run), cross_entropy)


@contextmanager
def batch_statistics(generator: Generator) -> Iterator[None]:
    """BatchNorm by the statistics of the batch, as in training; no buffer of the generator moves."""
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()
            norm.track_running_stats = True


# ---- inversion as published ------------------------------------------------------------------------

PAIRS, PAIR_EPOCHS, PAIR_BATCH = 64_000, 6, 128  # the paper names pairs and epochs; batch and learning rate are ours
INVERSION_BATCH = 16


def encoder_as_published(generator: Generator, pairs: int = PAIRS, seed: int = 0) -> MLPEncoder:
    """An MLP trained by MSE on generated (image, code) pairs, all of them six times; decoded by batch statistics.

    Reference: Latent-Mixup, section 2.1.1.
    """
    codes = generator.sample_latents(pairs, keyed_generator("published-pairs", seed))
    with torch.no_grad(), batch_statistics(generator):
        images = torch.cat([generator.decode(batch.to(generator.device)) for batch in codes.split(PAIR_BATCH)])
    with seeded(seed):
        encoder = MLPEncoder(generator).to(generator.device)
    optimizer = torch.optim.Adam(encoder.requires_grad_(True).parameters(), lr=1e-3)
    for epoch in range(PAIR_EPOCHS):
        order = torch.randperm(pairs, generator=keyed_generator("published-order", seed, epoch))
        for rows in order.split(PAIR_BATCH):
            optimizer.zero_grad()
            F.mse_loss(encoder(images[rows]), codes[rows].to(generator.device)).backward()
            optimizer.step()
    encoder.freeze()
    return encoder


def invert_as_published(
    generator: Generator, images: Tensor, start: Tensor, features: nn.Module, steps: int = 1000
) -> tuple[Tensor, Tensor]:
    """Codes of a batch of images after the last step of AdamW at a constant rate, and their MSE in pixels.

    Args:
        generator: Decodes by the statistics of the batch.
        images: ``[B, C, R, R]`` in [-1, 1]; the paper's batches have 16.
        start: The encoder's codes, ``[B, z_dim]``.
        features: Images to the features whose MSE is minimised.
        steps: Number of steps.

    Reference: Latent-Mixup, section 2.1.1: lr 0.03, betas (0.95, 0.999), AdamW's own weight decay, 0.01.
    """
    codes = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([codes], lr=0.03, betas=(0.95, 0.999), weight_decay=0.01)
    targets = features(images)
    with batch_statistics(generator):
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(features(generator.decode(codes)), targets).backward()
            optimizer.step()
        with torch.no_grad():
            mse = (generator.decode(codes) - images).square().flatten(1).mean(1)
    return codes.detach(), mse
