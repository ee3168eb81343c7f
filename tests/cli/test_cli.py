"""The command line: each command for real, errors in one sentence with a non-zero exit."""

from __future__ import annotations

import hashlib
import json

import foreign
import pytest
from commands import call
from PIL import Image

from latent_mixup import load_generator
from latent_mixup.cli import main
from latent_mixup.demo import demo
from latent_mixup.demo.comparison import METHODS, Budget, Codes, Data
from latent_mixup.pictures import HEADING_HEIGHT


@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)])
def test_help(command):
    code, output = call(*command, "--help")
    assert code == 0
    assert "Usage" in output


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
    code, output = call(
        "preview", "fashion-mnist", "--pairs", "sneaker,shirt", "--pairs", "bag,ankle boot", "--rows", "2", "--out", out
    )
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
    code, output = call("preview", "fashion-mnist", "--pairs", pairs, "--out", tmp_path / "sheet.png")
    assert code == 1
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_data_set_that_is_not_there(tmp_path):
    code, output = call(
        "invert", "fashion-mnist", "--dataset", "mnist", "--data-root", tmp_path, "--out", tmp_path / "bank"
    )
    assert code == 1
    assert "has no MNIST as torchvision lays it out" in output
    assert not (tmp_path / "bank").exists()


def test_generator_that_is_not_there(tmp_path, data_root):
    code, output = call(
        "invert", "fashion", "--dataset", "fashion-mnist", "--data-root", data_root, "--out", tmp_path / "bank"
    )
    assert code == 1
    assert "no generator is called 'fashion': expected a folder, a bundled name (fashion-mnist, mnist)" in output


def test_train_generator_runs_and_says_what_it_made(tmp_path, data_root, monkeypatch):
    from latent_mixup import training
    from latent_mixup.training.compact import CompactRecipe

    monkeypatch.setattr(training, "CompactRecipe", lambda **given: CompactRecipe(feature_steps=1, **given))
    out = tmp_path / "generator"
    code, output = call(
        "train-generator", "--dataset", "fashion-mnist", "--data-root", data_root, "--out", out, "--steps", 2
    )
    assert code == 0, output
    assert load_generator(out).digest()[:12] in output
    assert (out / "sheet-000002.png").is_file()


STYLEGAN2 = ("train-generator", "--arch", "stylegan2", "--dataset", "fashion-mnist")
TINY = ("--steps", 2, "--z-dim", 4, "--channel-base", 64, "--channel-max", 2, "--batch-size", 4, "--seed", 3)


@pytest.fixture
def short_recipe(monkeypatch):
    """The classifier that measures progress is trained for one step."""
    from latent_mixup import training
    from latent_mixup.training.stylegan2.train import StyleGAN2Recipe

    monkeypatch.setattr(training, "StyleGAN2Recipe", lambda **given: StyleGAN2Recipe(feature_steps=1, **given))


def test_train_generator_trains_a_stylegan2_with_classes_and_augmentation(tmp_path, data_root, short_recipe):
    out = tmp_path / "generator"
    flags = ("--conditional", "--ada", "--device", "cpu")
    code, output = call(*STYLEGAN2, "--data-root", data_root, "--out", out, *TINY, *flags)
    assert code == 0, output
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
    from latent_mixup.training.stylegan2.train import StyleGAN2Training

    out = tmp_path / "generator"
    arguments = (*STYLEGAN2, "--data-root", data_root, "--out", out, *TINY)
    assert call(*arguments)[0] == 0
    generator = load_generator(out)
    assert (generator.c_dim, generator.metadata["recipe"]["ada_target"]) == (0, None)
    monkeypatch.setattr(StyleGAN2Training, "advance", None)  # what is done is not done again
    code, output = call(*arguments)
    assert code == 0, output
    assert generator.digest()[:12] in output
    for flags, wrong in ((("--ada",), "recipe"), (("--conditional",), "network"), (("--steps", 3), "recipe")):
        code, output = call(*arguments, *flags)
        assert code == 1
        assert f"the checkpoint in {out} was made with another {wrong} (" in output
    assert load_generator(out).digest() == generator.digest()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ada",), "compact has no --ada: leave out, or pass --arch stylegan2"),
        (("--conditional",), "compact has no --conditional: leave out, or pass --arch stylegan2"),
        (("--arch", "compact", "--ada"), "compact has no --ada: leave out"),
        (
            ("--channel-max", 64, "--channel-base", 512),
            "compact has no --channel-base and no --channel-max: leave out, or pass --arch stylegan2",
        ),
    ],
)
def test_options_of_another_architecture_are_refused(tmp_path, data_root, flags, message):
    code, output = call(
        "train-generator", "--dataset", "fashion-mnist", "--data-root", data_root, "--out", tmp_path / "out", *flags
    )
    assert code == 1
    assert message in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["compact", "dcgan", "vae"])
def test_the_device_reaches_the_training(tmp_path, data_root, monkeypatch, arch):
    given = {}

    def train(*arguments, **options):
        given.update(options)
        raise ValueError("that is enough")

    monkeypatch.setattr(f"latent_mixup.training.train_{arch}", train)
    where = ("--dataset", "fashion-mnist", "--data-root", data_root, "--out", tmp_path / "out")
    code, output = call("train-generator", *where, "--arch", arch, "--device", "cuda:1")
    assert code == 1
    assert "that is enough" in output
    assert given["device"] == "cuda:1"


def test_convert_reads_a_network_and_refuses_what_it_is_not(tmp_path):
    network = tmp_path / "network.pkl"
    network.write_bytes(foreign.release_pickle(foreign.tiny()))
    code, output = call("convert", network, tmp_path / "out")
    assert code == 0, output
    converted = load_generator(tmp_path / "out")
    assert converted.digest() == foreign.tiny().digest()
    assert converted.metadata["command"] == ["latent-mixup", "convert", "network.pkl", "out"]
    assert foreign.tiny().digest()[:12] in output
    assert hashlib.sha256(network.read_bytes()).hexdigest() in (tmp_path / "out" / "README.md").read_text()
    network.write_bytes(network.read_bytes()[:-100])
    code, output = call("convert", network, tmp_path / "other")
    assert code == 1
    assert "network.pkl" in output
    assert not (tmp_path / "other").exists()
