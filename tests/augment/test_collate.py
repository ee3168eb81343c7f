import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, LinearGenerator, SoftImages, one_hot_bank
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from latent_mixup.augment.collate import LatentMixupCollate
from latent_mixup.images import RangeMismatchWarning


@pytest.fixture
def collate(linear_generator, toy_bank):
    return lambda **settings: LatentMixupCollate(linear_generator, toy_bank, **{"seed": 0, **settings})


def pull(dataset, collate, **options):
    batches = list(DataLoader(dataset, 8, collate_fn=collate, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def test_all_batches_odd_and_short(collate, toy_dataset):
    for batch_size in (1, 7, 50):
        for images, targets in DataLoader(toy_dataset, batch_size, collate_fn=collate(prob=0.5)):
            assert images.shape[1:] == (1, 4, 4)
            assert targets.shape == (len(images), 3)
            torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))


def test_prob_zero_is_the_data_set(collate, toy_dataset):
    images, targets = pull(toy_dataset, collate(prob=0.0))
    assert torch.equal(images, toy_dataset.images)
    assert torch.equal(targets.argmax(1), toy_dataset.labels)


def test_half_of_each_batch_is_real(collate, toy_dataset):
    images, _ = next(iter(DataLoader(toy_dataset, 8, collate_fn=collate(prob=0.5))))
    assert (images == toy_dataset.images[:8]).flatten(1).all(1).sum() == 4


def test_pair(collate, toy_dataset):
    _, (y_a, y_b, lam) = next(iter(DataLoader(toy_dataset, 8, collate_fn=collate(target_format="pair"))))
    assert y_a.shape == y_b.shape == lam.shape == (8,)


@pytest.mark.parametrize("soft_samples", [False, True])
@pytest.mark.parametrize("soft_rows", [False, True])
@pytest.mark.parametrize("settings", [{}, {"prob": 0.5}, {"prob": 0.5, "label_smoothing": 0.1}], ids=str)
def test_one_hot_rows_do_what_class_indices_do(
    collate, linear_generator, toy_dataset, toy_bank, soft_samples, soft_rows, settings
):
    rows = SoftImages(toy_dataset.images, F.one_hot(toy_dataset.labels, 3).float())
    bank = one_hot_bank(toy_bank) if soft_rows else toy_bank
    mixup = LatentMixupCollate(linear_generator, bank, seed=0, **settings)
    found, expected = pull(rows if soft_samples else toy_dataset, mixup), pull(toy_dataset, collate(**settings))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_soft_labels(linear_generator, soft_dataset, soft_bank):
    samples = [soft_dataset[i] for i in range(8)]
    images, targets = LatentMixupCollate(linear_generator, soft_bank, prob=0.5, seed=0)(samples)
    real = (images == soft_dataset.images[:8]).flatten(1).all(1)
    assert real.sum() == 4
    assert torch.equal(targets[real], soft_dataset.labels[:8][real])
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    pairs = LatentMixupCollate(linear_generator, soft_bank, prob=0.5, seed=0, target_format="pair")
    _, (y_a, y_b, lam) = pairs(samples)
    torch.testing.assert_close(lam[:, None] * y_a + (1 - lam[:, None]) * y_b, targets)


def test_rows_without_a_label_are_refused(linear_generator, unlabelled_bank):
    with pytest.raises(ValueError, match=r"rows have no label.*bank.subset\(bank.labels >= 0\)"):
        LatentMixupCollate(linear_generator, unlabelled_bank)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_the_same(collate, toy_dataset, method):
    here = pull(toy_dataset, collate(prob=0.7))
    there = pull(toy_dataset, collate(prob=0.7), num_workers=2, multiprocessing_context=method)
    torch.testing.assert_close(here[0], there[0])
    assert torch.equal(here[1], there[1])


def test_batches_epochs_ranks_and_seeds_differ(collate, toy_dataset, monkeypatch):
    samples = [[toy_dataset[i] for i in range(start, start + 8)] for start in (0, 8)]
    mixup = collate()
    draws = [mixup(samples[0])[1], mixup(samples[1])[1], collate(seed=1)(samples[0])[1]]
    mixup.set_epoch(1)
    draws.append(mixup(samples[0])[1])
    monkeypatch.setenv("RANK", "1")
    draws.append(mixup(samples[0])[1])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 5
    monkeypatch.delenv("RANK")
    mixup.set_epoch(0)
    assert torch.equal(mixup(samples[0])[1], draws[0])


def test_set_epoch_reaches_persistent_workers(collate, toy_dataset):
    mixup = collate()
    loader = DataLoader(toy_dataset, 8, collate_fn=mixup, num_workers=1, persistent_workers=True)
    for epoch in (0, 3, 0):
        mixup.set_epoch(epoch)
        expected = pull(toy_dataset, mixup)[1]
        assert torch.equal(torch.cat([targets for _, targets in loader]), expected)


def test_after_another_mixup(collate, toy_dataset):
    def mixup(samples):
        return v2.MixUp(num_classes=3)(*default_collate(samples))

    with torch.random.fork_rng(devices=[]):
        _, targets = pull(toy_dataset, collate(collate_fn=mixup, prob=0.5))
    torch.testing.assert_close(targets.sum(1), torch.ones(50))


def test_global_random_state_is_untouched(collate, toy_dataset):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    collate()([toy_dataset[i] for i in range(9)])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_another_range_is_said_once(collate, toy_dataset):
    unit = LabelledImages((toy_dataset.images + 1) / 2, toy_dataset.labels)
    mixup = collate(prob=0.5)
    with pytest.warns(RangeMismatchWarning, match="mean") as caught:
        pull(unit, mixup)
    assert len(caught) == 1


def test_bad_batches(collate, toy_dataset):
    with pytest.raises(TypeError, match=r"collate_fn needs to return \(images, labels\): got dict"):
        collate()([{"image": torch.zeros(1, 4, 4), "label": 0}])
    with pytest.raises(TypeError, match="two tensors: got Tensor and tuple"):
        collate()([(torch.zeros(1, 4, 4), "shirt")])
    with pytest.raises(TypeError, match="two tensors: got Tensor and list; soft labels need to be tensors as well"):
        collate()([(torch.zeros(1, 4, 4), [0.5, 0.5, 0.0])])
    with pytest.raises(ValueError, match="label 3 is outside num_classes=3"):
        collate()([(torch.zeros(1, 4, 4), 3)])


class Accelerated(LinearGenerator):
    """Says that it lives on an accelerator."""

    @property
    def device(self):
        return torch.device("meta")


def test_a_worker_does_not_decode_on_an_accelerator(toy_dataset, toy_bank):
    with pytest.raises(RuntimeError, match="use LatentMixupLoader"):
        pull(toy_dataset, LatentMixupCollate(Accelerated(), toy_bank), num_workers=1)
