"""The search of a policy: what it maximises, what it tries, that it goes on where it was, and the rows that follow."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from paper import methods as methods_module
from paper import small_images, trials
from paper.settings import Setting, searched
from record import RESULTS
from tables import rows as rows_module

from latent_mixup.demo.comparison import Budget
from latent_mixup.policies import NAMED, Beta, LowPass, Noise, Policy, SameClass

optuna = pytest.importorskip("optuna")
search = importlib.import_module("search.search")

STANDARD = {"accuracy": 0.92, "deepfool_score": 1.0, "blurred_accuracy": 0.65}
FULL = Setting(0.4, Policy(Beta(0.5), SameClass(), unmixed=0.5, noise=Noise(0.3), low_pass=LowPass(0, 2)))


def test_the_value_by_hand():
    assert search.value(STANDARD, STANDARD) == 0
    better = {"accuracy": 0.91, "deepfool_score": 1.2, "blurred_accuracy": 0.78}
    expected = math.log(1.2) + math.log(0.78 / 0.65) - 100 * (0.92 - 0.002 - 0.91)
    assert search.value(better, STANDARD) == pytest.approx(expected)
    assert search.value({**STANDARD, "accuracy": 0.9185}, STANDARD) == 0  # within the margin
    assert search.value({**STANDARD, "accuracy": 0.99}, STANDARD) == 0  # more accuracy is not what is looked for
    assert search.value({**STANDARD, "accuracy": 0.917}, STANDARD) < 0


def test_what_is_tried():
    given = {"prob": 0.3, "unmixed": 0.5, "noise": 0.3, "blur": 2.0, "partners": "same_class", "alpha": 0.5}
    assert search.suggested(optuna.trial.FixedTrial(given)) == Setting(
        0.3, Policy(Beta(0.5), SameClass(), unmixed=0.5, noise=Noise(0.3), low_pass=LowPass(0, 2))
    )
    plain = search.suggested(optuna.trial.FixedTrial({"prob": 1.0, "unmixed": 1.0, "noise": 0.0, "blur": 0.0}))
    assert plain == Setting(1.0, Policy(unmixed=1.0))
    for first in search.FIRST:
        search.suggested(optuna.trial.FixedTrial(first))


def test_a_setting_survives_json():
    said = json.loads(json.dumps(FULL.to_dict()))
    assert Setting.from_dict(said) == FULL


def test_each_part_is_left_out_in_turn():
    parts = FULL.parts()
    assert list(parts) == ["without_mixing", "without_noise", "without_low_pass", "decoded_alone"]
    assert parts["without_mixing"].policy.unmixed == 1
    assert parts["without_noise"].policy.noise is None
    assert parts["without_low_pass"].policy.low_pass is None
    assert parts["decoded_alone"] == Setting(0.4, Policy(Beta(0.5), SameClass(), unmixed=1))


def test_a_part_that_is_lacking_is_put_in():
    noisy = Policy(noise=Noise(0.3), unmixed=1)
    parts = Setting(0.4, noisy).parts()
    assert list(parts) == ["with_mixing", "without_noise", "with_low_pass"]  # without noise it is decoded alone
    assert parts["with_mixing"] == Setting(0.4, replace(noisy, unmixed=0))
    assert parts["without_noise"] == Setting(0.4, Policy(unmixed=1))
    assert parts["with_low_pass"] == Setting(0.4, replace(noisy, low_pass=LowPass()))


def test_the_robust_policy_is_what_the_search_chose():
    chosen = searched(RESULTS / "fashion-mnist")
    assert chosen == Setting(NAMED["robust"].prob, NAMED["robust"].policy)


# ---- a search --------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A search whose trainings are a formula; those it did are in ``seen``."""
    seen = []

    def scores(self, method):
        seen.append(method)
        return {"accuracy": 0.92, "deepfool_score": 1.0 + len(seen) % 3, "blurred_accuracy": 0.7}

    monkeypatch.setattr(search.Search, "scores", scores)
    codes = SimpleNamespace(
        generator=SimpleNamespace(digest=lambda: "generator"), bank=SimpleNamespace(digest=lambda: "bank")
    )
    images = SimpleNamespace(name="fashion-mnist", validation=SimpleNamespace(test_labels=torch.arange(7)))
    return search.Search(images, codes, Budget(epochs=2), 5, tmp_path), seen


def test_a_search_goes_on_where_it_was(made):
    first, seen = made
    first.run(2)
    assert len(seen) == 3  # standard training as well
    first.run(4)
    assert len(seen) == 5
    study = first.run(4)
    assert len(seen) == 5
    found = search.record(first, study)
    assert [trial["params"] for trial in found["trials"]] == search.FIRST[:4]
    assert json.loads(json.dumps(found)) == found
    best = max(found["trials"], key=lambda trial: trial["value"])
    assert found["chosen"] == {"number": best["number"], **best["setting"]}
    assert found["standard"] == {"accuracy": 0.92, "deepfool_score": 2.0, "blurred_accuracy": 0.7}
    for trial in found["trials"]:
        assert trial["value"] == pytest.approx(search.value(trial["scores"], found["standard"]))


def test_another_search_in_the_same_folder_is_refused(made):
    first, _ = made
    first.reference()
    other = search.Search(first.images, first.codes, Budget(epochs=3), 5, first.work)
    with pytest.raises(Exception, match=r"holds another search: expected .*'epochs': 3.* found .*'epochs': 2"):
        other.reference()


def test_the_command_searches_on_the_validation_images_alone(tmp_path, bundled_root, bundled_bank, monkeypatch):
    monkeypatch.setattr(trials, "VALIDATION", 300)
    given = []
    evaluate = search.evaluate

    def looked_at(model, images, *rest, **more):
        given.append(images)
        return evaluate(model, images, *rest, **more)

    monkeypatch.setattr(search, "evaluate", looked_at)
    arguments = ["fashion-mnist", "--data-root", bundled_root, "--bank", bundled_bank, "--work", tmp_path / "work"]
    arguments += ["--out", tmp_path / "out", "--trials", 1, "--epochs", 1, "--deepfool-images", 10, "--limit", 1000]
    found = CliRunner().invoke(search.main, [*map(str, arguments)])
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "out" / "search.json").read_text())
    assert (record["validation_images"], len(record["trials"])) == (300, 1)
    assert searched(tmp_path / "out") == Setting(0.5, Policy(unmixed=1.0))
    test = search.torchvision_dataset("fashion-mnist", bundled_root, train=False).data
    known = {image.numpy().tobytes() for image in test}
    assert [len(images) for images in given] == [300, 300]
    for images in given:
        shown = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8)
        assert sum(image.numpy().tobytes() in known for image in shown) == 0


# ---- the rows that follow --------------------------------------------------------------------------


def test_the_searched_policy_and_its_parts_are_rows(tmp_path, monkeypatch):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"chosen": {"number": 3, **FULL.to_dict()}}))
    monkeypatch.setattr(small_images, "RESULTS", tmp_path)
    before = methods_module.methods(0.5)
    for dataset in ("mnist", "fashion-mnist"):
        named = small_images.preset("fixed", dataset).methods
        added = [name for name in named if name not in before]
        assert added == [
            "latent_mixup_best",
            "latent_mixup_best_without_mixing",
            "latent_mixup_best_without_noise",
            "latent_mixup_best_without_low_pass",
            "latent_mixup_best_decoded_alone",
            "latent_mixup_best_low_pass_of_real",
        ]
        assert set(added) < set(rows_module.NAMES)
        assert [named[name][1] for name in added] == ["gan"] * 5 + [None]


def test_real_images_through_the_same_low_pass():
    real = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    run = SimpleNamespace(seed=0, real=lambda: iter([(real, torch.arange(8))]))
    (images, labels), *rest = methods_module.low_pass_of_real(0.5, LowPass(1, 1))(run)[0]
    assert not rest
    assert labels.equal(torch.arange(8))
    changed = (images != real).flatten(1).any(1)
    assert changed.sum() == 4
    assert images[changed].equal(LowPass(1, 1)(real[changed], torch.ones(4)))
    (same, _), *_ = methods_module.low_pass_of_real(1.0, LowPass(0, 0))(run)[0]
    assert same.equal(real)
