"""A small classifier where the images cannot travel: what does it learn from a large one on samples of a generator?

The teacher is trained on 20,000 labelled images. The student sees none of them, but 0, 200 or 2,000 real images and as
many fresh ones as it likes, all with the teacher's soft labels. Every student takes the same steps; the temperature is
chosen on validation images, for each method, with a teacher of its own:

    python benchmarks/robust/distil.py fashion-mnist --data-root data --choose
    python benchmarks/robust/distil.py fashion-mnist --data-root data
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latent_mixup.cli.shared import FOLDER, one_sentence
from latent_mixup.demo.comparison import seeded
from latent_mixup.images import from_uint8
from latent_mixup.policies import Teacher
from latent_mixup.robustness import accuracy
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import RESULTS, data_option, threads_option

from robust.runs import CHOOSING_SEED, SEEDS, best_options, numbers, run_each
from robust.setting import SETTINGS, Images, Workshop, moved, small_cnn

TAUGHT = 20_000  # labelled images of the teacher
BATCH, STEPS = 64, 2_000
TEMPERATURES = (1.0, 4.0)
WIDTHS = {"small": 8, "larger": 16}
FRESH = ("prior", "gaussian", "gaussian_codes", "unlabelled")
OF_REAL = ("real", "mixes", "projected", "pixel_mixes")  # which need real images
NAMES = [
    *(f"{method}_{real}_{size}" for real, size in ((0, "small"), (0, "larger")) for method in FRESH),
    *(f"{method}_{real}_small" for real in (200, 2_000) for method in (*OF_REAL, *FRESH) if method != "gaussian_codes"),
]


@dataclass(frozen=True)
class Trial:
    """One student.

    Attributes:
        shop: Makes what it needs.
        name: ``METHOD_REAL_SIZE``: where fresh images come from, how many real ones it sees, and how large it is.
        temperature: Divides the logits of teacher and student.
        seed: Of teacher, real images and every draw.
    """

    shop: Workshop
    name: str
    temperature: float
    seed: int

    def run(self, *, test: bool) -> dict[str, Any]:
        """Train, and score on validation or test images."""
        method, real, size = self.name.rsplit("_", 2)
        taught = self.shop.teacher(self.seed, TAUGHT)
        model = self._train(method, int(real), WIDTHS[size], Teacher(taught.model, self.temperature))
        record: dict[str, Any] = {"temperature": self.temperature, "real": int(real), "student": size}
        held = _accuracy(model, self.shop.images.validation)
        record |= {"validation": held, "scores": {}}
        if test:
            images = self.shop.images.test
            record["scores"] = {"accuracy": _accuracy(model, images), "teacher": _accuracy(taught.model, images)}
        return record

    def _train(self, method: str, num_real: int, width: int, teacher: Teacher) -> nn.Module:
        images, pad = self.shop.images, self.shop.images.setting.pad
        real = images.train[self._real_rows(num_real)] if num_real else images.train[:0]
        count = num_real if method in OF_REAL else TAUGHT
        pool = None if method == "real" else self._pool(method, real, count)
        num_fresh = 0 if pool is None else BATCH if not num_real else BATCH // 2
        with seeded(self.seed):
            model = small_cnn(images.train.shape[1], width)
            optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            for step in range(STEPS):
                draw = keyed_generator("robust-student", self.seed, step)
                parts = [
                    from_uint8(source[torch.randint(len(source), (size,), generator=draw)])
                    for source, size in ((real, BATCH - num_fresh), (pool, num_fresh))
                    if source is not None and size
                ]
                batch = moved(torch.cat(parts), pad, draw)
                optimizer.zero_grad()
                F.cross_entropy(model(batch) / self.temperature, teacher(batch)).backward()
                optimizer.step()
                schedule.step()
        return model.eval()

    def _real_rows(self, count: int) -> Tensor:
        """Images that the teacher has not seen, ascending."""
        free = torch.ones(len(self.shop.images.train), dtype=torch.bool)
        free[self.shop.images.labelled(self.seed, TAUGHT)] = False
        rows = free.nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=keyed_generator("robust-real", self.seed))
        return rows[order[:count]].sort().values

    def _pool(self, method: str, real: Tensor, count: int) -> Tensor:
        if method in OF_REAL:
            return self.shop.of_images(method, from_uint8(real), self.seed)
        return self.shop.fresh(method, self.seed, count)


def _accuracy(model: nn.Module, images: tuple[Tensor, Tensor]) -> float:
    return accuracy(model, DataLoader(TensorDataset(*images), 500))


@click.command()
@click.argument("dataset", type=click.Choice(list(SETTINGS)))
@data_option
@click.option("--work", type=FOLDER, default=Path("runs/robust"), show_default=True, help="For teachers and samples.")
@click.option("--out", type=FOLDER, help="For results; default: benchmarks/results/robust/DATASET/distil.")
@click.option("--names", help="METHOD_REAL_SIZE, with commas between; default: all.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--choose", is_flag=True, help="Run both temperatures of each, scored on validation images alone.")
@threads_option
@one_sentence
def main(
    dataset: str, data_root: Path, work: Path, out: Path | None, names: str | None, seeds: str, choose: bool
) -> None:
    """Train and score each student with each seed; several processes share the work."""
    folder = out or RESULTS / "robust" / dataset / "distil"
    shop = Workshop(Images.read(dataset, data_root), work)
    known = {name: TEMPERATURES for name in (names.split(",") if names else NAMES)}
    if choose:
        options = [f"{name}-{number}" for name in known for number in range(len(TEMPERATURES))]

        def chosen(option: str, seed: int) -> dict[str, Any]:
            name, number = option.split("-")
            return Trial(shop, name, TEMPERATURES[int(number)], seed).run(test=False)

        run_each(folder / "options", options, [CHOOSING_SEED], chosen)
        return
    best = best_options(folder / "options", known)
    run_each(folder, list(known), numbers(seeds), lambda name, seed: Trial(shop, name, best[name], seed).run(test=True))


if __name__ == "__main__":
    main()
