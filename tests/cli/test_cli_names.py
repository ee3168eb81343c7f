"""What is typed in the place of a generator or a data set: a decoder of one's own, and any folder of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from commands import error_of, in_folder_with, output_of
from PIL import Image
from torchvision.datasets import ImageFolder

from latent_mixup import LatentBank, RenderedMixupDataset, generators, load_generator
from latent_mixup.cli import shared
from latent_mixup.cli.shared import generator_named, open_data
from latent_mixup.images import ImageFiles, to_uint8

DECODER = """
import torch
from torch import nn

from latent_mixup.generators import wrap


def bare():
    layer = nn.Linear(4, 64, bias=False)
    layer.weight = nn.Parameter(torch.sin(torch.arange(256.0)).view(64, 4) / 2)
    return nn.Sequential(layer, nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


def make():
    return wrap(bare(), latent_shape=(4,))


def nothing():
    pass


ready = make()
"""


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    """The current folder holds ``tiny_decoder.py``; Python does not look there by itself."""
    with in_folder_with("tiny_decoder", DECODER, tmp_path / "here", monkeypatch) as here:
        yield here


def draw(generator, count=12):
    """Images that a generator can make exactly, uint8."""
    codes = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return to_uint8(generator.decode(codes))[:, 0].numpy()


def write_images(folder: Path, arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:02d}.png")
    return folder


# ---- a decoder of one's own --------------------------------------------------------------------------

QUICK = ("--loss", "pixels", "--draws", 64, "--batch-size", 6)


def test_a_decoder_of_ones_own_goes_through_all_commands(tmp_path, decoder):
    arrays = draw(generator_named("tiny_decoder:make"))
    write_images(tmp_path / "images" / "a", arrays[:6])
    write_images(tmp_path / "images" / "b", arrays[6:])
    data = ("--dataset", "imagefolder", "--data-root", tmp_path / "images")
    output_of("invert", "tiny_decoder:make", *data, *QUICK, "--steps", 2, "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert bank.metadata["generator"]["name"] == "tiny_decoder:make"
    assert bank.metadata["command"][:3] == ["latent-mixup", "invert", "tiny_decoder:make"]
    card = (tmp_path / "bank" / "README.md").read_text()
    assert 'load_generator("path/to/the/generator")' in card  # the typed name loads nothing in Python

    given = ("--generator", "tiny_decoder:ready", *data)  # the same weights by another name
    output_of("refine", tmp_path / "bank", *given, *QUICK, "--above", 0, "--steps", 100, "--out", tmp_path / "fine")
    fine = LatentBank.from_pretrained(tmp_path / "fine")
    assert fine.mse.max() < 1e-4 < bank.mse.max()  # a rounding to 8 bits is 5e-6

    output_of("render", "tiny_decoder:make", tmp_path / "fine", tmp_path / "pool", "--n", 8)
    assert RenderedMixupDataset(tmp_path / "pool")[0][0].shape == (1, 8, 8)

    output_of("report", tmp_path / "fine", *given, "--out", tmp_path / "report", "--columns", 2)
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["generator"]["name"] == "tiny_decoder:ready"

    facts = json.loads(output_of("info", "tiny_decoder:make", "--json", "--no-self-test"))["generator"]
    assert (facts["name"], facts["file_bytes"]) == ("tiny_decoder:make", None)
    assert facts["digest"] == bank.generator_digest

    sheet = tmp_path / "sheet.png"
    output_of("preview", "tiny_decoder:make", "--bank", tmp_path / "fine", "--pairs", "a,b", "--out", sheet)
    assert sheet.is_file()


def test_a_decoder_with_other_weights_is_not_the_banks(tmp_path, decoder):
    images = write_images(tmp_path / "images", draw(generator_named("tiny_decoder:make")))
    data = ("--dataset", "imagefolder", "--data-root", images)
    output_of("invert", "tiny_decoder:make", *data, *QUICK, "--steps", 0, "--out", tmp_path / "bank")
    (decoder / "other_decoder.py").write_text(DECODER.replace("sin", "cos"))
    given = ("--generator", "other_decoder:make", *data, "--out", tmp_path / "new")
    output = error_of("refine", tmp_path / "bank", *given)
    assert "the bank belongs to a generator with digest" in output
    assert "(tiny_decoder:make)" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "no_such_decoder:make",
            "there is no module 'no_such_decoder', for no_such_decoder:make: looked in the current",
        ),
        ("tiny_decoder.part:make", "there is no module 'tiny_decoder.part'"),
        ("tiny_decoder:mkae", "tiny_decoder.py) has no 'mkae': did you mean 'make'?"),
        (
            "tiny_decoder:bare",
            "to be a Generator, or a function without arguments that returns one: got Sequential; wrap",
        ),
        ("tiny_decoder:nothing", "that returns one: got NoneType"),
        ("tiny_decoder:", "is module:name, such as my_package.my_module:make: got 'tiny_decoder:'"),
        (":make", "is module:name, such as"),
        (".tiny_decoder:make", "is module:name, such as"),
        ("hungry_decoder:make", "No module named 'food_that_is_missing'"),
    ],
)
def test_what_is_wrong_with_a_decoder_is_one_sentence(decoder, text, message):
    (decoder / "hungry_decoder.py").write_text("import food_that_is_missing\n")
    output = error_of("info", text)
    assert message in output
    assert len(output.strip().splitlines()) == 1
    if "looked in" in output:
        assert str(decoder) in output
    assert ("generators.wrap" in output) == (text == "tiny_decoder:bare")


def test_a_module_or_a_generator_may_stand_there_itself(decoder):
    (decoder / "shapes_of_decoder.py").write_text(
        "from tiny_decoder import bare, ready\nbuilt = bare()\nclass Factory:\n    __new__ = lambda cls: ready\n"
    )
    for name in ("ready", "Factory"):
        assert isinstance(generator_named(f"shapes_of_decoder:{name}"), generators.Generator)
    with pytest.raises(TypeError, match=r"got Sequential; wrap it: latent_mixup\.generators\.wrap"):
        generator_named("shapes_of_decoder:built")


def test_nothing_is_imported_because_a_file_says_so(tmp_path, decoder):
    """Names in the metadata of a bank or a generator, and names given in Python, are text."""
    (decoder / "trap_decoder.py").write_text("raise SystemExit('the trap was imported')\n")
    generator = load_generator("fashion-mnist")
    generator.metadata["name"] = "trap_decoder:make"
    generator.save_pretrained(tmp_path / "generator")
    images = torch.linspace(0, 255, 12 * 784).byte().view(12, 28, 28).numpy()
    write_images(tmp_path / "images" / "a", images[:6])
    write_images(tmp_path / "images" / "b", images[6:])
    data = ("--dataset", "imagefolder", "--data-root", tmp_path / "images")
    place = ("--steps", 0, "--loss", "pixels", "--out", tmp_path / "bank")
    output_of("invert", tmp_path / "generator", *data, *place)
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert bank.metadata["generator"]["name"] == "trap_decoder:make"
    given = ("--generator", tmp_path / "generator")
    output_of("report", tmp_path / "bank", *given, *data, "--out", tmp_path / "report", "--columns", 2)
    output_of("render", tmp_path / "generator", tmp_path / "bank", tmp_path / "pool", "--n", 2)
    output_of("info", tmp_path / "generator", "--no-self-test")
    output_of("push", tmp_path / "bank", "me/bank", *given, "--dry-run")
    with pytest.raises(FileNotFoundError, match="no generator is called 'trap_decoder:make'"):
        load_generator("trap_decoder:make")
    assert "trap_decoder" not in sys.modules


def test_a_folder_whose_name_has_a_colon_is_a_folder(decoder):
    if sys.platform == "win32":
        pytest.skip("a name cannot have a colon")
    load_generator("fashion-mnist").save_pretrained(decoder / "tiny_decoder:make")
    assert type(generator_named("tiny_decoder:make")).__name__ == "ConvGenerator"
    output_of("info", "tiny_decoder:make", "--no-self-test")


# ---- any data ----------------------------------------------------------------------------------------


def test_a_folder_of_images_alone_has_no_labels(tmp_path, decoder):
    arrays = draw(generator_named("tiny_decoder:make"))
    images = write_images(tmp_path / "images", arrays)
    data = ("--dataset", "imagefolder", "--data-root", images)
    output_of("invert", "tiny_decoder:make", *data, *QUICK, "--steps", 1, "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert (bank.labels.tolist(), bank.source_index.tolist()) == ([-1] * 12, [*range(12)])
    given = ("--generator", "tiny_decoder:make", *data)
    output_of("refine", tmp_path / "bank", *given, *QUICK, "--above", 0, "--steps", 100, "--out", tmp_path / "fine")
    fine = LatentBank.from_pretrained(tmp_path / "fine")
    decoded = to_uint8(generator_named("tiny_decoder:make").decode(fine[:][0]))[:, 0]
    assert (decoded.int() - torch.from_numpy(arrays).int()).abs().max() <= 1  # each row is its own image's
    output_of("report", tmp_path / "fine", *given, "--out", tmp_path / "report", "--columns", 2)
    output = error_of("render", "tiny_decoder:make", tmp_path / "fine", tmp_path / "pool", "--n", 2)
    assert "none of the bank's 12 rows has a label" in output


def test_open_data_takes_names_and_folders(tmp_path, data_root, monkeypatch):
    assert [len(open_data("fashion-mnist", data_root, test=test)) for test in (False, True)] == [40, 20]
    monkeypatch.chdir(data_root.parent)
    assert len(open_data("fashion-mnist")) == 40  # under ./data
    flat = write_images(tmp_path / "flat", torch.zeros(2, 4, 4).byte().numpy())
    assert isinstance(open_data(str(flat)), ImageFiles)
    with pytest.raises(ValueError, match="for a folder of images pass the folder itself"):
        open_data(str(flat), test=True)
    with pytest.raises(FileNotFoundError, match=r"'svhn': expected mnist, fashion-mnist, cifar10, or a folder .*svhn$"):
        open_data("svhn", data_root)


def test_cifar10_may_lie_there_as_jpegs(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py, .*, or .*cifar10-jpeg/test, a folder of images"):
        open_data("cifar10", tmp_path, test=True)
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "cifar10-jpeg" / part / name, torch.zeros(count, 4, 4).byte().numpy())
    for test, length in ((False, 6), (True, 4)):
        dataset = open_data("cifar10", tmp_path, test=test)
        assert (type(dataset), len(dataset), dataset.classes) == (ImageFolder, length, ["cat", "dog"])
    (tmp_path / "cifar-10-batches-py").mkdir()  # torchvision's own comes first, also where it is damaged
    monkeypatch.setattr(shared, "torchvision_dataset", lambda name, root, *, train: (name, root, train))
    assert open_data("cifar10", tmp_path, test=True) == ("cifar10", tmp_path, False)


@pytest.fixture
def photos(tmp_path):
    """Four images and the CSV file that names them."""
    write_images(tmp_path / "photos", torch.arange(4 * 64).view(4, 8, 8).byte().numpy())
    return tmp_path / "list.csv"


@pytest.mark.parametrize(
    ("labels", "targets", "classes"),
    [
        (["2", "0", "", "2"], [2, 0, -1, 2], None),
        (["dog", "cat", "dog", ""], [1, 0, 1, -1], ["cat", "dog"]),
        (["10", "9", "b", "9"], [0, 1, 2, 1], ["10", "9", "b"]),  # names, some of which are numbers
        (["", "", "", ""], None, None),
    ],
)
@pytest.mark.parametrize("heading", ["", "Path, label\n"])
def test_a_csv_names_images_and_labels(photos, labels, targets, classes, heading):
    order = [3, 1, 0, 2]
    lines = [f"photos/{index:02d}.png,{label}" for index, label in zip(order, labels, strict=True)]
    photos.write_text(heading + "\n".join(lines) + "\n\n")
    dataset = open_data(str(photos))
    assert (len(dataset), dataset.targets, dataset.classes) == (4, targets, classes)
    for row, index in enumerate(order):
        image, label = dataset[row]
        assert (image.getpixel((0, 0)), label) == (64 * index, -1 if targets is None else targets[row])


@pytest.mark.parametrize(
    ("keys", "targets"),
    [
        ({}, [-1, 0]),  # the usual two, among others
        ({"image_key": "File", "label_key": "kind"}, [1, 0]),
        ({"image_key": "file", "label_key": "none"}, None),
        ({"label_key": "kind"}, [1, 0]),
    ],
)
def test_columns_of_a_csv_go_by_their_heading(photos, keys, targets):
    lines = ["kind,path,size,label,file", "dog,photos/03.png,9,,photos/01.png", "cat,photos/02.png,8,0,photos/00.png"]
    photos.write_text("\n".join(lines))
    dataset = open_data(str(photos), **keys)
    named = [1, 0] if "image_key" in keys else [3, 2]
    assert [dataset[row][0].getpixel((0, 0)) for row in range(2)] == [64 * index for index in named]
    assert dataset.targets == targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv has no lines: expected one path,label for each image"),
        ("path,label\n", "list.csv has no lines"),
        (
            "photos/00.png,1\nphotos/01.png\n",
            "line 2: expected path,label with a class index or name, got photos/01.png",
        ),
        ("photos/00.png,1,2\n", "line 1: expected path,label"),
        ("photos/00.png,-1\n", "line 1: expected path,label"),
        ("photos/00.png,1\nphotos/07.png,1\n", "line 2: there is no image "),
    ],
)
def test_a_csv_that_is_wrong(photos, text, message):
    photos.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_data(str(photos))


def test_columns_that_are_not_there(photos, data_root):
    photos.write_text("path,kind\nphotos/00.png,1\nphotos/01.png,1,2\n")
    with pytest.raises(ValueError, match="needs a heading with path and sort: its first line is path,kind"):
        open_data(str(photos), label_key="sort")
    with pytest.raises(ValueError, match="line 3: expected path,kind with a class"):
        open_data(str(photos), label_key="kind")
    for text in (str(photos.parent / "photos"), "fashion-mnist"):
        with pytest.raises(ValueError, match=f"--label-key goes with hf:NAME and CSV files, .*: got {text}"):
            open_data(text, data_root, label_key="kind")


def test_invert_takes_a_csv(tmp_path, decoder):
    write_images(tmp_path / "photos", draw(generator_named("tiny_decoder:make"), 4))
    (tmp_path / "list.csv").write_text("".join(f"photos/{index:02d}.png,{'ab'[index % 2]}\n" for index in range(4)))
    arguments = ("invert", "tiny_decoder:make", "--dataset", tmp_path / "list.csv", *QUICK, "--steps", 1)
    output_of(*arguments, "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert (bank.labels.tolist(), bank.metadata["classes"]) == ([0, 1, 0, 1], ["a", "b"])
    assert "--download goes with data sets by name" in error_of(*arguments, "--out", tmp_path / "new", "--download")
    output = error_of("invert", "tiny_decoder:make", "--dataset", "imagefolder", "--out", tmp_path / "new")
    assert "--dataset imagefolder needs --data-root, the folder of images" in output


class FakeDatasets(ModuleType):
    """The library ``datasets``, as far as it is called, with two splits of one data set in its cache."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.config = SimpleNamespace(HF_HUB_OFFLINE=False)

    def load_dataset(self, name, split):
        if name == "someone/far" and self.config.HF_HUB_OFFLINE:
            raise ConnectionError(f"Couldn't reach '{name}'")
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'test'].")
        return name, split, self.config.HF_HUB_OFFLINE


def test_data_of_the_hub_come_from_the_cache_unless_asked_for(monkeypatch):
    datasets = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert open_data("hf:someone/near") == ("someone/near", "train", True)
    assert open_data("hf:someone/near", test=True) == ("someone/near", "test", True)
    assert open_data("hf:someone/near@test") == ("someone/near", "test", True)
    assert open_data("hf:someone/far@test", download=True) == ("someone/far", "test", False)
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(
        FileNotFoundError, match=r"someone/far is not in the cache of datasets: .*; pass --download to fet"
    ):
        open_data("hf:someone/far")
    assert not datasets.config.HF_HUB_OFFLINE
    for text, message in (
        ("hf:", "such as hf:cifar10@test: the name is missing"),
        ("hf:someone/near@train", "leave out --test beside @train"),
    ):
        with pytest.raises(ValueError, match=message):
            open_data(text, test=True)
    with pytest.raises(ValueError, match="Unknown split"):
        open_data("hf:someone/near@valid")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the library datasets: pip install \"latent-mixup\[datasets\]\""):
        open_data("hf:someone/near")


@pytest.mark.filterwarnings("ignore")  # of the library itself
def test_a_data_set_that_the_library_saved(tmp_path, decoder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    arrays = draw(generator_named("tiny_decoder:make"), 4)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(array) for array in arrays], "label": [1, 0, 0, 1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])}).save_to_disk(tmp_path / "two")
    assert [len(open_data(f"hf:{tmp_path / 'two'}", test=test)) for test in (False, True)] == [4, 2]
    with pytest.raises(ValueError, match="has no split 'valid': choose from train, test"):
        open_data(f"hf:{tmp_path / 'two'}@valid")
    with pytest.raises(ValueError, match="holds one data set without splits"):
        open_data(f"hf:{tmp_path / 'one'}", test=True)
    arguments = ("invert", "tiny_decoder:make", "--dataset", f"hf:{tmp_path / 'one'}", *QUICK, "--steps", 1)
    output_of(*arguments, "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert (bank.labels.tolist(), bank.metadata["classes"]) == ([1, 0, 0, 1], ["cat", "dog"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="nobody/nothing is not in the cache of datasets"):
        open_data("hf:nobody/nothing")


@pytest.mark.filterwarnings("ignore")  # of the library itself
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_columns_of_any_name(tmp_path, decoder, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"photo": datasets.Image(), "note": datasets.Value("string"), "kind": names})
    pictures = [Image.fromarray(array) for array in draw(generator_named("tiny_decoder:make"), 4)]
    rows = {"photo": pictures, "note": ["a"] * 4, "kind": [1, 0, 0, 1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    if kind == "saved":
        whole.save_to_disk(tmp_path / "data")
    else:
        whole.to_parquet(tmp_path / "data" / "train.parquet")
    data = ("--dataset", f"hf:{tmp_path / 'data'}", "--image-key", "photo")
    arguments = ("invert", "tiny_decoder:make", *data, *QUICK, "--steps", 1)
    output_of(*arguments, "--label-key", "kind", "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert (bank.labels.tolist(), bank.metadata["classes"]) == ([1, 0, 0, 1], ["cat", "dog"])
    found = bank.rows_of_data(whole, generator_named("tiny_decoder:make"))  # the columns are in its metadata
    assert found.tolist() == [0, 1, 2, 3]

    given = ("refine", tmp_path / "bank", "--generator", "tiny_decoder:make", *data, *QUICK, "--steps", 1)
    output_of(*given, "--out", tmp_path / "fine")
    message = "--label-key note: the bank was made with 'kind'; leave --label-key out"
    assert message in error_of(*given, "--label-key", "note", "--out", tmp_path / "other")

    output_of(*arguments, "--label-key", "none", "--out", tmp_path / "bare")
    assert LatentBank.from_pretrained(tmp_path / "bare").labels.tolist() == [-1] * 4
    assert "no label among ['photo', 'note', 'kind']" in error_of(*arguments, "--out", tmp_path / "other")
    output = error_of(*arguments, "--label-key", "sort", "--out", tmp_path / "other")
    assert "has no such column, choose from photo, note, kind" in output
    assert not (tmp_path / "other").exists()


def test_torchvision_downloads_when_it_is_asked_to(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda root, **how: asked.append(how))
    open_data("mnist", tmp_path)
    open_data("mnist", tmp_path, test=True, download=True)
    assert asked == [{"train": True, "download": False}, {"train": False, "download": True}]
