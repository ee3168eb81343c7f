"""What a label is, in every form that a user or a data set may give it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from latent_mixup.labels import (
    LABEL_KEYS,
    as_labels,
    check_labels,
    count_classes,
    describe_label,
    differing,
    hard_labels,
    label_of,
    labels_of,
    read_label,
    targets_of,
)

HARD = torch.tensor([2, 0, 1, 2])
SOFT = torch.tensor([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])
NAN, INF = float("nan"), float("inf")


class Targets(list):
    """A data set of samples; ``targets`` are set by the test."""


# ---- many labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [HARD, HARD.int(), HARD.numpy(), HARD.tolist(), tuple(HARD.tolist()), list(HARD), list(HARD.numpy())],
    ids=["tensor", "int32", "array", "list", "tuple", "list of tensors", "list of numpy ints"],
)
def test_class_indices_in_any_form(values):
    labels = as_labels(values, 4)
    assert torch.equal(labels, HARD)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    "values",
    [SOFT, SOFT.double(), SOFT.numpy(), SOFT.tolist(), list(SOFT), list(SOFT.numpy())],
    ids=["tensor", "float64", "array", "list", "list of tensors", "list of arrays"],
)
def test_soft_labels_in_any_form(values):
    labels = as_labels(values, 4)
    assert torch.equal(labels, SOFT)
    assert labels.dtype == torch.float32


def test_missing_labels_stay():
    assert as_labels([-1, 3], 2).tolist() == [-1, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1], r"one entry per row, \[3\], or soft ones, \[3, num_classes\]: got \[2\]"),
        (SOFT, r"one entry per row, \[3\], or soft ones, \[3, num_classes\]: got \[4, 3\]"),
        (torch.empty(3, 0), r"one entry per row, \[3\]"),
        ([0.0, 1.0, 2.0], r"integers, or soft ones, \[3, num_classes\]: got torch.float32"),
        (F.one_hot(HARD[:3]), r"soft labels need a float dtype: got torch.int64 \[3, 3\]"),
        ([0, -2, 1], "numbers from 0, or -1 for no label: row 1 has -2"),
        ([[1.0, 0.0], [0.5, 0.6], [0.0, 1.0]], "sum to 1 in each row: row 1 sums to 1.1"),
        ([[1.0, 0.0], [0.0, 1.0], [1.5, -0.5]], "numbers from 0 that sum to 1 in each row: row 2 has -0.5"),
        ([[NAN, 0.5], [0.0, 1.0], [0.0, 1.0]], "row 0 has nan"),
        ([[0.0, 1.0], [INF, 0.0], [0.0, 1.0]], "row 1 sums to inf"),
    ],
)
def test_what_is_no_label(values, message):
    with pytest.raises(ValueError, match=message):
        as_labels(values, 3)


def test_half_precision_rows_of_many_classes_pass():
    rows = torch.rand(50, 1000, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.equal(as_labels(rows.half(), 50), rows.half().float())


def test_a_batch_is_checked_against_the_number_of_classes():
    check_labels(HARD, 3)
    check_labels(SOFT, 3)
    for labels, message in [
        (HARD, r"label 2 is outside num_classes=2: labels need to be in \[0, 2\)"),
        (HARD - 1, "label -1 is outside num_classes=2: it says that there is no label, leave such samples out"),
        (SOFT, r"soft labels need shape \[B, 2\]: got torch.float32 \[4, 3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_labels(labels, 2)


def test_the_number_of_classes():
    assert [count_classes(labels) for labels in (HARD, SOFT, HARD - 1, HARD * 0 - 1)] == [3, 3, 2, 0]
    assert [count_classes(labels, 3) for labels in (HARD, SOFT, HARD * 0 - 1)] == [3, 3, 3]
    assert count_classes(HARD, 7) == 7
    assert count_classes(HARD * 0 - 1, 0) == 0
    for labels, stated, message in [
        (HARD, 2, "below num_classes=2: got 2"),
        (HARD, True, "an integer from 0: got True"),
        (HARD, -1, "an integer from 0: got -1"),
        (SOFT, 4, r"soft labels need shape \[N, 4\] for num_classes=4: got \[4, 3\]"),
        (SOFT, 2, r"soft labels need shape \[N, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            count_classes(labels, stated)


def test_one_hot_rows_say_what_class_indices_say():
    rows = F.one_hot(HARD, 3).float()
    assert torch.equal(hard_labels(rows), hard_labels(HARD))
    for one in (HARD, rows):
        for two in (HARD, rows):
            assert not differing(one, two).any()
            assert differing(one, two.roll(1, 0)).tolist() == HARD.ne(HARD.roll(1)).tolist()


def test_where_labels_differ():
    assert not differing(SOFT, SOFT + 1e-6).any()
    assert differing(SOFT, SOFT.flip(1)).tolist() == [True, True, True, True]
    assert differing(HARD, SOFT).tolist() == [True, False, True, False]
    assert differing(torch.tensor([-1, 5, 1, 2]), SOFT).tolist() == [True, True, True, False]
    assert differing(torch.tensor([-1, -1]), torch.tensor([-1, 0])).tolist() == [False, True]


def test_labels_in_words():
    assert [describe_label(label) for label in torch.tensor([-1, 3])] == ["none", "3"]
    assert describe_label(SOFT[2]) == "[0.1, 0.7, 0.2]"
    assert describe_label(torch.full((5,), 0.2)) == "[0.2, 0.2, 0.2, 0.2, ...]"


# ---- one label, one sample -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label", [2, np.int64(2), torch.tensor(2), torch.tensor([2]), np.array([2]), torch.tensor(2, dtype=torch.uint8)]
)
def test_one_class_index(label):
    assert read_label(label).shape == ()
    assert (int(read_label(label)), read_label(label).dtype) == (2, torch.int64)


@pytest.mark.parametrize("label", [[0.0, 1.0], (0, 1), torch.tensor([0.0, 1.0]), np.array([0.0, 1.0]), [False, True]])
def test_one_soft_label(label):
    assert torch.equal(read_label(label), torch.tensor([0.0, 1.0]))


def test_no_label():
    assert (int(read_label(None)), int(read_label(-1))) == (-1, -1)


@pytest.mark.parametrize("label", [0.5, "shirt", {"a": 1}, [], torch.eye(2), np.float64(1), 1j, [0.5 + 1j, 0.5]])
def test_what_is_no_label_of_a_sample(label):
    with pytest.raises(TypeError, match=r"a label needs to be an int, or soft, \[num_classes\] floats: got \w+"):
        read_label(label)


@pytest.mark.parametrize(("label", "found"), [([0.5, 0.6], "sums to 1.1"), ([2, -1], "has -1"), ([1, 1], "sums to 2")])
def test_a_soft_label_is_a_distribution(label, found):
    with pytest.raises(ValueError, match=f"a soft label needs numbers from 0 that sum to 1: it {found}"):
        read_label(label)


@pytest.fixture
def warn_always():
    """Torch says once a process that an array is read-only; here each time, and a warning is an error."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", ">i2"])
def test_an_array_may_be_read_only_and_of_either_byte_order(warn_always, dtype):
    one, many = np.array([0, 1], dtype), np.eye(2, dtype=dtype)
    for array in (one, many):
        array.flags.writeable = False
    assert torch.equal(read_label(one), torch.tensor([0.0, 1.0]))
    if many.dtype.kind == "f":
        assert torch.equal(as_labels(many, 2), torch.eye(2))
        assert torch.equal(as_labels(list(many), 2), torch.eye(2))
    else:
        assert as_labels(one, 2).tolist() == [0, 1]
        assert int(read_label(one[1:])) == 1


def test_labels_share_no_memory_with_an_array():
    array = np.array([0, 1])
    labels = as_labels(array, 2)
    array[:] = 7
    assert labels.tolist() == [0, 1]


IMAGE = torch.zeros(3, 3, 3)


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_the_label_of_a_mapping(key):
    assert int(label_of({"image": IMAGE, "more": 5, key: 2}, 0)) == 2


@pytest.mark.parametrize("sample", [IMAGE, IMAGE.numpy(), Image.new("L", (3, 3)), (IMAGE,), {"image": IMAGE}])
def test_an_image_alone_has_no_label(sample):
    assert int(label_of(sample, 0)) == -1


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((IMAGE, 0.5), r"\(image, label\): item 4 is a tuple of Tensor, float; a label needs to be an int"),
        ((IMAGE, [0.5, 0.6]), "item 4 is a tuple of Tensor, list; a soft label needs numbers from 0"),
        (
            {"image": IMAGE, "kind": 2},
            r"item 4 is a dict of .*; no label among \['image', 'kind'\]: expected one of the names label, labels",
        ),
        ((), "item 4 is a tuple of ; expected an image"),
        (None, "item 4 is a NoneType; expected an image"),
    ],
)
def test_what_is_no_sample(sample, message):
    with pytest.raises(ValueError, match=message):
        label_of(sample, 4)


# ---- a data set ------------------------------------------------------------------------------------


def test_a_label_in_another_place():
    assert int(label_of({"image": IMAGE, "label": 5, "which": 2}, 0, "which")) == 2
    assert int(label_of({"image": IMAGE, "label": 5}, 0, "which")) == 5
    assert int(label_of((IMAGE, 5, 2), 0, 2)) == 2
    assert int(label_of((IMAGE, 5), 0, 2)) == 5


def test_labels_of_some_samples():
    for labels in (HARD, SOFT):
        dataset = [(IMAGE, label) for label in labels]
        assert torch.equal(labels_of(dataset, [3, 0]), labels[[3, 0]])
    with pytest.raises(ValueError, match=r"of one kind: sample 0 has 2, sample 1 has \[1, 0, 0\]"):
        labels_of([(IMAGE, 2), (IMAGE, SOFT[1])], [0, 1])


@pytest.mark.parametrize("labels", [HARD, SOFT, HARD - 1])
@pytest.mark.parametrize("form", [lambda x: x, torch.Tensor.tolist, torch.Tensor.numpy, list])
def test_targets(labels, form):
    dataset = Targets([None] * 4)
    dataset.targets = form(labels)
    assert torch.equal(targets_of(dataset), labels)
    dataset.target_transform = abs
    assert targets_of(dataset) is None


@pytest.mark.parametrize(
    "targets",
    [None, HARD[:3], [0.5] * 4, torch.ones(4, 3), ["a"] * 4, [None] * 4, [[1.0], [0.5, 0.5], [1.0], [1.0]]],
    ids=["none", "short", "floats", "several classes each", "names", "all missing", "ragged"],
)
def test_what_are_no_targets(targets):
    dataset = Targets([None] * 4)
    dataset.targets = targets
    assert targets_of(dataset) is None
