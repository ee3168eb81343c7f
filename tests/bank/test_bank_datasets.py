"""A bank and a data set: which sample is which row, and what does not belong to the bank."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from banks import make_bank, soft_rows
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split
from torchvision.datasets import FashionMNIST
from torchvision.transforms import v2

from latent_mixup import LatentBank, load_generator
from latent_mixup.bank import fingerprint
from latent_mixup.bank.datasets import same_images
from latent_mixup.bundled import BundledImages

CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1, 0])


class Plain:
    """A data set without targets that counts how often it is asked."""

    def __init__(self, labels) -> None:
        self.labels_, self.asked = labels, 0

    def __len__(self) -> int:
        return len(self.labels_)

    def __getitem__(self, index):
        self.asked += 1
        return torch.rand(1), self.labels_[index]


class WithTargets(Plain):
    @property
    def targets(self):
        return self.labels_


class Wrapped(Dataset):
    """A data set of the user's that changes the samples of another one."""

    def __init__(self, dataset, change=lambda label: label) -> None:
        self.inner, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index):
        image, label = self.inner[index]
        return image * 2, self.change(int(label))


@pytest.fixture
def mnist(data_root):
    """Forty images as torchvision has them."""
    return FashionMNIST(data_root)


def bank_of(data, rows=slice(None), **metadata) -> LatentBank:
    """A bank of some samples of a data set, which it knows by its fingerprint; row r is sample ``rows[r]``."""
    index = torch.arange(len(data))[rows]
    labels = torch.tensor([int(data[i][1]) for i in index.tolist()])
    stated = {"num_classes": 10, "dataset": fingerprint(data), **metadata}
    return LatentBank(torch.zeros(len(index), 2), labels, source_index=index, metadata=stated)


def refuse(self, index):
    raise AssertionError("an image was read")


refuse.__module__ = FashionMNIST.__getitem__.__module__


# --- check: the very data set, in its order


def test_a_plain_dataset_is_asked_for_few_items_and_draws_no_random_numbers(toy_bank, toy_dataset):
    toy_bank.check(toy_dataset)
    bank = LatentBank(torch.zeros(1000, 2), torch.arange(1000) % 10)
    dataset, state = Plain((torch.arange(1000) % 10).tolist()), torch.get_rng_state()
    bank.check(dataset)
    assert dataset.asked <= 26
    assert torch.equal(torch.get_rng_state(), state)


def test_all_targets_are_compared_and_no_image_of_torchvisions_is_read(mnist, monkeypatch):
    bank = bank_of(mnist)
    monkeypatch.setattr(FashionMNIST, "__getitem__", refuse)
    bank.check(mnist)
    mnist.targets[31] = (mnist.targets[31] + 1) % 10
    with pytest.raises(ValueError, match=r"sample 31 has label \d in the data set and \d in the bank"):
        bank.check(mnist)


def test_a_dataset_may_change_its_targets():
    dataset = WithTargets([0, 1])
    dataset.target_transform = lambda label: 1 - label  # and does not use it
    LatentBank(torch.zeros(2, 2), [0, 1]).check(dataset)
    assert dataset.asked == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Plain([0, 1]), r"codes of 3 samples \(its largest source_index is 2\), the data set has 2"),
        (Plain([2, 1, 0]), "sample 0 has label 2 in the data set and 0 in the bank"),
        (Plain([0.0, 1.0, 2.0]), r"needs to give \(image, label\): item 0 is a tuple of Tensor, float"),
        (Plain(["a", "b", "c"]), r"\(image, label\)"),
        ([{"image": 0, "kind": 1}] * 3, r"\(image, label\): item 0 is a dict"),
        (Plain([0, None, 2]), "sample 1 has label none in the data set and 1 in the bank"),
        (Plain(torch.eye(3).flip(0)), "data set has soft labels of 3 classes, the bank class indices: .*soft|codes"),
        (WithTargets(torch.eye(3).flip(0)), "data set has soft labels of 3 classes, the bank class indices"),
        (list(torch.rand(3, 1, 4, 4)), "sample 0 has label none in the data set and 0 in the bank"),
    ],
)
def test_another_dataset_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        LatentBank(torch.zeros(3, 2), [0, 1, 2]).check(dataset)


@pytest.mark.parametrize("form", [Plain, WithTargets])
def test_soft_labels_are_compared(form):
    labels = soft_rows(5, 3)
    bank = LatentBank(torch.zeros(4, 2), labels[[4, 0, 2, 3]], source_index=[4, 0, 2, 3])
    for same in (labels, labels.double() + 1e-8, labels.tolist(), list(labels.numpy())):
        bank.check(form(same))
    changed = labels.clone()
    changed[2] = torch.tensor([0.125, 0.25, 0.625])
    for other, message in [
        (changed, r"sample 2 has label \[0.125, 0.25, 0.625\] in the data set and \[0\."),
        (torch.eye(2)[[0] * 5], r"soft labels of 2 classes, the bank soft labels of 3 classes"),
        ([0] * 5, r"has label 0 in the data set and \["),
    ]:
        with pytest.raises(ValueError, match=message):
            bank.check(form(other))


@pytest.mark.parametrize("form", [Plain, WithTargets])
def test_one_hot_and_missing_labels_are_compared(form):
    hot, missing = LatentBank(torch.zeros(3, 2), torch.eye(3)), LatentBank(torch.zeros(3, 2), [0, -1, 2])
    hot.check(form([0, 1, 2]))
    missing.check(form([0, -1, 2]))
    missing.check(form([0, None, 2]))
    for bank, labels, message in [
        (hot, [0, 0, 2], r"sample 1 has label 0 in the data set and \[0, 1, 0\] in the bank"),
        (missing, [0, 1, 2], "sample 1 has label 1 in the data set and none in the bank"),
    ]:
        with pytest.raises(ValueError, match=message):
            bank.check(form(labels))
    LatentBank(torch.zeros(3, 2), [-1] * 3).check(list(torch.rand(3, 1, 4, 4)))


def test_check_needs_a_generator_or_a_dataset():
    with pytest.raises(TypeError, match="needs a Generator or a data set with len"):
        make_bank().check(3)


# --- rows_of_data: which rows are in a data set


def halves(dataset):
    return random_split(dataset, [0.5, 0.5], torch.Generator().manual_seed(0))


PARTS = {
    "whole": lambda d: (d, range(40)),
    "subset": lambda d: (Subset(d, [7, 3, 3, 39]), [7, 3, 3, 39]),
    "indices in a tensor": lambda d: (Subset(d, torch.tensor([7, 3])), [7, 3]),
    "nested": lambda d: (Subset(Subset(d, range(10, 30)), [4, 0, -1]), [14, 10, 29]),
    "permuted": lambda d: (Subset(d, range(39, -1, -1)), range(39, -1, -1)),
    "split": lambda d: (halves(d)[1], halves(d)[1].indices),
    "joined": lambda d: (ConcatDataset([Subset(d, [5, 6]), Subset(d, [0])]), [5, 6, 0]),
    "joined with others": lambda d: (ConcatDataset([Plain([0, 1]), Subset(d, [9])]), [-1, -1, 9]),
    "wrapped": lambda d: (Wrapped(d), range(40)),
    "wrapped subset": lambda d: (Wrapped(Subset(d, [8, 2])), [8, 2]),
    "subset of wrapped": lambda d: (Subset(Wrapped(d), [8, 2]), [8, 2]),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("knows_its_length", [True, False])
def test_the_rows_of_a_part(mnist, part, knows_its_length):
    mnist.transform = lambda image: torch.zeros(1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    bank = bank_of(mnist, order, **({} if knows_its_length else {"dataset": {}}))
    dataset, expected = PARTS[part](mnist)
    rows = bank.rows_of_data(dataset)
    assert rows.tolist() == bank.rows_of(list(expected)).tolist()
    assert bank.rows_for(dataset).tolist() == sorted({row for row in rows.tolist() if row >= 0})


def test_a_part_of_a_bank_knows_its_rows(mnist):
    bank = bank_of(mnist).subset(range(5, 15))
    assert bank.rows_of_data(Subset(mnist, [14, 15, 5])).tolist() == [9, -1, 0]
    with pytest.raises(ValueError, match="their images in this Subset of 1 samples is none"):
        bank.rows_for(Subset(mnist, [30]))


def test_the_bank_of_a_subset_has_the_rows_of_that_subset(mnist):
    chosen = Subset(mnist, [30, 2, 11, 17])
    bank = bank_of(chosen)
    assert bank.rows_of_data(chosen).tolist() == [0, 1, 2, 3]
    assert bank.rows_for(Subset(chosen, [3, 1])).tolist() == [1, 3]
    assert bank.rows_of_data(mnist) is None


@pytest.mark.parametrize(
    "dataset", [Plain([0] * 7), Plain([0] * 41), TensorDataset(torch.zeros(9, 1), torch.zeros(9).long()), iter([])]
)
def test_what_cannot_be_told_is_none_and_the_error_names_what_to_do(mnist, dataset):
    assert bank_of(mnist).rows_of_data(dataset) is None
    if hasattr(dataset, "__len__"):
        message = r"cannot be told; the bank was made from .* of 40 samples: pass .*Subset of it.* bank.subset\(rows\)"
        with pytest.raises(ValueError, match=message):
            bank_of(mnist).rows_for(dataset)


def test_samples_of_another_form_cannot_be_told(mnist):
    assert bank_of(mnist).rows_of_data([{"x": 0, "y": 1}] * 40) is None


@pytest.mark.parametrize("error", [OSError, KeyError, ZeroDivisionError, AssertionError, ValueError])
def test_an_exception_of_the_data_sets_own_means_that_it_cannot_be_told(mnist, error):
    class Broken(Plain):
        def __getitem__(self, index):
            raise error("theirs")

    assert bank_of(mnist).rows_of_data(Broken([0] * 40)) is None
    with pytest.raises(error, match="theirs"):
        bank_of(mnist).check(Broken([0] * 40))


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ("bank.datasets.differing", ValueError),
        ("bank.datasets._some_of_each_class", IndexError),
        ("labels.label_key_of", RuntimeError),
    ],
)
def test_an_exception_of_ours_is_raised(mnist, monkeypatch, ours, error):
    def fail(*_):
        raise error("ours")

    bank, dataset = bank_of(mnist), Plain([int(mnist[i][1]) for i in range(40)])
    assert len(bank.rows_of_data(dataset)) == 40
    monkeypatch.setattr(f"latent_mixup.{ours}", fail)
    with pytest.raises(error, match="ours"):
        bank.rows_of_data(dataset)


@pytest.mark.parametrize("form", [torch.Tensor.float, torch.Tensor.long, torch.Tensor.tolist])
def test_one_hot_rows_in_the_data_set_are_class_indices(form):
    bank = LatentBank(torch.zeros(10, 2), CLASSES)
    rows = torch.eye(3)[CLASSES]
    assert bank.rows_for(Plain([form(row) for row in rows])).tolist() == list(range(10))
    with pytest.raises(ValueError, match="soft labels of 3 classes, the bank class indices"):
        bank.rows_for(Plain([form(row) for row in rows.flip(1)]))


CHANGES = {
    "merged": lambda label: label // 2,
    "one class": lambda label: 0 if label == 9 else label,
    "shifted": lambda label: (label + 1) % 10,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", [lambda d: d, lambda d: Subset(d, range(5, 40)), lambda d: ConcatDataset([d])])
def test_labels_that_the_bank_has_otherwise_are_refused(mnist, change, part):
    bank = bank_of(mnist)
    changed = Wrapped(mnist, CHANGES[change])
    mnist.transform = lambda image: torch.zeros(1)
    for dataset in (part(changed), Wrapped(part(mnist), CHANGES[change])):
        with pytest.raises(ValueError, match=r"sample \d+ has label \d in the data set and \d in the bank"):
            bank.rows_for(dataset)
    mnist.target_transform = CHANGES[change]
    with pytest.raises(ValueError, match=r"has label \d in the data set and \d in the bank"):
        bank.rows_of_data(part(mnist))


def test_a_loader_is_no_data_set(mnist):
    with pytest.raises(TypeError, match=r"got a DataLoader, pass loader\.dataset"):
        bank_of(mnist).rows_of_data(DataLoader(mnist))


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_the_bundled_images_are_the_rows_of_the_bundled_bank(name):
    bank, images = LatentBank.from_pretrained(name), BundledImages(name)
    assert torch.equal(bank.rows_of_data(images), torch.arange(len(bank)))
    assert bank.rows_for(Subset(images, [5, 3])).tolist() == [3, 5]
    assert bank.rows_of_data(BundledImages(name, train=False)) is None
    with pytest.raises(ValueError, match="in the data set and"):
        bank.rows_of_data(BundledImages("mnist" if name == "fashion-mnist" else "fashion-mnist"))


# --- images that were set aside


@pytest.mark.parametrize("part", ["whole", "subset", "nested", "split", "wrapped"])
def test_usable_leaves_out_what_was_set_aside(mnist, part):
    mnist.transform = lambda image: torch.zeros(1)
    coded = [i for i in range(40) if i not in (3, 14)]
    bank = bank_of(mnist, coded, set_aside={"3": "it is torn", "14": "it is empty"})
    assert bank.set_aside == {3: "it is torn", 14: "it is empty"}
    dataset, index = PARTS[part](mnist)
    usable = bank.usable(dataset)
    assert bank.rows_of_data(usable).tolist() == bank.rows_of([i for i in index if i not in (3, 14)]).tolist()
    assert bank.subset([0, 1]).usable(dataset) is not dataset  # a choice of rows sets nothing else aside
    assert bank_of(mnist).usable(dataset) is dataset
    with pytest.raises(ValueError, match="which images of this Plain were set aside cannot be told"):
        bank.usable(Plain([0] * 7))


def test_a_folder_without_the_files_that_were_set_aside_is_known(mnist):
    mnist.transform = lambda image: torch.zeros(1)
    kept = [i for i in range(40) if i not in (3, 14)]
    bank = bank_of(mnist, kept[2:], set_aside={"3": "it is torn", "14": "it is empty"})
    mnist.data, mnist.targets = mnist.data[kept], mnist.targets[kept]
    assert bank.rows_of_data(mnist).tolist() == [-1, -1, *range(36)]
    assert bank.usable(mnist) is mnist
    mnist.targets = mnist.targets.roll(1)
    assert bank.rows_of_data(mnist) is None


# --- images


def test_images_of_another_dataset_with_the_same_labels_are_refused(toy_bank, toy_dataset, linear_generator):
    assert len(toy_bank.rows_for(toy_dataset, linear_generator)) == 50
    draw = torch.Generator().manual_seed(3)
    others = TensorDataset(torch.rand(50, 1, 4, 4, generator=draw) * 2 - 1, toy_dataset.labels)
    with pytest.raises(ValueError, match="images of this TensorDataset are not those of the bank"):
        toy_bank.rows_for(others, linear_generator)
    for order in (torch.arange(50).view(-1, 2).flip(1).flatten(), torch.arange(49, -1, -1)):
        moved = TensorDataset(toy_dataset.images[order], toy_dataset.labels)
        with pytest.raises(ValueError, match="are not those of the bank"):
            toy_bank.rows_for(moved, linear_generator)


def test_codes_that_are_no_likenesses_by_their_own_mse_tell_nothing_of_images(toy_bank, toy_dataset, linear_generator):
    """Of a generator with random weights, say: its codes decode to something else, and their mse says so."""
    others = TensorDataset(-toy_dataset.images, toy_dataset.labels)
    for mse, accepted in ((1e-4, False), (10.0, True), (float("inf"), True)):
        bank = LatentBank(
            toy_bank[:][0],
            toy_bank.labels,
            source_index=toy_bank.source_index,
            mse=[mse] * 50,
            metadata=toy_bank.metadata,
        )
        if accepted:
            assert len(bank.rows_for(others, linear_generator)) == 50
        else:
            with pytest.raises(ValueError, match="are not those of the bank"):
                bank.rows_for(others, linear_generator)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x + 1) / 2,
        lambda x: (x - 0.3) / 0.2,
        lambda x: ((x + 1) * 127.5).round().clamp(0, 255).byte(),
        lambda x: x + 0.3 * torch.randn(x.shape),
        lambda x: x.flip(-1) if torch.rand(()) < 0.5 else x,
    ],
)
def test_images_in_any_range_and_with_augmentation_pass(toy_bank, toy_dataset, linear_generator, change):
    class Changed(Plain):
        def __getitem__(self, index):
            random.random(), np.random.rand()  # noqa: NPY002
            return change(toy_dataset.images[index]), self.labels_[index]

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert len(toy_bank.rows_for(Changed(toy_dataset.labels.tolist()), linear_generator)) == 50
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002


def test_images_that_tell_nothing_pass():
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert same_images(images, images)
    assert not same_images(images, images.roll(1, 0))
    assert same_images(images[:7], images[:7].roll(1, 0))
    assert same_images(images, torch.zeros(8, 1, 4, 4))
    assert same_images(torch.ones(8, 1, 4, 4), images)
    assert same_images(images, images[:, :, :3])


@pytest.mark.parametrize("transform", [None, v2.Compose([v2.RandomCrop(28, padding=4), v2.RandomHorizontalFlip()])])
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_real_images_of_the_bundled_bank_are_its_own(name, transform):
    """Augmented ones are compared without their transform: a crop of a digit tells little."""
    bank, generator, images = LatentBank.from_pretrained(name), load_generator(name), BundledImages(name)
    images.transform = transform
    for dataset in (images, Subset(images, range(len(bank))), ConcatDataset([images])):
        assert len(bank.rows_for(dataset, generator)) == len(bank)
    order = images.targets.argsort(stable=True)
    images.data[order] = images.data[order.roll(1)]  # the same labels
    with pytest.raises(ValueError, match="are not those of the bank"):
        bank.rows_for(images, generator)


# --- the fingerprint


def test_the_fingerprint_of_class_indices_is_for_ever():
    told = "c9b777acc7303d4510d59316781e5f5a50cdb809848ad7b544674b1a61f986d3"
    assert fingerprint(WithTargets([3, 0, 2])) == {"length": 3, "labels": told}
    assert fingerprint(WithTargets(torch.tensor([3, 0, 2])))["labels"] == told
    assert fingerprint(WithTargets([0, 3, 2]))["labels"] != told
    assert fingerprint(Plain([0, 1])) == {"length": 2, "labels": None}


def test_the_fingerprint_of_soft_and_missing_labels():
    soft = soft_rows(6, 4)
    one = fingerprint(WithTargets(soft))
    assert one == fingerprint(WithTargets(soft.double().tolist()))
    others = [soft.flip(1), soft.flip(0), soft.argmax(1), -torch.ones(6).long(), torch.eye(4)[[0, 1, 2, 3, 0, 1]]]
    hashes = {fingerprint(WithTargets(targets))["labels"] for targets in (soft, *others)}
    assert len(hashes) == 6
    assert None not in hashes
    row = torch.tensor([[0.0, 1.0]])
    assert fingerprint(WithTargets(row)) != fingerprint(WithTargets(row.view(torch.int64)[:, 0]))  # the same bytes
    assert fingerprint(WithTargets(torch.rand(6, 4)))["labels"] is None  # no labels that a bank can hold
