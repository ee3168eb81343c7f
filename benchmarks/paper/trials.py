"""One trial a (preset, method, seed): a split of the data, what is trained on it, its scores in a file.

A trial has two halves. Training ends in ``WORK/models/PRESET/METHOD-SEED.safetensors``, scoring in
``OUT/PRESET/METHOD-SEED.json``. A half that is done is not repeated, and a lock lets several processes share the work.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
import torch.backends.cudnn as cudnn
from record import as_json, claimed, read, write
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.cli.shared import uint8_images
from latent_mixup.demo.comparison import Budget, Codes, Data, Method, circumstances
from latent_mixup.images import from_uint8
from latent_mixup.robustness import accuracy, evaluate
from latent_mixup.runs import Progress
from paper.codes import described, of_rows
from paper.paper_code import in_unit_range

SPLIT_SEED, VALIDATION = 42, 10_000
ALPHAS = (0.2, 0.5, 1.0, 2.0)  # what --grid chooses from
REFINED = {"gan_mixup_0.025": "gan_mixup", "gan_mixup_0.020": "gan_mixup_0.025"}  # method => the one before refining
UNMIXED = ("standard", "standard_90_epochs", "standard_softmax_twice", "decoded")  # methods without an alpha
SHOWN = ("accuracy", "deepfool_score", "blurred_accuracy")

Methods = dict[str, tuple[Method, str | None]]


@dataclass(frozen=True)
class Images:
    """A data set in [-1, 1], split as in the paper.

    Attributes:
        name: Name of the data set.
        train: Training and test images.
        validation: Training images, and held-out ones to choose settings by in the place of the test images.
        rows: Index of each training image in torchvision's training set.
    """

    name: str
    train: Data
    validation: Data
    rows: Tensor


def split(name: str, train: Any, test: Any, limit: int | None = None) -> Images:
    """Hold out 10,000 of the training images.

    Args:
        name: Name of the data set.
        train: Training images in torchvision's form.
        test: Test images in torchvision's form.
        limit: Use only the first ``limit`` images of ``train`` for training.
    """
    images, labels = uint8_images(train), torch.as_tensor(train.targets)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows, held_out = order[:-VALIDATION], order[-VALIDATION:]
    if limit is not None:
        rows = rows[rows < limit]
    own = from_uint8(images[rows]), labels[rows]
    return Images(
        name,
        Data(*own, from_uint8(uint8_images(test)), torch.as_tensor(test.targets)),
        Data(*own, from_uint8(images[held_out]), labels[held_out]),
        rows,
    )


@dataclass(frozen=True)
class Classifier:
    """The network of a benchmark.

    Attributes:
        build: Number of classes => network, to load trained weights into.
        train: Called as :func:`latent_mixup.demo.comparison.train_paper_cnn`.
        whole: Network => the network without the crop before it; the paper does not crop blurred images.
    """

    build: Callable[[int], nn.Module]
    train: Callable[..., nn.Module]
    whole: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass(frozen=True)
class Preset:
    """Settings that all methods share.

    Attributes:
        budget: Budget of every method.
        methods: Method by name, with the name of the codes that it decodes.
        classifier: See :class:`Classifier`.
        unit_range: Whether images are in [0, 1] instead of [-1, 1].
        odd: Methods with another budget and ``unit_range``.
        facts: Further entries of every result.
        scores: Keywords of :func:`latent_mixup.robustness.evaluate`.
        folder: Folder of the results; "": the preset's name.
        given: ``GENERATOR:BANK`` of codes that were not made by the benchmark, by their name.
    """

    budget: Budget
    methods: Methods
    classifier: Classifier
    unit_range: bool = False
    odd: dict[str, tuple[Budget, bool]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    given: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One method with one seed.

    Attributes:
        method: Name of the method.
        how: The method.
        codes: Name of the codes that it decodes; None: it decodes none.
        budget: Epochs, batch size, learning rate.
        seed: Seed of every draw.
        unit_range: Whether images are in [0, 1].
        codes_from: ``GENERATOR:BANK`` of given codes; None: the benchmark's own.
    """

    method: str
    how: Method
    codes: str | None
    budget: Budget
    seed: int
    unit_range: bool = False
    codes_from: str | None = None

    @property
    def name(self) -> str:
        """Name of its files, without a suffix."""
        return f"{self.method}-{self.seed}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Black and white."""
        return (0.0, 1.0) if self.unit_range else (-1.0, 1.0)

    def read(self, path: Path) -> dict[str, Any]:
        """The record in a file; raises ``ValueError`` where its budget or codes are others."""
        record: dict[str, Any] = read(path)
        expected = {"budget": asdict(self.budget), "codes": self.codes_from}
        found = {"budget": record["budget"], "codes": record.get("codes_from")}
        for name in expected:
            if found[name] != expected[name]:
                raise ValueError(
                    f"{path} has another {name}: expected {expected[name]}, found {found[name]}; "
                    "choose another --work and --out, or remove it"
                )
        return record

    def in_range(self, data: Data) -> Data:
        """The images in the trial's range."""
        return in_unit_range(data) if self.unit_range else data


@dataclass(frozen=True)
class Benchmark:
    """One data set under one preset.

    Attributes:
        images: Images to train and to test on.
        name: Name of the preset.
        preset: See :class:`Preset`.
        codes_named: Name => codes.
        work: Folder for trained classifiers.
        out: Folder for results.
        device: Where to train and to score.
    """

    images: Images
    name: str
    preset: Preset
    codes_named: Callable[[str], Codes]
    work: Path
    out: Path
    device: str = "cpu"

    @property
    def results(self) -> Path:
        """Folder of this preset's results."""
        return self.out / (self.preset.folder or self.name)

    @property
    def models(self) -> Path:
        """Folder of this preset's classifiers."""
        return self.work / "models" / (self.preset.folder or self.name)

    def trial(self, method: str, seed: int) -> Trial:
        """The trial of a method and a seed."""
        how, codes = self.preset.methods[method]
        budget, unit_range = self.preset.odd.get(method, (self.preset.budget, self.preset.unit_range))
        return Trial(method, how, codes, budget, seed, unit_range, self.preset.given.get(codes or ""))

    def run(self, trial: Trial) -> None:
        """Train and score a trial, unless it is done or another process is at it; a line on the terminal either way."""
        path = self.results / f"{trial.name}.json"
        with claimed(self.models / f"{trial.name}.lock") as ours:
            if not ours:
                click.echo(f"{trial.method}, seed {trial.seed}: another process is at it")
            elif path.is_file():
                found = trial.read(path)
                click.echo(f"{_line(trial, found)}; read from {path}: pass another --out to run it anew")
            elif twin := self.twin(trial):
                self.run(twin)
                if (same := self.results / f"{twin.name}.json").is_file():  # else another process is at it
                    write(path, {**twin.read(same), "method": trial.method, "same_as": twin.method})
            else:
                click.echo(f"{trial.method}, seed {trial.seed}: training")
                model, training = self.trained(trial)
                click.echo(f"{trial.method}, seed {trial.seed}: scoring")
                record = self.scored(trial, model, training)
                write(path, record)
                click.echo(f"{_line(trial, record)}; written to {path}")

    def scored(self, trial: Trial, model: nn.Module, training: dict[str, Any]) -> dict[str, Any]:
        """The record of a trained classifier."""
        started = time.perf_counter()
        test = trial.in_range(self.images.train)
        with cudnn.flags(enabled=True, allow_tf32=False):
            found = self.scores(model, test.test_images, test.test_labels, trial.bounds)
        return {
            "dataset": self.images.name,
            "preset": self.name,
            "method": trial.method,
            "seed": trial.seed,
            "train_images": len(self.images.train.train_images),
            **self.preset.facts,
            **found,
            **training,
            "scoring_seconds": round(time.perf_counter() - started, 1),
        }

    def scores(self, model: nn.Module, images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> dict[str, Any]:
        """All scores on test images; those on blurred images are the uncropped network's."""
        score = functools.partial(evaluate, images=images, labels=labels, bounds=bounds)
        whole = self.preset.classifier.whole(model)
        if whole is model:
            return score(model, **self.preset.scores)
        found = score(model, **{**self.preset.scores, "sigmas": ()})
        none = {"deepfool_images": 0, "pgd_images": 0, "corruption_images": 0}
        blurred = score(whole, **{**self.preset.scores, **none})
        return {
            **found,
            **{name: blurred[name] for name in ("blurred_accuracy", "blur_sweep") if name in blurred},
            "blurred_images": "whole, not cropped",
            "seconds": {**found["seconds"], "blur": found["seconds"]["blur"] + blurred["seconds"]["blur"]},
        }

    def twin(self, trial: Trial) -> Trial | None:
        """The same trial before codes were refined, where no code changed: training again would change nothing."""
        before = REFINED.get(trial.method)
        if before is None or trial.codes is None:
            return None
        twin = self.trial(before, trial.seed)
        assert twin.codes is not None
        digests = [self.codes_named(name).bank.digest() for name in (trial.codes, twin.codes)]
        return replace(twin, budget=trial.budget) if digests[0] == digests[1] else None

    def trained(self, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
        """The trial's classifier, from its file where that is there, and the circumstances of its training."""
        path, facts = (self.models / f"{trial.name}{suffix}" for suffix in (".safetensors", ".training.json"))
        if path.is_file() and facts.is_file():
            training = trial.read(facts)
            model = self.preset.classifier.build(self.images.train.num_classes)
            model.load_state_dict(safetensors.torch.load_file(path))
            return model.eval().to(self.device), training
        codes = self.codes_named(trial.codes) if trial.codes else None
        data, started = trial.in_range(self.images.train), time.perf_counter()
        steps = trial.budget.steps(data.train_images)
        with Progress(steps, f"{trial.method}, seed {trial.seed}", "steps") as bar:
            model = self.preset.classifier.train(
                trial.how, data, codes, trial.budget, seed=trial.seed, device=self.device, on_step=bar.advance
            )
        training = {
            "steps": steps,
            **circumstances(codes, trial.budget, self.device),
            **({"codes_from": trial.codes_from} if trial.codes_from else {}),
            "training_seconds": round(time.perf_counter() - started, 1),
        }
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        files.write_folder(
            self.models,
            {path.name: lambda target: files.save_tensors(target, tensors), facts.name: as_json(training)},
        )
        return model, training

    def best_alpha(self, trial: Trial) -> float:
        """The ``alpha`` with the best accuracy on the validation images, as the paper's grid search chose it."""
        path = self.results / f"grid-{trial.method}.json"
        found: dict[str, float] = read(path)["validation_accuracy"] if path.is_file() else {}
        for alpha in ALPHAS:
            if str(alpha) not in found:
                budget = replace(trial.budget, alpha=alpha)
                tried = replace(trial, method=f"{trial.method}-alpha-{alpha}", budget=budget)
                model, _ = self.trained(tried)
                held_out = tried.in_range(self.images.validation)
                found[str(alpha)] = accuracy(model, [(held_out.test_images, held_out.test_labels)])
                write(path, {"dataset": self.images.name, "seed": trial.seed, "validation_accuracy": found})
        return float(max(found, key=lambda alpha: found[alpha]))


def _line(trial: Trial, record: dict[str, Any]) -> str:
    scores = ", ".join(f"{name.replace('_', ' ')} {record[name]:.4f}" for name in SHOWN if name in record)
    return f"{trial.method}, seed {trial.seed}: {scores}"


def stored_codes(make: Callable[[str], Codes], images: Images, folder: Path) -> Callable[[str], Codes]:
    """Codes of the training images by name, made when they are first asked for, and described in ``folder``."""

    @functools.cache
    def codes_named(name: str) -> Codes:
        click.echo(f"codes {name}: read or made")
        codes = of_rows(make(name), images.rows)
        write(folder / f"{name}.json", {"dataset": images.name, "codes": name, **described(codes)})
        return codes

    return codes_named
