"""The command line: each command for real, errors in one sentence with a non-zero exit."""

from __future__ import annotations

import hashlib
import json
from functools import partial

import foreign
import pytest
from commands import call, error_of, output_of
from PIL import Image

from latent_mixup import load_generator, training
from latent_mixup.cli import main
from latent_mixup.demo import demo
from latent_mixup.demo.comparison import METHODS, Budget, Codes, Data
from latent_mixup.pictures import HEADING_HEIGHT
from latent_mixup.training.stylegan2.train import StyleGAN2Training


@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)])
def test_help(command):
    assert "Usage" in output_of(*command, "--help")


def test_demo_trains_all_methods_and_writes_table_and_picture(tmp_path, monkeypatch):
    data, codes, rows = demo.bundled_data(), demo.bundled_codes(), slice(0, 1000)
    small = Data(data.train_images[rows], data.train_labels[rows], data.test_images[:100], data.test_labels[:100])
    monkeypatch.setattr(demo, "bundled_data", lambda: small)
    monkeypatch.setattr(demo, "bundled_codes", lambda: Codes(codes.generator, codes.bank.subset(rows)))
    budget = Budget(epochs=1, batch_size=100, deepfool_images=5)
    record = demo.run_demo(tmp_path / "out", budget=budget, progress=False)
    assert [row["method"] for row in record["results"]] == list(METHODS)
    assert {row["steps"] for row in record["results"]} == {10}
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == json.loads(json.dumps(record))
    table = demo.demo_table(record)
    for row in record["results"]:
        assert f"{row['accuracy']:.4f}" in table
    with Image.open(tmp_path / "out" / "mixes.png") as picture:
        assert picture.width > 16 * 56
        assert picture.height == 8 * (56 + 2) + 2


def test_preview_draws_the_classes_asked_for(tmp_path):
    out = tmp_path / "sheet.png"
    pairs = ("--pairs", "sneaker,shirt", "--pairs", "bag,ankle boot")
    code, output = call("preview", "fashion-mnist", *pairs, "--rows", "2", "--out", out)
    assert (code, output.strip()) == (0, f"{out} written")
    with Image.open(out) as picture:
        assert picture.height == HEADING_HEIGHT + 4 * (3 * 28 + 2) + 2
    before = out.read_bytes()
    code, output = call("preview", "fashion-mnist", "--pairs", "5,6", "--out", out)
    assert (code, out.read_bytes()) == (1, before)
    assert f"{out} exists: choose another --out, or replace it with --overwrite" in output
    code, output = call("preview", "fashion-mnist", "--pairs", "5,6", "--out", out, "--overwrite")
    assert (code, out.read_bytes() == before) == (0, False)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("sneaker,hat", "no class of this bank is called 'hat': expected a name or a number, of T-shirt/top, Trouser"),
        ("a,b", "no class of this bank is called 'a': did you mean 'ankle boot'?"),
        ("sneaker,s", "no class of this bank is called 's': did you mean 'sandal' or 'shirt' or 'sneaker'?"),
        ("sneaker", "--pairs needs two classes with a comma between them: got 'sneaker'"),
        ("sneaker,shirt,bag", "--pairs needs two classes"),
        ("sneaker,10", "no class of this bank is called '10'"),
    ],
)
def test_preview_says_what_is_wrong_and_writes_nothing(tmp_path, pairs, message):
    output = error_of("preview", "fashion-mnist", "--pairs", pairs, "--out", tmp_path / "sheet.png")
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("generator", "dataset", "message"),
    [
        ("fashion-mnist", "mnist", "has no MNIST as torchvision lays it out"),
        (
            "fashion",
            "fashion-mnist",
            "no generator is called 'fashion': expected a folder, a bundled name (cifar10",
        ),
    ],
)
def test_what_is_not_there_is_named(tmp_path, data_root, generator, dataset, message):
    where = ("--dataset", dataset, "--data-root", data_root, "--out", tmp_path / "bank")
    assert message in error_of("invert", generator, *where)
    assert not (tmp_path / "bank").exists()


TRAIN = ("train-generator", "--dataset", "fashion-mnist", "--data-root")
TINY = ("--steps", 2, "--z-dim", 4, "--channel-base", 64, "--channel-max", 2, "--batch-size", 4, "--seed", 3)


@pytest.fixture
def short_recipe(monkeypatch):
    """The classifiers that measure features are trained for one step."""
    for recipe in (training.CompactRecipe, training.StyleGAN2Recipe):
        monkeypatch.setattr(training, recipe.__name__, partial(recipe, feature_steps=1))


def test_train_generator_runs_and_says_what_it_made(tmp_path, data_root, short_recipe):
    out = tmp_path / "generator"
    output = output_of(*TRAIN, data_root, "--out", out, "--steps", 2)
    assert load_generator(out).digest()[:12] in output
    assert (out / "sheet-000002.png").is_file()


def test_train_generator_trains_a_stylegan2_with_classes_and_augmentation(tmp_path, data_root, short_recipe):
    out = tmp_path / "generator"
    flags = ("--arch", "stylegan2", "--conditional", "--ada", "--device", "cpu")
    output = output_of(*TRAIN, data_root, "--out", out, *TINY, *flags)
    assert "images get a black border of 2 px: 28 px become 32" in output
    generator = load_generator(out)
    assert generator.digest()[:12] in output
    assert (generator.img_resolution, generator.img_channels, generator.c_dim) == (32, 1, 10)
    assert (generator.z_dim, generator.w_dim, generator.channel_base, generator.channel_max) == (4, 4, 64, 2)
    recipe = generator.metadata["recipe"]
    assert [recipe[name] for name in ("steps", "batch_size", "seed", "ada_target")] == [2, 4, 3, 0.6]
    assert (generator.metadata["name"], generator.metadata["border"]) == ("fashion-mnist", 2)
    assert (out / "sheet-000002.png").is_file()
    (row,) = json.loads((out / "log.json").read_text())
    assert row["step"] == 2
    assert row["feature_distance"] > 0


def test_train_generator_goes_on_with_the_same_settings_only(tmp_path, data_root, short_recipe, monkeypatch):
    out = tmp_path / "generator"
    arguments = (*TRAIN, data_root, "--arch", "stylegan2", "--out", out, *TINY)
    output_of(*arguments)
    generator = load_generator(out)
    assert (generator.c_dim, generator.metadata["recipe"]["ada_target"]) == (0, None)
    monkeypatch.setattr(StyleGAN2Training, "advance", None)  # what is done is not done again
    output = output_of(*arguments)
    assert generator.digest()[:12] in output
    for flags, wrong in ((("--ada",), "recipe"), (("--conditional",), "network"), (("--steps", 3), "recipe")):
        output = error_of(*arguments, *flags)
        assert f"the checkpoint in {out} was made with another {wrong} (" in output
    assert load_generator(out).digest() == generator.digest()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ada",), "compact has no --ada: leave out, or pass --arch stylegan2"),
        (("--conditional",), "compact has no --conditional: leave out, or pass --arch stylegan2"),
        (("--arch", "compact", "--ada"), "compact has no --ada: leave out"),
        (("--channel-max", 64, "--channel-base", 512), "no --channel-base and no --channel-max: leave out, or pass"),
    ],
)
def test_options_of_another_architecture_are_refused(tmp_path, data_root, flags, message):
    assert message in error_of(*TRAIN, data_root, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["compact", "dcgan", "vae"])
def test_the_device_reaches_the_training(tmp_path, data_root, monkeypatch, arch):
    given = {}

    def train(*arguments, **options):
        given.update(options)
        raise ValueError("that is enough")

    monkeypatch.setattr(f"latent_mixup.training.train_{arch}", train)
    output = error_of(*TRAIN, data_root, "--out", tmp_path / "out", "--arch", arch, "--device", "cuda:1")
    assert "that is enough" in output
    assert given["device"] == "cuda:1"


def test_convert_reads_a_network_and_refuses_what_it_is_not(tmp_path):
    network = tmp_path / "network.pkl"
    network.write_bytes(foreign.release_pickle(foreign.tiny()))
    output = output_of("convert", network, tmp_path / "out")
    converted = load_generator(tmp_path / "out")
    assert converted.digest() == foreign.tiny().digest()
    assert converted.metadata["command"] == ["latent-mixup", "convert", "network.pkl", "out"]
    assert foreign.tiny().digest()[:12] in output
    assert hashlib.sha256(network.read_bytes()).hexdigest() in (tmp_path / "out" / "README.md").read_text()
    network.write_bytes(network.read_bytes()[:-100])
    assert "network.pkl" in error_of("convert", network, tmp_path / "other")
    assert not (tmp_path / "other").exists()
