"""Mixes of chosen classes, whatever kind of labels and metadata a bank has."""

import io

import pytest
import torch
from conftest import one_hot_bank, with_labels
from PIL import Image

from latent_mixup.bank import LatentBank
from latent_mixup.demo.preview import LAMS, class_index, preview_sheet
from latent_mixup.pictures import HEADING_HEIGHT

PAIRS = [("0", "2")]
NAMES = ["Ankle boot", "Bag", "ankle", "cat", "Cat", "7"]


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


def test_columns_are_wide_enough_for_their_weights(linear_generator, toy_bank):
    sheet = Image.open(io.BytesIO(preview_sheet(linear_generator, toy_bank, [(0, 2), (1, 1)], rows=2)))
    column = 4 * 21 + 2
    assert sheet.height == HEADING_HEIGHT + 4 * column + 2
    assert sheet.width > len(LAMS) * column


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("Bag", 1), ("bag", 1), (" ANKLE BOOT ", 0), ("ankle", 2), ("cat", 3), ("Cat", 4), ("7", 5), ("4", 4)],
)
def test_a_class_goes_by_its_whole_name_or_its_number(wanted, index):
    assert class_index(wanted, NAMES) == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("a", "no class of this bank is called 'a': did you mean 'ankle boot' or 'ankle'?"),
        ("bgg", "did you mean 'bag'?"),
        ("CAT", r"'CAT' is the name of several classes, in other cases: use one of the numbers \[3, 4\]"),
        ("6", "called '6'"),
        ("\N{SUPERSCRIPT TWO}", "no class of this bank is called"),
        ("", "no class of this bank is called '': expected a name or a number, of Ankle boot, Bag"),
    ],
)
def test_what_is_no_class_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        class_index(wanted, NAMES)


@pytest.mark.parametrize("classes", [None, ["a", "b"], ["a", "b", 3], "abc", {"a": 1, "b": 2, "c": 3}, 3])
def test_classes_that_do_not_name_all_are_numbers(linear_generator, toy_bank, classes):
    bank = LatentBank(toy_bank[:][0], toy_bank.labels)
    bank.metadata["classes"] = classes
    assert bank.class_names == ["0", "1", "2"]
    assert preview_sheet(linear_generator, bank, PAIRS)


@pytest.mark.parametrize("pairs", ["a,b", ["a,b"], [("a",)], [("a", "b", "c")], []])
def test_pairs_are_of_two_classes(linear_generator, toy_bank, pairs):
    with pytest.raises(ValueError, match="pairs needs two classes each"):
        preview_sheet(linear_generator, toy_bank, pairs)


def test_other_objects_are_refused(linear_generator, toy_bank):
    with pytest.raises(TypeError, match="generator and bank have changed places"):
        preview_sheet(toy_bank, linear_generator, PAIRS)
    with pytest.raises(TypeError, match="a Generator is wanted: got NoneType"):
        preview_sheet(None, toy_bank, PAIRS)
