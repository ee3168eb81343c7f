"""The pages: their code runs, their commands exist, their manifests parse."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from latent_mixup import LatentBank
from latent_mixup.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "scale-out.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every ``latent_mixup invert`` of the page, on one line."""
    (manifest,) = map(yaml.safe_load, blocks("yaml"))
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    texts = [text.replace("\\\n", " ") for text in blocks("bash")] + container["args"]
    return [line for text in texts for line in text.splitlines() if "latent_mixup invert" in line]


def test_options_in_the_commands_are_those_of_the_command_line():
    known = {option for parameter in main.commands["invert"].params for option in parameter.opts}
    assert len(commands()) == 4
    for line in commands():
        options = re.findall(r"--[\w-]+", line.split("latent_mixup invert")[1])
        assert {"--dataset", "--data-root", "--out"} <= set(options) <= known


def test_an_indexed_job_has_a_shard_for_each_index():
    (manifest,) = map(yaml.safe_load, blocks("yaml"))
    assert manifest["spec"]["completionMode"] == "Indexed"
    assert manifest["spec"]["completions"] == 32
    assert '--shard "$JOB_COMPLETION_INDEX/32"' in commands()[-1]


@pytest.fixture
def python_here(tmp_path, data_root, monkeypatch):
    """The page's Python, on this machine's paths and the CPU, with three shards; ``ray`` runs a task at once."""
    ray = SimpleNamespace(
        remote=lambda **_: lambda task: SimpleNamespace(remote=task), init=lambda: None, get=lambda results: results
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    here = {
        '"/data"': repr(str(data_root)),
        '"/shared/bank"': repr(str(tmp_path / "bank")),
        'device="cuda"': "steps=1, draws=16, batch_size=4",
        "SHARDS = 32": "SHARDS = 3",
    }
    texts = blocks("python")
    for there, value in here.items():
        assert any(there in text for text in texts)
        texts = [text.replace(there, value) for text in texts]
    return texts


def test_the_ray_example_makes_a_bank_and_the_checks_pass(python_here, tmp_path, capsys):
    example, checks = python_here
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    exec(compile(example, "example", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "40 codes\n"
    assert len(LatentBank.from_pretrained(tmp_path / "bank")) == 40
    exec(compile(checks, "checks", "exec"), {})
    assert capsys.readouterr().out == "40 codes, 0 images set aside, 0 failed\n"
