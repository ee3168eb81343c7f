"""Reading samples: the same data set in every form is the same, and a bad image is set aside alone."""

from __future__ import annotations

import errno
import io
import json
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LinearGenerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from latent_mixup.images import SIGNED, UNIT, ImageFormat, from_uint8
from latent_mixup.inversion.samples import (
    NUM_PROBES,
    SampleFormat,
    Samples,
    class_names,
    probe,
    read_samples,
    stated_format,
)

N, SIZE = 20, 4
LABELS = [index % 3 for index in range(N)]
SOFT = torch.eye(3)[LABELS] * 0.9 + 0.1 / 3


class Sized(LinearGenerator):
    """Says its channels and size: all that reading asks of a generator."""

    def __init__(self, img_channels: int = 1, img_resolution: int = SIZE) -> None:
        super().__init__()
        self.img_channels, self.img_resolution = img_channels, img_resolution


def pictures(channels: int = 1, size: int = SIZE) -> Tensor:
    """Uint8 pictures ``[20, C, 4, 4]``, each with black and white in it."""
    values = torch.randint(0, 256, (N, channels, size, size), generator=torch.Generator().manual_seed(0))
    values[:, :, 0, 0], values[:, :, 0, 1] = 0, 255
    return values.to(torch.uint8)


def pil(image_uint8: Tensor) -> Image.Image:
    return v2.functional.to_pil_image(image_uint8)


class Rows:
    """A data set that has no more than it needs; ``change`` maps an index to another sample, or an error."""

    def __init__(self, samples, change=None) -> None:
        self.samples, self.change = samples, change or {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        if not 0 <= index < len(self.samples):
            raise IndexError(index)
        sample = self.change.get(index, self.samples[index])
        if isinstance(sample, BaseException):
            raise sample
        return sample


class ClassLabel:
    """Stands for ``datasets.ClassLabel``."""

    names = ("nought", "one", "two")


class HubDataset(Rows):
    """Stands for ``datasets.Dataset``: dicts, columns and features."""

    def __init__(self, columns: dict[str, list]) -> None:
        self.columns = columns
        self.features = {name: ClassLabel() if "label" in name else "Image" for name in columns}
        super().__init__([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])

    def select_columns(self, names):
        names = [names] if isinstance(names, str) else names
        return HubDataset({name: self.columns[name] for name in names})


def read(dataset, generator=None, indices=None, **options) -> Samples:
    generator = generator or Sized()
    format, _ = probe(dataset, generator, **options)
    return read_samples(dataset, range(len(dataset)) if indices is None else indices, generator, format)


def agrees(samples: Samples, channels: int = 1, labels=LABELS) -> None:
    """All pictures, exactly, and their labels."""
    assert samples.images.equal(from_uint8(pictures(channels)))
    assert samples.images.dtype == torch.float32
    expected = torch.as_tensor(labels)
    assert samples.labels.equal(expected)
    assert samples.labels.dtype == expected.dtype
    assert samples.index.equal(torch.arange(N))
    assert samples.errors == {}


# ---- the same data set in every form ---------------------------------------------------------------

IMAGES = pictures()
ARRAYS = [image[0].numpy() for image in IMAGES]
PAIRS = list(zip(IMAGES, LABELS, strict=True))
WITH_LABELS = {
    "tuples": PAIRS,
    "lists": [[image, label] for image, label in PAIRS],
    "more than two": [(image, label, "a", 3) for image, label in PAIRS],
    "a tuple of tuples": tuple(PAIRS),
    "no more than needed": Rows(PAIRS),
    "subset": Subset([*PAIRS, "more"], range(N)),
    "TensorDataset": TensorDataset(IMAGES, torch.tensor(LABELS)),
    "bytes as labels": TensorDataset(IMAGES, torch.tensor(LABELS, dtype=torch.uint8)),
    "PIL and numpy": [(pil(image), np.int64(label)) for image, label in PAIRS],
    "labels of one entry": [(image, np.array([label])) for image, label in PAIRS],
    "dicts": [{"label": label, "id": "a", "image": image} for image, label in PAIRS],
    "CIFAR-100": HubDataset({"img": [*map(pil, IMAGES)], "fine_label": LABELS, "coarse_label": [0] * N}),
    "transformers": [UserDict(pixel_values=from_uint8(image).numpy(), labels=label) for image, label in PAIRS],
    "webdataset": [{"__key__": "a", "jpg": pil(image), "cls": label} for image, label in PAIRS],
}
WITHOUT_LABELS = {
    "list of arrays": ARRAYS,
    "tuple of arrays": tuple(ARRAYS),
    "list of tensors": list(IMAGES),
    "list of PIL": [*map(pil, IMAGES)],
    "one array": np.stack(ARRAYS),
    "one array with channels": IMAGES.permute(0, 2, 3, 1).numpy(),
    "one tensor": IMAGES,
    "TensorDataset": TensorDataset(IMAGES),
    "no labels": [(image, None) for image in IMAGES],
    "-1": [{"image": image, "label": -1} for image in IMAGES],
    "images alone in dicts": HubDataset({"image": [*map(pil, IMAGES)], "id": LABELS}).select_columns("image"),
}


@pytest.mark.parametrize("dataset", WITH_LABELS.values(), ids=WITH_LABELS)
def test_the_same_samples_in_every_form(dataset):
    agrees(read(dataset))


@pytest.mark.parametrize("dataset", WITHOUT_LABELS.values(), ids=WITHOUT_LABELS)
def test_labels_may_be_missing(dataset):
    agrees(read(dataset), labels=[-1] * N)


def test_some_labels_may_be_missing():
    labels = [None if index % 2 else label for index, label in enumerate(LABELS)]
    agrees(read(list(zip(IMAGES, labels, strict=True))), labels=[-1 if n is None else n for n in labels])


@pytest.mark.parametrize(
    "convert", [lambda x: x, np.asarray, Tensor.tolist, Tensor.double], ids=["tensor", "array", "list", "double"]
)
def test_soft_labels(convert):
    dataset = [(image, convert(label)) for image, label in zip(IMAGES, SOFT, strict=True)]
    agrees(read(dataset), labels=SOFT)
    assert probe(dataset, Sized())[0].num_classes == 3
    assert read(dataset, indices=[]).labels.shape == (0, 3)


def test_keys_may_be_given():
    dicts = HubDataset({"image": [None] * N, "mask": list(IMAGES), "label": [7] * N, "digit": LABELS})
    agrees(read(dicts, image_key="mask", label_key="digit"))
    assert set(read(dicts, image_key="mask").labels.tolist()) == {7}
    agrees(read([("a", image, label) for image, label in PAIRS], image_key=1, label_key=2))


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (HubDataset({"picture": ARRAYS, "label": LABELS}), {}, r"no image among \['picture', 'label'\]: pass image_"),
        (HubDataset({"image": ARRAYS, "digit": LABELS}), {}, r"no label among \['image', 'digit'\]: .*; pass label_"),
        (HubDataset({"image": ARRAYS}), {"image_key": "img"}, r"image 0: no 'img' in the sample: got a dict of \["),
        (HubDataset({"image": ARRAYS}), {"label_key": "y"}, r"the label of sample 0: no 'y' in the sample: got a dict"),
        (PAIRS, {"label_key": 2}, r"the label of sample 0: no 2 in the sample: got a tuple of Tensor, int"),
        (PAIRS, {"image_key": "image"}, r"image 0: no 'image' in the sample: got a tuple of Tensor, int"),
        (IMAGES, {"image_key": "image"}, r"image_key and label_key need samples with parts: got a Tensor"),
        ({"train": PAIRS, "test": PAIRS}, {}, r"got a dict of \['train', 'test'\], choose one of them"),
        ([], {}, "the data set is empty: there is nothing to invert"),
        (PAIRS, {"num_images": 0}, "num_images needs to be at least 1: got 0"),
        (["a.png", "b.png"], {}, r"none of the first 2 images can be used; image 0: an image needs .*: got 'a.png'"),
        ([None] * 3, {}, r"none of the first 3 images can be used; image 0: an image needs .*: got None"),
        ((IMAGES, torch.tensor(LABELS)), {}, r"first 2 images can be used; image 0: .* got \[20, 1, 4, 4\]"),
    ],
)  # fmt: skip
def test_a_data_set_that_is_none(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        probe(dataset, Sized(), **options)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


@pytest.mark.parametrize("dataset", [DataLoader(PAIRS), iter(PAIRS), Stream()])
def test_a_stream_is_no_data_set(dataset):
    with pytest.raises(
        TypeError, match=rf"needs len\(dataset\) and dataset\[i\]: got {type(dataset).__name__}; for a Da"
    ):
        probe(dataset, Sized())


# ---- files -----------------------------------------------------------------------------------------

KEPT = {"L": "L", "LA": "LA", "P": "P", "16": "I;16", "RGB": "RGB", "RGBA": "RGBA", "1": "1"}


def lazy(path):
    """A loader that keeps the file's mode, and reads its pixels when they are asked for."""
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def write_folder(folder, channels, modes):
    """The pictures as PNG files of several modes, in folders by their class."""
    for index, image in enumerate(pictures(channels)):
        mode, path = modes[index % len(modes)], folder / "abc"[LABELS[index]] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == "16":
            Image.fromarray(image[0].numpy().astype(np.uint16) * 257).save(path)
        elif mode == "P":
            pil(image).convert("RGB").quantize(256).save(path)
        else:
            pil(image).convert(mode).save(path)


def by_file(samples: Samples, dataset) -> tuple[Tensor, list[int]]:
    """Images and labels in the order in which the files were written."""
    order = sorted(range(N), key=lambda row: dataset.samples[samples.index[row]][0].rsplit("/")[-1])
    return samples.images[order], samples.labels[order].tolist()


@pytest.mark.parametrize(
    ("channels", "target", "modes"),
    [
        (1, 1, ["L", "LA", "RGB", "16", "P", "RGBA"]),
        (1, 3, ["L", "LA", "RGB", "16", "P", "RGBA"]),
        (3, 3, ["RGB", "RGBA", "P"]),
    ],
)
def test_an_image_folder_of_several_modes(tmp_path, channels, target, modes):
    write_folder(tmp_path, channels, modes)
    kept = ImageFolder(str(tmp_path), loader=lazy)
    found = {kept[index][0].mode for index in range(N)}
    assert {"I;16" if mode == "I" else mode for mode in found} == {KEPT[mode] for mode in modes}  # I: Pillow before 11
    samples = read(kept, Sized(target))
    images, labels = by_file(samples, kept)
    assert images.equal(from_uint8(pictures(channels)).expand(-1, target, -1, -1))
    assert labels == LABELS
    assert class_names(kept, SampleFormat(ImageFormat(), 0, 1)) == ["a", "b", "c"]


@pytest.mark.parametrize(("channels", "target"), [(1, 1), (1, 3), (3, 3)])
def test_an_image_folder_as_it_is(tmp_path, channels, target):
    """Its own loader makes every file RGB."""
    write_folder(tmp_path, channels, ["L", "RGB"] if channels == 1 else ["RGB", "RGBA"])
    for transform in (None, v2.PILToTensor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])):
        dataset = ImageFolder(str(tmp_path), transform=transform)
        images, labels = by_file(read(dataset, Sized(target)), dataset)
        expected = from_uint8(pictures(channels)).expand(-1, target, -1, -1)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
        assert labels == LABELS


def test_jpeg_files_are_what_pil_reads(tmp_path):
    (tmp_path / "a").mkdir()
    modes = ["L", "RGB", "CMYK"]
    for mode in modes:
        pil(pictures(3, 8)[0]).convert(mode).save(tmp_path / "a" / f"{modes.index(mode)}.jpg")
    samples = read(ImageFolder(str(tmp_path), loader=lazy), Sized(3, 8))
    for index, image in enumerate(samples.images):
        as_rgb = np.array(lazy(tmp_path / "a" / f"{index}.jpg").convert("RGB"))
        assert image.equal(from_uint8(torch.from_numpy(as_rgb).permute(2, 0, 1)))


@pytest.mark.parametrize("loader", [None, lazy], ids=["own loader", "lazy"])
def test_broken_files_are_set_aside(tmp_path, loader):
    write_folder(tmp_path, 1, ["L"])
    files = sorted((tmp_path / "a").iterdir())
    files[0].write_bytes(b"no picture")
    files[1].write_bytes(files[1].read_bytes()[:60])
    files[2].write_bytes(b"")
    pil(pictures(1, 5)[0]).save(files[3])
    dataset = ImageFolder(str(tmp_path), **({"loader": loader} if loader else {}))
    files[4].unlink()
    samples = read(dataset)
    assert samples.index.tolist() == list(range(5, N))
    assert list(samples.errors) == [0, 1, 2, 3, 4]
    assert samples.errors[0].startswith("UnidentifiedImageError: cannot identify image file")
    assert "truncated" in samples.errors[1].lower()
    assert samples.errors[3].startswith("images need the generator's size [1, 4, 4]: got [")
    assert samples.errors[4].startswith("FileNotFoundError: [Errno 2]")
    assert not any("\n" in error for error in samples.errors.values())


@pytest.mark.parametrize("channels", [2, 4])
def test_a_generator_of_other_channels(channels):
    pixels = pictures(channels, 8)
    for images in (pixels, from_uint8(pixels).permute(0, 2, 3, 1)):
        assert read(images, Sized(channels, 8)).images.equal(from_uint8(pixels))


def test_torchvisions_fake_data():
    dataset = FakeData(10, (3, 8, 8), 5)
    samples = read(dataset, Sized(3, 8))
    assert samples.images.equal(from_uint8(torch.stack([v2.functional.pil_to_tensor(image) for image, _ in dataset])))


# ---- the batch does not matter ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize(
    ("convert", "options"),
    [
        (lambda x: x, {}),
        (pil, {}),
        (lambda x: x / 255, {}),
        (from_uint8, {}),
        (lambda x: v2.functional.normalize(x / 255, [0.2], [0.3]), {"mean": 0.2, "std": 0.3}),
    ],
    ids=["uint8", "PIL", "[0, 1]", "[-1, 1]", "normalised"],
)
def test_what_a_sample_becomes_does_not_depend_on_its_batch(convert, options, batch_size):
    """Also where the last images alone would say nothing of their range: they are black, bright and white."""
    pixels = pictures()
    pixels[NUM_PROBES:] = torch.tensor([0, 0, 200, 255], dtype=torch.uint8)[:, None, None, None]
    dataset, generator = [convert(image) for image in pixels], Sized()
    format, _ = probe(dataset, generator, **options)
    whole = read_samples(dataset, range(N), generator, format)
    torch.testing.assert_close(whole.images, from_uint8(pixels), rtol=0, atol=1e-6)
    for start in range(0, N, batch_size):
        part = range(start, min(start + batch_size, N))
        assert read_samples(dataset, part, generator, format).images.equal(whole.images[list(part)])


def test_rows_come_in_the_order_asked_for():
    samples = read(Rows(PAIRS, {3: OSError("no")}), indices=[5, 3, 19, 0, 5])
    assert samples.index.tolist() == [5, 19, 0, 5]
    assert samples.images.equal(from_uint8(IMAGES)[[5, 19, 0, 5]])
    assert samples.labels.tolist() == [LABELS[index] for index in (5, 19, 0, 5)]
    assert samples.errors == {3: "OSError: no"}


def test_a_format_survives_json():
    for format in (probe(PAIRS, Sized())[0], SampleFormat(SIGNED, "img", "fine_label", 10), SampleFormat(UNIT)):
        assert SampleFormat.from_dict(json.loads(json.dumps(format.to_dict()))) == format
    assert probe(PAIRS, Sized())[0] == SampleFormat(ImageFormat(), 0, 1)


@pytest.mark.parametrize("stated", ["mine", {}, {"images": 3}, {"images": {"mean": "x", "std": None}}, {"other": 1}])
def test_a_stated_format_that_is_none_is_named(stated):
    with pytest.raises(ValueError, match=r"metadata\['samples'\] of the bank needs the form that invert writes: got "):
        stated_format({"samples": stated}, PAIRS, Sized())


# ---- a bad image is set aside ----------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 18])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (OSError("image file is\n truncated"), "OSError: image file is truncated"),
        (KeyError("x"), "KeyError: 'x'"),
        (IndexError(), "IndexError: "),
        (StopIteration(), "StopIteration: "),
        ((IMAGES[0, :, :3], 0), "images need the generator's size [1, 4, 4]: got [1, 3, 4]; resize them in the data"),
        ((torch.full((1, 4, 4), torch.nan), 0), "an image needs finite numbers: got NaN or infinity"),
        ((torch.full((1, 4, 4), 3.0), 0), "an image has values from 3 to 3: this data set's are in [0, 1]"),
        ((None, 0), "an image needs to be a PIL image, an array or a tensor: got None"),
        ((), "no 0 in the sample: got a tuple of"),
        (None, "no 0 in the sample: got a NoneType"),
        (OSError(errno.EIO, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (ValueError("x" * 999), "x" * 300),
    ],
)  # fmt: skip
def test_a_bad_image_is_set_aside_with_its_error(bad, message, at):
    pairs = [(image / 255, label) for image, label in PAIRS]
    samples = read(Rows(pairs, {at: bad}))
    assert list(samples.errors) == [at]
    assert samples.errors[at].startswith(message)
    assert len(samples.errors[at]) <= 300
    others = [index for index in range(N) if index != at]
    assert samples.index.tolist() == others
    assert samples.images.equal(read(pairs).images[others])
    assert samples.labels.tolist() == [LABELS[index] for index in others]


def test_a_later_colour_image_is_set_aside_and_one_of_the_first_is_an_error():
    """Colours in the first images say that the data set has them, and a grey generator none."""
    colour = (pictures(3)[0], 0)
    assert (
        read(Rows(PAIRS, {18: colour})).errors[18].startswith("images need the generator's size [1, 4, 4]: got [3, 4")
    )
    with pytest.raises(
        ValueError, match=r"^image 5: .*got \[3, 4, 4\] with colours; make them grey .*v2.Grayscale\(\)"
    ):
        read(Rows(PAIRS, {5: colour}))


@pytest.mark.parametrize("at", [0, 18])
@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        MemoryError(),
        torch.OutOfMemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
    ids=repr,
)
def test_an_error_that_is_no_images_fault_is_raised(error, at):
    with pytest.raises(type(error)) as raised:
        read(Rows(PAIRS, {at: error}))
    assert raised.value is error


def test_the_first_images_are_read_and_those_that_cannot_be_are_named():
    dataset = Rows(PAIRS, {0: OSError("no"), 2: (IMAGES[0, :, :3], 0), 19: OSError("later")})
    format, samples = probe(dataset, Sized())
    assert samples.errors == read_samples(dataset, range(NUM_PROBES), Sized(), format).errors
    assert list(samples.errors) == [0, 2]
    assert samples.index.tolist() == [1, *range(3, NUM_PROBES)]
    assert samples.images.equal(from_uint8(IMAGES)[samples.index])
    assert probe(dataset, Sized(), num_images=99)[1].errors[19] == "OSError: later"


def test_a_batch_of_bad_images_is_empty():
    samples = read(Rows(PAIRS, {18: OSError("no"), 19: OSError("no")}), indices=[18, 19])
    assert samples.images.shape == (0, 1, 4, 4)
    assert samples.labels.shape == samples.index.shape == (0,)
    assert samples.labels.dtype == samples.index.dtype == torch.int64
    assert len(samples.errors) == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(1, 28), r"image 0: .*size \[1, 4, 4\]: got \[1, 28, 28\].*v2.Resize\(\(4, 4\)\)"),
        (pictures(3), r"^image 0: .*with colours; .*v2.Grayscale\(\)"),
        (IMAGES.long(), r"image 0: an image needs uint8, uint16 or float values: got torch.int64"),
        (IMAGES.float(), r"need to be in \[0, 1\] or \[-1, 1\]: got values from 0 to 255; pass the mean= and std="),
        (IMAGES / 0, "an image needs finite numbers: got NaN or infinity"),
    ],
    ids=["size", "colours", "int64", "[0, 255]", "NaN"],
)  # fmt: skip
def test_images_of_which_none_can_be_used(images, message):
    with pytest.raises(ValueError, match=message):
        probe(images, Sized())


@pytest.mark.parametrize("moments", [{}, {"mean": 0.5, "std": 0.5}])
def test_a_data_set_of_broken_images(moments):
    with pytest.raises(ValueError, match="none of the first 16 images can be used; image 0: OSError: no"):
        probe(Rows(PAIRS, {index: OSError("no") for index in range(N)}), Sized(), **moments)
    with pytest.raises(ValueError, match=r"none of the first 16 images can be used; image 0: an image .*: got None"):
        probe([(None, 0)] * N, Sized(), **moments)


def test_images_are_on_the_generators_device():
    generator = Sized().to("meta")
    assert generator.device.type == "meta"
    assert read(PAIRS, generator).images.device == generator.device
    assert read(PAIRS, generator, indices=[]).images.device == generator.device


# ---- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 18])
@pytest.mark.parametrize(
    "label", [1.5, 1.0, "1", -2, torch.tensor([0, 1, 1]), torch.tensor(0.5), [[0.5, 0.5]], {}, 1j], ids=repr
)
def test_a_label_that_is_none_is_an_error_with_its_index(label, at):
    with pytest.raises(ValueError, match=rf"the label .* at index {at}$"):
        read(Rows(PAIRS, {at: (IMAGES[0], label)}))


@pytest.mark.parametrize("label", [[0.5, 0.6], [1.5, -0.5], [torch.nan, 1.0]], ids=repr)
def test_a_soft_label_has_to_sum_to_one(label):
    dataset = Rows(list(zip(IMAGES, torch.full((N, 2), 0.5), strict=True)), {18: (IMAGES[0], label)})
    with pytest.raises(ValueError, match=r"a soft label needs numbers from 0 that sum to 1: .* at index 18$"):
        read(dataset)


@pytest.mark.parametrize(
    ("labels", "other", "message"),
    [
        (LABELS, [0.5, 0.5], r"here integers \(-1 or None: missing\): got soft ones of 2 classes at index 18"),
        ([None] * N, [0.5, 0.5], r"here integers \(-1 or None: missing\): got soft ones of 2 classes at index 18"),
        (SOFT, 1, r"here soft ones of 3 classes: got integers \(-1 or None: missing\) at index 18"),
        (SOFT, None, r"here soft ones of 3 classes: got integers \(-1 or None: missing\) at index 18"),
        (SOFT, [0.5, 0.5], r"here soft ones of 3 classes: got soft ones of 2 classes at index 18"),
    ],
)
def test_labels_are_of_one_kind(labels, other, message):
    dataset = Rows(list(zip(IMAGES, labels, strict=True)), {18: (IMAGES[18], other)})
    format, _ = probe(dataset, Sized())
    with pytest.raises(ValueError, match=message):
        read_samples(dataset, range(17, N), Sized(), format)


def test_the_names_of_classes():
    hub = HubDataset({"image": [*map(pil, IMAGES)], "label": LABELS})
    assert class_names(hub, probe(hub, Sized())[0]) == ["nought", "one", "two"]
    assert class_names(PAIRS, probe(PAIRS, Sized())[0]) is None
    assert class_names(hub.select_columns("image"), probe(hub.select_columns("image"), Sized())[0]) is None


def test_looking_leaves_the_global_random_state():
    class Augmented(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return IMAGES[index].roll(int(torch.randint(3, ()))), 0

    before = torch.get_rng_state()
    probe(Augmented(), Sized())
    assert torch.get_rng_state().equal(before)
