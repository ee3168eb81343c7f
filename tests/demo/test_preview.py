"""Mixes of chosen classes, whatever kind of labels a bank has."""

import pytest
import torch
from conftest import one_hot_bank, with_labels

from latent_mixup.demo.preview import preview_sheet

PAIRS = [("0", "2")]


def test_one_hot_rows_show_what_class_indices_show(linear_generator, toy_bank):
    expected = preview_sheet(linear_generator, toy_bank, PAIRS)
    assert preview_sheet(linear_generator, one_hot_bank(toy_bank), PAIRS) == expected


def test_the_likeliest_class_of_a_soft_label_counts(linear_generator, toy_bank):
    soft = 0.6 * one_hot_bank(toy_bank).labels + 0.4 / 3
    expected = preview_sheet(linear_generator, toy_bank, PAIRS)
    assert preview_sheet(linear_generator, with_labels(toy_bank, soft), PAIRS) == expected


def test_rows_without_a_label_are_of_no_class(linear_generator, toy_bank):
    labels = toy_bank.labels.where(toy_bank.labels != 1, -1)
    bank = with_labels(toy_bank, labels)
    labelled = bank.subset(labels >= 0)
    assert preview_sheet(linear_generator, bank, PAIRS) == preview_sheet(linear_generator, labelled, PAIRS)
    with pytest.raises(ValueError, match=r"the bank has no code of class 1: it has \[0, 2\]"):
        preview_sheet(linear_generator, bank, [("0", "1")])


def test_a_bank_without_labels_has_no_classes_to_show(linear_generator, toy_bank):
    bank = with_labels(toy_bank, torch.full((50,), -1))
    with pytest.raises(ValueError, match="none of the bank's 50 rows has a label"):
        preview_sheet(linear_generator, bank, PAIRS)
