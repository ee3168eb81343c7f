"""States of a loader count batches that were given, whatever was read or decoded ahead."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from systems import needs_fork, needs_proc
from torch.utils.data import DataLoader

from latent_mixup.augment import LatentMixupLoader

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

AHEAD = [{"prefetch": 0}, {"prefetch": 3}, {"prefetch": 0, "decode_batches": 4}, {"prefetch": 4, "decode_batches": 2}]


class Stateful:
    """A loader that goes on where it was; its state counts what was read."""

    def __init__(self, dataset, batch_size=4):
        self.batches, self.at = list(DataLoader(dataset, batch_size)), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.at < len(self):
            self.at += 1
            yield self.batches[self.at - 1]
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def torchdata_loader(workers):
    def make(dataset):
        loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
        draw = torch.Generator().manual_seed(5)  # (alone, it does not shuffle the pass after a resumed one as before)
        return loader(dataset, 4, shuffle=workers > 0, num_workers=workers, generator=draw)

    return make


LOADERS = {
    "without states": lambda dataset: DataLoader(dataset, 4),
    "with states": Stateful,
    "torchdata": torchdata_loader(0),
    "torchdata with workers": torchdata_loader(2),
}


@pytest.fixture(params=LOADERS)
def make(request, toy_dataset, linear_generator, toy_bank):
    def make(**settings):
        inner = LOADERS[request.param](toy_dataset)
        return LatentMixupLoader(inner, linear_generator, toy_bank, dataset=toy_dataset, **{"prob": 0.5, **settings})

    return make


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("settings", AHEAD, ids=str)
@pytest.mark.parametrize("seed", [0, None])
def test_a_resumed_run_goes_on_with_the_next_batch(make, settings, seed):
    torch.manual_seed(3)
    whole = [list(loader) for loader in [make(seed=seed, prefetch=0)] for _ in range(2)]
    for given in (1, 6, 13):
        torch.manual_seed(3)
        loader = make(seed=seed, **settings)
        batches = iter(loader)
        first = [next(batches) for _ in range(given)]
        state = pickle.loads(pickle.dumps(loader.state_dict()))  # noqa: S301
        assert state["batch"] == given
        resumed = make(seed=seed, **settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        same([*first, *resumed], whole[0])
        if seed is not None:
            same(list(resumed), whole[1])


@pytest.mark.parametrize("settings", AHEAD[:2], ids=str)
def test_between_passes_the_next_pass_is_next(make, settings):
    whole = make(seed=0, **settings)
    expected = [list(whole) for _ in range(3)][1:]
    loader = make(seed=0, **settings)
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)
    resumed = make(seed=0, **settings)
    resumed.load_state_dict(state)
    for wanted in expected:
        same(list(resumed), wanted)


def test_a_state_is_forgotten_where_another_epoch_is_named(toy_dataset, linear_generator, toy_bank):
    def make():
        return LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank, seed=0)

    loader = make()
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (2, 2)
    for epoch, start in ((2, 2), (3, 0)):
        whole, resumed = make(), make()
        whole.set_epoch(epoch)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        same(list(resumed), list(whole)[start:])


@pytest.mark.parametrize("state", [{}, {"at": 3}, None, {"epoch": 0, "batch": 1, "seed": 0}])
def test_another_state_is_refused(toy_dataset, linear_generator, toy_bank, state):
    loader = LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank)
    with pytest.raises(ValueError, match=r"state needs to be what LatentMixupLoader.state_dict\(\) gave: got"):
        loader.load_state_dict(state)


# ---- threads and processes -------------------------------------------------------------------------

NEW_THREAD = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import torch
from conftest import LinearGenerator
from latent_mixup import LatentBank, LatentMixupLoader
torch.set_num_threads(3)
images, generator = torch.rand(50, 1, 4, 4) * 2 - 1, LinearGenerator()
bank = LatentBank(generator.encode(images), torch.arange(50) % 3).subset(slice(None))
batches, seen = iter(LatentMixupLoader([(images, torch.arange(50) % 3)] * 6, generator, bank, prefetch=2,
    transform=lambda image: used.append(torch.get_num_threads()) or image)), []
used = []
for _ in range(4):
    next(batches)
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start(), thread.join()
print(set(seen), set(used), torch.get_num_threads())
"""


def test_one_core_for_the_decoding_thread_alone():
    command = [sys.executable, "-W", "ignore", "-c", NEW_THREAD, str(Path(__file__).parents[1])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "{3} {1} 3", found.stderr


@needs_fork
@pytest.mark.parametrize("decode_batches", [1, 2])
def test_a_forked_child_that_goes_on_with_its_parents_iterator_is_told(
    toy_dataset, linear_generator, toy_bank, decode_batches
):
    inner = DataLoader(toy_dataset, 4)
    loader = LatentMixupLoader(inner, linear_generator, toy_bank, prefetch=2, decode_batches=decode_batches)
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            list(batches)
        except RuntimeError as error:
            code = 0 if "start a new pass here, iter(loader)" in str(error) else 4
        finally:
            os._exit(code if len(list(loader)) == 13 else 5)  # a pass of its own
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(batches)) == 12


@needs_proc
def test_after_a_pass_its_thread_has_left_the_process(toy_dataset, linear_generator, toy_bank):
    """Python joins a thread before it is gone, and a fork in between copies the locks that it holds."""
    loader = LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank, prefetch=2)
    before = set(os.listdir("/proc/self/task"))
    for _ in range(20):
        list(loader)
        assert set(os.listdir("/proc/self/task")) <= before


def test_no_second_thread_where_that_ends_the_process(toy_dataset, linear_generator, toy_bank, monkeypatch):
    monkeypatch.setattr("latent_mixup.augment.loader.ONE_THREAD", ("cpu",))
    with pytest.raises(ValueError, match="prefetch needs to be 0 on cpu"):
        LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank, prefetch=2)
