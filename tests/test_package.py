"""What a user meets first: the names, a light import, the bundled files, the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8

ROOT = Path(__file__).parent.parent
MEBIBYTE = 1024**2


def test_public_names_are_there():
    for name in lm.__all__:
        assert getattr(lm, name) is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", lm.__version__)


def test_import_is_light():
    heavy = ["timm", "lpips", "matplotlib", "huggingface_hub", "click", "scipy", "diffusers"]
    code = f"import latent_mixup, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_bundled_files_belong_together():
    generator, bank = lm.load_generator("fashion-mnist"), lm.LatentBank.from_pretrained("fashion-mnist", verify=True)
    images = BundledImages("fashion-mnist")
    bank.check(generator)
    assert len(bank) == len(images) == 10_000
    assert bank.labels.bincount().tolist() == [1_000] * 10
    assert torch.equal(bank.labels, images.targets)
    assert bank.source_index.max() < 60_000


def test_bundled_codes_decode_to_the_bundled_images():
    generator, bank = lm.load_generator("fashion-mnist"), lm.LatentBank.from_pretrained("fashion-mnist")
    rows = torch.arange(0, 10_000, 50)
    real = from_uint8(BundledImages("fashion-mnist").data[rows])
    mse = (generator.decode(bank[rows][0]) - real).square().flatten(1).mean(1)
    assert bank.mse is not None
    assert torch.allclose(mse, bank.mse[rows], atol=1e-4)
    assert mse.mean() < 0.015


def test_bundled_test_images_are_real_and_balanced():
    images = BundledImages("fashion-mnist", train=False)
    assert len(images) == 2_000
    assert images.targets.bincount(minlength=10).min() > 150
    image, label = images[0]
    assert (image.shape, image.dtype, label) == ((1, 28, 28), torch.float32, 9)
    assert image.min() == -1


def test_bundled_files_fit():
    assets = ROOT / "latent_mixup" / "assets" / "fashion-mnist"
    assert sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) < 12 * MEBIBYTE


@pytest.mark.parametrize("number", range(len(re.findall(r"```python", (ROOT / "README.md").read_text()))))
def test_readme_snippets_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippet = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[number]
    exec(compile(snippet, f"README snippet {number}", "exec"), {})


def test_readme_table_is_drawn_from_the_committed_results():
    found = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check", "README.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
