"""``refine`` and ``filter`` on the command line."""

from __future__ import annotations

import pytest
import torch
from commands import error_of, output_of

from latent_mixup import LatentBank

DATA = ("--generator", "fashion-mnist", "--dataset", "fashion-mnist", "--data-root")
QUICK = ("--steps", 3, "--lr", 0.1, "--loss", "pixels", "--batch-size", 8)


@pytest.fixture
def bank(tmp_path, data_root):
    """Codes of 40 images as the encoder gives them."""
    arguments = ("--dataset", "fashion-mnist", "--data-root", data_root, "--steps", 0, "--out", tmp_path / "bank")
    output_of("invert", "fashion-mnist", *arguments)
    return tmp_path / "bank"


def test_refine_writes_a_better_bank_and_says_how_much(tmp_path, data_root, bank):
    worst = LatentBank.from_pretrained(bank).mse.sort().values[[-10, -20]].tolist()
    arguments = ("refine", bank, *DATA, data_root, "--above", worst[0], "--above", worst[1], *QUICK)
    output = output_of(*arguments, "--out", tmp_path / "new")
    before, after = (LatentBank.from_pretrained(folder, verify=True) for folder in (bank, tmp_path / "new"))
    first, second = after.metadata["refined"]
    assert (first["tried"], first["steps"], second["steps"]) == (10, 3, 3)
    assert first["command"][:2] == ["latent-mixup", "refine"]
    assert "--out" not in first["command"]
    assert (after.mse <= before.mse).all()
    assert after.mse.mean() < before.mse.mean()
    lines = output.splitlines()
    assert lines[0].startswith("mse of all rows")
    assert lines[2].startswith(f">= {worst[0]:g}, 3 steps: {first['improved']} of 10 better")
    assert lines[3].startswith(f">= {worst[1]:g}, 3 steps: {second['improved']} of {second['tried']} better")
    assert lines[-1].startswith(f"{tmp_path / 'new'}: 40 codes, mse mean {after.mse.mean():.4f}")
    for shard in ("1/2", "0/2"):
        assert f"this is shard {shard} alone" in output_of(*arguments, "--out", tmp_path / "shared", "--shard", shard)
    assert LatentBank.from_pretrained(tmp_path / "shared").digest() == after.digest()


def test_refine_has_the_options_of_the_optimiser(tmp_path, data_root, bank):
    arguments = ("refine", bank, *DATA, data_root, *QUICK, "--above", 0.01, "--out", tmp_path / "new")
    output_of(*arguments, "--optimizer", "adam", "--seed", 3, "--draws", 16, "--restarts", 2)
    (stage,) = LatentBank.from_pretrained(tmp_path / "new").metadata["refined"]
    assert {"optimizer": "adam", "seed": 3, "restarts": 2, "lr": 0.1, "batch_size": 8}.items() <= stage.items()


def test_refine_with_nothing_to_do(tmp_path, data_root, bank):
    output = output_of("refine", bank, *DATA, data_root, "--above", 3, "--steps", 5, "--out", tmp_path / "new")
    assert "note: no row has mse >= 3, the largest is 0." in output
    assert ">= 3, 5 steps: 0 of 0 better" in output
    assert LatentBank.from_pretrained(tmp_path / "new").digest() == LatentBank.from_pretrained(bank).digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test",), "the data set has 20: pass the data set the bank was made from"),
        (("--above", 0.1, "--steps", 2, "--steps", 3), "one for each of 1 thresholds: got (2, 3)"),
        (("--out", "bank"), "is the folder of the bank itself, which stays as it is"),
    ],
)
def test_refine_says_what_is_wrong(tmp_path, data_root, bank, options, message):
    options = [tmp_path / option if option == "bank" else option for option in options]
    output = error_of("refine", bank, *DATA, data_root, "--out", tmp_path / "new", *options)
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_filter_writes_the_best_codes_and_says_what_each_class_has_left(tmp_path, bank):
    whole = LatentBank.from_pretrained(bank)
    output = output_of("filter", bank, "--keep", 0.5, "--per-class", "--out", tmp_path / "half")
    half = LatentBank.from_pretrained(tmp_path / "half", verify=True)
    assert half.digest() == whole.filter(keep=0.5, per_class=True).digest()
    assert half.dtype == torch.float32
    counts = whole.class_counts[7].item(), half.class_counts[7].item()
    share = f"{100 * counts[1] / counts[0]:.1f} %"
    assert [line.split(maxsplit=3) for line in output.splitlines()].count(["Sneaker", *map(str, counts), share]) == 1
    output = output_of("filter", bank, "--max-mse", whole.mse.min().item(), "--out", tmp_path / "one")
    assert "note: no row is left of class" in output
    assert ": 1 codes, mse mean" in output
    for out, options, message in (
        ("half", ("--keep", 0.5), "half holds a bank: choose another --out"),
        ("bank", ("--keep", 0.5), "bank holds a bank: choose another --out"),
        ("none", (), "filter needs max_mse or keep: got neither"),
        ("none", ("--max-mse", 0.0), "empty bank: no row has mse <= 0.0"),
    ):
        assert message in error_of("filter", bank, *options, "--out", tmp_path / out)
    assert not (tmp_path / "none").exists()
