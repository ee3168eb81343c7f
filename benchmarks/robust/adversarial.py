"""Adversarial training with few labelled images: do fresh samples with a teacher's labels raise robust accuracy?

Every method takes the same steps on the same labelled images, in batches of the same size, and is averaged over its
steps. The last average, of those after every 125 steps, is the one that withstands PGD-10 best on validation images.
Each method has two options, chosen there as well, in runs with labelled images of their own:

    python benchmarks/robust/adversarial.py fashion-mnist --data-root data --choose
    python benchmarks/robust/adversarial.py fashion-mnist --data-root data
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.cli.shared import FOLDER, one_sentence
from latent_mixup.demo.comparison import seeded
from latent_mixup.images import from_uint8
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import RESULTS, data_option, threads_option

from robust.runs import CHOOSING_SEED, SEEDS, best_options, numbers, run_each
from robust.setting import NUM_CLASSES, SETTINGS, Images, Workshop, moved, small_cnn

BATCH = 64
STEPS = {"fashion-mnist": 2_000, "cifar10": 3_000}
EVERY = 125  # steps between two looks at the validation images
DECAY = 0.995  # of the averaged weights, a step
VALIDATED, ATTACKED, TESTED = 1_000, 200, 1_000  # images under PGD-10 to choose, under AutoAttack, under PGD-50
SHARES = (0.5, 0.75)  # of a batch that is fresh
METHODS = {  # options: the weight decay; how often a batch is cut and mixed; the share that is fresh
    "real": (0.0, 5e-4),
    "unlabelled": SHARES,
    "prior": SHARES,
    "gaussian": SHARES,
    "cutmix": (0.5, 1.0),
    "cutmix_taught": SHARES,
    "mixes": SHARES,
    "projected": SHARES,
    "prior_cutmix": SHARES,
    "unlabelled_cutmix": SHARES,
    "prior_of_few": SHARES,
    "pixel_mixes": SHARES,
    "decodes": SHARES,
}


@dataclass(frozen=True)
class Trial:
    """One method with one seed.

    Attributes:
        shop: Makes what it needs.
        method: One of ``METHODS``.
        option: One of its options.
        seed: Of the labelled images and of every draw.
    """

    shop: Workshop
    method: str
    option: float
    seed: int

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        return self.shop.images.setting.eps

    def train(self) -> tuple[nn.Module, dict[str, Any]]:
        """The best average, and how it did on the validation images."""
        few, labels = self.shop.few(self.seed)
        targets, share = F.one_hot(labels, NUM_CLASSES).float(), self.option if self.option in SHARES else 0.0
        has_pool = self.method not in ("real", "cutmix", "cutmix_taught")
        kind, teacher = self.method.removesuffix("_cutmix"), self.shop.teacher(self.seed)
        pool = self.shop.fresh(kind, self.seed) if has_pool else None
        how_often_cut = self.option if self.method == "cutmix" else float(kind != self.method)
        num_fresh = int(BATCH * share) if has_pool or self.method == "cutmix_taught" else 0
        pad, steps = self.shop.images.setting.pad, STEPS[self.shop.images.name]
        with seeded(self.seed):
            model = small_cnn(few.shape[1])
            averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
            decay = self.option if self.method == "real" else 0.0
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay, fused=True)
            cut = v2.CutMix(num_classes=NUM_CLASSES)
            found: list[tuple[float, int]] = []
            best: nn.Module = averaged
            for step in range(steps):
                draw = keyed_generator("robust-batch", self.seed, step)
                rows = torch.randint(len(few), (BATCH - num_fresh,), generator=draw)
                batch, wanted = moved(few[rows], pad, draw), targets[rows]
                if torch.rand((), generator=draw) < how_often_cut:
                    batch, wanted = cut(batch, labels[rows])
                if pool is not None:
                    made = moved(from_uint8(pool[torch.randint(len(pool), (num_fresh,), generator=draw)]), pad, draw)
                    batch, wanted = torch.cat([batch, made]), torch.cat([wanted, teacher(made)])
                elif num_fresh:
                    others = torch.randint(len(few), (num_fresh,), generator=draw)
                    made, _ = cut(moved(few[others], pad, draw), labels[others])
                    batch, wanted = torch.cat([batch, made]), torch.cat([wanted, teacher(made)])
                attacked = lm.robustness.adversarial(model, batch, wanted, eps=self.eps, bounds=(-1, 1), steps=3)
                optimizer.zero_grad()
                F.cross_entropy(model(attacked), wanted).backward()
                optimizer.step()
                averaged.update_parameters(model)
                if (step + 1) % EVERY == 0:
                    held, held_labels = (part[:VALIDATED] for part in self.shop.images.validation)
                    score = _under_pgd(averaged, held, held_labels, self.eps, steps=10)
                    if not found or score > max(found)[0]:
                        best = copy.deepcopy(averaged)
                    found.append((score, step + 1))
        return best.eval(), {"validation": max(found)[0], "curve": found, "best_step": max(found)[1]}

    def run(self, *, test: bool) -> dict[str, Any]:
        """Train, and score on test images."""
        model, record = self.train()
        record |= {"option": self.option, "eps": self.eps, "batch": BATCH, "scores": {}}
        if test:
            record["scores"] = self._scores(model)
        return record

    def _scores(self, model: nn.Module) -> dict[str, float]:
        """Clean accuracy on all test images, PGD-50 with 3 starts and AutoAttack on as many for each seed anew."""
        images, labels = self.shop.images.test
        order = torch.randperm(len(images), generator=keyed_generator("robust-tested", self.seed))
        some, few = order[:TESTED], order[:ATTACKED]
        fooled = lm.robustness.autoattack(model, images[few], labels[few], bounds=(-1, 1), eps=self.eps, seed=self.seed)
        with torch.no_grad():
            standing = (model(fooled).argmax(1) == labels[few]).float().mean().item()
        clean = lm.robustness.accuracy(model, DataLoader(TensorDataset(images, labels), 500))
        return {
            "accuracy": clean,
            "pgd": _under_pgd(model, images[some], labels[some], self.eps, steps=50, restarts=3),
            "autoattack": standing,
        }


def _under_pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, **settings: Any) -> float:
    fooled = lm.robustness.pgd(model, images, labels, bounds=(-1, 1), eps=eps, **settings).fooled
    return 1 - fooled.float().mean().item()


@click.command()
@click.argument("dataset", type=click.Choice(list(SETTINGS)))
@data_option
@click.option("--work", type=FOLDER, default=Path("runs/robust"), show_default=True, help="For teachers and samples.")
@click.option("--out", type=FOLDER, help="For results; default: benchmarks/results/robust/DATASET/adversarial.")
@click.option("--methods", help="Names with commas between; default: all.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--choose", is_flag=True, help="Run both options of each method, scored on validation images alone.")
@threads_option
@one_sentence
def main(
    dataset: str, data_root: Path, work: Path, out: Path | None, methods: str | None, seeds: str, choose: bool
) -> None:
    """Train and score each method with each seed; several processes share the work."""
    folder = out or RESULTS / "robust" / dataset / "adversarial"
    shop = Workshop(Images.read(dataset, data_root), work)
    known = {name: METHODS[name] for name in (methods.split(",") if methods else METHODS)}
    if choose:
        names = [f"{name}-{number}" for name, options in known.items() for number in range(len(options))]

        def chosen(name: str, seed: int) -> dict[str, Any]:
            method, number = name.split("-")
            return Trial(shop, method, known[method][int(number)], seed).run(test=False)

        run_each(folder / "options", names, [CHOOSING_SEED], chosen)
        return
    best = best_options(folder / "options", known)
    run_each(folder, list(known), numbers(seeds), lambda name, seed: Trial(shop, name, best[name], seed).run(test=True))


if __name__ == "__main__":
    main()
