"""Batches of every form that loaders give: what is mixed is the same, and the rest comes through."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from latent_mixup import LatentMixupCollate, LatentMixupDataset, LatentMixupLoader
from latent_mixup.images import to_uint8


class Named(NamedTuple):
    """A batch with names."""

    image: torch.Tensor
    target: torch.Tensor


class Rows(UserDict):
    """A mapping as TensorDict is one: length, iterator and numbers are those of its rows."""

    def __len__(self):
        raise TypeError("it has no rows")

    __iter__ = __len__

    def keys(self):
        return self.data.keys()

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.data[key]
        if not self["image"].ndim == 4:
            raise RuntimeError("it has no rows")
        return Rows({name: part[key] for name, part in self.data.items()})


IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(8) % 3
PATHS = [f"{k}.png" for k in range(8)]


@pytest.fixture
def mix(linear_generator, toy_bank):
    """``mix(batch)``: by a loader of this batch alone, with the same draws each time."""

    def by_loader(batch, **settings):
        options = {"seed": 0, "prob": 0.5, "prefetch": 0, **settings}
        return next(iter(LatentMixupLoader([batch], linear_generator, toy_bank.subset(slice(None)), **options)))

    return by_loader


@pytest.fixture(autouse=True)
def any_range(monkeypatch):
    monkeypatch.setattr("latent_mixup.augment.base.Mixer.check_range", lambda *_: None)


@pytest.mark.parametrize(
    ("batch", "keys"),
    [
        ((IMAGES, LABELS), (0, 1)),
        ([IMAGES, LABELS], (0, 1)),
        (Named(IMAGES, LABELS), (0, 1)),
        ((IMAGES, LABELS, PATHS), (0, 1)),
        ({"image": IMAGES, "label": LABELS}, ("image", "label")),
        ({"path": PATHS, "pixel_values": IMAGES, "labels": LABELS}, ("pixel_values", "labels")),
    ],
)
def test_every_form_is_mixed_alike_and_keeps_its_fields(mix, batch, keys):
    images, targets = mix((IMAGES, LABELS))
    found = mix(batch)
    assert torch.equal(found[keys[0]], images)
    assert torch.equal(found[keys[1]], targets)
    assert len(found) == len(batch)
    if len(batch) > 2:
        assert (found["path"] if isinstance(found, dict) else found[2]) is PATHS
    assert type(found) is (tuple if type(batch) is list else type(batch))


@pytest.mark.parametrize("kind", ["likeness", "itself"])
def test_a_mapping_of_rows_is_a_batch_a_sample_and_a_data_set(linear_generator, toy_dataset, toy_bank, kind):
    parts = {"image": toy_dataset.images, "label": toy_dataset.labels, "index": torch.arange(50)}
    make = Rows
    if kind == "itself":
        make = partial(pytest.importorskip("tensordict").TensorDict, batch_size=[50])
    rows, settings = make(parts), {"seed": 0, "prob": 1.0}
    (images, targets), found = (
        LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, **settings)(batch)
        for batch in ((toy_dataset.images[:8], toy_dataset.labels[:8]), rows[:8])
    )
    assert type(found) is type(rows)
    assert torch.equal(found["image"], images)
    assert torch.equal(found["label"], targets)
    assert torch.equal(found["index"], torch.arange(8))
    assert rows["label"].shape == (50,)
    sample = LatentMixupDataset([rows[index] for index in range(50)], linear_generator, toy_bank, **settings)[3]
    pair = LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **settings)[3]
    assert torch.equal(sample["image"], pair[0])
    assert torch.equal(sample["label"], pair[1])


def test_the_batch_itself_is_not_changed(mix):
    batch = {"image": IMAGES.clone(), "label": LABELS.clone()}
    mix(batch)
    assert torch.equal(batch["image"], IMAGES)
    assert torch.equal(batch["label"], LABELS)


def test_keys_name_the_fields(mix):
    batch = {"image": None, "view": IMAGES, "kind": LABELS, "label": PATHS}
    found = mix(batch, image_key="view", label_key="kind")
    images, targets = mix((IMAGES, LABELS))
    assert torch.equal(found["view"], images)
    assert torch.equal(found["kind"], targets)
    assert found["label"] is PATHS
    assert torch.equal(mix((LABELS, IMAGES), image_key=1, label_key=0)[1], images)


ONE_HOT = torch.nn.functional.one_hot(LABELS, 3)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(),
        LABELS.numpy(),
        LABELS.to(torch.uint8),
        LABELS[:, None],
        ONE_HOT,
        ONE_HOT.bool(),
        ONE_HOT.to(torch.uint8),
        ONE_HOT.float(),
        ONE_HOT.double().numpy(),
        ONE_HOT.tolist(),
        [np.float32(row) for row in ONE_HOT.tolist()],
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')} {np.shape(labels)}",
)
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_labels_of_every_kind_give_the_same_targets(mix, labels, prob):
    images, targets = mix((IMAGES, LABELS), prob=prob)
    found = mix((IMAGES, labels), prob=prob)
    assert torch.equal(found[0], images)
    assert torch.allclose(found[1], targets)


def test_uint8_images_stay_so(mix):
    real = to_uint8(IMAGES)
    images, targets = mix((IMAGES, LABELS))
    found, same = mix((real, LABELS))
    assert found.dtype == torch.uint8
    assert torch.equal(found, to_uint8(images))
    assert torch.equal(same, targets)


def test_a_tv_tensor_stays_one(mix):
    for prob in (0.5, 1.0):
        images, _ = mix((IMAGES, LABELS), prob=prob)
        found, _ = mix((tv_tensors.Image(IMAGES), LABELS), prob=prob)
        assert type(found) is tv_tensors.Image
        assert torch.equal(found, images)


@pytest.mark.parametrize("container", [lambda c: v2.Compose([c]), lambda c: v2.RandomApply([c], p=1.0)])
def test_containers_of_transforms_call_it(container, linear_generator, toy_bank):
    collate = LatentMixupCollate(linear_generator, toy_bank.subset(slice(None)), seed=0, prob=0.5).to("cpu")
    images, targets = collate(IMAGES, LABELS)
    collate.set_epoch(0)
    found = container(collate)(IMAGES, LABELS)
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], targets)
    assert "LatentMixupCollate(LinearGenerator, 50 rows of 3 classes, seed=0, prob=0.5)" in repr(container(collate))


def test_a_repr_says_what_is_mixed(linear_generator, toy_bank):
    bank = toy_bank.subset(slice(10))
    assert repr(LatentMixupDataset(None, linear_generator, bank)).startswith(
        "LatentMixupDataset(LinearGenerator, 10 rows"
    )
    loader = LatentMixupLoader([(IMAGES, LABELS)], linear_generator, bank, policy="robust")
    assert repr(loader) == "LatentMixupLoader(LinearGenerator, 10 rows of 3 classes, policy='robust')"


def test_uint8_images_are_not_normalised_yet(mix):
    with pytest.raises(TypeError, match="normalize= says that images were normalised, and these are"):
        mix((to_uint8(IMAGES), LABELS), normalize=(0.5, 0.5))


def test_a_collate_function_takes_dicts(linear_generator, toy_bank):
    bank = toy_bank.subset(slice(None))
    samples = [{"image": image, "label": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]
    collate = LatentMixupCollate(linear_generator, bank, seed=0, prob=0.5)
    pair = collate(IMAGES, LABELS)
    for make in (
        lambda: collate(samples),
        lambda: collate({"image": IMAGES, "label": LABELS}),
        lambda: next(iter(DataLoader(samples, 8, collate_fn=collate))),
    ):
        collate.set_epoch(0)
        found = make()
        assert torch.equal(found["image"], pair[0])
        assert torch.equal(found["label"], pair[1])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, "a batch needs to be .images, labels., or a dict with both: got a Tensor"),
        ((IMAGES,), "a batch needs images and labels: got a tuple of Tensor; no labels"),
        ({"image": IMAGES}, "a batch needs images and labels: got a dict of .*; no labels"),
        ({"x": IMAGES, "y": LABELS}, "no image among .*: pass image_key="),
        ({"image": IMAGES, "y": LABELS}, "no label among .*pass label_key="),
    ],
)
def test_what_is_no_batch_says_what_is_missing(mix, batch, message):
    with pytest.raises(TypeError, match=message):
        mix(batch)


def test_a_key_that_is_not_there_is_named(mix):
    with pytest.raises(TypeError, match="no 'view' in the sample"):
        mix({"image": IMAGES, "label": LABELS}, image_key="view")
