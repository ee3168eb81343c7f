"""Six ways to train the paper's small classifier, on the same footing: the demo, and the larger benchmark.

Same network and first weights (per seed), same loss, range [-1, 1], batch size, number of steps and learning
rate; only what the network sees differs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from latent_mixup.bank import LatentBank
from latent_mixup.classifiers import PaperCNN
from latent_mixup.generators.base import Generator
from latent_mixup.loader import LatentMixupLoader
from latent_mixup.robustness import accuracy, blurred_accuracy, deepfool_score
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.classifier import Batches, Loss, cross_entropy, shuffled_batches, train_classifier
from latent_mixup.training.mixup import manifold_mixup_loss, mixup_batches


@dataclass(frozen=True)
class Data:
    """Images ``[N, 1, 28, 28]`` in [-1, 1] and labels ``[N]``, to train and to test on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """One more than the largest training label."""
        return int(self.train_labels.max()) + 1


@dataclass(frozen=True)
class Codes:
    """What the methods that decode need beside the data; every row of the bank needs a label."""

    generator: Generator
    bank: LatentBank

    def __post_init__(self) -> None:
        self.bank.check_labelled()


@dataclass(frozen=True)
class Budget:
    """What every method gets.

    Attributes:
        epochs: Passes over as many images as the training set has.
        batch_size: Images a step.
        lr: First learning rate of Adam; times 0.9 each epoch.
        alpha: Of the Beta distribution, for every method that mixes.
        deepfool_images: The first so many test images get a DeepFool score.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    alpha: float = 1.0
    deepfool_images: int = 1000

    def steps(self, train_images: Tensor) -> int:
        """Training steps, the same for every method: whole batches only."""
        return self.epochs * (len(train_images) // self.batch_size)


@dataclass(frozen=True)
class Run:
    """One method's view of a run: the real batches, the codes, and the network about to be trained."""

    data: Data
    codes: Codes | None
    budget: Budget
    seed: int
    model: PaperCNN

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training set."""
        return len(self.data.train_images) // self.budget.batch_size

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.budget.steps(self.data.train_images)

    def real(self) -> Batches:
        """Batches of real images and int labels, in the seed's order."""
        images, labels = self.data.train_images, self.data.train_labels
        return shuffled_batches(images, labels, self.budget.batch_size, self.steps, seed=self.seed)

    def needed_codes(self) -> Codes:
        """The codes; raises ``ValueError`` where a method that decodes was given none."""
        if self.codes is None:
            raise ValueError("this method decodes latent codes: pass codes=Codes(generator, bank)")
        return self.codes

    def mixes(self, prob: float) -> Batches:
        """The real batches, with a share ``prob`` of each replaced by decoded mixes."""
        codes, alpha = self.needed_codes(), self.budget.alpha
        return iter(LatentMixupLoader(self.real(), codes.generator, codes.bank, prob=prob, alpha=alpha, seed=self.seed))

    def decoded(self) -> Batches:
        """Decoded codes without mixing, with their own labels: the control."""
        codes = self.needed_codes()
        for step in range(self.steps):
            draw = keyed_generator(self.seed, step)
            rows = torch.randint(len(codes.bank), (self.budget.batch_size,), generator=draw)
            latents, labels = codes.bank[rows]
            with torch.no_grad():
                images = codes.generator.decode(latents)
            yield images, labels


Method: TypeAlias = Callable[[Run], tuple[Batches, Loss]]


def _standard(run: Run) -> tuple[Batches, Loss]:
    return run.real(), cross_entropy


def _mixup(run: Run) -> tuple[Batches, Loss]:
    batches = mixup_batches(run.real(), run.data.num_classes, alpha=run.budget.alpha, seed=run.seed)
    return batches, cross_entropy


def _manifold_mixup(run: Run) -> tuple[Batches, Loss]:
    features, head = run.model.features, run.model.head
    points = [None, features[1], features[4], head[2]]  # input, after conv 1, after the pool, after fc 1
    loss = manifold_mixup_loss(points, run.data.num_classes, alpha=run.budget.alpha, seed=run.seed)
    return run.real(), loss


REAL_METHODS: dict[str, Method] = {
    "standard": _standard,
    "mixup": _mixup,
    "manifold_mixup": _manifold_mixup,
}
CODE_METHODS: dict[str, Method] = {
    "decoded": lambda run: (run.decoded(), cross_entropy),
    "latent_mixup": lambda run: (run.mixes(1.0), cross_entropy),
    "latent_mixup_half_real": lambda run: (run.mixes(0.5), cross_entropy),
}
METHODS = {**REAL_METHODS, **CODE_METHODS}


def train_and_score(
    method: str,
    data: Data,
    codes: Codes | None,
    budget: Budget,
    *,
    seed: int,
    on_step: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Train a :class:`PaperCNN` by one of ``METHODS`` and score it on the test images.

    Args:
        method: A key of ``METHODS``.
        data: Real images; a method that decodes takes its decoded images from ``codes``.
        codes: Generator and bank; None for a method that does not decode.
        budget: The same for all methods that are compared.
        seed: Of the first weights, the order of the images, and every draw.
        on_step: Called after each training step.

    Returns:
        Accuracy, blurred accuracy (kernel 5, sigma 5), and the DeepFool score in units of [-1, 1] over the first
        ``budget.deepfool_images`` test images, with what belongs to it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PaperCNN(data.num_classes)
        run = Run(data, codes, budget, seed, model)
        batches, loss = METHODS[method](run)
        train_classifier(model, batches, lr=budget.lr, decay_every=run.steps_per_epoch, loss=loss, on_step=on_step)
        return {"method": method, "seed": seed, "steps": run.steps, **score(model, data, budget.deepfool_images)}


def score(model: PaperCNN, data: Data, deepfool_images: int) -> dict[str, Any]:
    """The three scores of the paper, as a dictionary that JSON can hold."""
    loader = DataLoader(TensorDataset(data.test_images, data.test_labels), batch_size=500)
    deepfool = deepfool_score(model, loader, num_classes=min(10, data.num_classes), max_images=deepfool_images)
    return {
        "accuracy": accuracy(model, loader),
        "blurred_accuracy": blurred_accuracy(model, loader, kernel_size=5, sigma=5.0),
        "deepfool_score": deepfool.score,
        "deepfool": {**asdict(deepfool), "units": "[-1, 1]"},
        "test_images": len(data.test_images),
    }


def circumstances(codes: Codes | None, budget: Budget) -> dict[str, Any]:
    """What a result has to carry with it: budget, digests, versions and the machine's kind."""
    return {
        "budget": asdict(budget),
        "generator_digest": codes and codes.generator.digest(),
        "bank_digest": codes and codes.bank.digest(),
        "bank_rows": codes and len(codes.bank),
        "versions": {name: metadata.version(name) for name in ("latent-mixup", "torch", "torchvision")},
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
    }
