"""The benchmark of what a mix looks like: the judge's numbers, the curve that follows, and that it runs."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from search import label_truth

from latent_mixup import LatentBank, load_generator
from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8
from latent_mixup.policies import Curve


def test_the_temperature_undoes_a_factor():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=draw)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=draw)[:, 0]  # as sure as it is right
    assert label_truth.temperature(logits, labels) == pytest.approx(1, rel=0.05)
    assert label_truth.temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_what_a_judge_says_by_hand():
    probabilities = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = label_truth.seen(probabilities, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert found["own"] == pytest.approx(0.35)
    assert found["other"] == pytest.approx(0.15)
    assert found["own_share"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["neither"] == 0.5
    entropy = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2) + 2 * 0.1 * math.log(0.1) + 0.8 * math.log(0.8)) / 2
    assert found["entropy"] == pytest.approx(entropy)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=21))
def test_a_curve_is_one_that_a_policy_takes(shares):
    shares = [0.0, *shares, 1.0]
    curve = label_truth.symmetric_curve(shares)
    Curve(tuple(curve))  # from 0 to 1, never falling
    assert [1 - value for value in reversed(curve)] == pytest.approx(curve, abs=2e-4)


def test_a_rising_symmetric_curve_stays_as_it_is():
    shares = [0.0, 0.05, 0.5, 0.95, 1.0]
    assert label_truth.symmetric_curve(shares) == shares
    assert label_truth.symmetric_curve([0.0, 0.4, 0.1, 0.5, 0.9, 0.6, 1.0]) == [0, 0.25, 0.25, 0.5, 0.75, 0.75, 1.0]


def test_at_the_ends_a_mix_is_a_reconstruction():
    bank, generator = LatentBank.from_pretrained("fashion-mnist").subset(range(200)), load_generator("fashion-mnist")
    images = BundledImages("fashion-mnist")
    judge = label_truth.reference_classifier(from_uint8(images.data[:2000]), images.targets[:2000], 2)
    bank = LatentBank(*bank[:], source_index=torch.arange(200))
    shown = from_uint8(images.data[:200])
    found = label_truth.looked_at(judge, 1.0, generator, bank, shown, 64)
    assert found["lam"][0] == 0
    assert found["lam"][-1] == 1
    for kind in ("codes", "pixels"):
        assert found[kind]["own"][-1] > 2 * found[kind]["own"][0]
        assert found[kind]["other"][0] > 2 * found[kind]["other"][-1]
    own = label_truth.Policy(partners=label_truth.OtherClass()).draw(
        64, label_truth.Rows(bank), label_truth.keyed_generator("label-truth", 0)
    )
    rebuilt = label_truth.judged(judge, generator.decode(bank[own.rows][0]), 1.0)
    assert found["codes"]["own"][-1] == pytest.approx(
        float(rebuilt.gather(1, bank.labels[own.rows][:, None]).mean()), abs=1e-5
    )


def test_a_run_writes_its_record(tmp_path, bundled_root, bundled_bank, monkeypatch):
    monkeypatch.setattr(label_truth, "split", lambda *given: SimpleNamespace(**_parts()))
    arguments = ["fashion-mnist", "--data-root", bundled_root, "--bank", bundled_bank, "--out", tmp_path / "out"]
    found = CliRunner().invoke(label_truth.main, [*map(str, arguments), "--pairs", "40", "--epochs", "1"])
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "out" / "label-truth.json").read_text())
    assert record["pairs"] == 40
    assert record["generator_digest"] == load_generator("fashion-mnist").digest()
    assert all(len(record[kind]["own"]) == len(record["lam"]) == 21 for kind in ("codes", "pixels"))
    Curve(tuple(record["curve"]))


def _parts():
    images = BundledImages("fashion-mnist", train=False)
    shown = from_uint8(images.data[:300])
    data = SimpleNamespace(train_images=shown, train_labels=images.targets[:300])
    return {"train": data, "validation": SimpleNamespace(test_images=shown, test_labels=images.targets[:300])}
