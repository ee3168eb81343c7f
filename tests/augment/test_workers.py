"""All ways of starting worker processes give the same draws, and a worker that dies gives an error and no orphan."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LabelledImages, LinearGenerator
from systems import needs_fork, needs_posix, needs_proc
from torch.utils.data import ConcatDataset, DataLoader, get_worker_info

from latent_mixup import LatentBank, LatentMixupCollate, LatentMixupDataset, LatentMixupLoader, RenderedMixupDataset
from latent_mixup.pool.render import render


@pytest.fixture
def chain(toy_dataset, linear_generator, toy_bank, tmp_path):
    """A data set of mixes and one of a pool, collated with further mixes, wrapped for more: all four at once."""
    bank = LatentBank(toy_bank[:][0].half(), toy_bank.labels, source_index=toy_bank.source_index)
    bank.save_pretrained(tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")  # which each process opens for itself
    render(linear_generator, bank, tmp_path / "pool", n=30, progress=False)
    settings = {"prob": 0.5, "seed": 0}

    def make(**options):
        mixes = LatentMixupDataset(toy_dataset, linear_generator, bank, **settings)
        pool = RenderedMixupDataset(tmp_path / "pool", dataset=toy_dataset, **settings)
        collate = LatentMixupCollate(linear_generator, bank, dataset=toy_dataset, **settings)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(3)).tolist()
        loader = DataLoader(ConcatDataset([mixes, pool]), 8, sampler=order, collate_fn=collate, **options)
        return LatentMixupLoader(loader, linear_generator, bank, **settings), (mixes, pool, collate)

    return make


def pull(chain, epochs=(0, 1)):
    """Images and targets of two epochs."""
    loader, told = chain
    batches = []
    for epoch in epochs:
        for part in (loader, *told):
            part.set_epoch(epoch)
        batches += list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize(
    ("method", "workers", "persistent", "pinned"),
    [
        pytest.param("fork", 2, True, True, marks=needs_fork),
        pytest.param("fork", 4, False, False, marks=needs_fork),
        ("spawn", 2, True, False),  # workers of these two import torch first: seconds
        pytest.param("forkserver", 2, True, False, marks=needs_posix),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # there may be no accelerator to pin it for
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
def test_the_same_seed_gives_the_same_draws(chain, method, workers, persistent, pinned):
    here = pull(chain())
    there = pull(
        chain(
            num_workers=workers,
            multiprocessing_context=method,
            persistent_workers=persistent,
            pin_memory=pinned,
        )
    )
    torch.testing.assert_close(there[0], here[0])
    assert torch.equal(there[1], here[1])


TRAINING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from conftest import LabelledImages, LinearGenerator
from torch.utils.data import DataLoader, get_worker_info
from latent_mixup import LatentBank, LatentMixupLoader

class Deadly(LabelledImages):
    def __getitem__(self, index):
        if index == 30 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

def note(worker):
    with open(sys.argv[2], "a") as file:
        file.write(f"{os.getpid()}\\n")

images, generator = torch.rand(50, 1, 4, 4) * 2 - 1, LinearGenerator()
inner = DataLoader(
    Deadly(images, torch.arange(50) % 3), 8, num_workers=2, timeout=30, worker_init_fn=note,
    persistent_workers=sys.argv[3] == "persistent",
)
bank = LatentBank(generator.encode(images), torch.arange(50) % 3)
print(len(list(LatentMixupLoader(inner, generator, bank, prefetch=int(sys.argv[4])))))
"""


@needs_proc
@pytest.mark.parametrize(("persistent", "prefetch"), [("persistent", "0"), ("new", "2")])
def test_a_killed_worker_is_an_error_without_hang_or_orphan(tmp_path, persistent, prefetch):
    """In a process of its own: torch tells of a dead worker by a signal handler, whatever is at work just then."""
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", TRAINING, str(Path(__file__).parents[1]), str(pids), persistent, prefetch]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert re.search(r"RuntimeError: DataLoader worker \(pid.*\) (is killed by|exited unexpectedly)", found.stderr)
    assert found.stdout == ""
    workers = [int(pid) for pid in pids.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))


def runs(pid: int) -> bool:
    """Whether a process is there, and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Slow(LabelledImages):
    def __getitem__(self, index: int):
        time.sleep(60 if get_worker_info() is not None else 0)
        return super().__getitem__(index)


def test_a_worker_that_hangs_is_an_error_at_the_timeout(toy_dataset, toy_bank):
    inner = DataLoader(Slow(toy_dataset.images, toy_dataset.labels), 8, num_workers=1, timeout=1)
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        list(LatentMixupLoader(inner, LinearGenerator(), toy_bank, prefetch=2))
    for worker in multiprocessing.active_children():  # told to end by torch, which does not wait for it
        worker.join(30)
    assert multiprocessing.active_children() == []
