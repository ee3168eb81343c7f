from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, SoftImages, one_hot_bank, with_labels
from reference import mix_one_by_one
from systems import FORK
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

from latent_mixup.augment.dataset import LatentMixupDataset
from latent_mixup.bank import LatentBank


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
    draws = [dataset._plan(i, key, dataset._mixer.view) for i, key in enumerate(dataset._mixer.keys(list(range(50))))]
    plans = [(int(draw.rows), int(draw.partners), float(draw.lam)) for draw in draws]
    dataset.set_epoch(0)
    expected = mix_one_by_one(
        linear_generator.decode, *toy_bank[:], [plan[1] for plan in plans], [plan[2] for plan in plans], 3
    )
    images, targets = pull(dataset)
    torch.testing.assert_close(images, expected[0])
    torch.testing.assert_close(targets, expected[1])


def test_a_batch_equals_its_items(wrap):
    dataset = wrap(prob=0.6)
    of_batches = dataset.__getitems__([3, 49, 0])
    dataset.set_epoch(0)
    for one, of_batch in zip([dataset[i] for i in (3, -1, 0)], of_batches, strict=True):
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


def test_prob_is_the_share_of_mixes(wrap, toy_dataset):
    dataset = wrap(prob=0.3)
    mixed = 0
    for epoch in range(10):
        dataset.set_epoch(epoch)
        mixed += (pull(dataset)[0] != toy_dataset.images).flatten(1).any(1).sum()
    assert abs(mixed / 500 - 0.3) < 0.08


def test_the_bank_alone(linear_generator, part):
    dataset = LatentMixupDataset(None, linear_generator, part, prob=0.0, seed=0)
    assert len(dataset) == 25
    latents, labels = part[:]
    images, targets = pull(dataset)
    torch.testing.assert_close(images, linear_generator.decode(latents))
    assert torch.equal(targets.argmax(1), labels)
    mixed = pull(LatentMixupDataset(None, linear_generator, part, seed=0))[0]
    assert not torch.allclose(mixed, images)


# ---- soft and missing labels -----------------------------------------------------------------------


@pytest.mark.parametrize("soft_samples", [False, True])
def test_one_hot_rows_in_pairs(toy_dataset, linear_generator, toy_bank, soft_samples):
    settings = {"prob": 0.5, "target_format": "pair", "seed": 0}
    rows = SoftImages(toy_dataset.images, F.one_hot(toy_dataset.labels, 3).float())
    data = rows if soft_samples else toy_dataset
    soft = LatentMixupDataset(data, linear_generator, one_hot_bank(toy_bank), **settings)
    hard = LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **settings)
    for (_, found), (_, expected) in zip(DataLoader(soft, 8), DataLoader(hard, 8), strict=True):
        assert torch.equal(found[0], F.one_hot(expected[0], 3).float())
        assert torch.equal(found[1], F.one_hot(expected[1], 3).float())
        assert torch.equal(found[2], expected[2])


def test_a_soft_bank_alone(linear_generator, soft_bank):
    targets = pull(LatentMixupDataset(None, linear_generator, soft_bank, prob=0.0, seed=0))[1]
    assert torch.equal(targets, soft_bank.labels)


def test_soft_samples_need_a_soft_bank(soft_dataset, linear_generator, toy_bank):
    with pytest.raises(ValueError, match="data set has soft labels of 3 classes, the bank class indices"):
        LatentMixupDataset(soft_dataset, linear_generator, toy_bank)


def test_rows_without_a_label_are_refused(toy_dataset, linear_generator, unlabelled_bank):
    same = LabelledImages(toy_dataset.images, unlabelled_bank.labels)
    for dataset in (same, None):
        with pytest.raises(ValueError, match=r"rows have no label.*bank.subset\(bank.labels >= 0\)"):
            LatentMixupDataset(dataset, linear_generator, unlabelled_bank)


@pytest.mark.parametrize("missing", [-1, None])
def test_a_sample_without_a_label_is_named(toy_dataset, linear_generator, unlabelled_bank, missing):
    samples = [
        (image, missing if label < 0 else int(label))
        for image, label in zip(toy_dataset.images, unlabelled_bank.labels, strict=True)
    ]
    bank = unlabelled_bank.subset(unlabelled_bank.labels >= 0)
    dataset = LatentMixupDataset(samples, linear_generator, bank, seed=0)
    labelled = bank.source_index.tolist()
    _, targets = pull(dataset, sampler=labelled)
    assert targets.shape == (48, 3)
    with pytest.raises(ValueError, match=r"sample 7: label -1 .* there is no label.*SubsetRandomSampler"):
        dataset[7]


# ---- what a draw depends on ------------------------------------------------------------------------


def test_order_and_batch_size_do_not_matter(wrap):
    dataset = wrap()
    images = pull(dataset)[0]
    dataset.set_epoch(0)
    backwards = pull(dataset, sampler=list(range(49, -1, -1)))[0]
    torch.testing.assert_close(images, backwards.flip(0))


def test_epochs_and_ranks_differ_and_repeat(wrap, monkeypatch):
    dataset = wrap()
    first = pull(dataset)[1]
    dataset.set_epoch(1)
    assert not torch.equal(pull(dataset)[1], first)
    dataset.set_epoch(0)
    assert torch.equal(pull(dataset)[1], first)
    dataset.set_epoch(0)
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(pull(dataset)[1], first)


@pytest.mark.parametrize("method", [FORK, "spawn"])
def test_set_epoch_reaches_persistent_workers(wrap, method):
    dataset = wrap()
    loader = DataLoader(dataset, 8, num_workers=1, persistent_workers=True, multiprocessing_context=method)
    for epoch in (0, 3, 0):
        dataset.set_epoch(epoch)
        found = torch.cat([targets for _, targets in loader])
        dataset.set_epoch(epoch)
        torch.testing.assert_close(found, torch.cat([dataset[i][1][None] for i in range(50)]))


def test_a_sample_is_drawn_anew_or_it_is_said(wrap):
    anew = wrap(seed=None)
    assert not torch.equal(anew[3][0], anew[3][0])
    dataset = wrap()
    first = pull(dataset)[1]
    with pytest.warns(UserWarning, match="epoch 0 is drawn a second time.*call set_epoch"):
        assert torch.equal(pull(dataset)[1], first)
    pull(dataset)  # once
    dataset.set_epoch(1)
    assert not torch.equal(pull(dataset)[1], first)


def test_a_few_looks_before_a_pass_are_no_second_pass(wrap):
    dataset = wrap()
    _ = [dataset[i] for i in range(5)]
    pull(dataset)


# ---- split after wrapping --------------------------------------------------------------------------


def zeros(dataset):
    return (dataset.labels == 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("alone", [False, True])
def test_a_subset_of_the_wrapper_mixes_its_own_samples(wrap, toy_dataset, linear_generator, toy_bank, workers, alone):
    dataset = LatentMixupDataset(None, linear_generator, toy_bank, seed=0) if alone else wrap()
    chosen = zeros(toy_dataset)
    nested = Subset(Subset(dataset, [*chosen, 1, 2]), range(len(chosen)))
    twice = Subset(ConcatDataset([dataset, wrap(seed=1)]), [*chosen, *(50 + i for i in chosen)])
    for part in (Subset(dataset, chosen), nested, twice):
        targets = pull(part, num_workers=workers)[1]
        assert torch.equal(targets, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(part), 3))
        assert part[0][1].tolist() == [1, 0, 0]
        dataset.set_epoch(int(dataset._mixer.epoch) + 1)


def test_parts_of_a_random_split_keep_to_themselves(wrap, toy_dataset):
    dataset = wrap(seed=None)
    train, held_out = random_split(dataset, [10, 40], torch.Generator().manual_seed(0))
    _ = held_out[0], dataset[0]
    inside = toy_dataset.images[train.indices].flatten(1).T.double()
    mixes = pull(train)[0].flatten(1).T.double()
    weights = torch.linalg.lstsq(inside, mixes).solution
    torch.testing.assert_close(inside @ weights, mixes, atol=1e-5, rtol=0)


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
    with pytest.raises(
        ValueError, match=r"rows of the bank are the samples of this LabelledImages of 49: pass .*Subset"
    ):
        LatentMixupDataset(short, linear_generator, toy_bank)


def test_another_size_is_refused(toy_dataset, linear_generator, toy_bank):
    large = LabelledImages(toy_dataset.images.repeat(1, 1, 2, 2), toy_dataset.labels)
    with pytest.raises(ValueError, match=r"\[1, 4, 4\] for \[1, 8, 8\].*v2.Resize\(\(8, 8\)\)"):
        LatentMixupDataset(large, linear_generator, toy_bank)[0]


class Samples(list):
    """A data set of whatever is in the list."""


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (("a.png", 0), "sample 2: an image needs to be a PIL image, an array or a tensor: got 'a.png'"),
        ((torch.zeros(1, 4, 4, dtype=torch.int64), 0), "sample 2: an image needs uint8, uint16 or float values: got"),
        ((np.zeros((4, 4), np.uint16), 0), "sample 2: images need a float dtype, or uint8: got torch.uint16"),
        ((torch.zeros(1, 4, 4), 0.5), "sample 2: a label needs to be an int, or soft, .*: got float"),
        ((torch.zeros(1, 4, 4), "shirt"), "sample 2: a label needs to be an int, or soft, .*: got str"),
        ((torch.zeros(1, 4, 4),), "sample 2 needs images and labels: got a tuple of Tensor; no labels"),
        (torch.zeros(1, 4, 4), r"sample 2 needs to be \(images, labels\), or a dict with both: got a Tensor"),
        ({"x": torch.zeros(1, 4, 4), "label": 0}, "sample 2 needs images and labels: .*no image among.*image_key="),
    ],
)
def test_bad_samples(linear_generator, sample, message):
    bank = LatentBank(torch.zeros(1, 16), [0])
    samples = Samples([(torch.zeros(1, 4, 4), 0)] * 2 + [sample])
    with pytest.raises(TypeError, match=message):
        LatentMixupDataset(samples, linear_generator, bank)[2]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0.5, 0.6, 0.0], "sample 2: a soft label needs numbers from 0 that sum to 1: it sums to 1.1"),
        ([0.5, 0.5], r"soft labels need shape \[B, 3\]: got torch.float32 \[1, 2\]"),
    ],
)
def test_bad_soft_samples(soft_dataset, linear_generator, soft_bank, label, message):
    samples = Samples([soft_dataset[0], soft_dataset[1], (soft_dataset[2][0], label)])
    with pytest.raises(ValueError, match=message):
        LatentMixupDataset(samples, linear_generator, soft_bank.subset([0, 1]), seed=0)[2]


@pytest.mark.parametrize("form", [torch.Tensor.double, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.half])
def test_soft_labels_may_have_any_form(soft_dataset, linear_generator, toy_bank, form):
    labels = soft_dataset.labels.half().float()
    samples = [(image, form(label)) for image, label in zip(soft_dataset.images, labels, strict=True)]
    dataset = LatentMixupDataset(samples, linear_generator, with_labels(toy_bank, labels), prob=0.0)
    assert torch.equal(dataset[4][1], labels[4])
    assert dataset[4][1].dtype == torch.float32


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_labels_may_be_any_integer(linear_generator, label):
    samples = Samples([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), label)])
    dataset = LatentMixupDataset(samples, linear_generator, LatentBank(torch.zeros(1, 16), [0]), num_classes=2)
    assert torch.equal(dataset[1][1], torch.tensor([0.0, 1.0]))


def test_what_is_sent_to_a_worker_does_not_grow_with_the_bank(linear_generator, tmp_path):
    sizes = []
    for rows in (100, 20_000):
        bank = LatentBank(linear_generator.sample_latents(rows), torch.arange(rows) % 10)
        bank.save_pretrained(tmp_path / f"{rows}")
        mixed = LatentMixupDataset(None, linear_generator, LatentBank.from_pretrained(tmp_path / f"{rows}"), seed=0)
        _ = mixed[rows - 1]
        sizes.append(len(ForkingPickler.dumps(mixed)))
    assert sizes[1] < sizes[0] + 200
