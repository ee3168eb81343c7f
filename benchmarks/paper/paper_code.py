"""The ``paper_code`` preset: what the published tables were run with, mistakes included.

One ``lam`` for a batch everywhere. In the branch that mixes pixels or layers the network ends in a softmax, which
cross-entropy then takes for logits. The generator is in train mode, so that BatchNorm looks at the batch. On
Fashion-MNIST images are in [0, 1] and a coin decides for each batch whether it is real. It explains the printed
numbers; draw conclusions from ``fixed``. A control, which the paper has not, is plain training with the second softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup.demo.comparison import Data, Method, Run, standard
from latent_mixup.functional import mix_targets, soft_targets
from latent_mixup.generators import Generator
from latent_mixup.images import to_unit
from latent_mixup.interpolation import lerp
from latent_mixup.sampling import draw_lam, keyed_generator
from latent_mixup.training.classifier import Batches, Loss, cross_entropy
from latent_mixup.training.mixup import ManifoldMixup

BEFORE_NORMALISATION = "standard_90_epochs"  # the Standard row of table 2: images in [0, 1], and 90 epochs


def methods(dataset: str) -> dict[str, tuple[Method, str | None]]:
    """Each row of tables 2 and 3, and the name of the codes that it decodes."""
    mnist = dataset == "mnist"
    rows: dict[str, tuple[Method, str | None]] = {
        "standard": (standard, None),
        "standard_softmax_twice": (lambda run: (run.real(), UnmixedTwiceSoftmaxed()), None),
        "mixup": (lambda run: (run.real(), twice_softmaxed(run, [None])), None),
        "manifold_mixup": (lambda run: (run.real(), twice_softmaxed(run, run.points)), None),
        "gan_mixup": (gan_mixup(coin=not mnist), "gan"),
        "gan_mixup_dcgan": (gan_mixup(coin=not mnist), "dcgan_kept"),
    }
    return {**rows, BEFORE_NORMALISATION: (standard, None)} if mnist else rows


def in_unit_range(data: Data) -> Data:
    """The same images in [0, 1]."""
    return replace(data, train_images=to_unit(data.train_images), test_images=to_unit(data.test_images))


def twice_softmaxed(run: Run, points: Sequence[nn.Module | None]) -> Loss:
    """Mixup at one of ``points`` a batch (None: the input), with a softmax before that of cross-entropy."""
    return ManifoldMixup(
        points,
        run.data.num_classes,
        alpha=run.budget.alpha,
        mode="batch",
        criterion=cross_entropy_of_softmax,
        seed=run.seed,
    )


def cross_entropy_of_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, which takes a softmax, of what has been through one."""
    return F.cross_entropy(logits.softmax(1), targets)


class UnmixedTwiceSoftmaxed(Loss):
    """The same without any mixing: a control, not in the paper."""

    def of(self, model: nn.Module, variant: int, *tensors: Tensor) -> Tensor:
        """Of images ``[B, C, H, W]`` and targets, int64 ``[B]`` or soft ``[B, num_classes]``."""
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
    """BatchNorm as in training, on a generator that stays as it is; nothing happens to one without."""
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
