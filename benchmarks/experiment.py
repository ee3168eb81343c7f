"""What the benchmarks of MNIST and Fashion-MNIST share: data, presets, and one trial a (preset, method, seed).

A trial has two halves. Its training ends in ``WORK/models/PRESET/METHOD-SEED.safetensors``, its scores in
``OUT/PRESET/METHOD-SEED.json``; what is there is skipped, and a lock lets several processes share the work.
"""

from __future__ import annotations

import fcntl
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import paper_code
import safetensors.torch
import torch
from codes import Effort, Workshop, described, of_rows
from methods import methods as fixed_methods
from torch import nn
from tqdm import tqdm

from latent_mixup import hub
from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.comparison import Budget, Codes, Data, Method, circumstances, train_paper_cnn
from latent_mixup.images import from_uint8
from latent_mixup.robustness import accuracy, evaluate

SPLIT_SEED, VALIDATION = 42, 10_000
GENERATED = {"mnist": 1.0, "fashion-mnist": 0.5}  # share of the training images that the generator makes in the paper
ALPHAS = (0.2, 0.5, 1.0, 2.0)  # what --grid chooses from
UNMIXED = ("standard", "standard_90_epochs", "decoded")  # and what has no alpha to choose

Methods = dict[str, tuple[Method, str | None]]


@dataclass(frozen=True)
class Images:
    """A data set of the MNIST family in [-1, 1], split as in the paper.

    Attributes:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        train_rows: Index in torchvision's training set of each training image.
    """

    name: str
    train: Data
    validation: Data
    train_rows: torch.Tensor


def read_images(name: str, root: Path, limit: int | None = None) -> Images:
    """50,000 images to train on, 10,000 to choose settings on, 10,000 to test on.

    Args:
        name: Of the data set.
        root: Where torchvision finds it.
        limit: Use the first so many images of torchvision's training set; None: all.
    """
    train, test = (torchvision_dataset(name, root, train=part) for part in (True, False))
    images, labels = from_uint8(train.data[:, None]), train.targets
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows, held_out = order[:-VALIDATION], order[-VALIDATION:]
    if limit is not None:
        rows = rows[rows < limit]
    own = images[rows], labels[rows]
    return Images(
        name,
        Data(*own, from_uint8(test.data[:, None]), test.targets),
        Data(*own, images[held_out], labels[held_out]),
        rows,
    )


def paper_cnn(num_classes: int) -> nn.Module:
    """The paper's small network, laid out as it is trained."""
    return PaperCNN(num_classes).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Classifier:
    """What is trained.

    Attributes:
        build: Number of classes to a network, to read trained weights into.
        train: As :func:`latent_mixup.comparison.train_paper_cnn`.
    """

    build: Callable[[int], nn.Module]
    train: Callable[..., nn.Module]


@dataclass(frozen=True)
class Preset:
    """How all methods are run.

    Attributes:
        budget: What every method gets.
        methods: Data set's name to its methods.
        effort: What goes into the codes.
        unit_range: Names of data sets whose images are in [0, 1] instead of [-1, 1].
        classifier: What is trained; the paper's small network for the MNIST family.
        facts: What else a result has to say.
        scores: Keywords of :func:`latent_mixup.robustness.evaluate`.
    """

    budget: Budget
    methods: Callable[[str], Methods]
    effort: Effort = field(default_factory=Effort)
    unit_range: tuple[str, ...] = ()
    classifier: Classifier = Classifier(paper_cnn, train_paper_cnn)
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "fixed": Preset(Budget(epochs=20), lambda dataset: fixed_methods(GENERATED[dataset])),
    "paper_code": Preset(
        Budget(epochs=50, batch_size=16), paper_code.methods, Effort(paper_images=5000), unit_range=("fashion-mnist",)
    ),
    "quick": Preset(
        Budget(epochs=3),
        lambda dataset: fixed_methods(GENERATED[dataset]),
        Effort(400, 200, 400, 1, steps=20, refine_steps=20, paper_steps=20, paper_images=500, images=6000),
        scores={"deepfool_images": 200, "pgd_images": 200, "corruption_images": 200, "severities": (3,)},
    ),
}


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

    def data(self, images: Images) -> Data:
        """What it is trained and tested on."""
        return paper_code.in_unit_range(images.train) if self.unit_range else images.train


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
    """

    images: Images
    name: str
    preset: Preset
    codes_named: Callable[[str], Codes]
    work: Path
    out: Path

    def trial(self, method: str, seed: int) -> Trial:
        """The trial of a method and a seed."""
        dataset = self.images.name
        if (self.name, dataset, method) == ("paper_code", "mnist", "standard_90_epochs"):
            # the printed row of table 2: before MNIST was normalised to [-1, 1], and almost twice as long
            budget = replace(self.preset.budget, epochs=90)
            how, _ = self.preset.methods(dataset)["standard"]
            return Trial(self.name, method, how, None, budget, seed, unit_range=True)
        how, codes = self.preset.methods(dataset)[method]
        unit_range = dataset in self.preset.unit_range
        return Trial(self.name, method, how, codes, self.preset.budget, seed, unit_range)

    def run(self, trial: Trial) -> None:
        """Train and score; what is there is not done again, and what another process is doing is left to it."""
        folder, models = self.out / trial.preset, self.work / "models" / trial.preset
        with claimed(models / f"{trial.method}-{trial.seed}.lock") as ours:
            if not ours or (folder / trial.file).is_file():
                return
            model, training = self.trained(trial)
            started = time.perf_counter()
            test = trial.data(self.images)
            found = evaluate(model, test.test_images, test.test_labels, bounds=trial.bounds, **self.preset.scores)
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
            hub.write_folder(folder, {trial.file: json_bytes(record)})

    def trained(self, trial: Trial) -> tuple[nn.Module, dict[str, Any]]:
        """The trial's classifier, from its file where that is there, and the circumstances of its training."""
        folder, classifier = self.work / "models" / trial.preset, self.preset.classifier
        path = folder / f"{trial.method}-{trial.seed}.safetensors"
        facts = path.with_suffix(".training.json")
        if path.is_file() and facts.is_file():
            model = classifier.build(self.images.train.num_classes)
            model.load_state_dict(safetensors.torch.load_file(path))
            return model.eval(), json.loads(facts.read_text())
        codes = self.codes_named(trial.codes) if trial.codes else None
        data = trial.data(self.images)
        steps = trial.budget.steps(data.train_images)
        started = time.perf_counter()
        with tqdm(total=steps, desc=f"{trial.method}, seed {trial.seed}", unit="step", disable=None) as bar:
            model = classifier.train(trial.how, data, codes, trial.budget, seed=trial.seed, on_step=bar.update)
        training = {
            "steps": steps,
            **circumstances(codes, trial.budget),
            "training_seconds": round(time.perf_counter() - started, 1),
        }
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        hub.write_folder(
            folder,
            {path.name: lambda target: hub.save_tensors(target, tensors), facts.name: json_bytes(training)},
        )
        return model, training

    def best_alpha(self, trial: Trial) -> float:
        """The ``alpha`` with the best accuracy on the validation images, as the paper's grid search chose it."""
        file = f"grid-{trial.method}.json"
        found: dict[str, float] = {}
        if (self.out / trial.preset / file).is_file():
            found = json.loads((self.out / trial.preset / file).read_text())["validation_accuracy"]
        for alpha in ALPHAS:
            if str(alpha) not in found:
                tried = replace(
                    trial, method=f"{trial.method}-alpha-{alpha}", budget=replace(trial.budget, alpha=alpha)
                )
                model, _ = self.trained(tried)
                held_out = replace(tried.data(self.images), **self._validation(tried))
                loader = [(held_out.test_images, held_out.test_labels)]
                found[str(alpha)] = accuracy(model, loader)
                record = {"dataset": self.images.name, "seed": trial.seed, "validation_accuracy": found}
                hub.write_folder(self.out / trial.preset, {file: json_bytes(record)})
        return float(max(found, key=lambda alpha: found[alpha]))

    def _validation(self, trial: Trial) -> dict[str, torch.Tensor]:
        held_out = self.images.validation
        images = (held_out.test_images + 1) / 2 if trial.unit_range else held_out.test_images
        return {"test_images": images, "test_labels": held_out.test_labels}


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has the work that ``path`` stands for; the system lets go of it when it dies.

    Args:
        path: Of an empty file.
        wait: Until whoever has it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def benchmark(dataset: str, name: str, preset: Preset, data_root: Path, work: Path, out: Path) -> Benchmark:
    """The benchmark of a data set, whose codes are made when a method first needs them, by one process."""
    images = read_images(dataset, data_root, preset.effort.images)
    shop = Workshop(dataset, data_root, work, preset.effort)

    @functools.cache
    def codes_named(wanted: str) -> Codes:
        with claimed(work / f"{wanted}.lock", wait=True):
            whole = shop.codes("dcgan" if wanted == "dcgan_kept" else wanted)
            codes = of_rows(whole, images.train_rows)
            if wanted == "dcgan_kept":  # the paper kept the codes whose error was below the median
                codes = paper_code.kept(codes, 0.5)
            facts = {"dataset": dataset, "codes": wanted, **described(codes)}
            hub.write_folder(out / "codes", {f"{wanted}.json": json_bytes(facts)})
        return codes

    return Benchmark(images, name, preset, codes_named, work, out)


def command(dataset: str) -> click.Command:
    """The command line of one data set's benchmark."""
    known = {name: list(preset.methods(dataset)) for name, preset in PRESETS.items()}

    @click.command(help=f"{dataset}: train and score each method with each seed.")
    @click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
    @click.option("--work", type=FOLDER, help=f"For codes and classifiers; default: runs/{dataset}.")
    @click.option("--out", type=FOLDER, help=f"For results; default: benchmarks/results/{dataset}.")
    @click.option("--preset", "name", type=click.Choice(list(PRESETS)), default="fixed", show_default=True)
    @click.option("--methods", help=f"With commas between; default: all of {', '.join(known['fixed'])}.")
    @click.option("--seeds", default="0,1,2", show_default=True)
    @click.option("--epochs", type=click.IntRange(1), help="Default: the preset's.")
    @click.option("--batch-size", type=click.IntRange(1), help="Default: the preset's.")
    @click.option("--grid", is_flag=True, help="Choose alpha on the validation images first, as the paper did.")
    @click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
    def main(
        data_root: Path,
        work: Path | None,
        out: Path | None,
        name: str,
        methods: str | None,
        seeds: str,
        grid: bool,
        threads: int | None,
        **budget: int | None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        preset = PRESETS[name]
        changed = {key: value for key, value in budget.items() if value is not None}
        preset = replace(preset, budget=replace(preset.budget, **changed))
        runs = work or Path("runs", dataset)
        if name == "quick":
            runs = runs / "quick"
        bench = benchmark(dataset, name, preset, data_root, runs, out or Path(__file__).parent / "results" / dataset)
        chosen = methods.split(",") if methods else known[name]
        run_all(bench, chosen, [int(seed) for seed in seeds.split(",")], grid=grid)

    return main


def run_all(bench: Benchmark, methods: Sequence[str], seeds: Sequence[int], *, grid: bool = False) -> None:
    """Every method with every seed, all methods of one seed before the next."""
    alphas: dict[str, float] = {}
    for seed in seeds:
        for method in methods:
            trial = bench.trial(method, seed)
            if grid and method not in UNMIXED:
                alphas[method] = alphas.get(method) or bench.best_alpha(trial)
                trial = replace(trial, budget=replace(trial.budget, alpha=alphas[method]))
            bench.run(trial)


def json_bytes(record: dict[str, Any]) -> bytes:
    """A record as a file's bytes."""
    return (json.dumps(record, indent=2) + "\n").encode()
