"""What the questions share: few labelled images, many without labels, held-out ones, a teacher, fresh images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import claimed
from torch import Tensor, nn

from latent_mixup import LatentBank, files, invert, load_generator
from latent_mixup.augment.base import Decoder
from latent_mixup.cli.shared import open_data, uint8_images
from latent_mixup.demo.comparison import seeded
from latent_mixup.functional import lerp, path_named
from latent_mixup.generators import ConvGenerator, Generator, Linear
from latent_mixup.images import from_uint8, pixel_values, to_uint8
from latent_mixup.policies import BankView, Beta, Policy, Teacher
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import ConvRecipe, train_conv

VALIDATION = 2_000  # of the test images, to choose settings by; the others are tested on, once
FITTED = 10_000  # images that principal components are found from
POOL = 40_000  # fresh images of a kind
NUM_CLASSES = 10
TEACHER_STEPS = (1_000, 1_200)  # on few images, and on many
TEACHER_BATCH = 64
FIT_STEPS = (800, 1_000)  # of a generator that sees the labelled images alone, and of its prior
MIXED = {"mixes": Policy(Beta(1.0)), "projected": Policy(Beta(1.0), project=0.6)}


@dataclass(frozen=True)
class Setting:
    """A data set and how it is used.

    Attributes:
        eps: Radius of the L-inf ball, in images from -1 to 1.
        pad: Pixels that an image is moved by, at most, in training, half of them mirrored; None: they stay as they are,
            which is better here for images of things in the middle.
        labelled: Labelled images, as many of each class.
    """

    eps: float
    pad: int | None
    labelled: int


SETTINGS = {"fashion-mnist": Setting(0.1, None, 1_000), "cifar10": Setting(16 / 255, 4, 4_000)}


@dataclass(frozen=True)
class Images:
    """A data set: uint8 images to train on, ``[N, C, R, R]``, and images in [-1, 1] that nothing is trained on."""

    name: str
    train: Tensor
    train_labels: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def setting(self) -> Setting:
        """Of this data set."""
        return SETTINGS[self.name]

    @classmethod
    def read(cls, name: str, root: Path) -> Images:
        """From torchvision's files; validation and test are parts of the test images, drawn at random."""
        train, test = (_all_of(open_data(name, root, test=part)) for part in (False, True))
        order = torch.randperm(len(test[0]), generator=keyed_generator("robust-validation"))
        held, rest = order[:VALIDATION], order[VALIDATION:]
        seen = from_uint8(test[0])
        return cls(name, *train, (seen[held], test[1][held]), (seen[rest], test[1][rest]))

    def labelled(self, seed: int, count: int | None = None) -> Tensor:
        """Rows of the labelled images: another draw for each seed, as many of each class; ascending."""
        each = (self.setting.labelled if count is None else count) // NUM_CLASSES
        order = torch.randperm(len(self.train), generator=keyed_generator("robust-labelled", seed))
        classes = [order[self.train_labels[order] == number][:each] for number in range(NUM_CLASSES)]
        return torch.cat(classes).sort().values


def _all_of(dataset: Any) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, R, R]`` uint8 and labels of a data set, read once."""
    if hasattr(dataset, "data"):
        return uint8_images(dataset), torch.as_tensor(dataset.targets)
    pairs = [dataset[number] for number in range(len(dataset))]
    return torch.stack([pixel_values(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def moved(images: Tensor, pad: int | None, draw: torch.Generator) -> Tensor:
    """Images ``[B, C, R, R]`` moved by up to ``pad`` pixels each way, half of them mirrored; None: as they are."""
    if pad is None:
        return images
    count, _, height, width = images.shape
    shifts = torch.randint(2 * pad + 1, (2, count), generator=draw)
    mirror = torch.rand(count, generator=draw) < 0.5
    rows = shifts[0][:, None] + torch.arange(height)
    columns = shifts[1][:, None] + torch.where(mirror[:, None], torch.arange(width).flip(0), torch.arange(width))
    padded = F.pad(images, [pad] * 4, value=-1.0)
    number = torch.arange(count)[:, None, None]
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def small_cnn(channels: int, width: int = 16) -> nn.Sequential:
    """Two convolutions of stride 2 and two linear layers, for images of 28 or 32 px."""
    side = 7 if channels == 1 else 8
    convolutions = [nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
    head = [nn.Linear(2 * width * side**2, 128), nn.ReLU(), nn.Linear(128, NUM_CLASSES)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


def teacher_cnn(channels: int, width: int = 16) -> nn.Sequential:
    """Five convolutions with batch normalisation."""
    layers: list[nn.Module] = []
    widths = [channels, width, width, 2 * width, 2 * width, 4 * width]
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        stride = 2 if number in (1, 3) else 1
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, *pooled, nn.Linear(16 * width, NUM_CLASSES))


def train_plainly(images: Tensor, labels: Tensor, steps: int, seed: int, pad: int | None) -> nn.Module:
    """A teacher: standard training on labelled images in [-1, 1], moved and mirrored."""
    with seeded(seed):
        model = teacher_cnn(images.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        draw = keyed_generator("robust-teacher", seed, step)
        rows = torch.randint(len(images), (TEACHER_BATCH,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(moved(images[rows], pad, draw)), labels[rows], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@dataclass(frozen=True)
class Workshop:
    """Makes what the runs need, once: processes that share ``work`` wait for each other.

    Attributes:
        images: The data set.
        work: Folder for teachers, generators and fresh images.
    """

    images: Images
    work: Path

    def _made(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of a file; made where it is missing."""
        path = self.work / self.images.name / f"{name}.safetensors"
        with claimed(path.with_suffix(".lock"), wait=True):
            if not path.is_file():
                tensors = make()
                files.write_folder(path.parent, {path.name: lambda to: files.save_tensors(to, tensors)})
        with files.open_tensors(path) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118

    def generator(self) -> Generator:
        """The bundled one: it has seen all training images, without labels."""
        return load_generator(self.images.name)

    def few(self, seed: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The labelled images of a seed in [-1, 1], and their labels."""
        rows = self.images.labelled(seed, count)
        return from_uint8(self.images.train[rows]), self.images.train_labels[rows]

    def teacher(self, seed: int, count: int | None = None) -> Teacher:
        """A classifier trained on the seed's labelled images alone."""
        few, labels = self.few(seed, count)

        def make() -> dict[str, Tensor]:
            return dict(
                train_plainly(few, labels, TEACHER_STEPS[count is not None], seed, self.images.setting.pad).state_dict()
            )

        model = teacher_cnn(few.shape[1])
        model.load_state_dict(self._made(f"teacher-{len(few)}-{seed}", make))
        return Teacher(model)

    def fitted(self, seed: int) -> ConvGenerator:
        """A generator of the bundled one's size that has seen the labelled images of a seed alone."""
        rows = self.images.labelled(seed)

        def make() -> dict[str, Tensor]:
            steps, prior_steps = FIT_STEPS
            recipe = ConvRecipe(steps=steps, prior_steps=prior_steps, flip=True, seed=seed)
            out = self.work / self.images.name / f"fit-{seed}"
            made = train_conv(self.images.train[rows], out, recipe=recipe, network=self._empty().arguments())
            return dict(made.state_dict())

        network = self._empty()
        network.load_state_dict(self._made(f"fitted-{seed}", make))
        return network

    def _empty(self) -> ConvGenerator:
        bundled = self.generator()
        assert isinstance(bundled, ConvGenerator)
        return ConvGenerator(**bundled.arguments())

    def fresh(self, kind: str, seed: int, count: int | None = None) -> Tensor:
        """Fresh images of a kind, uint8 ``[N, C, R, R]``; of ``"unlabelled"``, all that are left."""
        if kind == "unlabelled":
            rest = torch.ones(len(self.images.train), dtype=torch.bool)
            rest[self.images.labelled(seed, count)] = False
            return self.images.train[rest]
        by_seed, make = KINDS[kind]
        own = f"-{seed}-{count or self.images.setting.labelled}" if by_seed else ""
        return self._made(f"{kind}{own}", lambda: {"images": make(self, seed, count)})["images"]

    def of_images(self, kind: str, images: Tensor, seed: int) -> Tensor:
        """Mixes of some images ``[N, C, R, R]`` in [-1, 1], uint8 ``[POOL // 2, C, R, R]``: of codes, or of pixels."""
        draw = keyed_generator("robust-mixes", seed)
        if kind == "pixel_mixes":
            pairs, lam = (
                torch.randint(len(images), (2, POOL // 2), generator=draw),
                torch.rand(POOL // 2, generator=draw),
            )
            return to_uint8(lerp(images[pairs[0]], images[pairs[1]], lam))
        generator = self.generator()
        labels = torch.zeros(len(images), dtype=torch.int64)
        view = BankView(invert(torch.utils.data.TensorDataset(images, labels), generator, progress=False))
        policy, path = MIXED[kind], path_named(generator.preferred_path)
        draws = policy.draw(POOL // 2, view, draw).split([500] * (POOL // 1000))
        mixes = (policy.decoded(each, view, path, generator, NUM_CLASSES, Decoder(generator))[0] for each in draws)
        return torch.cat([to_uint8(each) for each in mixes])


Make = Callable[[Workshop, int, int | None], Tensor]


def decoded(generator: Generator, codes: Tensor) -> Tensor:
    """Images uint8 of codes ``[N, *latent_shape]``."""
    with torch.no_grad():
        return torch.cat([to_uint8(generator.decode(part)) for part in codes.split(256)])


def _samples(generator: Generator, *key: int) -> Tensor:
    draw = keyed_generator("robust-prior", *key)
    return decoded(generator, torch.cat([generator.sample_latents(500, draw) for _ in range(POOL // 500)]))


def _standard_normal() -> torch.Generator:
    return keyed_generator("robust-gaussian")


def _gaussian(shop: Workshop, _seed: int, _count: int | None) -> Tensor:
    rows = torch.randperm(len(shop.images.train), generator=keyed_generator("robust-linear"))[:FITTED]
    linear = Linear.fit(from_uint8(shop.images.train[rows]), math.prod(shop.generator().latent_shape))
    return decoded(linear, linear.sample_latents(POOL, _standard_normal()))


def _gaussian_codes(shop: Workshop, _seed: int, _count: int | None) -> Tensor:
    """A Gaussian with mean and covariance of the bundled bank's codes."""
    codes = LatentBank.from_pretrained(shop.images.name)[:][0].double()
    values, vectors = torch.linalg.eigh(codes.T.cov())
    noise = torch.randn(POOL, len(values), generator=_standard_normal(), dtype=torch.float64)
    return decoded(shop.generator(), (codes.mean(0) + (noise * values.clamp(min=0).sqrt()) @ vectors.T).float())


def _decodes(shop: Workshop, _seed: int, _count: int | None) -> Tensor:
    """Decoding alone: the bundled bank's codes, of real images."""
    return decoded(shop.generator(), LatentBank.from_pretrained(shop.images.name)[:][0])


def _mixes(kind: str) -> Make:
    return lambda shop, seed, count: shop.of_images(kind, shop.few(seed, count)[0], seed)


KINDS: dict[str, tuple[bool, Make]] = {  # whether it depends on the seed
    "prior": (False, lambda shop, _seed, _count: _samples(shop.generator())),
    "prior_of_few": (True, lambda shop, seed, _count: _samples(shop.fitted(seed), seed)),
    "gaussian": (False, _gaussian),
    "gaussian_codes": (False, _gaussian_codes),
    "decodes": (False, _decodes),
    **{kind: (True, _mixes(kind)) for kind in (*MIXED, "pixel_mixes")},
}
