"""Samples of every form and kind of image, in a data set of mixes and in a collate function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from systems import WORKERS
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors

import latent_mixup as lm
from latent_mixup import LatentMixupCollate, LatentMixupDataset, LatentMixupLoader
from latent_mixup.images import to_uint8


class Samples(torch.utils.data.Dataset[Any]):
    """A data set of whatever a function makes of each of the toy images."""

    def __init__(self, toy, make):
        self.toy, self.make = toy, make

    def __len__(self):
        return len(self.toy)

    def __getitem__(self, index):
        image, label = self.toy[index]
        return self.make(image, label, index)


class Named(NamedTuple):
    """A sample with names."""

    image: Any
    target: Any
    path: str


@pytest.fixture
def mixed(toy_dataset, linear_generator, toy_bank):
    """Eight samples of a data set of mixes, half of them real, and the wrapper."""

    def make(form, **settings):
        data = Samples(toy_dataset, form)
        wrapper = LatentMixupDataset(data, linear_generator, toy_bank, **{"seed": 0, "prob": 0.5, **settings})
        return [wrapper[index] for index in range(8)]

    return make


@pytest.fixture
def pairs(mixed):
    """The same of pairs of a float image and a class."""
    return mixed(lambda image, label, index: (image, label))


@pytest.fixture(autouse=True)
def any_range(monkeypatch):
    monkeypatch.setattr("latent_mixup.augment.base.Mixer.check_range", lambda *_: None)


# ---- forms -----------------------------------------------------------------------------------------


FORMS = {
    "list": (lambda image, label, index: [image, label], (0, 1), None),
    "index": (lambda image, label, index: (image, label, index), (0, 1), 2),
    "named tuple": (lambda image, label, index: Named(image, label, f"{index}.png"), (0, 1), 2),
    "dict": (lambda image, label, index: {"image": image, "label": label}, ("image", "label"), None),
    "more": (lambda image, label, index: {"id": index, "img": image, "labels": label}, ("img", "labels"), "id"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_mixed_alike_and_keeps_its_fields(mixed, pairs, form):
    make, (image, label), more = FORMS[form]
    for index, (found, expected) in enumerate(zip(mixed(make), pairs, strict=True)):
        assert torch.equal(found[image], expected[0])
        assert torch.equal(found[label], expected[1])
        assert type(found) is (tuple if form == "list" else type(make(0, 0, 0)))
        if more is not None:
            assert found[more] == make(0, 0, index)[more]


def test_keys_name_the_fields(mixed, pairs):
    found = mixed(
        lambda image, label, index: {"image": None, "view": image, "kind": label, "label": "x"},
        image_key="view",
        label_key="kind",
    )
    for sample, expected in zip(found, pairs, strict=True):
        assert torch.equal(sample["view"], expected[0])
        assert torch.equal(sample["kind"], expected[1])
        assert (sample["image"], sample["label"]) == (None, "x")
    turned = mixed(lambda image, label, index: (label, image), image_key=1, label_key=0)
    assert all(torch.equal(sample[1], expected[0]) for sample, expected in zip(turned, pairs, strict=True))


def test_the_samples_themselves_are_not_changed(toy_dataset, linear_generator, toy_bank):
    data = [{"image": image, "label": label} for image, label in (toy_dataset[index] for index in range(50))]
    wrapper = LatentMixupDataset(data, linear_generator, toy_bank, seed=0)
    _ = [wrapper[index] for index in range(50)]
    assert all(torch.equal(sample["image"], toy_dataset[index][0]) for index, sample in enumerate(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_collates_them(toy_dataset, linear_generator, toy_bank, workers):
    data = Samples(toy_dataset, lambda image, label, index: {"img": image, "label": label, "id": index})
    wrapper = LatentMixupDataset(data, linear_generator, toy_bank, seed=0)
    context = WORKERS if workers else None
    batch = next(iter(DataLoader(wrapper, 8, num_workers=workers, multiprocessing_context=context)))
    assert batch["img"].shape == (8, 1, 4, 4)
    assert batch["label"].shape == (8, 3)
    assert batch["id"].tolist() == [*range(8)]


def test_the_global_random_state_is_that_of_the_data_set_alone(toy_dataset, linear_generator, toy_bank):
    def noisy(image, label, index):
        np.random.rand()  # noqa: NPY002 - as an augmentation may
        torch.rand(1)
        return image, label

    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    wrapper = LatentMixupDataset(Samples(toy_dataset, noisy), linear_generator, toy_bank, seed=0)
    assert wrapper[3][0].shape == (1, 4, 4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


# ---- kinds of images -------------------------------------------------------------------------------


KINDS = {
    "uint8 tensor": lambda image: to_uint8(image),
    "tv_tensor": lambda image: tv_tensors.Image(to_uint8(image)),
    "PIL": lambda image: Image.fromarray(to_uint8(image)[0].numpy()),
    "array [H, W]": lambda image: to_uint8(image)[0].numpy(),
    "array [H, W, C]": lambda image: to_uint8(image).permute(1, 2, 0).numpy(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_8_bit_images_of_every_kind_come_out_as_uint8_tensors(mixed, pairs, kind):
    for (image, target), expected in zip(
        mixed(lambda image, label, index: (KINDS[kind](image), label)), pairs, strict=True
    ):
        assert type(image) is (tv_tensors.Image if kind == "tv_tensor" else torch.Tensor)
        assert torch.equal(image, to_uint8(expected[0]))
        assert torch.equal(target, expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_float_images_keep_their_dtype(mixed, pairs, dtype):
    for convert in (lambda image: image.to(dtype), lambda image: image.to(dtype).numpy()):
        found = mixed(lambda image, label, index, convert=convert: (convert(image), label))
        for (image, _), expected in zip(found, pairs, strict=True):
            assert torch.equal(image, expected[0].to(dtype))


@pytest.mark.parametrize(
    "label", [list, torch.Tensor.numpy, torch.Tensor.bool, lambda row: row.to(torch.uint8).tolist()]
)
def test_one_hot_labels_of_every_kind(mixed, pairs, label):
    one_hot = torch.eye(3)
    found = mixed(lambda image, number, index: (image, label(one_hot[number])))
    assert all(torch.equal(sample[1], expected[1]) for sample, expected in zip(found, pairs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_dict", [False, True])
def test_a_collate_function_takes_the_same_samples(toy_dataset, linear_generator, toy_bank, kind, as_dict):
    def make(image, label, index):
        pair = KINDS[kind](image), [float(number == label) for number in range(3)]
        return {"image": pair[0], "label": pair[1], "id": index} if as_dict else pair

    data = Samples(toy_dataset, make)
    collate = LatentMixupCollate(linear_generator, toy_bank, dataset=data, seed=0, prob=0.5)
    found = collate([data[index] for index in range(8)])
    collate.set_epoch(0)
    images, targets = collate(to_uint8(toy_dataset.images[:8]), toy_dataset.labels[:8])
    assert torch.equal(found["image" if as_dict else 0], images)
    assert torch.equal(found["label" if as_dict else 1], targets)
    if as_dict:
        assert found["id"].tolist() == [*range(8)]


# ---- refusals --------------------------------------------------------------------------------------


EMPTY = np.zeros((4, 4), np.uint8)
WRONG = {
    "a name": ("a.png", 0, "an image needs to be a PIL image, an array or a tensor: got 'a.png'"),
    "int64": (torch.zeros(1, 4, 4).long(), 0, "an image needs uint8, uint16 or float values: got torch.int64"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), 0, r"\[H, W\], \[C, H, W\] or \[H, W, C\] with 1 or 3 channels"),
    "no class": (EMPTY, "shirt", r"a label needs to be an int, or soft, \[num_classes\] floats: got str"),
    "no distribution": (EMPTY, [0.5, 0.6], "a soft label needs numbers from 0 that sum to 1: it sums to 1.1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_data_set_collate_function_and_inversion_refuse_in_the_same_words(linear_generator, toy_bank, wrong):
    image, label, message = WRONG[wrong]
    samples = [(image, label)] * 2
    bank = toy_bank.subset([2])  # none of these samples: so they come through as they are
    wrapper = LatentMixupDataset(None, linear_generator, bank, seed=0)
    wrapper._own.dataset = samples
    collate = LatentMixupCollate(linear_generator, bank)
    for call in (
        lambda: wrapper._own.read(0),
        lambda: collate(samples) if not isinstance(image, torch.Tensor) else collate([(image.numpy(), label)]),
        lambda: lm.invert(samples, linear_generator, steps=0, progress=False),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_images_that_are_not_normalised_yet(mixed):
    with pytest.raises(TypeError, match="sample 0: normalize= says that images were normalised, and these"):
        mixed(lambda image, label, index: (to_uint8(image), label), normalize=(0.5, 0.5), prob=1.0)


def test_another_size_is_refused_before_a_mix_comes_out(mixed):
    with pytest.raises(ValueError, match=r"got \[C, H, W\] = \[1, 4, 4\] for \[3, 4, 4\].*v2.Grayscale\(3\)"):
        mixed(lambda image, label, index: (to_uint8(image).repeat(3, 1, 1), label), prob=1.0)


def test_the_loader_mixes_what_its_data_set_gives(toy_dataset, linear_generator, toy_bank):
    data = Samples(toy_dataset, lambda image, label, index: {"view": to_uint8(image), "kind": label, "id": index})
    loader = LatentMixupLoader(
        DataLoader(data, 8, collate_fn=default_collate), linear_generator, toy_bank, image_key="view", label_key="kind"
    )
    batch = next(iter(loader))
    assert (batch["view"].dtype, batch["kind"].shape, len(batch["id"])) == (torch.uint8, (8, 3), 8)
