"""Which samples a loader can give, which rows these are, and whether ranks share them out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from latent_mixup.augment import LatentMixupLoader, SplitWarning
from latent_mixup.augment.sources import is_shared_out

ZEROS = list(range(0, 50, 3))  # samples of class 0
WEIGHTS = [float(i % 3 == 0) for i in range(50)]


def subset_random():
    return SubsetRandomSampler(ZEROS, torch.Generator().manual_seed(0))


def weighted():
    return WeightedRandomSampler(WEIGHTS, 30, generator=torch.Generator().manual_seed(0))


OPTIONS = {
    "indices": lambda: {"sampler": subset_random()},
    "weights of 0": lambda: {"sampler": weighted()},
    "a list": lambda: {"sampler": ZEROS},
    "a batch sampler": lambda: {"batch_sampler": BatchSampler(subset_random(), 8, False)},
    "a batch sampler by weight": lambda: {"batch_sampler": BatchSampler(weighted(), 8, True)},
    "a batch sampler of a list": lambda: {"batch_sampler": BatchSampler(ZEROS, 8, False)},
    "a list of batches": lambda: {"batch_sampler": [ZEROS[:8], ZEROS[8:]]},
}


@pytest.mark.parametrize("sampler", OPTIONS)
def test_only_images_that_a_sampler_can_give_are_mixed(toy_dataset, linear_generator, toy_bank, sampler):
    inner = DataLoader(toy_dataset, **OPTIONS[sampler]())
    for _, targets in LatentMixupLoader(inner, linear_generator, toy_bank, seed=0):
        assert torch.equal(targets, F.one_hot(torch.zeros(len(targets), dtype=torch.int64), 3).float())


def test_a_sampler_of_a_subset_counts_in_the_subset(toy_dataset, linear_generator, toy_bank):
    inner = DataLoader(Subset(toy_dataset, range(1, 50)), 8, sampler=[i - 1 for i in ZEROS[1:]])
    loader = LatentMixupLoader(inner, linear_generator, toy_bank, seed=0)
    assert torch.equal(loader._mixer.view.rows, torch.tensor(ZEROS[1:]))


def test_all_samples_are_all_rows(toy_dataset, linear_generator, toy_bank):
    for options in ({}, {"shuffle": True}, {"sampler": DistributedSampler(toy_dataset, 2, 0)}):
        loader = LatentMixupLoader(DataLoader(toy_dataset, 8, **options), linear_generator, toy_bank)
        assert loader._mixer.view.rows is None


def test_a_data_set_can_be_named_for_batches_of_unknown_origin(toy_dataset, linear_generator, toy_bank):
    batches, part = [(toy_dataset.images[:8], torch.zeros(8, dtype=torch.int64))], Subset(toy_dataset, ZEROS)
    _, targets = next(iter(LatentMixupLoader(batches, linear_generator, toy_bank, dataset=part)))
    assert torch.equal(targets[:, 0], torch.ones(8))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.rand(1, 4, 4) * 2 - 1, 0)] * 16)


def test_where_it_cannot_be_told_any_row_is_mixed_and_it_is_said(toy_dataset, linear_generator, toy_bank):
    batches = [(toy_dataset.images[:8], toy_dataset.labels[:8])]
    others = [toy_dataset[i] for i in range(7)]  # of another length, without indices
    for loader, name in ((batches, "a data set that was not given"), (DataLoader(Stream(), 8), "this Stream")):
        with pytest.warns(SplitWarning, match=f"images of {name}.*bank.subset"):
            found = LatentMixupLoader(loader, linear_generator, toy_bank)
        assert found._mixer.view.rows is None
    with pytest.warns(SplitWarning, match="images of this list"):
        LatentMixupLoader(DataLoader(others, 7), linear_generator, toy_bank)


def test_a_bank_that_was_restricted_by_hand_is_taken_as_it_is(toy_dataset, linear_generator, toy_bank, tmp_path):
    batches = [(toy_dataset.images[:8], torch.zeros(8, dtype=torch.int64))]
    part = toy_bank.subset(toy_bank.rows_for(Subset(toy_dataset, ZEROS)))
    part.save_pretrained(tmp_path)
    for bank in (part, type(part).from_pretrained(tmp_path)):
        _, targets = next(iter(LatentMixupLoader(batches, linear_generator, bank)))
        assert torch.equal(targets[:, 0], torch.ones(8))
    LatentMixupLoader(batches, linear_generator, toy_bank.subset(slice(None)))


# ---- ranks -----------------------------------------------------------------------------------------


class Sharded(DataLoader):
    _is_accelerate_prepared = True


def test_ranks_that_share_nothing_out_are_told_once(toy_dataset, linear_generator, toy_bank, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank)
    with pytest.warns(UserWarning, match="each of 2 ranks gets all of the data: .*DistributedSampler"):
        list(loader)
    list(loader)  # once
    monkeypatch.setenv("WORLD_SIZE", "1")
    list(LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank))


def test_ranks_that_share_data_out_are_known(toy_dataset, linear_generator, toy_bank):
    sampler = DistributedSampler(toy_dataset, 2, 0)
    for loader in (
        DataLoader(toy_dataset, 8, sampler=sampler),
        DataLoader(toy_dataset, batch_sampler=BatchSampler(sampler, 8, False)),
        Sharded(toy_dataset, 8),
        DataLoader(Stream(), 8),  # which may do it itself
        [(torch.rand(8, 1, 4, 4), torch.zeros(8))],
    ):
        assert is_shared_out(loader)
    assert not is_shared_out(DataLoader(toy_dataset, 8))
    assert not is_shared_out(LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, toy_bank))
