"""The benchmark of how a bank is read: what it measures, and that its table is drawn from the file."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "bank_reading.py"
    specification = importlib.util.spec_from_file_location("benchmarks_bank_reading", path)
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    size = script.write(folder, 300)
    assert 300 * 8 * 512 * 2 < size < 300 * 8 * 512 * 2 + 20_000
    return folder


def test_the_codes_are_those_of_their_keys(script, folder):
    bank = script.LatentBank.from_pretrained(folder, verify=True)
    assert (len(bank), bank.latent_shape, bank.dtype) == (300, (8, 512), torch.float16)
    assert 0.9 < float(bank[:][0].std()) < 1.1
    latents, seconds, _ = script.Reads(bank, 3)[2]
    rows = torch.randint(300, (256,), generator=script.keyed_generator("test", 0, 2))
    assert latents.equal(bank[rows][0])
    assert seconds > 0


def test_what_is_measured(script, folder):
    opened = script.opened(folder)
    assert 0 < opened["median_ms"] < 1000
    assert opened["pickled_bank_bytes"] < opened["pickled_dataset_bytes"] < 10_000
    read = script.read(folder, 0, None, 5)
    assert (read["workers"], read["start_method"]) == (0, None)
    assert 0 < read["read_median_ms"] <= read["read_p95_ms"]
    assert read["reads_per_second"] > 0
    assert set(read["memory_of_a_reader_mb"]) == set(script.memory()) == set(read["most_memory_of_a_reader_mb"])


def test_the_docs_table_is_drawn_from_the_committed_file():
    found = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check", "docs/hub.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
