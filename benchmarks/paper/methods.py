"""The methods of the ``fixed`` preset by name; they differ in the batches that a classifier is trained on alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tables.rows import BEST
from timm.data.mixup import Mixup
from torch import Tensor
from torchvision.transforms import v2

from latent_mixup.demo.comparison import (
    Method,
    Run,
    decoded,
    decoded_mixes,
    manifold_mixup,
    mixup,
    pixel_mix_of_decoded,
    seeded,
    standard,
)
from latent_mixup.policies import LowPass
from latent_mixup.sampling import draw_slots, keyed_generator
from latent_mixup.training.classifier import Batches, Loss, cross_entropy
from paper.settings import Setting

PairMixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def methods(prob: float, best: Setting | None = None) -> dict[str, tuple[Method, str | None]]:
    """Each method and the name of the codes that it decodes.

    Args:
        prob: Share of a batch that is decoded, for methods that decode. The paper: all of it on MNIST and CIFAR-10,
            half on Fashion-MNIST.
        best: Setting that a search chose. It adds a row for it, one with each of its parts changed, and one with real
            images in the place of decoded ones; None adds none.
    """
    named: dict[str, tuple[Method, str | None]] = {
        "standard": (standard, None),
        "mixup": (mixup, None),
        "manifold_mixup": (manifold_mixup, None),
        "gan_mixup": (decoded_mixes(prob), "gan"),
        "decoded": (decoded(prob), "gan"),
        "pixel_mix_of_decoded": (pixel_mix_of_decoded(prob), "gan"),
        "gan_mixup_0.025": (decoded_mixes(prob), "gan_0.025"),
        "gan_mixup_0.020": (decoded_mixes(prob), "gan_0.020"),
        "vae_mixup": (decoded_mixes(prob), "vae"),
        "vae_mixup_sharpened": (decoded_mixes(prob), "vae_sharpened"),
        "timm_cutmix": (timm_mixup(cutmix=True), None),
        "timm_mixup": (timm_mixup(cutmix=False), None),
        "torchvision_cutmix": (torchvision_mixup(v2.CutMix), None),
        "torchvision_mixup": (torchvision_mixup(v2.MixUp), None),
        "gan_mixup_dcgan": (decoded_mixes(prob), "dcgan"),
    }
    if best is not None:
        named[BEST] = (best.method(), "gan")
        named |= {f"{BEST}_{part}": (setting.method(), "gan") for part, setting in best.parts().items()}
        if best.policy.low_pass is not None:
            named[f"{BEST}_low_pass_of_real"] = (low_pass_of_real(best.prob, best.policy.low_pass), None)
    return named


def low_pass_of_real(prob: float, low_pass: LowPass) -> Method:
    """A control: a share of the real images goes through the low-pass of the decoded ones; nothing is decoded."""

    def batches(run: Run) -> Batches:
        for number, (images, labels) in enumerate(run.real()):
            draw = keyed_generator("low-pass-of-real", run.seed, number)
            slots = draw_slots(len(images), prob, draw)
            changed = low_pass(images[slots], low_pass.draw(len(slots), draw))
            yield images.index_copy(0, slots.to(images.device), changed), labels

    return lambda run: (batches(run), cross_entropy)


def timm_mixup(*, cutmix: bool) -> Method:
    """Timm's ``Mixup`` without label smoothing: mixup or CutMix with one ``lam`` a batch."""

    def method(run: Run) -> tuple[Batches, Loss]:
        alpha = run.budget.alpha
        mixes: dict[str, float] = {"mixup_alpha": 0.0 if cutmix else alpha, "cutmix_alpha": alpha if cutmix else 0.0}
        mixer: PairMixer = Mixup(**mixes, label_smoothing=0.0, num_classes=run.data.num_classes)
        return _mixed(run, mixer, numpy_seeded), cross_entropy

    return method


def torchvision_mixup(kind: type[v2.MixUp] | type[v2.CutMix]) -> Method:
    """Torchvision's ``v2.MixUp`` or ``v2.CutMix``."""

    def method(run: Run) -> tuple[Batches, Loss]:
        return _mixed(run, kind(alpha=run.budget.alpha, num_classes=run.data.num_classes), seeded), cross_entropy

    return method


def _mixed(run: Run, mixer: PairMixer, stream: Callable[[int], Any]) -> Batches:
    """The real batches through a library's mixer, whose global stream is seeded for each call."""
    for number, (images, labels) in enumerate(run.real()):
        with stream(_seed(run.seed, number)):
            mixed = mixer(images.clone(), labels)  # timm mixes in place
        yield mixed


def _seed(*key: int) -> int:
    return int(torch.randint(2**31, (), generator=keyed_generator("library-mixing", *key)))


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Numpy's global stream, which timm's ``Mixup`` draws from, seeded inside the block and restored after it."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
