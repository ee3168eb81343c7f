"""``benchmarks/robust`` on a few of the bundled images, and the parts that its results hang on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from robust import adversarial, distil, evidence, runs, setting, unequal
from tables import robust_tables

from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8
from latent_mixup.sampling import keyed_generator


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """All runs in seconds: few images, two steps, small pools."""
    monkeypatch.setattr(setting, "SETTINGS", {"fashion-mnist": setting.Setting(0.1, None, 20)})
    monkeypatch.setattr(setting, "POOL", 1_000)
    monkeypatch.setattr(setting, "FITTED", 200)
    monkeypatch.setattr(setting, "TEACHER_STEPS", (2, 2))
    monkeypatch.setattr(setting, "FIT_STEPS", (2, 2))
    monkeypatch.setattr(adversarial, "STEPS", {"fashion-mnist": 2})
    monkeypatch.setattr(adversarial, "EVERY", 1)
    monkeypatch.setattr(adversarial, "VALIDATED", 20)
    monkeypatch.setattr(distil, "STEPS", 2)
    monkeypatch.setattr(distil, "TAUGHT", 100)
    monkeypatch.setattr(unequal, "STEPS", 2)
    monkeypatch.setattr(unequal, "COMMONEST", 60)
    monkeypatch.setattr(unequal, "RATIO", 6)
    train, test = BundledImages("fashion-mnist"), BundledImages("fashion-mnist", train=False)
    held = from_uint8(test.data[:100]), test.targets[:100]
    images = setting.Images("fashion-mnist", train.data[:3_000], train.targets[:3_000], held, held)
    return setting.Workshop(images, tmp_path)


def test_images_are_moved_and_mirrored_whole():
    images = torch.rand(20, 3, 6, 6, generator=keyed_generator("test-moved"))
    assert setting.moved(images, None, keyed_generator("test-draw")) is images
    moved = setting.moved(images, 2, keyed_generator("test-draw"))
    padded = torch.nn.functional.pad(images, [2] * 4, value=-1.0)
    for image, whole in zip(moved, padded, strict=True):
        views = [whole[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, view) or torch.equal(image.flip(2), view) for view in views)
    mirrored = setting.moved(images, 0, keyed_generator("test-draw"))
    assert any(torch.equal(a.flip(2), b) for a, b in zip(mirrored, images, strict=True))


def test_labelled_images_are_as_many_of_each_class_and_others_for_each_seed(shop):
    rows, others = (shop.images.labelled(seed) for seed in (0, 1))
    assert shop.images.train_labels[rows].bincount().tolist() == [2] * 10
    assert rows.tolist() != others.tolist()
    unlabelled = shop.fresh("unlabelled", 0)
    assert len(unlabelled) == 3_000 - 20


@pytest.mark.parametrize("kind", [*setting.KINDS])
def test_fresh_images_are_made_once(shop, kind):
    made = shop.fresh(kind, 0)
    assert made.dtype == torch.uint8
    assert made.shape[1:] == (1, 28, 28)
    assert made.float().std() > 10
    assert torch.equal(made, shop.fresh(kind, 0))


@pytest.mark.parametrize("method", ["real", "cutmix", "cutmix_taught", "prior"])
def test_an_adversarial_run(shop, method):
    trial = adversarial.Trial(shop, method, adversarial.METHODS[method][1], 0)
    record = trial.run(test=False)
    assert record["best_step"] in (1, 2)
    assert record["validation"] == max(score for score, _ in record["curve"])
    assert trial.run(test=False)["curve"] == record["curve"]


@pytest.mark.parametrize("name", ["real_200_small", "mixes_200_small", "prior_0_larger"])
def test_a_student(shop, name):
    trial = distil.Trial(shop, name, 4.0, 0)
    record = trial.run(test=True)
    assert (record["real"], record["student"]) == (int(name.split("_")[1]), name.split("_")[2])
    assert 0 <= record["scores"]["accuracy"] <= 1
    assert not set(trial._real_rows(200).tolist()) & set(shop.images.labelled(0, 100).tolist())


@pytest.mark.parametrize("method", [*unequal.METHODS])
def test_unequal_classes(shop, method):
    trial = unequal.Trial(shop, method, 0.5, 0)
    counts = trial.data[1].bincount().sort(descending=True).values.tolist()
    assert counts == [round(60 * 6 ** (-rank / 9)) for rank in range(10)]
    assert set(trial.run(test=True)["scores"]) == {"accuracy", "worst_class"}


def test_neighbours_are_the_nearest_of_the_class():
    features, labels = torch.rand(40, 3, generator=keyed_generator("test-near")), torch.arange(40) % 3
    near = unequal._neighbours(features, labels)
    for row in range(40):
        others = [other for other in range(40) if other != row and labels[other] == labels[row]]
        nearest = sorted(others, key=lambda other: float((features[row] - features[other]).norm()))
        assert near[row].tolist() == nearest[: unequal.NEIGHBOURS]


def test_a_pasted_box_has_the_share_of_its_area():
    images, others = torch.zeros(4, 1, 10, 10), torch.ones(4, 1, 10, 10)
    for seed in range(20):
        pasted, share = unequal._pasted(images, others, keyed_generator("test-paste", seed))
        assert pasted.mean().item() == pytest.approx(1 - share)


def test_runs_are_skipped_where_they_are_done_and_options_chosen_by_validation(tmp_path):
    called = []

    def run(name, seed):
        called.append((name, seed))
        return {"validation": {"a-0": 0.5, "a-1": 0.75}[name], "scores": {}}

    for _ in range(2):
        runs.run_each(tmp_path, ["a-0", "a-1"], [runs.CHOOSING_SEED], run)
    assert called == [("a-0", 100), ("a-1", 100)]
    assert runs.best_options(tmp_path, {"a": (1.0, 2.0)}) == {"a": 2.0}


@pytest.mark.parametrize("command", [adversarial.main, distil.main, unequal.main])
def test_commands_say_what_they_need(command):
    found = CliRunner().invoke(command, ["fashion-mnist"])
    assert found.exit_code == 2
    assert "--data-root" in found.output


def test_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(robust_tables, "RESULTS", tmp_path)

    def write(question, method, seed, **scores):
        folder = tmp_path / "robust" / "fashion-mnist" / question
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{method}-{seed}.json").write_text(json.dumps({"method": method, "seed": seed, "scores": scores}))

    for seed, more in ((0, 0.0), (1, 0.1)):
        write("adversarial", "real", seed, accuracy=0.8, pgd=0.6, autoattack=0.5 + more)
        write("adversarial", "prior", seed, accuracy=0.8, pgd=0.65, autoattack=0.55 + more)
        write("distil", "unlabelled_0_small", seed, accuracy=0.8, teacher=0.9)
        write("distil", "gaussian_0_small", seed, accuracy=0.7, teacher=0.9)
        write("distil", "prior_0_small", seed, accuracy=0.76, teacher=0.9)
        write("unequal", "oversample", seed, accuracy=0.7, worst_class=0.5)
        write("unequal", "latent_smote", seed, accuracy=0.72, worst_class=0.5)
    lines = robust_tables.adversarial_table("fashion-mnist").splitlines()
    assert lines[3].startswith("| **samples of the prior** | 0.800 ± 0.000 | 0.650 ± 0.000 | 0.600 ± 0.071 | +0.050 [")
    lines = robust_tables.distil_table("fashion-mnist").splitlines()
    assert lines[2].startswith(
        "| 0 | small | **samples of the prior** | 0.760 ± 0.000 | 95.0% | +0.060 [+0.060, +0.060] |"
    )
    assert "| +0.020 [+0.020, +0.020] |" in robust_tables.unequal_table("fashion-mnist").splitlines()[3]
    assert math.isclose(robust_tables._value([{"a": 1.0}, {"a": 2.0}], "a"), 1.5)


def test_what_advise_rests_on_is_drawn_from_the_results():
    found = CliRunner().invoke(evidence.main, ["--check"])
    assert found.exit_code == 0, found.output
