"""Choose a policy on the validation images, with a stated budget; the test images are not used.

A trial trains the paper's small CNN with one setting and scores it on the 10,000 validation images. The search
maximises :func:`value`: the gain in robustness over standard training, as long as accuracy stays within a margin of it.
Optuna's TPE proposes settings; its journal under --work makes a search resumable and lets processes share it.
OUT/search.json gets all trials and the best setting, which the row ``latent_mixup_best`` of ``mnist.py`` and
``fashionmnist.py`` uses.

    python benchmarks/search/search.py fashion-mnist --data-root data --bank runs/fashion-mnist/gan-bank --trials 32
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from latent_mixup import LatentBank, load_generator
from latent_mixup.cli.shared import FOLDER, torchvision_dataset
from latent_mixup.demo.comparison import Budget, Codes, Method, circumstances, standard
from latent_mixup.policies import Anyone, Beta, LowPass, Noise, OtherClass, Policy, SameClass
from latent_mixup.robustness import evaluate

sys.path.insert(0, str(Path(__file__).parents[1]))

from paper.codes import code_options, of_rows
from paper.running import set_up
from paper.settings import Setting
from paper.small_images import PAPER_CNN
from paper.trials import Images, split
from record import RESULTS, SEARCH_FILE, claimed, read, write

SEARCH_SEED = 1000  # seed of the trainings; the tables use others
MARGIN = 0.002  # accuracy that may be lost against standard training
PRICE = 100.0  # price of accuracy lost beyond that: one per cent costs as much as a factor e of robustness
PARTNERS = {"anyone": Anyone(), "same_class": SameClass(), "other_class": OtherClass()}
FIRST: list[dict[str, Any]] = [  # tried first: each part alone, and combinations
    {"prob": 0.5, "unmixed": 1.0, "noise": 0.0, "blur": 0.0},
    {"prob": 0.5, "unmixed": 1.0, "noise": 0.3, "blur": 0.0},
    {"prob": 0.5, "unmixed": 0.0, "noise": 0.0, "blur": 0.0, "partners": "anyone", "alpha": 1.0},
    {"prob": 0.5, "unmixed": 0.0, "noise": 0.3, "blur": 0.0, "partners": "same_class", "alpha": 1.0},
    {"prob": 0.5, "unmixed": 1.0, "noise": 0.3, "blur": 2.0},
]


def suggested(trial: optuna.trial.BaseTrial) -> Setting:
    """A setting of the search space."""
    prob = trial.suggest_float("prob", 0.1, 1.0, step=0.1)
    unmixed = trial.suggest_float("unmixed", 0.0, 1.0, step=0.25)
    noise = trial.suggest_float("noise", 0.0, 1.0, step=0.1)
    blur = trial.suggest_float("blur", 0.0, 4.0, step=0.5)
    mixing: dict[str, Any] = {}
    if unmixed < 1:
        mixing["partners"] = PARTNERS[trial.suggest_categorical("partners", list(PARTNERS))]
        mixing["weights"] = Beta(trial.suggest_float("alpha", 0.2, 4.0, log=True))
    policy = Policy(
        unmixed=unmixed,
        noise=Noise(noise) if noise else None,
        low_pass=LowPass(0.0, blur) if blur else None,
        **mixing,
    )
    return Setting(round(prob, 1), policy)


def value(scores: dict[str, float], reference: dict[str, float]) -> float:
    """The objective: log ratio of the DeepFool scores plus that of the blurred accuracies, less the price of accuracy.

    The price is :data:`PRICE` times the accuracy lost against ``reference`` beyond :data:`MARGIN`.
    """
    gain = sum(math.log(scores[name] / reference[name]) for name in ("deepfool_score", "blurred_accuracy"))
    lost = reference["accuracy"] - MARGIN - scores["accuracy"]
    return gain - PRICE * max(0.0, lost)


@dataclass(frozen=True)
class Search:
    """A search on one data set.

    Attributes:
        images: Images to train on, and validation images to score on.
        codes: Codes of the training images.
        budget: Budget of a trial.
        deepfool_images: Number of validation images that get a DeepFool score.
        work: Folder for the journal and the reference.
        device: Where to train and to score.
    """

    images: Images
    codes: Codes
    budget: Budget
    deepfool_images: int
    work: Path
    device: str = "cpu"

    def scores(self, method: Method) -> dict[str, float]:
        """Train and score on the validation images."""
        data = self.images.validation
        model = PAPER_CNN.train(method, data, self.codes, self.budget, seed=SEARCH_SEED, device=self.device)
        found = evaluate(
            model,
            data.test_images,
            data.test_labels,
            deepfool_images=self.deepfool_images,
            sigmas=(),
            pgd_images=0,
            corruption_images=0,
        )
        return {name: float(found[name]) for name in ("accuracy", "blurred_accuracy", "deepfool_score")}

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that a journal belongs to."""
        return {
            "dataset": self.images.name,
            "budget": asdict(self.budget),
            "seed": SEARCH_SEED,
            "deepfool_images": self.deepfool_images,
            "validation_images": len(self.images.validation.test_labels),
            "generator_digest": self.codes.generator.digest(),
            "bank_digest": self.codes.bank.digest(),
        }

    def reference(self) -> dict[str, float]:
        """Scores of standard training with the same budget; the first process trains it."""
        path = self.work / "standard.json"
        with claimed(self.work / "standard.lock", wait=True):
            if not path.is_file():
                write(path, {"identity": self.identity, "scores": self.scores(standard)})
        found = read(path)
        if found["identity"] != self.identity:
            raise click.ClickException(
                f"{self.work} holds another search: expected {self.identity}, found {found['identity']}; "
                "choose another --work, or remove it"
            )
        scores: dict[str, float] = found["scores"]
        return scores

    def run(self, trials: int) -> optuna.Study:
        """Go on until ``trials`` trials are done, in all processes together."""
        reference = self.reference()
        storage = JournalStorage(JournalFileBackend(str(self.work / "journal.log")))
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=len(FIRST) + 6, constant_liar=True)
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name="policy", direction="maximize", load_if_exists=True
        )
        for first in FIRST:
            study.enqueue_trial(first, skip_if_exists=True)

        def objective(trial: optuna.Trial) -> float:
            started = time.perf_counter()
            setting = suggested(trial)
            scores = self.scores(setting.method())
            trial.set_user_attr("scores", scores)
            trial.set_user_attr("setting", setting.to_dict())
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 1))
            return value(scores, reference)

        enough: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] = optuna.study.MaxTrialsCallback(
            trials, states=(optuna.trial.TrialState.COMPLETE,)
        )
        if len(_complete(study)) < trials:
            study.optimize(objective, callbacks=[enough])
        return study


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def record(search: Search, study: optuna.Study) -> dict[str, Any]:
    """All trials and the best setting."""
    done = _complete(study)
    best = max(done, key=lambda trial: float(trial.value or -math.inf))
    return {
        **search.identity,
        "margin": MARGIN,
        "price": PRICE,
        "standard": search.reference(),
        "trials": [
            {"number": each.number, "value": each.value, "params": each.params, **each.user_attrs} for each in done
        ],
        "chosen": {"number": best.number, **best.user_attrs["setting"]},
    }


@click.command()
@code_options
@click.option("--work", type=FOLDER, help="Folder for the journal; default: runs/DATASET/search.")
@click.option("--out", type=FOLDER, help="Folder for search.json; default: benchmarks/results/DATASET.")
@click.option("--trials", type=click.IntRange(1), default=32, show_default=True, help="Trials of all processes.")
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True, help="Epochs of a trial.")
@click.option("--device", default="cpu", show_default=True, help="Where to train and to score.")
@click.option("--deepfool-images", type=click.IntRange(1), default=1000, show_default=True)
def main(
    dataset: str,
    data_root: Path,
    generator: str | None,
    bank: str,
    work: Path | None,
    out: Path | None,
    trials: int,
    epochs: int,
    deepfool_images: int,
    limit: int | None,
    device: str,
) -> None:
    """Search, and write search.json."""
    device = set_up(device)
    train, test = (torchvision_dataset(dataset, data_root, train=part) for part in (True, False))
    images = split(dataset, train, test, limit)
    codes = of_rows(Codes(load_generator(generator or dataset), LatentBank.from_pretrained(bank)), images.rows)
    folder = work or Path("runs", dataset, "search")
    search = Search(images, codes, Budget(epochs=epochs), deepfool_images, folder, device)
    folder.mkdir(parents=True, exist_ok=True)
    found = {**record(search, search.run(trials)), **circumstances(codes, search.budget, device)}
    write((out or RESULTS / dataset) / SEARCH_FILE, found)
    click.echo(json.dumps(found["chosen"], indent=2))


if __name__ == "__main__":
    main()
