"""What is said of a generator: facts counted by hand, and the command for real."""

from __future__ import annotations

import json
import math
from pathlib import Path

import foreign
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from latent_mixup import load_generator
from latent_mixup.cli import generators as cli_generators
from latent_mixup.cli import main
from latent_mixup.generators import DCGAN, CompactGenerator, wrap
from latent_mixup.pictures import CAPTION_WIDTH, sample_sheet
from latent_mixup.quality import code_check
from latent_mixup.quality.checks import CheckResult, Errors
from latent_mixup.quality.info import (
    BUDGET,
    STEP,
    effort,
    generator_info,
    info_record,
    info_text,
    multiply_adds,
)
from latent_mixup.quality.self_test import DRAWS, SelfTest


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["info", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def broken(tmp_path) -> Path:
    """A StyleGAN2 whose mapping network lost the scale of its weights, as a folder."""
    return foreign.tiny(img_resolution=8, c_dim=3).save_pretrained(tmp_path / "broken")


# ---- facts -----------------------------------------------------------------------------------------


def test_multiply_adds_are_those_counted_by_hand():
    layer = nn.Linear(5, 7)
    assert multiply_adds(layer, torch.zeros(1, 5)) == 5 * 7
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    assert multiply_adds(conv, torch.zeros(1, 3, 8, 8)) == 3 * 4 * 9 * 4 * 4


def test_multiply_adds_of_a_stylegan2_are_its_convolutions_and_little_else():
    generator = foreign.tiny(img_resolution=32, channel_base=512, channel_max=64)
    by_hand = 64 * 64 * 9 * 4 * 4  # b4.conv1
    for resolution, fan_in, fan_out in ((8, 64, 64), (16, 64, 32), (32, 32, 16)):
        by_hand += fan_in * fan_out * 9 * (resolution // 2) ** 2  # conv0: a transposed convolution
        by_hand += fan_out * fan_out * 9 * resolution**2  # conv1
    counted = multiply_adds(generator.decode, generator.sample_latents(1))
    assert by_hand < counted < 1.25 * by_hand


def test_facts_of_the_bundled_generator():
    generator = load_generator("fashion-mnist")
    info = generator_info(generator)
    decoder = 128 * 48 * 49 + 2 * 48 * 48 * 9 * 49 + (48 * 24 + 2 * 24 * 24 + 24 * 32) * 9 * 196 + 8 * 9 * 784
    encoder = (4 * 24 + 2 * 24 * 24) * 9 * 196 + (24 * 48 + 2 * 48 * 48) * 9 * 49 + 48 * 49 * 128
    assert (info["decode_multiply_adds"], info["encode_multiply_adds"]) == (decoder, encoder)
    assert (info["name"], info["architecture"], info["img_channels"], info["img_resolution"]) == (
        "fashion-mnist",
        "ConvGenerator",
        1,
        28,
    )
    assert (info["latent_space"], info["latent_shape"], info["preferred_path"]) == ("z", (128,), "slerp")
    assert info["has_encoder"]
    assert not info["has_features"]
    assert info["num_classes"] == 0
    assert sum(info["parameters"].values()) == sum(parameter.numel() for parameter in generator.parameters())
    assert set(info["parameters"]) == {"decoder", "encoder", "flow"}
    assert info["digest"] == generator.digest()
    assert info["metadata"]["dataset"]["length"] == 60_000
    assert (info["file_bytes"], info["commit"]) == (None, None)


def test_facts_of_a_folder_and_of_the_hub(tmp_path):
    folder = tmp_path / "snapshots" / ("0123456789" * 4)
    CompactGenerator(4, img_resolution=4, decoder_widths=(8,), encoder_widths=(8,)).save_pretrained(folder)
    info = generator_info(load_generator(folder), folder)
    assert info["file_bytes"] == (folder / "model.safetensors").stat().st_size
    assert info["commit"] == "0123456789" * 4
    assert f"  commit          {info['commit']}" in info_text(info).splitlines()


def test_facts_of_a_network_with_classes_and_of_somebody_elses():
    info = generator_info(foreign.tiny(c_dim=3))
    assert (info["num_classes"], info["has_encoder"], info["encode_multiply_adds"]) == (3, False, None)
    assert (info["latent_space"], info["latent_shape"], info["preferred_path"]) == ("w+", (6, 8), "lerp")
    decoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    info = generator_info(wrap(decoder, latent_shape=(8,), encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 8))))
    assert (info["name"], info["architecture"]) == ("WrappedGenerator", "WrappedGenerator")
    assert (info["decode_multiply_adds"], info["encode_multiply_adds"]) == (128, 128)
    assert info["parameters"] == {"module": 144, "encoder": 136}
    info = generator_info(wrap(lambda z: z.view(-1, 1, 4, 4), latent_shape=(16,)))
    assert (info["decode_multiply_adds"], info["parameters"]) == (0, {})
    assert "none that are trained" in info_text(info)


@pytest.mark.parametrize("multiply_adds", [1, 11_000_000, 10**9, 4_070_000_000, 10**10, 80 * 10**9])
def test_effort_stays_in_the_budget_down_to_the_least_that_tells(multiply_adds):
    chosen = effort(multiply_adds)
    cost = (DRAWS + STEP * chosen["images"] * chosen["steps"]) * multiply_adds
    assert cost <= BUDGET or chosen == {"images": 2, "steps": 60}
    assert 2 <= chosen["images"] <= 4
    assert 60 <= chosen["steps"] <= 100


def test_small_networks_get_the_whole_effort():
    assert effort(11_000_000) == effort(0) == {"images": 4, "steps": 100}


def test_text_shows_no_control_characters_of_a_file():
    generator = foreign.tiny(img_resolution=8)
    generator.metadata = {
        "name": "a\x1b[31mred",
        "licence": "line\nline",
        "source": {"file\x07": "x\u202ey"},
        "recipe": 3,
    }
    text = info_text(generator_info(generator))
    assert text.splitlines()[0] == "a [31mred"
    assert "  licence         line line" in text
    assert "  source          file  x y" in text
    assert "  recipe          3" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_sheet_has_two_rows(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_bytes(sample_sheet(foreign.tiny()))
    with Image.open(path) as picture:
        assert picture.size == (CAPTION_WIDTH + 8 * 34 + 2, 2 * 34 + 2)
    assert sample_sheet(foreign.tiny()) == path.read_bytes() != sample_sheet(foreign.tiny(), seed=1)


def test_sheet_of_what_is_no_picture():
    generator = wrap(lambda z: z.view(-1, 2, 2, 2), latent_shape=(8,))
    with pytest.raises(ValueError, match="a sheet needs grey or RGB images: this generator has 2 channels"):
        sample_sheet(generator)


def test_json_has_null_for_what_is_not_finite():
    result = SelfTest((CheckResult("a", False, "bad", "mend"),), Errors(1.0, math.inf, math.nan), 4, 100, 0, 1.5)
    record = json.loads(json.dumps(info_record(generator_info(foreign.tiny()), result), allow_nan=False))["self_test"]
    assert record["mse"] == {"guess": 1.0, "start": None, "found": None, "ratio": None}
    assert (record["passed"], record["verdict"], record["steps"]) == (False, "a: mend", 100)
    assert record["checks"] == [{"name": "a", "passed": False, "found": "bad", "hint": "mend"}]


# ---- the command -----------------------------------------------------------------------------------


def test_info_of_the_bundled_generator(tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    code, output = call("fashion-mnist", "--sheet", sheet, "--images", "2", "--steps", "50")
    assert code == 0, output
    assert load_generator("fashion-mnist").digest() in output
    assert "2.4 MB on disk" in output
    assert "self test: 2 images, 50 steps, seed 0" in output
    assert "\npassed\n" in output
    assert output.endswith(f"{sheet} written\n")
    assert sheet.read_bytes() == sample_sheet(load_generator("fashion-mnist"))


def test_broken_generator_exits_with_1_and_says_why(broken):
    code, output = call(broken)
    assert code == 1
    assert "  classes         3" in output
    assert "FAILED: mean code: w_avg is not the mean of w" in output


def test_json_is_nothing_but_json(broken):
    code, output = call(broken, "--json", "--seed", "5")
    record = json.loads(output)
    assert code == 1
    assert record["generator"]["latent_shape"] == [4, 8]
    assert record["generator"]["file_bytes"] == (broken / "model.safetensors").stat().st_size
    assert (record["self_test"]["passed"], record["self_test"]["seed"]) == (False, 5)
    code, output = call(broken, "--json", "--no-self-test")
    assert (code, json.loads(output)["self_test"]) == (0, None)


def test_without_the_self_test(broken):
    code, output = call(broken, "--no-self-test")
    assert code == 0
    assert "self test" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("nothing",),
            "no generator is called 'nothing': expected a folder, a bundled name (cifar10, fashion-mnist",
        ),
        (("fashion-mnist", "--no-self-test", "--steps", "3"), "--images and --steps belong to the self test"),
    ],
)
def test_what_is_wrong_in_one_sentence(arguments, message):
    code, output = call(*arguments)
    assert code == 1
    assert message in output
    assert len(output.strip().splitlines()) == 1


# ---- the check of codes ----------------------------------------------------------------------------


@pytest.fixture
def quick_judge(monkeypatch):
    monkeypatch.setattr(code_check, "JUDGE_STEPS", 20)
    monkeypatch.setattr(code_check, "LEAST_JUDGE_STEPS", 20)


def test_probe_checks_codes_of_a_sample_and_prints_them(bundled_root, quick_judge):
    options = ("fashion-mnist", "--no-self-test", "--probe", "fashion-mnist", "--data-root", bundled_root)
    code, output = call(*options, "--probe-images", 120)
    assert code == 0
    assert "codes of 120 images; the judge learnt the classes of 120 others" in output
    assert output.splitlines()[-1].startswith(("go", "no-go"))


def test_probe_of_a_folder_and_a_generator_without_an_encoder_as_json(tmp_path, quick_judge, monkeypatch):
    monkeypatch.setattr(cli_generators, "PROBE_STEPS", 1)
    DCGAN(4, (3, 2, 2, 2), 1, 12).save_pretrained(tmp_path / "gan")
    draw = torch.Generator().manual_seed(0)
    for number in range(240):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (12, 12), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    result = CliRunner().invoke(
        main, ["info", str(tmp_path / "gan"), "--no-self-test", "--json", "--probe", str(tmp_path / "data")]
    )
    assert result.exit_code == 0, result.output
    codes = json.loads(result.stdout)["codes"]
    assert codes["rows"] == {"examined": 120, "others": 120, "classes": 2}
    assert set(codes["verdict"]) == {"go", "against", "text"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--probe", "mnist"), "data has no MNIST as torchvision lays it out"),
        (("--data-root", "."), "--data-root belongs to --probe"),
        (("--probe", "no/such/folder"), "no/such/folder"),
    ],
)
def test_a_probe_without_data(options, message):
    code, output = call("fashion-mnist", "--no-self-test", *options)
    assert code == 1
    assert message in output
