"""What every command has: ``--json`` and ``--config``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from commands import call, json_of, output_of

from latent_mixup import LatentBank, load_generator
from latent_mixup.cli import main

DATA = ("--dataset", "fashion-mnist", "--data-root")


@pytest.fixture
def bank(tmp_path, data_root):
    """Codes of 40 images as the encoder gives them."""
    output_of("invert", "fashion-mnist", *DATA, data_root, "--steps", 0, "--out", tmp_path / "bank")
    return tmp_path / "bank"


@pytest.mark.parametrize("command", main.commands)
def test_every_command_has_both(command):
    assert {"--json", "--config"} <= {
        option for parameter in main.commands[command].params for option in parameter.opts
    }


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["evaluate", "--help"], {}),
        ([], {"_X_COMPLETE": "bash_complete", "COMP_WORDS": "latent-mixup evaluate --wei", "COMP_CWORD": "2"}),
    ],
    ids=["help", "completion"],
)
def test_help_and_completion_import_nothing_heavy(words, asked):
    code = "import contextlib, sys; from latent_mixup.cli import main\nwith contextlib.suppress(SystemExit):\n"
    code += f"    main({words}, complete_var='_X_COMPLETE')\n"
    code += "print({'torch', 'torchvision', 'timm', 'datasets', 'PIL', 'numpy'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_shell_completes_commands_and_options():
    for words, completed in (
        ("latent-mixup eval", "plain,evaluate"),
        ("latent-mixup evaluate --wei", "plain,--weights"),
    ):
        asked = {"_LATENT_MIXUP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert completed in CliRunner().invoke(main, env=asked, prog_name="latent-mixup").output.splitlines()


@pytest.mark.parametrize(
    ("best", "there", "said"),
    [
        ("cuda", "cuda", "device: cuda\n"),
        ("cpu", "mps", "device: cpu; this machine has mps as well, --device mps\n"),
        ("cpu", None, ""),
    ],
)
def test_auto_says_what_it_took_where_there_is_a_choice(tmp_path, monkeypatch, best, there, said):
    monkeypatch.setattr("latent_mixup.networks.best_device", lambda: best)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there))
    command = ["info", "nothing", "--config", str(write(tmp_path / "run.toml", 'device = "auto"'))]
    for asked, wanted in ((command, said), ([*command, "--device", "cpu"], "")):
        assert CliRunner().invoke(main, asked).stderr.partition("Error")[0] == wanted


def test_a_letter_that_the_terminal_lacks_ends_no_command(monkeypatch):
    say = click.Command("say", callback=lambda: click.echo("Fréchet distance ±1"))
    monkeypatch.setitem(main.commands, "say", say)
    assert CliRunner(charset="cp1251").invoke(main, ["say"]).output == "Fr?chet distance ±1\n"


# ---- JSON --------------------------------------------------------------------------------------------


def test_invert_refine_and_filter_as_json(tmp_path, data_root, bank):
    again = json_of("invert", "fashion-mnist", *DATA, data_root, "--steps", 0, "--out", bank)
    codes = LatentBank.from_pretrained(bank)
    assert (again["finished"], again["images"], again["codes"], again["failed"]) == (True, 0, 40, 0)
    assert again["mse"]["mean"] == pytest.approx(codes.mse.mean().item())
    assert codes.metadata["command"][-2:] == ["--steps", "0"]
    idle = json_of("invert", "fashion-mnist", *DATA, data_root, "--out", tmp_path / "no", "--shard", "5/6")
    assert (idle["shard"], idle["finished"]) == ([5, 6], False)

    arguments = ("--generator", "fashion-mnist", *DATA, data_root, "--above", 0.01, "--steps", 2, "--loss", "pixels")
    found = json_of("refine", bank, *arguments, "--out", tmp_path / "fine")
    fine = LatentBank.from_pretrained(tmp_path / "fine")
    assert found["stages"] == fine.metadata["refined"]
    assert found["mse"]["median"] == pytest.approx(fine.mse.median().item())

    found = json_of("filter", bank, "--keep", 0.5, "--out", tmp_path / "half")
    half = LatentBank.from_pretrained(tmp_path / "half")
    assert "--json" not in half.metadata["filtered"][-1]["command"]
    assert [each["kept"] for each in found["classes"]] == half.class_counts.tolist()
    assert found["classes"][7]["class"] == "Sneaker"
    assert found["codes"] == len(half)


def test_report_render_push_preview_and_info_as_json(tmp_path, data_root, bank):
    given = ("--generator", "fashion-mnist", *DATA, data_root, "--columns", 2, "--out", tmp_path / "report")
    assert json_of("report", bank, *given) == json.loads((tmp_path / "report" / "report.json").read_text())
    found = json_of("render", "fashion-mnist", bank, tmp_path / "pool", "--n", 8)
    assert (found["finished"], found["mixes"]) == (True, 8)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "pool").glob("pool.*"))
    found = json_of("push", bank, "me/bank", "--dry-run")
    assert (found["kind"], found["sent"], found["repo_type"]) == ("bank", False, "dataset")
    assert found["bytes"] == sum(each["bytes"] for each in found["files"])
    (codes,) = (each for each in found["files"] if each["name"].endswith(".safetensors"))
    assert codes["bytes"] == (bank / codes["name"]).stat().st_size
    sheet = tmp_path / "sheet.png"
    assert json_of("preview", "fashion-mnist", "--pairs", "1,2", "--out", sheet) == {"out": str(sheet)}
    facts = json_of("info", "fashion-mnist", "--no-self-test")["generator"]
    assert facts["digest"] == load_generator("fashion-mnist").digest()


def test_words_on_the_way_go_to_stderr(bank, tmp_path):
    lowest = LatentBank.from_pretrained(bank).mse.min().item()
    arguments = ["filter", str(bank), "--max-mse", str(lowest), "--out", str(tmp_path / "one"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert json.loads(result.stdout)["codes"] == 1
    assert "note: no row is left of class" in result.stderr


# ---- a file of options -------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_says_what_is_not_typed(tmp_path, bank):
    file = write(tmp_path / "run.toml", f'keep = 0.5\nper_class = true\nbank = "{bank}"\n')
    output_of("filter", bank, "--keep", 0.5, "--per-class", "--out", tmp_path / "typed")
    output_of("filter", "--config", file, "--out", tmp_path / "read")
    typed, read = (LatentBank.from_pretrained(tmp_path / name) for name in ("typed", "read"))
    assert typed.digest() == read.digest()
    words = read.metadata["filtered"][-1]["command"]  # as if it had been typed
    assert words[:2] == ["latent-mixup", "filter"]
    assert sorted(words) == sorted(typed.metadata["filtered"][-1]["command"])
    output_of("filter", "--config", file, "--keep", 0.25, "--out", tmp_path / "wins")
    assert len(LatentBank.from_pretrained(tmp_path / "wins")) < len(read)
    assert LatentBank.from_pretrained(tmp_path / "wins").metadata["filtered"][-1]["command"].count("--keep") == 1


def test_a_file_gives_lists_flags_and_json(tmp_path, data_root, bank):
    lines = f'above = [0.5, 0.01]\nsteps = 2\ngenerator = "fashion-mnist"\ndata-root = "{data_root}"\njson = true\n'
    file = write(tmp_path / "run.toml", lines + 'dataset = "fashion-mnist"\nloss = "pixels"\n')
    code, output = call("refine", bank, "--config", file, "--out", tmp_path / "fine")
    assert code == 0, output
    stages = LatentBank.from_pretrained(tmp_path / "fine").metadata["refined"]
    assert [(stage["above"], stage["steps"]) for stage in stages] == [(0.5, 2), (0.01, 2)]
    assert output[output.index("{") :].startswith('{\n  "out"')
    words = stages[0]["command"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--above"] == ["0.5", "0.01"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kep = 0.5", "filter has no option 'kep', did you mean 'keep'?"),
        ("config = 'a'", "filter has no option 'config', did you mean '"),
        ("[filter]\nkeep = 0.5", "filter has no option 'filter', did you mean '"),
        ("keep = [0.5]", "keep needs one value: got [0.5]"),
        ("keep = 'half'", "'half' is not a valid float"),
        ("per-class = 3", "'3' is not a valid boolean"),
        ("keep 0.5", "run.toml is not TOML: Expected '=' after a key"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, bank, text, message):
    code, output = call("filter", bank, "--config", write(tmp_path / "run.toml", text), "--out", tmp_path / "new")
    assert code == 2
    assert message in " ".join(output.split())
    assert not (tmp_path / "new").exists()


def test_a_file_may_not_give_whole_numbers_a_fraction(tmp_path, bank):
    file = write(tmp_path / "run.toml", "n = 2.5")
    code, output = call("render", "fashion-mnist", bank, tmp_path / "pool", "--config", file)
    assert (code, "'2.5' is not a valid integer" in output) == (2, True)


def test_options_of_another_architecture_are_refused_from_a_file_as_well(tmp_path, data_root):
    file = write(tmp_path / "run.toml", "ada = true")
    arguments = ("train-generator", *DATA, data_root, "--out", tmp_path / "out", "--config", file)
    code, output = call(*arguments)
    assert (code, "compact has no --ada" in output) == (1, True)
