"""``evaluate`` against the scores that it collects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from classifier import CLASSES, noisy_patterns
from torch import Tensor

from latent_mixup import robustness

BOUNDS = (-2.0, 2.0)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return noisy_patterns(limit=2, mislabelled=slice(3))


def test_evaluate_collects_what_the_parts_say(trained, data):
    found = robustness.evaluate(
        trained,
        *data,
        bounds=BOUNDS,
        deepfool_images=20,
        sigmas=(1.0, 2.0),
        pgd_images=10,
        pgd_steps=4,
        linf_eps=0.055,
        l2_eps=0.5,
        corruption_images=12,
        severities=(2, 5),
        seed=3,
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    loader = [data]
    assert found["accuracy"] == robustness.accuracy(trained, loader) == 45 / 48
    assert found["blurred_accuracy"] == robustness.blurred_accuracy(trained, loader)
    sweep = [robustness.blurred_accuracy(trained, loader, sigma=sigma) for sigma in (1.0, 2.0)]
    assert found["blur_sweep"] == {"kernel_size": 5, "sigmas": [1.0, 2.0], "accuracy": sweep}

    score = robustness.deepfool_score(trained, loader, num_classes=CLASSES, max_images=20)
    deepfool = found["deepfool"]
    assert found["deepfool_score"] == deepfool["score"] == pytest.approx(score.score, abs=1e-9)
    assert deepfool["score_unit_range"] == pytest.approx(score.score / 4)
    assert deepfool["score_correct_unit_range"] == pytest.approx(score.score_correct / 4)
    assert (deepfool["n_images"], deepfool["n_correct"], deepfool["units"]) == (20, 17, "[-2, 2]")
    assert (deepfool["fooled_fraction"], deepfool["max_iter_hits"], deepfool["input_size"]) == (1.0, 0, [1, 12, 12])

    for norm, eps in (("linf", 0.055), ("l2", 0.5)):
        expected = robustness.pgd_accuracy(
            trained, loader, bounds=BOUNDS, eps=4 * eps, norm=norm, steps=4, seed=3, max_images=10
        )
        assert found["pgd"][norm] == {"eps_unit_range": eps, "accuracy": expected}
    assert (found["pgd"]["n_images"], found["pgd"]["steps"]) == (10, 4)

    by_name = robustness.corruption_accuracy(trained, loader, bounds=BOUNDS, severities=(2, 5), seed=3, max_images=12)
    corruptions = found["corruptions"]
    assert corruptions["accuracy"] == by_name
    assert set(by_name) == set(robustness.corruption_names(1))
    assert corruptions["mean_accuracy"] == pytest.approx(sum(map(sum, by_name.values())) / (2 * len(by_name)))
    assert (corruptions["n_images"], corruptions["severities"], corruptions["seed"]) == (12, [2, 5], 3)

    logits, labels = robustness.logits_of(trained, loader)
    assert found["calibration"] == {
        "expected_calibration_error": pytest.approx(robustness.expected_calibration_error(logits, labels)),
        "num_bins": 15,
        "brier_score": pytest.approx(robustness.brier_score(logits, labels)),
        "negative_log_likelihood": pytest.approx(robustness.negative_log_likelihood(logits, labels)),
    }
    assert set(found["seconds"]) == {"accuracy", "blur", "deepfool", "pgd", "corruptions"}


def test_each_part_can_be_left_out(trained, data):
    off: dict[str, Any] = {"deepfool_images": 0, "sigmas": (), "pgd_images": 0, "corruption_images": 0}
    bare = robustness.evaluate(trained, *data, bounds=BOUNDS, **off)
    assert set(bare) == {"test_images", "bounds", "accuracy", "blurred_accuracy", "calibration", "seconds"}
    for switch, value, parts in (
        ("deepfool_images", 2, {"deepfool", "deepfool_score"}),
        ("sigmas", (1.0,), {"blur_sweep"}),
        ("pgd_images", 2, {"pgd"}),
        ("corruption_images", 2, {"corruptions"}),
    ):
        assert set(robustness.evaluate(trained, *data, bounds=BOUNDS, **{**off, switch: value})) - set(bare) == parts


def test_the_result_is_json_and_a_table(trained, data):
    how: dict[str, Any] = {"bounds": BOUNDS, "deepfool_images": 7, "pgd_images": 9, "pgd_steps": 2}
    found = robustness.evaluate(trained, *data, **how, corruption_images=11, severities=(1,))
    assert json.loads(found.to_json()) == found
    rows = [line.rsplit(maxsplit=2) for line in str(found).splitlines()[1:]]
    assert rows[0] == ["accuracy", f"{45 / 48:.4f}", "48"]
    assert [int(row[2]) for row in rows] == [48, 48, 48, 48, 48, 7, 9, 9, 11]
    shown = {row[1] for row in rows}
    for score in (found["blurred_accuracy"], found["deepfool_score"] / 4, found["pgd"]["l2"]["accuracy"]):
        assert f"{score:.4f}" in shown
    off: dict[str, Any] = {"deepfool_images": 0, "sigmas": (), "pgd_images": 0, "corruption_images": 0}
    assert len(str(robustness.evaluate(trained, *data, bounds=BOUNDS, **off)).splitlines()) == 6


def test_a_mean_over_no_image_is_null(trained, data):
    images, labels = data
    found = robustness.evaluate(trained, images[:3], labels[:3], bounds=BOUNDS, pgd_images=0, corruption_images=0)
    assert found["deepfool"]["score_correct"] is None
    assert found["deepfool"]["score_correct_unit_range"] is None
    assert found["deepfool"]["n_correct"] == 0
    json.dumps(found, allow_nan=False)


def test_evaluate_refuses_images_of_another_range(trained, data):
    with pytest.raises(ValueError, match=r"images must keep to bounds=\(-1.0, 1.0\): got values from -2 to 2"):
        robustness.evaluate(trained, *data)
    with pytest.raises(ValueError, match=r"labels must be class indices \[48\]: got int64 \[2\]"):
        robustness.evaluate(trained, data[0], data[1][:2], bounds=BOUNDS)
    with pytest.raises(ValueError, match="deepfool_images must be at least 0: got -1"):
        robustness.evaluate(trained, *data, bounds=BOUNDS, deepfool_images=-1)
