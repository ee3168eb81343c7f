"""How fast is a bank read, and in how much memory: opened, 256 random rows at a time, in worker processes?

Writes a bank of random codes of the size of the authors' for CIFAR-10, 50,000 x 8 x 512 in float16, to a temporary
folder, and reads it in fresh processes with a warm file cache. (Some workers come to hold some hundred MB of their own,
as with any data set that returns tensors of 4 MB: the system's allocator keeps them.)

    python benchmarks/speed/bank_reading.py --out benchmarks/results/bank_reading.json
"""

from __future__ import annotations

import os
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from latent_mixup import LatentBank, LatentMixupDataset
from latent_mixup.generators import wrap
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, out_option, publish

BATCH = 256
CODE = (8, 512)
METHODS = [method for method in ("fork", "spawn") if method in get_all_start_methods()]
CASES = [(0, None), *((workers, method) for workers in (2, 4) for method in METHODS)]
OPENS = 20
MEMORY = ("RssAnon", "RssFile")  # a process's own memory, and pages of files that processes share


class Blank(nn.Module):
    """The smallest decoder that there is."""

    def forward(self, latents: Tensor) -> Tensor:
        """Black images."""
        return latents.new_zeros(len(latents), 3, 32, 32) - 1


class Reads(Dataset[tuple[Tensor, float, dict[str, float]]]):
    """An item is one read: random rows, the seconds it took, and the memory of the process it happened in."""

    def __init__(self, bank: LatentBank, reads: int) -> None:
        self.bank, self.reads = bank, reads

    def __len__(self) -> int:
        return self.reads

    def __getitem__(self, index: int) -> tuple[Tensor, float, dict[str, float]]:
        if index >= self.reads:
            raise IndexError(index)
        rows = torch.randint(len(self.bank), (BATCH,), generator=keyed_generator("bank-rows", index))
        started = time.perf_counter()
        latents, _ = self.bank[rows]
        return latents, time.perf_counter() - started, memory()


def memory() -> dict[str, float]:
    """Memory of this process in MB; empty where the system does not report it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    lines = [line.split() for line in status.read_text(encoding="utf-8").splitlines()]
    return {words[0][:-1]: round(int(words[1]) / 1024, 1) for words in lines if words and words[0][:-1] in MEMORY}


def write(folder: Path, rows: int) -> int:
    """Write the bank; returns the bytes of its shards."""
    torch.set_num_threads(1)
    codes = torch.empty(rows, *CODE, dtype=torch.float16)
    for start in range(0, rows, 1000):
        part = codes[start : start + 1000]
        part.copy_(torch.randn(part.shape, generator=keyed_generator("bank-codes", start)))
    LatentBank(codes, torch.arange(rows) % 10, metadata={"latent_space": "w+"}).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def opened(folder: Path) -> dict[str, Any]:
    """Seconds to open it, the first time in a process and later, and what it adds to memory; its pickled size."""
    torch.set_num_threads(1)
    before, seconds = memory(), []
    for _ in range(OPENS):
        started = time.perf_counter()
        bank = LatentBank.from_pretrained(folder)
        seconds.append(time.perf_counter() - started)
    after = memory()
    generator = wrap(Blank(), latent_shape=CODE, latent_space="w+")
    return {
        "first_ms": round(seconds[0] * 1e3, 2),
        "median_ms": round(statistics.median(seconds) * 1e3, 2),
        "memory_mb": {name: round(after[name] - before[name], 1) for name in after},
        "pickled_dataset_bytes": len(pickle.dumps(LatentMixupDataset(None, generator, bank))),
        "pickled_bank_bytes": len(pickle.dumps(bank)),
    }


def read(folder: Path, workers: int, method: str | None, reads: int) -> dict[str, Any]:
    """Read after read through a ``DataLoader``."""
    torch.set_num_threads(1)
    before = memory()
    data = Reads(LatentBank.from_pretrained(folder), reads)
    loader = DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=method)
    started = time.perf_counter()
    seconds, used, first = list[float](), list[dict[str, float]](), 0.0
    for latents, spent, held in loader:
        first = first or time.perf_counter() - started
        assert latents.shape == (BATCH, *CODE)
        seconds.append(spent)
        used.append(held)
    total = time.perf_counter() - started
    return {
        "workers": workers,
        "start_method": method,
        "read_median_ms": round(statistics.median(seconds) * 1e3, 3),
        "read_p95_ms": round(statistics.quantiles(seconds, n=20)[-1] * 1e3, 3),
        "first_seconds": round(first, 2),
        "reads_per_second": round((reads - 1) / (total - first), 1),
        "memory_before_mb": before,
        "memory_of_a_reader_mb": {name: statistics.median(held[name] for held in used) for name in before},
        "most_memory_of_a_reader_mb": {name: max(held[name] for held in used) for name in before},
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@click.command()
@click.option("--rows", type=click.IntRange(BATCH), default=50_000, show_default=True)
@click.option("--reads", type=click.IntRange(2), default=1_000, show_default=True, help="Reads of 256 random rows.")
@out_option
def main(rows: int, reads: int, out: Path) -> None:
    """Measure how a bank is read."""
    with tempfile.TemporaryDirectory() as folder:
        size = alone(write, Path(folder), rows)
        record = {
            "bank": {"rows": rows, "latent_shape": list(CODE), "dtype": "float16", "bytes": size},
            "rows_a_read": BATCH,
            "reads": reads,
            "open": alone(opened, Path(folder)),
            "read": [alone(read, Path(folder), workers, method, reads) for workers, method in CASES],
            **circumstances("safetensors"),
            "system": {"name": platform.system(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None},
        }
    publish(out, record)


if __name__ == "__main__":
    main()
