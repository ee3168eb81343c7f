"""A bank whose rows are found by image: laws of order, range, subsets, transforms, and other data sets."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2 as v2
from torch.utils.data import Subset, TensorDataset

import latent_mixup as lm
from latent_mixup import LatentBank, LatentMixupDataset
from latent_mixup.bundled import BundledImages
from latent_mixup.generators import Linear
from latent_mixup.images import from_uint8

CODED, MORE = 150, 50  # images with a code, and others of the same data set


@pytest.fixture(scope="module")
def images():
    data = BundledImages()
    rows = torch.arange(0, len(data), len(data) // (2 * (CODED + MORE)))[: 2 * (CODED + MORE)]
    return from_uint8(data.data[rows]), data.targets[rows]


@pytest.fixture(scope="module")
def generator(images):
    return Linear.fit(images[0], 128)


@pytest.fixture(scope="module")
def bank(images, generator):
    with torch.no_grad():
        codes = generator.encode(images[0][:CODED])
    return LatentBank(codes, images[1][:CODED], metadata={"dataset": {"name": "things", "found_by": "image"}})


def test_rows_follow_their_images_in_any_order_and_range(images, generator, bank):
    order = torch.randperm(CODED + MORE, generator=torch.Generator().manual_seed(0))
    expected = torch.where(order < CODED, order, -1)
    for values in (images[0], images[0] / 2 + 0.5, images[0] * 3 - 7, (images[0] + 1) * 127.5):
        found = bank.rows_of_data(TensorDataset(values[order], images[1][order]), generator)
        assert torch.equal(found[found >= 0], expected[found >= 0])
        assert (found >= 0).sum() > 0.95 * CODED


def test_a_transform_is_left_out_and_a_subset_has_its_own_rows(generator, bank):

    data = BundledImages(transform=v2.Compose([v2.RandomHorizontalFlip(1.0), v2.GaussianBlur(5, 5.0)]))
    rows = list(range(0, 1500, 3))
    codes = generator.encode(from_uint8(data.data[rows]))
    small = LatentBank(codes, data.targets[rows], metadata=dict(bank.metadata))
    part = Subset(data, range(300, 600))
    found = small.rows_of_data(part, generator)
    expected = torch.tensor([row // 3 if row % 3 == 0 else -1 for row in range(300, 600)])
    assert torch.equal(found[found >= 0], expected[found >= 0])
    assert (found >= 0).sum() > 80


def test_other_images_have_no_row(images, generator, bank):
    other = TensorDataset(images[0][CODED:], images[1][CODED:])
    assert (bank.rows_of_data(other, generator) >= 0).double().mean() < 0.02  # nearly the same shoe
    with pytest.raises(ValueError, match="cannot be told which rows"):
        LatentMixupDataset(TensorDataset(other.tensors[0].flip(2), other.tensors[1]), generator, bank)


def test_mixes_are_drawn_from_the_images_that_were_found(images, generator, bank):
    order = torch.arange(CODED - 20, CODED + 20).flip(0)
    mixed = LatentMixupDataset(TensorDataset(images[0][order], images[1][order]), generator, bank, seed=0)
    assert torch.equal(mixed[0][0], images[0][order[0]])  # an image without a code comes through
    assert not torch.equal(mixed[39][0], images[0][order[39]])


def test_what_cannot_be_matched_says_so(images, generator, bank):
    data = TensorDataset(images[0], images[1])
    with pytest.raises(ValueError, match="pass its generator as well"):
        bank.rows_of_data(data)
    with pytest.raises(ValueError, match=r"not all of images 0 to 399 are 28 x 28 px"):
        bank.rows_of_data(TensorDataset(images[0][..., 2:, 2:], images[1]), generator)
    with pytest.raises(ValueError, match="in the data set and"):
        bank.rows_of_data(TensorDataset(images[0], (images[1] + 1) % 10), generator)


def test_the_bundled_codes_of_cifar10_find_their_images():
    generator, bank = lm.load("cifar10")
    assert (len(bank), bank.class_counts.tolist()) == (10_000, [1_000] * 10)
    some = bank.subset(range(0, 10_000, 40))
    codes, labels = some[:]
    with torch.no_grad():
        images = generator.decode(codes)
    order = torch.randperm(len(some), generator=torch.Generator().manual_seed(0))
    found = some.rows_of_data(TensorDataset(images[order], labels[order]), generator)
    assert torch.equal(found[found >= 0], order[found >= 0])
    assert (found >= 0).double().mean() > 0.95
