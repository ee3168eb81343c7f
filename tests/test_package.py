"""What a user meets first: the names, a light import, the bundled files, the README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8
from latent_mixup.policies import Beta, Noise, Policy, SameClass, from_config

ROOT = Path(__file__).parent.parent


def test_public_names_are_there():
    assert {*lm.__all__} < {*dir(lm)}
    for name in dir(lm):
        assert getattr(lm, name) is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", lm.__version__)


def test_import_is_light():
    heavy = ["timm", "lpips", "matplotlib", "huggingface_hub", "click", "scipy", "diffusers"]
    code = f"""
import latent_mixup as lm, sys
lm.LatentMixupLoader, lm.load, lm.render
print([name for name in {heavy} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "-h"], ["invert", "--help"], ["--version"]])
def test_the_command_line_starts_without_torch(arguments):
    code = f"""
import sys
import zlib
from latent_mixup.cli import main
try:
    main({arguments})
finally:
    print([name for name in ("torch", "numpy", "torchvision") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip().endswith("[]"), found.stdout + found.stderr


def test_modules_are_imported_when_they_are_asked_for():
    code = "import latent_mixup as lm; print(lm.policies.Policy().project, lm.quality.check_codes.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0.0", "check_codes"]
    with pytest.raises(AttributeError, match="has no attribute 'polices'"):
        lm.polices  # noqa: B018


@pytest.mark.parametrize(("name", "per_class"), [("fashion-mnist", 1_000), ("mnist", 500)])
def test_bundled_files_belong_together(name, per_class):
    generator, bank = lm.load_generator(name), lm.LatentBank.from_pretrained(name, verify=True)
    images = BundledImages(name)
    bank.check(generator)
    assert len(bank) == len(images) == 10 * per_class
    assert bank.labels.bincount().tolist() == [per_class] * 10
    assert torch.equal(bank.labels, images.targets)
    assert bank.source_index.max() < 60_000


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_bundled_codes_decode_to_the_bundled_images(name):
    generator, bank = lm.load_generator(name), lm.LatentBank.from_pretrained(name)
    rows = torch.arange(0, len(bank), 20)
    real = from_uint8(BundledImages(name).data[rows])
    mse = (generator.decode(bank[rows][0]) - real).square().flatten(1).mean(1)
    assert bank.mse is not None
    assert torch.allclose(mse, bank.mse[rows], atol=1e-4)
    assert mse.mean() < 0.015


@pytest.mark.parametrize(("name", "count", "first"), [("fashion-mnist", 2_000, 9), ("mnist", 1_000, 7)])
def test_bundled_test_images_are_real_and_balanced(name, count, first):
    images = BundledImages(name, train=False)
    assert len(images) == count
    assert images.targets.bincount(minlength=10).min() > 0.075 * count
    image, label = images[0]
    assert (image.shape, image.dtype, label) == ((1, 28, 28), torch.float32, first)
    assert image.min() == -1


def test_bundled_files_fit():
    assets = ROOT / "latent_mixup" / "assets"
    packed = (len(zlib.compress(path.read_bytes())) for path in assets.rglob("*") if path.is_file())
    assert sum(packed) < 19.3e6  # the wheel, which packs them so, stays under 20 MB


def test_licences_of_code_and_data_are_declared():
    assert 'license = "Apache-2.0 AND MIT AND CC-BY-SA-3.0"' in (ROOT / "pyproject.toml").read_text()
    notice = (ROOT / "NOTICE").read_text()
    for words in ("assets/fashion-mnist", "The MIT License", "assets/mnist", "Creative Commons Attribution-Share"):
        assert words in notice, words


WITH_SNIPPETS = ("README.md", *(f"docs/{name}.md" for name in ("start", "policies", "robust-training", "inversion")))


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in WITH_SNIPPETS for number in range(len(snippets(page, "python")))],
)
def test_snippets_run(page, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(page, "python")[number], f"{page}, snippet {number}", "exec"), {})


def test_a_policy_as_json_is_one():
    (said,) = snippets("docs/policies.md", "json")
    assert from_config(json.loads(said)) == Policy(Beta(0.4), SameClass(), noise=Noise(0.3))


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in ("findings", "fit", "hub", "speed"))])
def test_tables_are_drawn_from_the_committed_results(page):
    found = subprocess.run(
        [sys.executable, "benchmarks/tables/tables.py", "--check", page], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
