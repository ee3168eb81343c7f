"""Samples with several classes or none: each class is mixed for itself, from the data set to the loss."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, SoftImages, one_hot_bank
from timm.data.mixup import mixup_target
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup import LatentMixupCollate, LatentMixupDataset, LatentMixupLoader, mixup_criterion
from latent_mixup.bank import LatentBank
from latent_mixup.functional import mix_targets
from latent_mixup.policies import Anyone, ClassPairs, Farthest, Nearest, OtherClass, Policy, SameClass, Teacher

LABELS = (torch.rand(50, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
BCE = F.binary_cross_entropy_with_logits


@pytest.fixture
def data(toy_dataset):
    """The toy images; a sample has none to five of five classes."""
    return SoftImages(toy_dataset.images, LABELS.long())


@pytest.fixture
def bank(toy_bank):
    return LatentBank(toy_bank[:][0], LABELS, metadata={"multi_label": True})


@pytest.fixture(params=["dataset", "collate", "loader"])
def wrap(request, data, linear_generator, bank):
    def make(bank=bank, **settings):
        settings = {"seed": 0, "multi_label": True, **settings}
        if request.param == "dataset":
            return DataLoader(LatentMixupDataset(data, linear_generator, bank, **settings), 8)
        if request.param == "collate":
            return DataLoader(data, 8, collate_fn=LatentMixupCollate(linear_generator, bank, dataset=data, **settings))
        return LatentMixupLoader(DataLoader(data, 8), linear_generator, bank, **settings)

    return make


def test_the_labels_have_every_number_of_classes():
    assert {0, 1, 2, 3} <= set(LABELS.sum(1).tolist())


def test_labels_come_through_smoothed_towards_a_half(wrap):
    targets = torch.cat([targets for _, targets in wrap(prob=0.0, label_smoothing=0.2)])
    torch.testing.assert_close(targets, LABELS * 0.8 + 0.1)


@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_each_class_is_mixed_for_itself_and_pairs_are_the_same_loss(wrap, prob):
    sums = []
    for (images, soft), (_, (y_a, y_b, lam)) in zip(
        wrap(prob=prob), wrap(prob=prob, target_format="pair"), strict=True
    ):
        torch.testing.assert_close(soft, lam[:, None] * y_a + (1 - lam[:, None]) * y_b)
        assert set(torch.cat([y_a, y_b]).flatten().tolist()) == {0.0, 1.0}
        logits = images.flatten(1)[:, :5]
        torch.testing.assert_close(mixup_criterion(BCE, logits, y_a, y_b, lam), BCE(logits, soft))
        sums.append(soft.sum(1))
    assert (torch.cat(sums) - 1).abs().max() > 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_those_of_timm(smoothing):
    if "multi_label" not in inspect.signature(mixup_target).parameters:
        pytest.skip("needs a timm with mixup of several labels")
    for lam in (0.0, 0.3, 1.0):
        found = mix_targets(LABELS, LABELS.flip(0), torch.full((50,), lam), 5, smoothing, multi_label=True)
        expected = mixup_target(LABELS, 5, lam, smoothing, multi_label=True)
        torch.testing.assert_close(found, expected)


def test_one_class_of_its_own(toy_dataset, linear_generator, toy_bank):
    labels = torch.arange(50)[:, None] % 2
    bank = LatentBank(toy_bank[:][0], labels, metadata={"multi_label": True})
    collate = LatentMixupCollate(linear_generator, bank.subset(slice(None)), multi_label=True, prob=0.0)
    assert torch.equal(collate(toy_dataset.images, labels)[1], labels.float())


# ---- the bank --------------------------------------------------------------------------------------


def test_a_bank_keeps_such_labels(bank, tmp_path):
    bank.save_pretrained(tmp_path / "bank")
    found = LatentBank.from_pretrained(tmp_path / "bank", verify=True)
    for each in (found, found.subset(range(40)), LatentBank.concat([found.subset([0]), found.subset([1])])):
        assert each.multi_label
        assert torch.equal(each.labels, LABELS[: len(each)])
    assert torch.equal(found.class_counts, LABELS.sum(0).long())
    assert found.hard_labels.eq(-1).all()
    assert repr(found) == "LatentBank(50 rows of (16,), 5 classes, multi-label)"
    card = (tmp_path / "bank" / "README.md").read_text()
    assert "multi-label, 5 numbers in [0, 1]" in card
    assert f"0 ({int(LABELS[:, 0].sum())})" in card


def test_a_bank_without_the_word_has_labels_that_sum_to_1(toy_bank):
    with pytest.raises(
        ValueError, match=r"sum to 1 in each row: row . sums to .*several classes.*say multi_label=True"
    ):
        LatentBank(toy_bank[:][0], LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS * 1.5, r"multi-label labels need numbers in \[0, 1\] in each row: row 0 has 1.5"),
        (LABELS - 0.5, r"numbers in \[0, 1\] in each row: row 0 has -0.5"),
        (LABELS.log(), r"numbers in \[0, 1\] in each row: row 0 has -inf"),
        (LABELS / 0, r"numbers in \[0, 1\] in each row: row 0 has nan"),
        (torch.arange(50), r"multi-label labels need shape \[50, num_classes\]: got \[50\]"),
    ],
)
def test_what_is_no_such_label(toy_bank, labels, message):
    with pytest.raises(ValueError, match=message):
        LatentBank(toy_bank[:][0], labels, metadata={"multi_label": True})


def test_a_fraction_of_each_class_is_refused(bank):
    bank = LatentBank(bank[:][0], LABELS, mse=torch.rand(50), metadata={"multi_label": True})
    with pytest.raises(ValueError, match="per_class needs one class a row"):
        bank.filter(keep=0.5, per_class=True)


def test_banks_of_two_kinds_are_not_joined(bank, toy_bank):
    soft = LatentBank(toy_bank[:][0], torch.full((50, 5), 0.2), source_index=torch.arange(50, 100))
    with pytest.raises(ValueError, match="concat needs banks of one multi_label: bank 0 has True, bank 1 False"):
        LatentBank.concat([bank, soft])


# ---- inversion -------------------------------------------------------------------------------------


def test_inversion_keeps_such_labels(data, linear_generator, tmp_path):
    bank = lm.invert(
        data, linear_generator, out=tmp_path / "bank", steps=0, multi_label=True, mean=0.5, std=0.5, progress=False
    )
    assert bank.multi_label
    assert torch.equal(bank.labels, LABELS)
    assert torch.equal(LatentBank.from_pretrained(tmp_path / "bank").rows_for(data), torch.arange(50))
    again = lm.refine(bank, data, linear_generator, above=0.0, steps=2, loss="pixels", progress=False)
    assert again.multi_label
    images, targets = next(iter(LatentMixupLoader(DataLoader(data, 50), linear_generator, bank, multi_label=True)))
    assert targets.shape == (len(images), 5)


def test_inversion_asks_for_the_word(data, linear_generator):
    with pytest.raises(ValueError, match=r"that sum to 1: it sums to .*say multi_label=True"):
        lm.invert(data, linear_generator, steps=0, mean=0.5, std=0.5, progress=False)
    hard = LabelledImages(data.images, torch.arange(50) % 3)
    with pytest.raises(ValueError, match=r"a label needs to be \[num_classes\] numbers in \[0, 1\]: got int"):
        lm.invert(hard, linear_generator, steps=0, mean=0.5, std=0.5, multi_label=True, progress=False)


# ---- what is refused -------------------------------------------------------------------------------


def test_the_word_is_needed_beside_such_a_bank(wrap):
    with pytest.raises(ValueError, match=r"multi-label, and need not sum to 1: pass multi_label=True.*binary_cross"):
        wrap(multi_label=False)
    with pytest.raises(TypeError, match="multi_label needs to be True or False: got 1"):
        wrap(multi_label=1)


def test_class_indices_are_no_such_labels(toy_dataset, linear_generator, toy_bank):
    with pytest.raises(ValueError, match=r"needs a bank of labels .N, num_classes.: got class indices"):
        LatentMixupDataset(toy_dataset, linear_generator, toy_bank, multi_label=True)
    bank = one_hot_bank(toy_bank).subset(slice(None))
    collate = LatentMixupCollate(linear_generator, bank, multi_label=True)
    with pytest.raises(
        ValueError, match=r"a label needs to be \[num_classes\] numbers in \[0, 1\]: got torch.int64 \[50\]"
    ):
        collate(toy_dataset.images, toy_dataset.labels)


@pytest.mark.parametrize(
    "partners",
    [OtherClass(), SameClass(), SameClass(nearest=2), ClassPairs([[1.0] * 5] * 5), Nearest(), Farthest(4, SameClass())],
)
def test_partners_by_class_are_refused(wrap, partners):
    with pytest.raises(ValueError, match=r"needs one class a row: this bank is multi-label.*among=Anyone"):
        wrap(policy=Policy(partners=partners))


def test_partners_by_distance_alone_work(wrap):
    _, targets = next(iter(wrap(policy=Policy(partners=Nearest(4, among=Anyone())))))
    assert targets.shape == (8, 5)


def test_a_teacher_of_one_class_and_a_pool_are_refused(wrap, bank, linear_generator, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5))
    with pytest.raises(ValueError, match="a Teacher says one class of an image"):
        wrap(policy=Policy(labels=Teacher(model)))
    with pytest.raises(ValueError, match="a pool holds labels that sum to 1"):
        lm.render(linear_generator, bank, tmp_path / "pool", n=4)


@pytest.mark.parametrize("target_format", ["soft", "pair"])
def test_every_wrapper_shows_itself(data, linear_generator, bank, target_format):
    settings = {"multi_label": True, "target_format": target_format}
    loader = LatentMixupLoader(DataLoader(data, 8), linear_generator, bank, **settings)
    collate = LatentMixupCollate(linear_generator, bank, dataset=data, **settings)
    pictures = [each.show() for each in (LatentMixupDataset(data, linear_generator, bank, **settings), collate, loader)]
    assert all(picture.width >= 8 * 96 for picture in pictures)
