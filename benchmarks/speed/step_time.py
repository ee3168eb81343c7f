"""How much longer is a training step on mixes than a standard step?

Blocks of steps of all kinds take turns, and a ratio is taken block by block, so that a machine whose speed drifts does
not decide. Data loading is included. Beside the ratios stands their floor: counted, as if decode and training step did
their multiply-adds at one speed; and measured, a standard step with the decode's matrix products or convolutions alone.
Targets: bundled generator, decoded live, at most 1.10; a StyleGAN2 of the CIFAR-10 size with a ResNet-18 at most 1.05
times its measured floor; from a pool at most 1.03; constant memory; an import of at most 0.15 s.

    python benchmarks/speed/step_time.py --out benchmarks/results/step_time.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from latent_mixup import LatentBank, LatentMixupLoader, RenderedMixupDataset
from latent_mixup.augment.base import Decoder
from latent_mixup.classifiers import PaperCNN
from latent_mixup.demo.demo import bundled_codes, bundled_data
from latent_mixup.generators import Generator, StyleGAN2
from latent_mixup.pool.render import render
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import as_json, circumstances, peak_mib, quick_option, read, threads_option, write

from speed.stylegan2_speed import convolutions

MEMORY_LOOKS = 10  # measurements in the course of a run
PARTS = ("bundled", "bundled_channels_last", "stylegan2", "memory", "import")
IMPORT = (
    "import time, torch, torchvision; t = time.perf_counter(); import latent_mixup as lm; "
    "lm.LatentMixupLoader, lm.load; print(time.perf_counter() - t)"
)
SMALL: dict[str, Any] = {"z_dim": 16, "w_dim": 16, "channel_max": 8}  # --quick

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A classifier, a generator, and real images.

    Attributes:
        model: Makes the classifier.
        images: ``[N, C, R, R]`` in [-1, 1].
        labels: ``[N]``.
        layers: Input and weight of each matrix product or convolution in a decode of one batch.
        pool_images: Number of mixes in the pool.
    """

    name: str
    model: Callable[[], nn.Module]
    generator: Generator
    bank: LatentBank
    images: Tensor
    labels: Tensor
    batch_size: int
    layers: list[tuple[Tensor, Tensor]]
    pool_images: int

    def plain(self, dataset: Dataset[Any] | None = None) -> DataLoader[Any]:
        """Shuffled whole batches of the real images, or of another data set."""
        draw = torch.Generator().manual_seed(0)
        real = TensorDataset(self.images, self.labels)
        return DataLoader(dataset or real, self.batch_size, shuffle=True, drop_last=True, generator=draw)

    def live(self, **settings: Any) -> LatentMixupLoader:
        """Mixes, decoded when they are needed."""
        return LatentMixupLoader(self.plain(), self.generator, self.bank.subset(slice(None)), seed=0, **settings)

    def arithmetic(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The standard batches, each after the matrix products or convolutions of a decode."""
        for batch in self.plain():
            with torch.no_grad():
                for x, weight in self.layers:
                    F.conv2d(x, weight, padding=1) if weight.ndim == 4 else F.linear(x, weight)
            yield batch


@torch.no_grad()
def decoding_layers(generator: Generator, batch: int) -> list[tuple[Tensor, Tensor]]:
    """An input of the right size, and the weight, of every convolution and linear layer that a decode runs."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(layer: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        seen.append((inputs[0], layer.weight))

    kinds = (nn.Linear, nn.Conv2d)
    hooks = [each.register_forward_hook(keep) for each in generator.modules() if isinstance(each, kinds)]
    generator.decode(torch.randn(batch, *generator.latent_shape, generator=keyed_generator("step-inputs")))
    for hook in hooks:
        hook.remove()
    return seen


def bundled_case(*, channels_last: bool) -> Case:
    """The bundled generator, images and codes, and the paper's classifier; batch 64."""
    codes, data = bundled_codes(), bundled_data()
    generator = codes.generator
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return Case(
        "bundled generator, the paper's small CNN" + ", channels_last" * channels_last,
        lambda: PaperCNN().to(memory_format=memory_format),
        generator,
        codes.bank,
        data.train_images,
        data.train_labels,
        64,
        decoding_layers(generator, 64),
        20_000,
    )


def stylegan2_case(*, quick: bool) -> Case:
    """A StyleGAN2 of the CIFAR-10 size and a ResNet-18 with a CIFAR stem, random weights; batch 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = StyleGAN2(**SMALL) if quick else StyleGAN2()
    batch_size = 4 if quick else 32
    codes = generator.sample_latents(2 * batch_size, keyed_generator("step-codes"))
    images, labels = Decoder(generator)(codes), torch.arange(len(codes)) % 10
    return Case(
        "StyleGAN2 of the CIFAR-10 size, ResNet-18",
        small_model if quick else cifar_resnet18,
        generator,
        LatentBank(codes, labels, metadata={"num_classes": 10}),
        images,
        labels,
        batch_size,
        convolutions(generator, batch_size),
        2 * batch_size,
    )


def cifar_resnet18() -> nn.Module:
    """torchvision's, with a 3x3 convolution in front and no pooling behind it."""
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def small_model() -> nn.Module:
    """For --quick."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))


# --------------------------------------------------------------------------------------------------
# Steps
# --------------------------------------------------------------------------------------------------


def endless(loader: Callable[[], Batches]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader()


class Trained:
    """A classifier in training, and the seconds that a block of its steps takes."""

    def __init__(self, model: Callable[[], nn.Module], loader: Callable[[], Batches]) -> None:
        self.batches = endless(loader)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = model()
            self.model(next(self.batches)[0])
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def step(self) -> None:
        """One training step on the next batch."""
        images, targets = next(self.batches)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), targets).backward()
        self.optimizer.step()

    def block(self, steps: int) -> float:
        """Seconds a step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        return (time.perf_counter() - started) / steps


def kinds(case: Case, pool: Path) -> dict[str, Callable[[], Batches]]:
    """The kinds that are compared; each makes the batches of an epoch."""
    loaders: dict[str, Batches] = {"standard": case.plain(), "live": case.live(), "live_half": case.live(prob=0.5)}
    loaders["pool"] = case.plain(RenderedMixupDataset(pool))
    made: dict[str, Callable[[], Batches]] = {name: partial(_same, loader) for name, loader in loaders.items()}
    return {**made, "arithmetic_alone": case.arithmetic}


def _same(loader: Batches) -> Batches:
    return loader


def multiply_adds(work: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) // 2


def floor(case: Case) -> dict[str, Any]:
    """Multiply-adds of a step and of a decode, and the ratio if both run at one speed."""
    trained = Trained(case.model, case.plain)
    step = multiply_adds(trained.step)
    codes = case.bank[: case.batch_size][0]
    decode = multiply_adds(lambda: Decoder(case.generator)(codes))
    return {
        "step_multiply_adds": step,
        "decode_multiply_adds": decode,
        "ratio": round(1 + decode / step, 3),
        "ratio_half": round(1 + 0.5 * decode / step, 3),
    }


def measure_steps(case: Case, blocks: int, steps: int) -> dict[str, Any]:
    """Time blocks of steps of all kinds in turn."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        render(case.generator, case.bank, pool, n=case.pool_images, progress=False)
        trained = {name: Trained(case.model, loader) for name, loader in kinds(case, pool).items()}
        seconds: dict[str, list[float]] = {name: [] for name in trained}
        for each in trained.values():
            each.block(steps)  # warm up
        for number in tqdm(range(blocks), desc=case.name, unit="block", disable=None):
            for name in rotated(list(trained), number):
                seconds[name].append(trained[name].block(steps))
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "blocks": blocks,
        "steps_a_block": steps,
        "floor": floor(case),
        "rows": {name: summary(found, seconds) for name, found in seconds.items()},
        **circumstances(),
    }


def rotated(names: list[str], turn: int) -> list[str]:
    """The names, another one first in each turn."""
    start = turn % len(names)
    return names[start:] + names[:start]


def summary(found: list[float], seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median milliseconds, and median ratios block by block."""
    ratios = {
        f"median_ratio_to_{name}": round(statistics.median(a / b for a, b in zip(found, seconds[name], strict=True)), 3)
        for name in ("standard", "arithmetic_alone")
    }
    return {"median_ms": round(1e3 * statistics.median(found), 2), **ratios}


# --------------------------------------------------------------------------------------------------
# Memory and import
# --------------------------------------------------------------------------------------------------


def measure_memory(kind: str, steps: int) -> dict[str, Any]:
    """Peak memory of this process in MiB, measured ten times in the course of ``steps`` steps of one kind."""
    case = bundled_case(channels_last=False)
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        render(case.generator, case.bank, pool, n=case.pool_images, progress=False)
        trained, peaks = Trained(case.model, kinds(case, pool)[kind]), []
        for _ in range(MEMORY_LOOKS):
            trained.block(steps // MEMORY_LOOKS)
            peaks.append(round(peak_mib(), 1))
    return {"kind": kind, "steps": steps, "peak_mib": peaks, "growth_mib": round(peaks[-1] - peaks[0], 1)}


def memory_of_each(steps: int) -> list[dict[str, Any]]:
    """Peak memory of each kind, measured in a process of its own."""
    found = []
    for kind in tqdm(("standard", "live", "pool"), desc="memory", disable=None):
        command = [sys.executable, __file__, "--memory-of", kind, "--steps", str(steps)]
        said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
        found.append(json.loads(said))
    return found


def measure_import(turns: int) -> dict[str, Any]:
    """Seconds of ``import latent_mixup`` after torch and torchvision, each in a new process.

    The first process is not counted; it leaves the byte code that pip makes when it installs a wheel.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = partial(subprocess.run, check=True, capture_output=True, encoding="utf-8", env=environment)
    seconds = [
        float(command([sys.executable, "-c", IMPORT]).stdout)
        for _ in tqdm(range(turns + 1), desc="import", disable=None)
    ]
    return {"n": turns, "median_seconds": round(statistics.median(seconds[1:]), 4)}


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file; required.")
@click.option(
    "--part", "parts", type=click.Choice(PARTS), multiple=True, help="Repeatable; the file's others stay; default: all."
)
@click.option(
    "--blocks", type=click.IntRange(3), default=25, show_default=True, help="Blocks of the bundled generator."
)
@click.option("--steps", type=click.IntRange(1), default=24, show_default=True, help="Steps a block: whole decodes.")
@threads_option
@quick_option
@click.option("--memory-of", hidden=True, help="Measure the memory of this kind.")
def main(
    out: Path | None,
    parts: tuple[str, ...],
    blocks: int,
    steps: int,
    quick: bool,
    memory_of: str | None,
) -> None:
    """Time blocks of steps in turn; print and write medians and ratios."""
    if memory_of:
        click.echo(json.dumps(measure_memory(memory_of, steps)))
        return
    if out is None:
        raise click.UsageError("--out is needed")
    record = read(out) if out.is_file() and parts else {}
    few = {"blocks": 3, "steps": 1} if quick else {"blocks": blocks, "steps": steps}
    works: dict[str, Callable[[], Any]] = {
        "bundled": lambda: measure_steps(bundled_case(channels_last=False), **few),
        "bundled_channels_last": lambda: measure_steps(bundled_case(channels_last=True), **few),
        "stylegan2": lambda: measure_steps(stylegan2_case(quick=quick), 3 if quick else 15, 1),
        "memory": lambda: {"runs": memory_of_each(20 if quick else 1000), **circumstances()},
        "import": lambda: {**measure_import(1 if quick else 9), **circumstances()},
    }
    for part in parts or PARTS:
        record[part] = works[part]()
        write(out, record)
    click.echo(as_json(record))


if __name__ == "__main__":
    main()
