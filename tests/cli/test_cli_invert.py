"""``invert`` on the command line: its summary, its parts on several machines, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from re import escape

import numpy as np
import pytest
import torch
from commands import call, error_of, output_of
from PIL import Image

from latent_mixup import LatentBank, load_generator
from latent_mixup.bundled import BundledImages
from latent_mixup.cli import shared
from latent_mixup.cli.inversion import say_what_was_done
from latent_mixup.cli.shared import Part, part_of, torchvision_dataset
from latent_mixup.encoders import MLPEncoder
from latent_mixup.inversion.chunks import CodeMeter

QUICK = ("--steps", 2, "--draws", 16, "--batch-size", 4)  # 3 chunks of the 40 images


def command(root: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("invert", "fashion-mnist", "--dataset", "fashion-mnist", "--data-root", root, *QUICK, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("bank*")}


def test_invert_writes_a_bank_and_resumes(tmp_path, data_root):
    out = tmp_path / "bank"
    output = output_of(*command(data_root), "--out", out)
    first, second = output.splitlines()
    assert first.startswith("40 images in ")
    assert first.endswith(" images/s")
    bank = LatentBank.from_pretrained(out, verify=True)
    poor = 100 * (bank.mse >= 0.025).float().mean()
    assert second == (
        f"{out}: 40 codes, mse mean {bank.mse.mean():.4f}, median {bank.mse.median():.4f}, "
        f"95 % below {bank.mse.quantile(0.95):.4f}, {poor:.1f}% at 0.025 or above"
    )
    bank.check(load_generator("fashion-mnist"))
    assert bank.metadata["classes"][7] == "Sneaker"
    words = ["latent-mixup", "invert", "fashion-mnist", "--dataset", "fashion-mnist", *map(str, QUICK)]
    assert bank.metadata["command"] == words  # without folders and devices, which do not change the bank
    before = contents(out)
    assert call(*command(data_root), "--out", out) == (0, f"nothing was left to do\n{second}\n")
    output = error_of(*command(data_root), "--steps", 6, "--out", out)
    assert "other settings (inversion.steps: 2 there, 6 here)" in output
    assert contents(out) == before


def test_shards_give_the_same_bank_and_say_what_they_did(tmp_path, data_root):
    output_of(*command(data_root), "--out", tmp_path / "whole")
    said = []
    for shard in ("3/4", "1/4", "2/4", "0/4"):
        output = output_of(*command(data_root), "--out", tmp_path / "shared", "--shard", shard)
        said.append(output.splitlines())
    assert said[0] == ["shard 3/4 has nothing to do: there are 3 chunks"]
    assert said[1][0].startswith("shard 1/4: 16 images in ")
    assert said[1][1].startswith("shard 1/4: 16 codes, mse mean ")
    assert said[1][2] == "0 failed; the last shard writes the bank"
    assert said[2][1].startswith("shard 2/4: 8 codes")
    assert said[3][0].startswith("shard 0/4: 16 images in ")
    assert said[3][1].startswith(f"{tmp_path / 'shared'}: 40 codes")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_torch_distributed_run_shares_the_work_out(tmp_path, data_root):
    output_of(*command(data_root), "--out", tmp_path / "whole", "--threads", 1)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "latent_mixup"]
    arguments = map(str, command(data_root, "--out", tmp_path / "out", "--threads", 1))
    done = subprocess.run([*run, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "shard 0/2: 24 images in " in done.stdout  # two chunks of three
    assert "shard 1/2: 16 images in " in done.stdout
    assert f"{tmp_path / 'out'}: 40 codes" in done.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_rank_is_a_shard_on_its_own_device(monkeypatch):
    assert part_of(None, "cpu") == Part((0, 1), "cpu", True)
    assert part_of("2/3", "cuda:1") == Part((2, 3), "cuda:1", True)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert part_of(None, "cuda") == Part((0, 1), "cuda", True)  # somebody else's variables
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert part_of(None, "cuda") == Part((5, 8), "cuda:1", False)
    assert part_of(None, "xpu") == Part((5, 8), "xpu:1", False)
    assert part_of(None, "cpu") == Part((5, 8), "cpu", False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert part_of(None, "cpu") == Part((5, 8), "cpu", True)
    with pytest.raises(ValueError, match=r"torch.distributed.run shares the work out by itself: leave out --shard 0/2"):
        part_of("0/2", "cpu")


@pytest.mark.parametrize("shard", ["", "1", "1/", "/2", "2/2", "-1/2", "0/0", "a/b"])
def test_a_shard_that_is_none(tmp_path, shard):
    output = error_of(*command(tmp_path), "--out", tmp_path / "out", "--shard", shard)
    assert f"--shard needs i/n with i from 0 to n - 1, such as 0/4: got {shard!r}" in output


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGTERM, 143, "stopped by SIGTERM: "), (signal.SIGINT, 130, "stopped: ")]
)
def test_a_signal_ends_the_run_with_one_sentence(tmp_path, data_root, monkeypatch, number, code, says):
    out, images = tmp_path / "out", torchvision_dataset("fashion-mnist", data_root, train=True)

    class Stopping:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            if index == 20:
                signal.raise_signal(number)
            return images[index]

    with monkeypatch.context() as patch:
        patch.setattr(shared, "torchvision_dataset", lambda *_, train: Stopping())
        sentence = f"{says}1 of 3 chunks lie finished in {out}; run it again to go on\n"
        assert call(*command(data_root), "--out", out) == (code, sentence)
        patch.setattr(signal, "raise_signal", lambda *_: None)
        output_of(*command(data_root), "--out", out)
        output_of(*command(data_root), "--out", tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_an_encoder_of_ones_own(tmp_path, data_root):
    generator = load_generator("fashion-mnist")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = MLPEncoder(generator, widths=(8,))
    encoder.save_pretrained(tmp_path / "encoder")
    arguments = ("--steps", 0, "--encoder", tmp_path / "encoder", "--out", tmp_path / "bank")
    output_of(*command(data_root), *arguments)
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    images = torch.stack([BundledImages("fashion-mnist", train=False)[index][0] for index in range(40)])
    torch.testing.assert_close(bank[:][0], encoder(images))
    assert bank.metadata["inversion"]["start"].startswith("MLPEncoder (")
    bank.save_pretrained(tmp_path / "bank")
    where = ("--generator", "fashion-mnist", "--dataset", "fashion-mnist", "--data-root", data_root, "--columns", 2)
    out = tmp_path / "report"
    output_of("report", tmp_path / "bank", *where, "--encoder", tmp_path / "encoder", "--out", out)
    assert json.loads((out / "report.json").read_text())["encoded"]["encoder"].startswith("MLPEncoder (")


def test_a_folder_of_images(tmp_path):
    images = BundledImages("fashion-mnist", train=False)
    for index in range(12):
        folder = tmp_path / "images" / ["coat", "bag"][index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.data[index, 0].numpy()).save(folder / f"{index:02d}.png")
    arguments = ("invert", "fashion-mnist", "--dataset", "imagefolder", "--data-root", tmp_path / "images", *QUICK)
    output_of(*arguments, "--out", tmp_path / "bank")
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert bank.labels.tolist() == [0] * 6 + [1] * 6
    assert bank.metadata["classes"] == ["bag", "coat"]
    code, output = call(*arguments, "--out", tmp_path / "other", "--test")
    assert (code, "for a folder of images pass the folder itself" in output) == (1, True)
    output = error_of(*arguments[:5], tmp_path / "bank", "--out", tmp_path / "other")
    assert "Found no valid file for the classes chunks" in output


@pytest.mark.parametrize("kind", ["16 bits", "12 bits", "float"])
def test_a_folder_of_images_with_more_than_8_bits_gives_the_codes_of_the_same_with_8(tmp_path, kind):
    images = BundledImages("fashion-mnist", train=False)
    codes = []
    for form in ("8 bits", kind):
        folder = tmp_path / form / "class"
        folder.mkdir(parents=True)
        for index in range(8):
            eight = images.data[index, 0].numpy()
            values = {
                "8 bits": eight,
                "16 bits": eight.astype(np.uint16) * 257,
                "12 bits": (eight / 255 * 4095).round().astype(np.uint16),
                "float": eight.astype(np.float32) / 255,
            }
            Image.fromarray(values[form]).save(folder / f"{index}.{'tif' if form == 'float' else 'png'}")
        arguments = ("--dataset", "imagefolder", "--data-root", tmp_path / form, "--steps", 0)
        output = output_of("invert", "fashion-mnist", *arguments, "--out", tmp_path / f"bank {form}")
        assert ("value is 4095 are read as 12 bits, white is 4095" in output) == (form == "12 bits")
        codes.append(LatentBank.from_pretrained(tmp_path / f"bank {form}")[:][0])
    torch.testing.assert_close(*codes, rtol=0, atol=0.02)


def test_images_that_are_set_aside_are_a_note(tmp_path, data_root):
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    images = BundledImages("fashion-mnist", train=False)
    for index in range(6):
        Image.fromarray(images.data[index, 0].numpy()).save(folder / f"{index}.png")
    (folder / "4.png").write_bytes(b"no picture")
    arguments = ("--dataset", "imagefolder", "--data-root", tmp_path / "images", "--steps", 0, "--out")
    output = output_of("invert", "fashion-mnist", *arguments, tmp_path / "bank")
    assert "note: 1 of 6 images cannot be used; the first, image 4: UnidentifiedImageError: " in output
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert (len(bank), list(bank.set_aside)) == (5, [4])
    for index in (1, 2, 3):
        (folder / f"{index}.png").write_bytes(b"no picture")
    output = error_of("invert", "fashion-mnist", *arguments, tmp_path / "other")
    assert "Error: 4 of 6 images cannot be used; the first, image 1: " in output


def test_a_missing_data_set_names_the_folder_that_is_wanted(tmp_path):
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("mnist", "MNIST/raw")):
        with pytest.raises(FileNotFoundError, match=rf"expected {escape(str(tmp_path / folder))}; pass --data-root"):
            torchvision_dataset(name, tmp_path, train=True)


def test_the_summary_counts_what_failed(tmp_path, capsys):
    """A row without a finite code is an error of the finished bank; a shard of several ends well."""
    mse, status = [0.1, 0.01, 0.03, float("inf")], [0, 0, 0, 1]
    bank = LatentBank(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), mse=mse, status=status)
    meter = CodeMeter(show=False)
    say_what_was_done(bank, tmp_path, (1, 3), meter)
    assert capsys.readouterr().out.splitlines() == [
        "shard 1/3: nothing was left to do",
        "shard 1/3: 4 codes, mse mean 0.0467, median 0.0300, 95 % below 0.0930, 66.7% at 0.025 or above",
        "1 failed; the last shard writes the bank",
    ]
    bank.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"1 images have no finite code: .* status 1 in {escape(str(tmp_path))}"):
        say_what_was_done(bank, tmp_path, (1, 3), meter)
    bank.subset([3]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="1 images have no finite code"):
        say_what_was_done(bank, tmp_path, (0, 1), meter)
    assert "1 codes, none with a finite mse" in capsys.readouterr().out
