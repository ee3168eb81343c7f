import copy
import pickle
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, SoftImages, one_hot_bank
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from latent_mixup.functional import mixup_criterion
from latent_mixup.images import RangeMismatchWarning
from latent_mixup.loader import LatentMixupLoader


@pytest.fixture
def wrap(toy_dataset, linear_generator, toy_bank):
    def make(loader=None, **settings):
        loader = DataLoader(toy_dataset, 8) if loader is None else loader
        return LatentMixupLoader(loader, linear_generator, toy_bank, **{"seed": 0, **settings})

    return make


def pull(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("latent-mixup")]


class Failing:
    """Three batches, then an error."""

    def __iter__(self):
        for _ in range(3):
            yield torch.rand(4, 1, 4, 4) * 2 - 1, torch.zeros(4, dtype=torch.int64)
        raise OSError("disk gone")


# ---- batches ---------------------------------------------------------------------------------------


def test_every_batch_comes_out(wrap):
    batches = list(wrap(prob=0.5))
    assert [len(images) for images, _ in batches] == [8] * 6 + [2]
    for images, targets in batches:
        torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))


def test_prob_zero_is_the_data_set(wrap, toy_dataset):
    images, targets = pull(wrap(prob=0.0))
    assert torch.equal(images, toy_dataset.images)
    assert torch.equal(targets.argmax(1), toy_dataset.labels)


def test_pair_and_soft_are_one_loss(wrap):
    for (images, soft), (same, (y_a, y_b, lam)) in zip(wrap(), wrap(target_format="pair"), strict=True):
        assert torch.equal(images, same)
        logits = images.flatten(1)[:, :3]
        loss = mixup_criterion(torch.nn.functional.cross_entropy, logits, y_a, y_b, lam)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, soft))


@pytest.mark.parametrize("soft_samples", [False, True])
@pytest.mark.parametrize("soft_rows", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_one_hot_rows_do_what_class_indices_do(
    wrap, linear_generator, toy_dataset, toy_bank, soft_samples, soft_rows, enabled
):
    rows = SoftImages(toy_dataset.images, F.one_hot(toy_dataset.labels, 3).float())
    inner = DataLoader(rows if soft_samples else toy_dataset, 8)
    bank = one_hot_bank(toy_bank) if soft_rows else toy_bank
    for settings in ({"prob": 0.5, "label_smoothing": 0.1}, {"prob": 0.5, "target_format": "pair"}):
        loader, hard = LatentMixupLoader(inner, linear_generator, bank, seed=0, **settings), wrap(**settings)
        loader.mixup_enabled = hard.mixup_enabled = enabled
        for (images, targets), (same, expected) in zip(loader, hard, strict=True):
            assert torch.equal(images, same)
            if "target_format" in settings:
                expected = tuple(F.one_hot(y, 3).float() for y in expected[:2]) + expected[2:]
                targets = tuple(y if y.ndim == 2 else F.one_hot(y, 3).float() for y in targets[:2]) + targets[2:]
                assert all(map(torch.equal, targets, expected))
            else:
                assert torch.equal(targets, expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_soft_labels(linear_generator, soft_dataset, soft_bank, prefetch):
    inner = DataLoader(soft_dataset, 8)
    settings = {"prob": 0.5, "seed": 0, "prefetch": prefetch}
    soft = LatentMixupLoader(inner, linear_generator, soft_bank, **settings)
    pairs = LatentMixupLoader(inner, linear_generator, soft_bank, **settings, target_format="pair")
    own = soft_dataset.labels.split(8)
    for (images, targets), (_, (y_a, y_b, lam)), real, labels in zip(
        soft, pairs, soft_dataset.images.split(8), own, strict=True
    ):
        kept = (images == real).flatten(1).all(1)
        assert torch.equal(targets[kept], labels[kept])
        torch.testing.assert_close(lam[:, None] * y_a + (1 - lam[:, None]) * y_b, targets)
        logits = images.flatten(1)[:, :3]
        loss = mixup_criterion(F.cross_entropy, logits, y_a, y_b, lam)
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets))


def test_rows_without_a_label_are_refused(linear_generator, toy_dataset, unlabelled_bank):
    with pytest.raises(ValueError, match=r"rows have no label.*bank.subset\(bank.labels >= 0\)"):
        LatentMixupLoader(DataLoader(toy_dataset, 8), linear_generator, unlabelled_bank)


@pytest.mark.parametrize("prefetch", [1, 2, 5, 100])
def test_prefetch_changes_nothing(wrap, prefetch):
    expected, ahead = pull(wrap(prefetch=0, prob=0.6)), pull(wrap(prefetch=prefetch, prob=0.6))
    assert torch.equal(expected[0], ahead[0])
    assert torch.equal(expected[1], ahead[1])


def test_workers_of_the_wrapped_loader_change_nothing(wrap, toy_dataset):
    expected = pull(wrap())
    workers = pull(wrap(DataLoader(toy_dataset, 8, num_workers=2)))
    assert torch.equal(expected[0], workers[0])
    assert torch.equal(expected[1], workers[1])


def test_any_iterable_will_do(wrap, toy_dataset):
    batches = [
        (toy_dataset.images[:5], toy_dataset.labels[:5]),
        [toy_dataset.images[5:], toy_dataset.labels[5:]],
    ]
    loader = wrap(batches)
    assert len(loader) == 2
    assert [len(images) for images, _ in loader] == [5, 45]
    with pytest.raises(AttributeError, match="dataset"):
        _ = loader.dataset


def test_at_most_prefetch_batches_are_read_ahead(wrap, toy_dataset):
    read = []

    def batches():
        for i in range(20):
            read.append(i)
            yield toy_dataset.images[:4], toy_dataset.labels[:4]

    iterator = iter(wrap(batches(), prefetch=3))
    next(iterator)
    assert len(read) == 4
    iterator.close()


# ---- epochs ----------------------------------------------------------------------------------------


def test_epochs_count_up_by_themselves(wrap):
    loader = wrap()
    first, second = pull(loader)[1], pull(loader)[1]
    assert not torch.equal(first, second)
    told = wrap()
    told.set_epoch(1)
    assert torch.equal(pull(told)[1], second)
    assert torch.equal(pull(told)[1], second)  # it stays what was said
    told.set_epoch(0)
    assert torch.equal(pull(told)[1], first)


def test_set_epoch_reaches_the_sampler(wrap, toy_dataset):
    sampler = DistributedSampler(toy_dataset, num_replicas=2, rank=0)
    loader = wrap(DataLoader(toy_dataset, 8, sampler=sampler))
    loader.set_epoch(4)
    assert sampler.epoch == 4
    wrap(DataLoader(toy_dataset, 8)).set_epoch(4)  # whose sampler has no epoch


def test_an_iteration_keeps_its_epoch(wrap):
    loader = wrap(prefetch=0)
    loader.set_epoch(0)
    expected = pull(loader)[1]
    targets = []
    for _, target in loader:
        loader.set_epoch(9)
        targets.append(target)
    assert torch.equal(torch.cat(targets), expected)


def test_ranks_and_seeds_differ(wrap, monkeypatch):
    draws = [pull(wrap())[1], pull(wrap(seed=1))[1]]
    monkeypatch.setenv("RANK", "1")
    draws.append(pull(wrap())[1])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 3


def test_global_random_state_is_untouched(wrap, toy_dataset):
    batches = [(toy_dataset.images, toy_dataset.labels)]  # a DataLoader draws a base seed
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(wrap(batches))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


# ---- a DataLoader to those who ask -----------------------------------------------------------------


def test_attributes_are_the_wrapped_loaders(wrap, toy_dataset):
    inner = DataLoader(toy_dataset, 8, drop_last=True)
    loader = wrap(inner)
    assert len(loader) == 6
    assert loader.dataset is toy_dataset
    assert loader.sampler is inner.sampler
    assert loader.batch_size == 8
    assert loader.drop_last
    with pytest.raises(AttributeError):
        _ = loader.nonsense


def test_mixup_enabled(wrap, toy_dataset):
    loader = wrap(label_smoothing=0.3)
    assert loader.mixup_enabled
    loader.mixup_enabled = False
    images, targets = pull(loader)
    assert torch.equal(images, toy_dataset.images)
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_copies_draw_the_same(wrap, twin):
    loader = wrap()
    loader.mixup_enabled = True
    loader.set_epoch(2)
    assert torch.equal(pull(twin(loader))[1], pull(loader)[1])


def test_device(wrap, toy_dataset):
    loader = wrap([(toy_dataset.images, toy_dataset.labels)], device="cpu")
    assert loader.device == torch.device("cpu")
    assert wrap().device == torch.device("cpu")
    images, targets = next(iter(loader))
    assert images.device == targets.device == torch.device("cpu")


# ---- when things go wrong --------------------------------------------------------------------------


def test_early_break_leaves_no_thread(wrap):
    for images, _ in wrap(prefetch=2):
        assert len(decoders()) == 1
        assert len(images)
        break
    assert decoders() == []
    list(wrap())
    assert decoders() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_the_loader_keeps_its_type(wrap, prefetch):
    with pytest.raises(OSError, match="disk gone"):
        list(wrap(Failing(), prefetch=prefetch))
    assert decoders() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_while_decoding_keeps_its_type(wrap, prefetch):
    def broken(image):
        raise ZeroDivisionError("broken transform")

    with pytest.raises(ZeroDivisionError, match="broken transform"):
        list(wrap(transform=broken, prefetch=prefetch))
    assert decoders() == []


def test_another_range_is_said_once(wrap, toy_dataset):
    unit = LabelledImages((toy_dataset.images + 1) / 2, toy_dataset.labels)
    loader = wrap(DataLoader(unit, 8))
    with pytest.warns(RangeMismatchWarning, match="mean") as caught:
        list(loader)
    assert len(caught) == 1
    list(loader)


def test_bad_input(wrap, toy_dataset):
    with pytest.raises(ValueError, match="prefetch needs to be at least 0: got -1"):
        wrap(prefetch=-1)
    with pytest.raises(ValueError, match="alpha needs to be above 0"):
        wrap(alpha=0)
    with pytest.raises(TypeError, match=r"\(images, labels\): got dict"):
        list(wrap([{"image": 1, "label": 2}]))
    images_only = DataLoader(TensorDataset(toy_dataset.images), 8)
    with pytest.raises(TypeError, match=r"\(images, labels\): got list of 1"):
        list(wrap(images_only))
