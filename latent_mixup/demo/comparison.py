"""Training methods for a classifier, compared on equal terms by the demo and the benchmarks.

Network, first weights (per seed), loss, range [-1, 1], batch size, number of steps and learning rate are the same; only
the images and targets differ.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latent_mixup.augment.base import Decoder, draws_of
from latent_mixup.augment.loader import LatentMixupLoader
from latent_mixup.bank import LatentBank
from latent_mixup.classifiers import PaperCNN
from latent_mixup.functional import lerp, mix_targets, soft_targets
from latent_mixup.generators.base import Generator
from latent_mixup.policies import NAMED, BankView, Beta, Draw, Policy
from latent_mixup.robustness import accuracy, blurred_accuracy, deepfool_score
from latent_mixup.sampling import states_kept
from latent_mixup.training.classifier import Batches, Loss, cross_entropy, shuffled_batches, train_classifier
from latent_mixup.training.mixup import ManifoldMixup, mixup_batches


@dataclass(frozen=True)
class Data:
    """Images ``[N, C, H, W]`` in [-1, 1] and labels ``[N]``, to train and to test on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """One more than the largest training label."""
        return int(self.train_labels.max()) + 1

    def training_on(self, device: torch.device | str) -> Data:
        """The same, the training images on a device; labels stay, for targets are made where ``lam`` is drawn."""
        return replace(self, train_images=self.train_images.to(device))


@dataclass(frozen=True)
class Codes:
    """Generator and bank, for the methods that decode; every row of the bank needs a label."""

    generator: Generator
    bank: LatentBank

    def __post_init__(self) -> None:
        self.bank.check_labelled()

    def decode_on(self, device: torch.device | str) -> Codes:
        """These, the generator moved to a device in place, as modules are."""
        self.generator.to(device)
        return self


@dataclass(frozen=True)
class Budget:
    """The training budget, the same for every method.

    Attributes:
        epochs: Passes over as many images as the training set has.
        batch_size: Images a step.
        lr: First learning rate of Adam; times 0.9 each epoch.
        alpha: Parameter of the Beta distribution, for every method that mixes.
        deepfool_images: Number of test images, from the first, with a DeepFool score.
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
    """One method's view of a run: the real batches, the codes, and the network about to be trained.

    Attributes:
        points: Modules of ``model`` whose output manifold mixup may mix; None is the network's input.
        transform: Applied to each image ``[C, H, W]``, real or decoded, before pixels are mixed; None: nothing.
    """

    data: Data
    codes: Codes | None
    budget: Budget
    seed: int
    model: nn.Module
    points: Sequence[nn.Module | None]
    transform: Callable[[Tensor], Tensor] | None = None

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
        batches = shuffled_batches(images, labels, self.budget.batch_size, self.steps, seed=self.seed)
        return ((self.transformed(images), labels) for images, labels in batches)

    def transformed(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` after the run's transform."""
        return images if self.transform is None else torch.stack([self.transform(image) for image in images])

    def needed_codes(self) -> Codes:
        """The codes; raises ``ValueError`` where a method that decodes was given none."""
        if self.codes is None:
            raise ValueError("this method decodes latent codes: pass codes=Codes(generator, bank)")
        return self.codes

    def draws(self, prob: float) -> Iterator[tuple[Tensor, Tensor, Draw]]:
        """The real batches, and what :class:`LatentMixupLoader` draws for them with the same seed and ``prob``."""
        rows, policy = BankView(self.needed_codes().bank), Policy(Beta(self.budget.alpha))
        for number, (images, labels) in enumerate(self.real()):
            stream = draws_of((self.seed, 0, 0, number))
            yield images, labels, policy.draw_batch(len(images), prob, rows, stream)


Method: TypeAlias = Callable[[Run], tuple[Batches, Loss]]


def standard(run: Run) -> tuple[Batches, Loss]:
    """Real images."""
    return run.real(), cross_entropy


def mixup(run: Run) -> tuple[Batches, Loss]:
    """Mixes of pixels."""
    batches = mixup_batches(run.real(), run.data.num_classes, alpha=run.budget.alpha, seed=run.seed)
    return batches, cross_entropy


def manifold_mixup(run: Run) -> tuple[Batches, Loss]:
    """Mixes of hidden layers."""
    loss = ManifoldMixup(run.points, run.data.num_classes, alpha=run.budget.alpha, seed=run.seed)
    return run.real(), loss


def decoded_mixes(prob: float, policy: Policy | None = None) -> Method:
    """Mixes of codes: a share ``prob`` of each batch is decoded mixes.

    ``policy`` makes them; None stands for the paper's, with the budget's ``alpha``.
    """

    def method(run: Run) -> tuple[Batches, Loss]:
        codes, followed = run.needed_codes(), Policy(Beta(run.budget.alpha)) if policy is None else policy
        loader = LatentMixupLoader(
            run.real(),
            codes.generator,
            codes.bank.subset(slice(None)),  # all of its rows are of training images
            prefetch=0,
            decode_batches=codes.generator.decode_batches,  # on a GPU as well: fewer kernels to launch
            prob=prob,
            policy=followed,
            transform=run.transform,
            seed=run.seed,
        )
        return iter(loader), cross_entropy

    return method


def decoded(prob: float) -> Method:
    """A control: the codes that :func:`decoded_mixes` would mix, decoded without mixing, with their own labels."""

    def made(run: Run, draw: Draw) -> tuple[Tensor, Tensor]:
        codes = run.needed_codes()
        latents, labels = codes.bank[draw.rows]
        return run.transformed(Decoder(codes.generator)(latents)), soft_targets(labels, run.data.num_classes)

    return _in_place_of_mixes(prob, made)


def pixel_mix_of_decoded(prob: float) -> Method:
    """A control: the pairs that :func:`decoded_mixes` would mix, decoded one by one, their pixels mixed instead."""

    def made(run: Run, draw: Draw) -> tuple[Tensor, Tensor]:
        codes = run.needed_codes()
        decode = Decoder(codes.generator)
        (own, labels_a), (other, labels_b) = codes.bank[draw.rows], codes.bank[draw.partners]
        mixed = mix_targets(labels_a, labels_b, draw.lam, run.data.num_classes)
        return lerp(run.transformed(decode(own)), run.transformed(decode(other)), draw.lam), mixed

    return _in_place_of_mixes(prob, made)


def _in_place_of_mixes(prob: float, made: Callable[[Run, Draw], tuple[Tensor, Tensor]]) -> Method:
    """Batches whose mixes are replaced by the images and soft targets that ``made`` gives for their draw."""

    def batches(run: Run) -> Batches:
        for images, labels, draw in run.draws(prob):
            pictures, targets = made(run, draw)
            own = soft_targets(labels, run.data.num_classes)
            yield images.index_copy(0, draw.slots.to(images.device), pictures), own.index_copy(0, draw.slots, targets)

    return lambda run: (batches(run), cross_entropy)


REAL_METHODS: dict[str, Method] = {"standard": standard, "mixup": mixup, "manifold_mixup": manifold_mixup}
CODE_METHODS: dict[str, Method] = {
    "decoded": decoded(1.0),
    "latent_mixup": decoded_mixes(1.0),
    "latent_mixup_half_real": decoded_mixes(0.5),
    "robust": decoded_mixes(NAMED["robust"].prob, NAMED["robust"].policy),
}
METHODS = {**REAL_METHODS, **CODE_METHODS}


def train_paper_cnn(
    method: Method,
    data: Data,
    codes: Codes | None,
    budget: Budget,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> PaperCNN:
    """A :class:`PaperCNN` trained by ``method`` on ``device``; see :func:`train_and_score` for the arguments."""
    with seeded(seed, device):
        layout = torch.channels_last if torch.device(device).type == "cpu" else torch.contiguous_format  # the faster
        model = PaperCNN(data.num_classes).to(device).to(memory_format=layout)
        run = Run(data.training_on(device), codes and codes.decode_on(device), budget, seed, model, paper_points(model))
        batches, loss = method(run)
        train_classifier(model, batches, lr=budget.lr, decay_every=run.steps_per_epoch, loss=loss, on_step=on_step)
    return model


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, torch's global random states of the CPU and of a device are seeded; afterwards they are as they were."""
    with states_kept(torch.device(device)):
        torch.manual_seed(seed)
        yield


def paper_points(model: PaperCNN) -> list[nn.Module | None]:
    """Where the paper mixes hidden layers: the input, after conv 1, after the pool, after fc 1."""
    return [None, model.features[1], model.features[4], model.head[2]]


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
        seed: Seed of the first weights, the order of the images, and every draw.
        on_step: Called after each training step.

    Returns:
        Accuracy, blurred accuracy (kernel 5, sigma 5), and the DeepFool score in units of [-1, 1] over the first
        ``budget.deepfool_images`` test images, with what belongs to it.
    """
    model = train_paper_cnn(METHODS[method], data, codes, budget, seed=seed, on_step=on_step)
    steps = budget.steps(data.train_images)
    return {"method": method, "seed": seed, "steps": steps, **score(model, data, budget.deepfool_images)}


def score(model: PaperCNN, data: Data, deepfool_images: int) -> dict[str, Any]:
    """The three scores of the paper, as a dictionary that JSON can hold."""
    images = TensorDataset(data.test_images, data.test_labels)
    loader = DataLoader(images, batch_size=500, generator=torch.Generator())  # else a pass moves the global stream
    deepfool = deepfool_score(model, loader, num_classes=min(10, data.num_classes), max_images=deepfool_images)
    found = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(deepfool).items()}
    return {
        "accuracy": accuracy(model, loader),
        "blurred_accuracy": blurred_accuracy(model, loader, kernel_size=5, sigma=5.0),
        "deepfool_score": deepfool.score,
        "deepfool": found | {"units": "[-1, 1]"},
        "test_images": len(data.test_images),
    }


def circumstances(codes: Codes | None, budget: Budget, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Budget, digests, versions and hardware, to store with a result."""
    on = torch.device(device)
    return {
        "budget": asdict(budget),
        "generator_digest": codes and codes.generator.digest(),
        "bank_digest": codes and codes.bank.digest(),
        "bank_rows": codes and len(codes.bank),
        "versions": {name: metadata.version(name) for name in ("latent-mixup", "torch", "torchvision")},
        "python": platform.python_version(),
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(on) if on.type == "cuda" else on.type,
            "tf32": on.type == "cuda" and torch.backends.cudnn.allow_tf32,
        },
    }
