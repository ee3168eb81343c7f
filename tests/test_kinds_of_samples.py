"""Every kind of sample is taken by the three wrappers and by ``invert``, or refused by all in the same words."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

import latent_mixup as lm
from latent_mixup.images import from_uint8, to_uint8, to_unit
from latent_mixup.labels import SampleError, hard_labels

N = 16
PIXELS = torch.randint(0, 256, (N, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
PIXELS[:, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
LABELS = torch.arange(N) % 3

pytestmark = pytest.mark.filterwarnings("ignore::latent_mixup.augment.sources.SplitWarning")


class Named(NamedTuple):
    """A sample with names."""

    image: Any
    target: Any
    path: str


def one_hot(label: int) -> Tensor:
    return torch.eye(3)[label]


@pytest.fixture
def users(linear_generator):
    """Name => what it makes of samples: images and targets of eight, or those of a bank."""
    bank = lm.LatentBank(linear_generator.encode(from_uint8(PIXELS)), LABELS, source_index=torch.arange(N))
    pair = linear_generator, bank

    def by_loader(samples, **settings):
        loader = DataLoader(samples, 8, collate_fn=list)
        return found_in(next(iter(lm.LatentMixupLoader(loader, *pair, **settings))))

    def by_loader_of_batches(samples, **settings):
        return found_in(next(iter(lm.LatentMixupLoader(DataLoader(samples, 8), *pair, **settings))))

    def by_collate(samples, **settings):
        return found_in(lm.LatentMixupCollate(*pair, dataset=samples, **settings)(samples[:8]))

    def by_dataset(samples, **settings):
        rows = lm.LatentMixupDataset(samples, *pair, **settings).__getitems__([*range(8)])
        return tuple(torch.stack(parts) for parts in zip(*map(found_in, rows), strict=True))

    def by_invert(samples):
        found = lm.invert(samples, linear_generator, steps=0, loss="pixels", progress=False)
        return linear_generator.decode(found[:][0]), found.labels

    return {
        "loader": by_loader,
        "loader of batches": by_loader_of_batches,
        "collate": by_collate,
        "dataset": by_dataset,
        "invert": by_invert,
    }


def found_in(whole: Any) -> tuple[Tensor, Tensor]:
    """Image and target, in whatever form they come."""
    if isinstance(whole, dict):
        images, targets = (
            next(whole[key] for key in keys if key in whole) for keys in (("image", "img"), ("label", "labels"))
        )
        return images, targets
    return whole[0], whole[1]


def samples_of(make) -> list[Any]:
    return [
        make(from_uint8(pixels), int(label), index)
        for index, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True))
    ]


def wrapped(user, make, **settings) -> tuple[Tensor, Tensor]:
    """What a wrapper gives, with the same draws each time."""
    torch.manual_seed(3)
    return user(samples_of(make), **{"prob": 0.5, **settings})


# ---- taken -----------------------------------------------------------------------------------------

FORMS = {
    "list": lambda image, label, index: [image, label],
    "dict": lambda image, label, index: {"image": image, "label": label},
    "named tuple": lambda image, label, index: Named(image, label, f"{index}.png"),
    "further fields": lambda image, label, index: (image, label, index, "more"),
    "dict of more": lambda image, label, index: {"id": index, "img": image, "labels": label},
}
IMAGES = {
    "PIL": lambda image: Image.fromarray(to_uint8(image)[0].numpy()),
    "array [H, W]": lambda image: to_uint8(image)[0].numpy(),
    "array [H, W, C]": lambda image: to_uint8(image).permute(1, 2, 0).numpy(),
    "float array": lambda image: image.numpy(),
    "uint8": to_uint8,
    "float64": Tensor.double,
    "tv_tensor": lambda image: tv_tensors.Image(to_uint8(image)),
    "[0, 1]": to_unit,
}
KINDS_OF_LABELS = {
    "numpy integer": np.int64,
    "tensor": torch.tensor,
    "uint8": np.uint8,
    "[B, 1]": lambda label: np.array([label]),
    "one-hot integers": lambda label: one_hot(label).long(),
    "one-hot bools": lambda label: one_hot(label).bool().numpy(),
    "one-hot list": lambda label: one_hot(label).long().tolist(),
    "list of floats": lambda label: one_hot(label).tolist(),
    "soft": one_hot,
    "soft array": lambda label: one_hot(label).double().numpy(),
}
TAKEN = {
    **FORMS,
    **{name: lambda image, label, index, kind=kind: (kind(image), label) for name, kind in IMAGES.items()},
    **{name: lambda image, label, index, kind=kind: (image, kind(label)) for name, kind in KINDS_OF_LABELS.items()},
    "PIL in a dict, soft label in a list": lambda image, label, index: {
        **{"image": IMAGES["PIL"](image), "label": one_hot(label).tolist()}
    },
}


@pytest.mark.parametrize("kind", TAKEN)
def test_every_kind_is_taken_by_all_alike(users, kind):
    settings = {"transform": to_unit} if kind == "[0, 1]" else {}
    for name, user in users.items():
        if name == "invert":
            images, labels = user(samples_of(TAKEN[kind]))
            assert to_uint8(images).equal(PIXELS)
            assert hard_labels(labels).equal(LABELS)
            continue
        if name == "loader of batches" and "PIL" in kind:
            continue  # torch's own default_collate refuses it
        images, targets = wrapped(user, lambda image, label, index: (image, label))
        found, same = wrapped(user, TAKEN[kind], **settings)
        found = found.as_subclass(Tensor)
        found = from_uint8(found) if found.dtype == torch.uint8 else found.float()
        assert to_uint8(2 * found - 1 if kind == "[0, 1]" else found).equal(to_uint8(images)), name
        torch.testing.assert_close(same, targets)


# ---- refused ---------------------------------------------------------------------------------------

NOT_AN_IMAGE = "an image needs to be a PIL image, an array or a tensor: got {}"
SHAPE = r"an image needs to be \[H, W\], \[C, H, W\] or \[H, W, C\] with 1 or 3 channels.*: got \[{}\]"
NO_LABEL = r"a label needs to be an int, or soft, \[num_classes\] floats: got {}"
REFUSED = {
    "a string": (lambda image, label, index: "a.png", NOT_AN_IMAGE.format(r"'a\.png'")),
    "None": (lambda image, label, index: None, NOT_AN_IMAGE.format("None")),
    "a number": (lambda image, label, index: 3, NOT_AN_IMAGE.format("3")),
    "a name of an image": (lambda image, label, index: ("a.png", label), NOT_AN_IMAGE.format(r"'a\.png'")),
    "no image": (lambda image, label, index: (None, label), NOT_AN_IMAGE.format("None")),
    "integers": (
        lambda image, label, index: (image.long(), label),
        "an image needs uint8, uint16 or float values: got torch.int64, convert them to uint8",
    ),
    "four channels": (lambda image, label, index: (image.repeat(4, 1, 1), label), SHAPE.format("4, 4, 4")),
    "an array with alpha": (lambda image, label, index: (np.zeros((4, 4, 4), np.uint8), label), "without alpha"),
    "five channels": (lambda image, label, index: (image.repeat(5, 1, 1), label), SHAPE.format("5, 4, 4")),
    "one axis": (lambda image, label, index: (image.flatten(), label), SHAPE.format("16")),
    "NaN": (lambda image, label, index: (image * torch.nan, label), "an image needs finite numbers: got NaN or inf"),
    "infinity": (lambda image, label, index: (image / 0, label), "an image needs finite numbers: got NaN or inf"),
    "another size": (
        lambda image, label, index: (F.pad(image, (0, 1, 0, 1)), label),
        r"images need the (size of the data set's own|generator's size).*\[1, 5, 5\].*v2\.Resize",
    ),
    "a word as label": (lambda image, label, index: (image, "shirt"), NO_LABEL.format("str")),
    "a float as label": (lambda image, label, index: (image, 1.5), NO_LABEL.format("(float|torch.float)")),
    "a label of two axes": (
        lambda image, label, index: (image, torch.zeros(2, 3)),
        NO_LABEL.format("(Tensor|torch.float)"),
    ),
    "no distribution": (
        lambda image, label, index: (image, torch.tensor([0.5, 0.6, 0.0])),
        "soft labels? needs? numbers from 0 that sum to 1.* sums to 1.1",
    ),
    "negative shares": (
        lambda image, label, index: (image, [1.5, -0.5, 0.0]),
        "soft labels? needs? numbers from 0 that sum to 1.* has -0.5",
    ),
    "a class below -1": (
        lambda image, label, index: (image, -2),
        "a class needs an integer from 0, or -1 for none: got -2",
    ),
    "labels of two kinds": (
        lambda image, label, index: (image, one_hot(label) if index % 2 else label),
        "the data set needs labels of one kind",
    ),
    "a dict without an image": (lambda image, label, index: {"x": image, "label": label}, r"no image among \['x', 'l"),
    "an empty dict": (lambda image, label, index: {}, r"no image among \[\]: pass image_key="),
    "a dict without a label": (
        lambda image, label, index: {"image": image, "digit": label},
        r"no label among \['image', 'digit'\]: .*pass label_key=",
    ),
}
NOT_COLLATED = {
    "None",
    "no image",
    "labels of two kinds",
    "a number",
}  # torch's default_collate refuses or changes these


@pytest.mark.parametrize("kind", REFUSED)
def test_every_other_kind_is_refused_by_all_in_the_same_words(users, kind):
    make, message = REFUSED[kind]
    for name, user in users.items():
        if name == "loader of batches" and kind in NOT_COLLATED:
            continue
        with pytest.raises(SampleError, match=message):
            user(samples_of(make), **({} if name == "invert" else {"prob": 0.5, "seed": 0}))


def test_the_error_is_a_type_error_and_a_value_error():
    assert issubclass(SampleError, TypeError)
    assert issubclass(SampleError, ValueError)


# ---- what an inversion needs not, and a wrapper does -----------------------------------------------

OPTIONAL = {
    "an image alone": (lambda image, label, index: image, r"or a dict with both|label none"),
    "a tuple of one": (lambda image, label, index: (image,), "no labels|label none"),
    "a dict of one": (lambda image, label, index: {"image": image}, "no labels|label none"),
    "None": (lambda image, label, index: (image, None), "there is no label|label none"),
    "-1": (lambda image, label, index: (image, -1), "there is no label|label none"),
    "a class beyond the bank's": (lambda image, label, index: (image, 7), "label 7 "),
}


@pytest.mark.parametrize("kind", OPTIONAL)
def test_an_inversion_needs_no_labels_and_a_wrapper_those_of_the_bank(users, kind):
    """A data set is compared with the bank when it is wrapped: there the labels are said to be none."""
    make, message = OPTIONAL[kind]
    for name, user in users.items():
        if name == "loader of batches" and kind == "None":
            continue
        if name == "invert":
            assert set(user(samples_of(make))[1].tolist()) == ({7} if "class" in kind else {-1})
            continue
        with pytest.raises(ValueError, match=message):
            user(samples_of(make), prob=0.5, seed=0)


def test_images_of_several_sizes_are_set_aside_or_refused(users):
    def make(image, label, index):
        return (torch.zeros(1, 5, 5) if index == 1 else image), label

    with pytest.warns(
        UserWarning, match="1 of 16 images cannot be used; the first, image 1: images need the generator"
    ):
        found = users.pop("invert")(samples_of(make))
    assert len(found[0]) == N - 1
    del users["loader of batches"]
    for user in users.values():
        with pytest.raises(SampleError, match=r"images .*need .*size.*v2\.Resize\(\((4, 4|5, 5)\)\)"):
            user(samples_of(make), prob=0.5, seed=0)


# ---- batches of lists and arrays -------------------------------------------------------------------


@pytest.mark.parametrize("images", [list, lambda images: images.numpy(), lambda images: images.permute(0, 2, 3, 1)])
@pytest.mark.parametrize("labels", [list, Tensor.tolist, Tensor.numpy])
def test_a_batch_may_hold_lists_and_arrays(linear_generator, toy_bank, images, labels):
    pixels, expected = PIXELS[:8], LABELS[:8]
    collate = lm.LatentMixupCollate(linear_generator, toy_bank.subset(slice(None)), seed=0, prob=0.0)
    for batch in (
        (images(pixels), labels(expected)),
        {"image": images(pixels), "label": labels(expected)},
    ):
        found = found_in(collate(batch))
        assert found[0].equal(pixels)
        assert found[1].equal(torch.eye(3)[expected])
