"""The examples run as a user runs them, only shorter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from latent_mixup import LatentBank

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / arguments[0]), *arguments[1:]]
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_quickstart(tmp_path):
    printed = run("quickstart.py", "--epochs", "2", "--max-batches", "40", cwd=tmp_path)
    accuracies = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines()]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.6  # 80 batches are enough to be far from chance


def test_adversarial_training_with_fresh_samples(tmp_path):
    printed = run("adversarial_training.py", "--steps", "120", "--count", "300", "--tested", "250", cwd=tmp_path)
    clean, robust = map(float, re.findall(r"0\.\d{3}", printed.splitlines()[-1]))
    assert clean > 0.4
    assert 0.2 < robust <= clean


def test_a_student_learns_without_a_real_image(tmp_path):
    printed = run("distil.py", "--steps", "150", cwd=tmp_path)
    teacher, student = map(float, re.findall(r"0\.\d{3}", printed.splitlines()[-1]))
    assert teacher > 0.6
    assert student > 0.4


def test_wrap_dataloader(tmp_path):
    printed = run("wrap_dataloader.py", "--count", "100", "--steps", "20", cwd=tmp_path)
    assert "epoch 2: loss" in printed
    bank = LatentBank.from_pretrained(tmp_path / "my-bank", verify=True)
    assert len(bank) == 100
    assert bank.mse is not None
    assert bank.mse.mean() < 0.04


def test_an_autoencoder_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = [sys.executable, str(ROOT / "examples" / "autoencoder.py"), "--count", "100"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert "madebyollin/taesd" in line
    assert line.endswith("--tiny")
