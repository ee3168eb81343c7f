"""What the benchmarks of the paper's tables share: a split, a preset, and one trial a (preset, method, seed).

A trial has two halves. Its training ends in ``WORK/models/PRESET/METHOD-SEED.safetensors``, its scores in
``OUT/PRESET/METHOD-SEED.json``; what is there is skipped, and a lock lets several processes share the work.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.backends.cudnn as cudnn
from codes import described, of_rows
from locks import claimed
from paper_code import in_unit_range
from torch import nn
from tqdm import tqdm

from latent_mixup import files
from latent_mixup.cli.shared import uint8_images
from latent_mixup.demo.comparison import Budget, Codes, Data, Method, circumstances
from latent_mixup.images import from_uint8
from latent_mixup.robustness import accuracy, evaluate

SPLIT_SEED, VALIDATION = 42, 10_000
ALPHAS = (0.2, 0.5, 1.0, 2.0)  # what --grid chooses from
REFINED = {"gan_mixup_0.025": "gan_mixup", "gan_mixup_0.020": "gan_mixup_0.025"}  # methods, and that before refining
UNMIXED = ("standard", "standard_90_epochs", "standard_softmax_twice", "decoded")  # and what has no alpha to choose

Methods = dict[str, tuple[Method, str | None]]


@dataclass(frozen=True)
class Images:
    """A data set in [-1, 1], split as in the paper.

    Attributes:
        name: Of the data set.
        train: To train and to test on.
        validation: To train on, and to choose settings by.
        rows: Index in torchvision's training set of each training image.
    """

    name: str
    train: Data
    validation: Data
    rows: torch.Tensor


def split(name: str, train: Any, test: Any, limit: int | None = None) -> Images:
    """All but 10,000 images to train on, these to choose settings by, and the test images.

    Args:
        name: Of the data set.
        train: The training images as torchvision has them.
        test: The test images.
        limit: Use the first so many of ``train``; None: all.
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


def _itself(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Classifier:
    """What is trained.

    Attributes:
        build: Number of classes to a network, to read trained weights into.
        train: As :func:`latent_mixup.demo.comparison.train_paper_cnn`.
        whole: The network without the crop before it; the paper blurs whole images, also where it tests on crops.
    """

    build: Callable[[int], nn.Module]
    train: Callable[..., nn.Module]
    whole: Callable[[nn.Module], nn.Module] = _itself


@dataclass(frozen=True)
class Preset:
    """How all methods are run.

    Attributes:
        budget: What every method gets.
        methods: What trains, and the name of the codes that it decodes, by the method's name.
        classifier: What is trained.
        unit_range: Whether images are in [0, 1] instead of [-1, 1].
        odd: Methods that differ from the others: a budget and ``unit_range`` of their own.
        facts: What else a result has to say.
        scores: Keywords of :func:`latent_mixup.robustness.evaluate`.
        folder: Where results go, where the budget is not the preset's own: see :func:`folder_of`.
    """

    budget: Budget
    methods: Methods
    classifier: Classifier
    unit_range: bool = False
    odd: dict[str, tuple[Budget, bool]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    folder: str = ""


@dataclass(frozen=True)
class Trial:
    """One method with one seed under one preset.

    Attributes:
        preset: Name of the preset.
        method: Name of the method.
        how: What trains.
        codes: Name of the codes that it decodes; None where it decodes none.
        budget: What the method gets.
        seed: Of everything that is drawn.
        unit_range: Whether images are in [0, 1].
    """

    preset: str
    method: str
    how: Method
    codes: str | None
    budget: Budget
    seed: int
    unit_range: bool = False

    @property
    def file(self) -> str:
        """Name of the result in the preset's folder."""
        return f"{self.method}-{self.seed}.json"

    @property
    def bounds(self) -> tuple[float, float]:
        """Black and white."""
        return (0.0, 1.0) if self.unit_range else (-1.0, 1.0)

    def check_budget(self, path: Path) -> dict[str, Any]:
        """The record in a file; raises ``ValueError`` where it is of another budget."""
        record: dict[str, Any] = json.loads(path.read_text())
        if record["budget"] != asdict(self.budget):
            raise ValueError(
                f"{path} is of another budget: expected {asdict(self.budget)}, found {record['budget']}; "
                "choose another --work and --out, or remove it"
            )
        return record

    def in_range(self, data: Data) -> Data:
        """The same images in the trial's range."""
        return in_unit_range(data) if self.unit_range else data


@dataclass(frozen=True)
class Benchmark:
    """One data set under one preset.

    Attributes:
        images: What to train and test on.
        name: Of the preset.
        preset: See :class:`Preset`.
        codes_named: Gives the codes of a name.
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
    def folder(self) -> str:
        """Where results and classifiers go, under ``out`` and ``work``."""
        return self.preset.folder or self.name

    def trial(self, method: str, seed: int) -> Trial:
        """The trial of a method and a seed."""
        how, codes = self.preset.methods[method]
        budget, unit_range = self.preset.odd.get(method, (self.preset.budget, self.preset.unit_range))
        return Trial(self.name, method, how, codes, budget, seed, unit_range)

    def run(self, trial: Trial) -> None:
        """Train and score; what is there is not done again, and what another process is doing is left to it."""
        folder, models = self.out / self.folder, self.work / "models" / self.folder
        with claimed(models / f"{trial.method}-{trial.seed}.lock") as ours:
            if not ours:
                return
            if (folder / trial.file).is_file():
                trial.check_budget(folder / trial.file)
                return
            twin = self.twin(trial)
            if twin is not None:
                self.run(twin)
                if (folder / twin.file).is_file():  # else another process is at it
                    found = twin.check_budget(folder / twin.file)
                    record = {**found, "method": trial.method, "same_as": twin.method}
                    files.write_folder(folder, {trial.file: json_bytes(record)})
                return
            model, training = self.trained(trial)
            started = time.perf_counter()
            test = trial.in_range(self.images.train)
            with cudnn.flags(enabled=True, allow_tf32=False):
                found = self.scores(model, test.test_images, test.test_labels, trial.bounds)
            record = {
                "dataset": self.images.name,
                "preset": trial.preset,
                "method": trial.method,
                "seed": trial.seed,
                "train_images": len(self.images.train.train_images),
                **self.preset.facts,
                **found,
                **training,
                "scoring_seconds": round(time.perf_counter() - started, 1),
            }
            files.write_folder(folder, {trial.file: json_bytes(record)})

    def scores(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, bounds: tuple[float, float]
    ) -> dict[str, Any]:
        """All scores on test images; those on blurred ones of the network without its crop."""
        whole = self.preset.classifier.whole(model)
        if whole is model:
            return evaluate(model, images, labels, bounds=bounds, **self.preset.scores)
        found = evaluate(model, images, labels, bounds=bounds, **{**self.preset.scores, "sigmas": ()})
        none = {"deepfool_images": 0, "pgd_images": 0, "corruption_images": 0}
        blurred = evaluate(whole, images, labels, bounds=bounds, **{**self.preset.scores, **none})
        return {
            **found,
            **{name: blurred[name] for name in ("blurred_accuracy", "blur_sweep") if name in blurred},
            "blurred_images": "whole, not cropped",
            "seconds": {**found["seconds"], "blur": found["seconds"]["blur"] + blurred["seconds"]["blur"]},
        }

    def twin(self, trial: Trial) -> Trial | None:
        """The same trial before codes were refined, where no code changed: training it again would change nothing."""
        before = REFINED.get(trial.method)
        if before is None or trial.codes is None:
            return None
        twin = self.trial(before, trial.seed)
        assert twin.codes is not None
        digests = [self.codes_named(name).bank.digest() for name in (trial.codes, twin.codes)]
        return replace(twin, budget=trial.budget) if digests[0] == digests[1] else None

    def trained(self, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
        """The trial's classifier, from its file where that is there, and the circumstances of its training."""
        folder, classifier = self.work / "models" / self.folder, self.preset.classifier
        path = folder / f"{trial.method}-{trial.seed}.safetensors"
        facts = path.with_suffix(".training.json")
        if path.is_file() and facts.is_file():
            training = trial.check_budget(facts)
            model = classifier.build(self.images.train.num_classes)
            model.load_state_dict(safetensors.torch.load_file(path))
            return model.eval().to(self.device), training
        codes = self.codes_named(trial.codes) if trial.codes else None
        data = trial.in_range(self.images.train)
        steps = trial.budget.steps(data.train_images)
        started = time.perf_counter()
        with tqdm(total=steps, desc=f"{trial.method}, seed {trial.seed}", unit="step", disable=None) as bar:
            model = classifier.train(
                trial.how, data, codes, trial.budget, seed=trial.seed, device=self.device, on_step=bar.update
            )
        training = {
            "steps": steps,
            **circumstances(codes, trial.budget, self.device),
            "training_seconds": round(time.perf_counter() - started, 1),
        }
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        files.write_folder(
            folder,
            {path.name: lambda target: files.save_tensors(target, tensors), facts.name: json_bytes(training)},
        )
        return model, training

    def best_alpha(self, trial: Trial) -> float:
        """The ``alpha`` with the best accuracy on the validation images, as the paper's grid search chose it."""
        file = f"grid-{trial.method}.json"
        found: dict[str, float] = {}
        if (self.out / self.folder / file).is_file():
            found = json.loads((self.out / self.folder / file).read_text())["validation_accuracy"]
        for alpha in ALPHAS:
            if str(alpha) not in found:
                tried = replace(
                    trial, method=f"{trial.method}-alpha-{alpha}", budget=replace(trial.budget, alpha=alpha)
                )
                model, _ = self.trained(tried)
                held_out = tried.in_range(self.images.validation)
                found[str(alpha)] = accuracy(model, [(held_out.test_images, held_out.test_labels)])
                record = {"dataset": self.images.name, "seed": trial.seed, "validation_accuracy": found}
                files.write_folder(self.out / self.folder, {file: json_bytes(record)})
        return float(max(found, key=lambda alpha: found[alpha]))


def stored_codes(make: Callable[[str], Codes], images: Images, out: Path) -> Callable[[str], Codes]:
    """Codes of the training images by name, made when they are first asked for, and described in ``out/codes``."""

    @functools.cache
    def codes_named(name: str) -> Codes:
        codes = of_rows(make(name), images.rows)
        facts = {"dataset": images.name, "codes": name, **described(codes)}
        files.write_folder(out / "codes", {f"{name}.json": json_bytes(facts)})
        return codes

    return codes_named


def json_bytes(record: dict[str, Any]) -> bytes:
    """A record as a file's bytes."""
    return (json.dumps(record, indent=2) + "\n").encode()
