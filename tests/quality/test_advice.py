"""``advise``: what was measured decides, and the lines that it gives run."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader

from latent_mixup import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli import main
from latent_mixup.generators import Linear
from latent_mixup.quality import advice


def finding(aim, low, dataset="fashion-mnist", **more):
    known = {"what": "this", "against": "that", "score": "accuracy", "mean": low + 0.01, "seeds": 5}
    return {"aim": aim, "dataset": dataset, **known, "interval": [low, low + 0.02], **more}


@pytest.fixture
def known(monkeypatch):
    found = []
    monkeypatch.setattr(advice, "evidence", lambda: found)
    return found


@pytest.mark.parametrize("aim", advice.AIMS)
def test_a_recipe_is_advised_where_every_interval_is_above_0(known, aim):
    assert not advice.advise("fashion-mnist", aim).use
    known += [finding(other, -0.5) for other in advice.AIMS if other != aim]
    known.append(finding(aim, 0.001))
    found = advice.advise("fashion-mnist", aim)
    assert found.use
    assert found.why == ("fashion-mnist: this, +1.1 points [+0.1, +2.1] of accuracy against that, 5 seeds",)
    known.append(finding(aim, 0.0, dataset="cifar10"))
    found = advice.advise("fashion-mnist", aim)
    assert not found.use
    assert found.lines == ""


@pytest.mark.parametrize("aim", ["robust", "small-model"])
def test_the_lines_run(known, aim):
    known.append(finding(aim, 0.1))
    lines = advice.advise("fashion-mnist", aim).lines
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = {name: PaperCNN() for name in ("classifier", "model", "large_model", "small_model")}
        data = BundledImages("fashion-mnist")
        names["loader"] = DataLoader(torch.utils.data.Subset(data, range(16)), batch_size=8)
        exec(lines, names)
    assert names["loss"].isfinite()


def test_more_labels_than_were_measured(known):
    known.append(finding("robust", 0.1, labelled=1_000))
    found = advice.advise("fashion-mnist", "robust")
    assert not found.use
    assert "you have 10,000 labelled images: what was measured, with up to 1,000" in str(found)


def test_a_generator_without_a_prior(known, monkeypatch):
    known.append(finding("small-model", 0.1))
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    generator = Linear.fit(images, 4)
    pair = generator, LatentBank(generator.encode(images), torch.arange(20) % 2)
    monkeypatch.setattr(advice, "load", lambda _run: pair)
    found = advice.advise("any", "small-model")
    assert not found.use
    assert "Linear has no learnt prior" in found.why[0]


def test_a_run_whose_check_says_no(known, tmp_path, monkeypatch):
    known.append(finding("balance", 0.1))
    monkeypatch.setattr(advice, "load", lambda _run: advice_pair())
    (tmp_path / "quality.json").write_text(json.dumps({"verdict": {"go": False, "text": "no-go (why)"}}))
    found = advice.advise(tmp_path, "balance")
    assert not found.use
    assert found.why[0] == "its check says no-go (why)"


def advice_pair():
    class Prior(nn.Module):
        has_prior = True

    return Prior(), LatentBank(torch.zeros(4, 2), torch.arange(4) % 2)


def test_the_command():
    found = CliRunner().invoke(main, ["advise", "fashion-mnist", "--aim", "accuracy"])
    assert found.exit_code == 0, found.output
    assert found.output.startswith("accuracy: do not\n- mnist: ")
    found = CliRunner().invoke(main, ["advise", "fashion-mnist", "--aim", "accuracy", "--json"])
    assert json.loads(found.stdout)["use"] is False
    with pytest.raises(ValueError, match="aim needs to be one of robust"):
        advice.advise("fashion-mnist", "speed")
