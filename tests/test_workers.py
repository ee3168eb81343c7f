"""All ways of starting worker processes give the same draws, and a worker that dies gives an error and no orphan."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from conftest import LabelledImages, LinearGenerator
from torch.utils.data import ConcatDataset, DataLoader, get_worker_info

from latent_mixup import LatentBank, LatentMixupCollate, LatentMixupDataset, LatentMixupLoader, RenderedMixupDataset
from latent_mixup.rendering import render


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
        collate = LatentMixupCollate(linear_generator, bank, **settings)
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
        ("fork", 2, True, True),
        ("fork", 4, False, False),
        ("spawn", 2, True, False),  # workers of these two import torch first: seconds
        ("forkserver", 2, True, False),
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


class Deadly(LabelledImages):
    """Its 31st sample kills the worker that asks for it."""

    def __getitem__(self, index: int):
        if index == 30 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_an_error_and_no_hang(toy_dataset, toy_bank, prefetch, persistent):
    inner = DataLoader(
        Deadly(toy_dataset.images, toy_dataset.labels), 8, num_workers=2, timeout=30, persistent_workers=persistent
    )
    loader = LatentMixupLoader(inner, LinearGenerator(), toy_bank, prefetch=prefetch, seed=0)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)"):
        list(loader)
    assert time.monotonic() - started < 30
    del loader, inner
    for child in multiprocessing.active_children():
        child.join(10)
    assert multiprocessing.active_children() == []


def test_a_worker_that_hangs_is_an_error_at_the_timeout(toy_dataset, toy_bank):
    class Slow(LabelledImages):
        def __getitem__(self, index: int):
            time.sleep(60)

    inner = DataLoader(Slow(toy_dataset.images, toy_dataset.labels), 8, num_workers=1, timeout=1)
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        list(LatentMixupLoader(inner, LinearGenerator(), toy_bank, prefetch=2))
    assert multiprocessing.active_children() == []
