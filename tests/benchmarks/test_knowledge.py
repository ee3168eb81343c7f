"""The benchmark of what codes know, on some bundled images."""

from __future__ import annotations

import json

from click.testing import CliRunner
from generators import knowledge
from torch.utils.data import Subset

from latent_mixup import load_generator
from latent_mixup.bundled import BundledImages
from latent_mixup.quality import code_check


def test_a_quick_run_writes_the_check_and_its_circumstances(tmp_path, monkeypatch):
    monkeypatch.setattr(code_check, "LEAST_JUDGE_STEPS", 4)
    monkeypatch.setattr(code_check, "JUDGE_STEPS", 4)
    monkeypatch.setattr(
        knowledge, "open_data", lambda name, root, test: Subset(BundledImages(name, train=not test), range(500))
    )
    out = tmp_path / "mnist.json"
    arguments = ["mnist", "mnist", "--data-root", str(tmp_path), "--out", str(out), "--quick"]
    found = CliRunner().invoke(knowledge.main, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    record = json.loads(out.read_text())
    assert record["generator"]["digest"] == load_generator("mnist").digest()
    assert record["rows"]["examined"] == 400
    assert record["steps"] == 4
    assert record["verdict"]["text"] in found.output
