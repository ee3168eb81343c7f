import random

import numpy as np
import pytest
import torch
from conftest import LabelledImages, LinearGenerator
from reference import mix_one_by_one
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from latent_mixup.bank import LatentBank
from latent_mixup.dataset import LatentMixupDataset
from latent_mixup.functional import mixup_criterion
from latent_mixup.images import RangeMismatchWarning


@pytest.fixture
def wrap(toy_dataset, linear_generator, toy_bank):
    return lambda **settings: LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **{"seed": 0, **settings})


@pytest.fixture
def part(linear_generator, toy_dataset):
    """A bank of the even samples only, in another order."""
    index = torch.arange(0, 50, 2).flip(0)
    return LatentBank(linear_generator.encode(toy_dataset.images[index]), toy_dataset.labels[index], source_index=index)


def pull(dataset, **options):
    """All samples through a DataLoader: images, targets."""
    batches = list(DataLoader(dataset, 8, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


# ---- the method ------------------------------------------------------------------------------------


def test_one_sample(wrap):
    image, target = wrap()[0]
    assert image.shape == (1, 4, 4)
    assert target.shape == (3,)
    assert target.dtype == torch.float32


def test_equals_the_slow_reference(wrap, linear_generator, toy_bank):
    dataset = wrap()
    plans = [dataset._plan(i) for i in range(50)]
    expected = mix_one_by_one(
        linear_generator.decode, *toy_bank[:], [plan[1] for plan in plans], [plan[2] for plan in plans], 3
    )
    images, targets = pull(dataset)
    torch.testing.assert_close(images, expected[0])
    torch.testing.assert_close(targets, expected[1])


def test_a_batch_equals_its_items(wrap):
    dataset = wrap(prob=0.6)
    indices = [3, 49, 0, -1, 3]
    for one, of_batch in zip([dataset[i] for i in indices], dataset.__getitems__(indices), strict=True):
        torch.testing.assert_close(one[0], of_batch[0])
        torch.testing.assert_close(one[1], of_batch[1])


def test_the_own_code_is_found_by_source_index(toy_dataset, linear_generator, part):
    dataset = LatentMixupDataset(toy_dataset, linear_generator, part, alpha=1e3, target_format="pair", seed=0)
    for i in range(0, 50, 2):
        _, (y_a, _, lam) = dataset[i]
        assert y_a == toy_dataset.labels[i]
        assert abs(lam - 0.5) < 0.1
    for i in range(1, 50, 2):  # without a code
        image, (y_a, y_b, lam) = dataset[i]
        assert torch.equal(image, toy_dataset.images[i])
        assert y_a == y_b == toy_dataset.labels[i]
        assert lam == 1


def test_prob_zero_is_the_data_set(wrap, toy_dataset):
    images, targets = pull(wrap(prob=0.0, label_smoothing=0.3))
    assert torch.equal(images, toy_dataset.images)
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))


def test_prob_is_the_share_of_mixes(wrap, toy_dataset):
    dataset = wrap(prob=0.3)
    mixed = 0
    for epoch in range(10):
        dataset.set_epoch(epoch)
        mixed += (pull(dataset)[0] != toy_dataset.images).flatten(1).any(1).sum()
    assert abs(mixed / 500 - 0.3) < 0.08


def test_targets_sum_to_one(wrap):
    torch.testing.assert_close(pull(wrap(label_smoothing=0.1))[1].sum(1), torch.ones(50))


def test_pair_and_soft_are_one_loss(wrap):
    images, soft = next(iter(DataLoader(wrap(prob=0.5), 50)))
    same, (y_a, y_b, lam) = next(iter(DataLoader(wrap(prob=0.5, target_format="pair"), 50)))
    logits = images.flatten(1)[:, :3]
    assert torch.equal(images, same)
    assert lam.dtype == torch.float32
    loss = mixup_criterion(torch.nn.functional.cross_entropy, logits, y_a, y_b, lam)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, soft))


def test_the_bank_alone(linear_generator, part):
    dataset = LatentMixupDataset(None, linear_generator, part, prob=0.0, seed=0)
    assert len(dataset) == 25
    latents, labels = part[:]
    images, targets = pull(dataset)
    torch.testing.assert_close(images, linear_generator.decode(latents))
    assert torch.equal(targets.argmax(1), labels)
    mixed = pull(LatentMixupDataset(None, linear_generator, part, seed=0))[0]
    assert not torch.allclose(mixed, images)


# ---- what a draw depends on ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_the_same(wrap, method):
    here = pull(wrap(prob=0.7))
    there = pull(wrap(prob=0.7), num_workers=2, multiprocessing_context=method)
    torch.testing.assert_close(here[0], there[0])
    assert torch.equal(here[1], there[1])


def test_order_and_batch_size_do_not_matter(wrap):
    dataset = wrap()
    images = pull(dataset)[0]
    backwards = pull(dataset, sampler=list(range(49, -1, -1)))[0]
    torch.testing.assert_close(images, backwards.flip(0))


def test_epochs_and_ranks_differ_and_repeat(wrap, monkeypatch):
    dataset = wrap()
    first = pull(dataset)[1]
    dataset.set_epoch(1)
    assert not torch.equal(pull(dataset)[1], first)
    dataset.set_epoch(0)
    assert torch.equal(pull(dataset)[1], first)
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(pull(dataset)[1], first)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_set_epoch_reaches_persistent_workers(wrap, method):
    dataset = wrap()
    loader = DataLoader(dataset, 8, num_workers=1, persistent_workers=True, multiprocessing_context=method)
    for epoch in (0, 3, 0):
        dataset.set_epoch(epoch)
        expected = torch.cat([dataset[i][1][None] for i in range(50)])
        torch.testing.assert_close(torch.cat([targets for _, targets in loader]), expected)


def test_global_random_state_is_untouched(wrap):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    dataset = wrap(prob=0.5)
    _ = [dataset[i] for i in range(10)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


# ---- what bad input gets ---------------------------------------------------------------------------


def test_indices(wrap):
    dataset = wrap(prob=0.0)
    assert torch.equal(dataset[-1][0], dataset[49][0])
    assert torch.equal(dataset[np.int64(4)][0], dataset[torch.tensor(4)][0])
    assert len(list(dataset)) == 50
    with pytest.raises(IndexError, match="sample 50 is out of range for a data set of 50"):
        dataset[50]


def test_batch_mode_is_refused(wrap):
    with pytest.raises(ValueError, match="use LatentMixupLoader or LatentMixupCollate"):
        wrap(mode="batch")


def test_a_short_data_set_is_refused(toy_dataset, linear_generator, toy_bank):
    short = LabelledImages(toy_dataset.images[:49], toy_dataset.labels[:49])
    with pytest.raises(ValueError, match=r"50 .*49"):
        LatentMixupDataset(short, linear_generator, toy_bank)


def test_another_range_is_said_once(toy_dataset, linear_generator, toy_bank):
    unit = LabelledImages((toy_dataset.images + 1) / 2, toy_dataset.labels)
    dataset = LatentMixupDataset(unit, linear_generator, toy_bank, seed=0)
    with pytest.warns(RangeMismatchWarning, match=r"transform=v2.Normalize\(mean=\[-1\], std=\[2\]\)"):
        dataset[0]
    dataset[0]
    mended = LatentMixupDataset(unit, linear_generator, toy_bank, transform=v2.Normalize(mean=[-1], std=[2]))
    mended[0]


def test_another_size_is_refused(toy_dataset, linear_generator, toy_bank):
    large = LabelledImages(toy_dataset.images.repeat(1, 1, 2, 2), toy_dataset.labels)
    with pytest.raises(ValueError, match=r"\[1, 4, 4\] for \[1, 8, 8\].*v2.Resize\(\(8, 8\)\)"):
        LatentMixupDataset(large, linear_generator, toy_bank)[0]


class Samples(list):
    """A data set of whatever is in the list."""


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((np.zeros((1, 4, 4)), 0), "image of sample 2 needs to be a float tensor.*got ndarray.*v2.ToImage"),
        ((torch.zeros(1, 4, 4, dtype=torch.uint8), 0), r"got torch.uint8 \[1, 4, 4\].*v2.ToDtype"),
        ((torch.zeros(1, 4, 4), 0.5), "label of sample 2 needs to be an int: got float"),
        ((torch.zeros(1, 4, 4), "shirt"), "label of sample 2 needs to be an int: got str"),
        ((torch.zeros(1, 4, 4), 0, 0), r"sample 2 needs to be \(image, label\)"),
    ],
)
def test_bad_samples(linear_generator, sample, message):
    bank = LatentBank(torch.zeros(1, 16), [0])
    samples = Samples([(torch.zeros(1, 4, 4), 0)] * 2 + [sample])
    with pytest.raises(TypeError, match=message):
        LatentMixupDataset(samples, linear_generator, bank)[2]


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_labels_may_be_any_integer(linear_generator, label):
    samples = Samples([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), label)])
    dataset = LatentMixupDataset(samples, linear_generator, LatentBank(torch.zeros(1, 16), [0]), num_classes=2)
    assert torch.equal(dataset[1][1], torch.tensor([0.0, 1.0]))


class Accelerated(LinearGenerator):
    """Says that it lives on an accelerator."""

    @property
    def device(self):
        return torch.device("meta")


def test_a_worker_does_not_decode_on_an_accelerator(toy_dataset, toy_bank):
    dataset = LatentMixupDataset(toy_dataset, Accelerated(), toy_bank)
    with pytest.raises(RuntimeError, match="use LatentMixupLoader"):
        pull(dataset, num_workers=1)
