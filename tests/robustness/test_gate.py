"""The gate in front of every score: what a model returns, labels, modes of autograd, compilation, defaults, ranges."""

from __future__ import annotations

import collections
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from classifier import Sees
from defaults import other_defaults
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latent_mixup import robustness as scores
from latent_mixup.robustness.classifier import scored

CLASSES = 4
UNIT = (0.0, 1.0)
NO_CORRUPTIONS = {"deepfool_images": 4, "pgd_images": 4, "pgd_steps": 2, "corruption_images": 0, "sigmas": ()}

Score = Callable[[nn.Module, Tensor, Tensor], Any]
SCORES: dict[str, Score] = {
    "accuracy": lambda net, x, y: scores.accuracy(net, [(x, y)]),
    "logits_of": lambda net, x, y: scores.logits_of(net, [(x, y)])[0].sum().item(),
    "blurred_accuracy": lambda net, x, y: scores.blurred_accuracy(net, [(x, y)], 3),
    "blur_sweep": lambda net, x, y: scores.blur_sweep(net, [(x, y)], (1.0,), kernel_size=3),
    "corruption_accuracy": lambda net, x, y: scores.corruption_accuracy(
        net, [(x, y)], bounds=UNIT, names=["contrast", "gaussian_noise", "defocus_blur"], severities=[1]
    ),
    "deepfool": lambda net, x, y: scores.deepfool(net, x, num_classes=2).norms.sum().item(),
    "deepfool_score": lambda net, x, y: scores.deepfool_score(net, [(x, y)], num_classes=2).score,
    "pgd": lambda net, x, y: scores.pgd(net, x, y, bounds=UNIT, eps=0.1, steps=2).perturbations.sum().item(),
    "pgd_accuracy": lambda net, x, y: scores.pgd_accuracy(net, [(x, y)], bounds=UNIT, eps=0.1, norm="l2", steps=2),
    "evaluate": lambda net, x, y: without_seconds(scores.evaluate(net, x, y, bounds=UNIT, **NO_CORRUPTIONS)),
}
ATTACKS = ("deepfool", "deepfool_score", "pgd", "pgd_accuracy", "evaluate")
LABELLED = [name for name in SCORES if name != "deepfool"]


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    found.pop("seconds")
    return found


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, CLASSES)).double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(8, 3, 6, 6, generator=draw, dtype=torch.float64), torch.arange(8) % CLASSES


class Returns(nn.Module):
    """A classifier whose output is changed by a function."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner(images))


# --- what a model returns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, :1], r"two or more classes: got torch.float64 \[8, 1\]; make one logit z two"),
        (lambda z: z[:, 0], r"logits \[8, K\]: got \[8\]"),
        (lambda z: z[:, :, None, None], r"logits \[8, K\]: got \[8, 4, 1, 1\]"),
        (lambda z: z[:-1], r"logits \[8, K\]: got \[7, 4\]"),
        (lambda z: z.argmax(1), r"logits \[8, K\]: got \[8\]"),
        (lambda z: z * float("nan"), "NaN or infinite logits for 8 of 8 images"),
        (lambda z: torch.where(torch.arange(8)[:, None] == 3, z / 0, z), "NaN or infinite logits for 1 of 8 images"),
        (lambda z: {"scores": z}, "got a dict with 'scores'"),
        (lambda z: (z, z), "got a tuple of 2"),
        (lambda z: None, "got NoneType"),
    ],
    ids=["one logit", "a vector", "a convolutional head", "fewer", "classes", "nan", "inf", "a dict", "a pair", "None"],
)
@pytest.mark.parametrize("name", SCORES)
def test_no_score_takes_an_output_that_is_no_logits(name, change, message, net, data):
    with pytest.raises(ValueError, match=message):
        SCORES[name](Returns(net, change), *data)


class ModelOutput(collections.OrderedDict):
    """As transformers' image classifiers return it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(
    "change",
    [lambda z: {"logits": z}, lambda z: (z,), lambda z: ModelOutput(logits=z), lambda z: [z]],
    ids=["dict", "tuple", "ModelOutput", "list"],
)
@pytest.mark.parametrize("name", SCORES)
def test_logits_are_read_out_of_what_holds_them(name, change, net, data):
    assert SCORES[name](Returns(net, change), *data) == SCORES[name](net, *data)


@pytest.mark.parametrize("name", [*ATTACKS, "calibration"])
def test_probabilities_in_place_of_logits_are_said_once(name, net, data):
    images, labels = data
    soft = nn.Sequential(net, nn.Softmax(1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if name == "calibration":
            scores.brier_score(soft(images), labels)
        elif name == "deepfool_score":
            scores.deepfool_score(soft, [(images, labels)] * 3, num_classes=2)
        else:
            SCORES[name](soft, images, labels)
    assert ["probabilities" in str(warning.message) and "logits" in str(warning.message) for warning in said] == [True]


@pytest.mark.parametrize(
    "change", [lambda z: z.log_softmax(1), lambda z: z.clamp_min(0), lambda z: z.softmax(1) - 0.05, torch.sigmoid]
)
def test_logits_that_are_no_probabilities_are_taken_without_a_word(change, net, data):
    scores.deepfool_score(Returns(net, change), [data], num_classes=2)


# --- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(8) % CLASSES + 1, r"in \[0, 4\), the logits' classes: got 1 to 4; they count from 1"),
        (torch.full((8,), -1), r"in \[0, 4\).*: got -1 to -1; leave images without a label out"),
        (torch.arange(8), r"in \[0, 4\).*: got 0 to 7; pass a model of these classes"),
        (torch.zeros(8), r"class indices \[8\]: got float32 \[8\]"),
        (torch.zeros(8, 4).long(), r"class indices \[8\]: got int64 \[8, 4\]"),
        (torch.zeros(7).long(), r"class indices \[8\]: got int64 \[7\]"),
        ("cat", "class indices .*: got str"),
    ],
    ids=["from 1", "-1", "too many", "floats", "one-hot", "fewer", "a string"],
)
@pytest.mark.parametrize("name", LABELLED)
def test_no_score_takes_labels_that_are_no_classes_of_the_model(name, labels, message, net, data):
    with pytest.raises(ValueError, match=message):
        SCORES[name](net, data[0], labels)


@pytest.mark.parametrize(
    "kind",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64, "numpy", "list"],
    ids=str,
)
@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_any_integer_type_are_the_same_labels(name, kind, net, data):
    images, labels = data
    others = {"numpy": labels.numpy().astype(np.uint16), "list": labels.tolist()}
    other = others[kind] if isinstance(kind, str) else labels.to(kind)
    assert SCORES[name](net, images, other) == SCORES[name](net, images, labels)


# --- what a model does to its input, and modes --------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_a_model_that_works_in_place_scores_the_same_and_leaves_the_images(name, net, data):
    in_place, plain = Sees(lambda x: x.sub_(0.5).div_(0.5), net), Sees(lambda x: x.sub(0.5).div(0.5), net)
    before = data[0].clone()
    assert SCORES[name](in_place, *data) == SCORES[name](plain, *data)
    assert torch.equal(data[0], before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", SCORES)
def test_a_score_does_not_depend_on_the_callers_mode(name, mode, net, data):
    expected = SCORES[name](net, *data)
    with mode():
        before = torch.is_grad_enabled()
        assert SCORES[name](net, data[0] * 1, data[1] * 1) == expected  # images that are made in this mode
        assert torch.is_grad_enabled() is before


def test_a_model_made_in_inference_mode_is_refused_by_attacks_alone(data):
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES).double())
    scores.accuracy(net, [data])
    with pytest.raises(ValueError, match=r"build or load the model outside torch\.inference_mode"):
        scores.deepfool(net, data[0], num_classes=2)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own parts
@pytest.mark.parametrize("how", ["torch.compile", "Module.compile", "a layer", "a function"])
def test_a_compiled_classifier_scores_as_the_classifier(how, net, data):
    expected = {name: score(net, *data) for name, score in SCORES.items() if name in ATTACKS}
    compiled: nn.Module = net
    if how == "torch.compile":
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    elif how == "Module.compile":
        net.compile(backend="aot_eager")
    elif how == "a layer":
        compiled = nn.Sequential(torch.compile(net[:2], backend="aot_eager"), net[2:])
    else:
        compiled = Returns(net, torch.compile(lambda z: z * z.abs(), backend="aot_eager"))
        expected = {name: SCORES[name](Returns(net, lambda z: z * z.abs()), *data) for name in ATTACKS}
    compiled(data[0]).sum().backward()  # compiled for training before it is scored
    for name, value in expected.items():
        found = SCORES[name](compiled, *data)
        if name == "evaluate":
            assert found["deepfool_score"] == pytest.approx(value["deepfool_score"], rel=1e-9)
            assert (found["accuracy"], found["pgd"]) == (value["accuracy"], value["pgd"])
        else:
            assert found == pytest.approx(value, rel=1e-9)
    compiled(data[0]).sum().backward()


@pytest.mark.parametrize("name", SCORES)
def test_a_score_does_not_depend_on_the_default_device_and_dtype(name, net, data):
    net, data = net.float(), (data[0].float(), data[1])
    expected = SCORES[name](net, *data)
    for defaults in other_defaults():
        with defaults:
            assert SCORES[name](net, *data) == expected


@pytest.mark.parametrize("corruption", scores.corruption_names(3))
def test_corruptions_do_not_depend_on_the_default_device_and_dtype(corruption):
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = scores.corrupt(images, corruption, 3, bounds=UNIT)
    for defaults in other_defaults():
        with defaults:
            assert torch.equal(scores.corrupt(images, corruption, 3, bounds=UNIT), expected)


def test_the_gate_leaves_the_model_as_it_was_after_an_error(net, data):
    net.train()
    with scored(net):
        assert not net.training
    for name in SCORES:
        with pytest.raises(ValueError, match="logits"):
            SCORES[name](Returns(net, lambda z: z[:1]), *data)
        assert net.training


# --- arguments in other places ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_a_model_that_is_none_is_named(name, net, data):
    for model, word in (("resnet18", "str"), (DataLoader(TensorDataset(*data)), "DataLoader"), (net.forward, "method")):
        with pytest.raises(TypeError, match=rf"first argument must be the classifier, a torch.nn.Module: got {word}"):
            SCORES[name](model, *data)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("data/test", r"a loader of \(images, labels\) is needed: got str"),
        (7, r"a loader of \(images, labels\) is needed: got int"),
        (TensorDataset(torch.zeros(2, 3, 6, 6), torch.zeros(2)), "got the data set TensorDataset: pass DataLoader"),
        (nn.Identity(), r"a loader of \(images, labels\) is needed: got Identity"),
    ],
)
def test_a_loader_that_is_none_is_named(loader, message, net):
    for score in (
        lambda: scores.accuracy(net, loader),
        lambda: scores.deepfool_score(net, loader),
        lambda: scores.pgd_accuracy(net, loader, bounds=UNIT, eps=0.1),
        lambda: scores.corruption_accuracy(net, loader, bounds=UNIT),
        lambda: scores.evaluate(net, loader),
    ):
        with pytest.raises(TypeError, match=message):
            score()


@pytest.mark.parametrize("value", [[], "1", 3])
def test_lists_that_are_none_are_refused(value, net, data):
    with pytest.raises(ValueError, match="severities must be a list with an entry at least: got"):
        scores.evaluate(net, *data, bounds=UNIT, severities=value)
    for name in ("severities", "names"):
        with pytest.raises(ValueError, match=f"{name} must be a list with an entry at least: got"):
            scores.corruption_accuracy(net, [data], bounds=UNIT, **{name: value})
    if value != []:
        for score in (
            lambda: scores.evaluate(net, *data, bounds=UNIT, sigmas=value),
            lambda: scores.blur_sweep(net, [data], value),
        ):
            with pytest.raises(ValueError, match="sigmas must be a list: got"):
                score()
    with pytest.raises(ValueError, match=r"severity must be from 1 to 5: got '1'"):
        scores.corruption_accuracy(net, [data], bounds=UNIT, severities=["1"])


# --- the range of images ------------------------------------------------------------------------------------


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.5, 0.2])
PER_CHANNEL = [(-MEAN / STD).tolist(), ((1 - MEAN) / STD).tolist()]


def normalised(images: Tensor) -> Tensor:
    return (images - MEAN[:, None, None].to(images)) / STD[:, None, None].to(images)


def test_bounds_per_channel_score_as_the_same_images_in_0_1(net, data):
    images, labels = data
    how = {"deepfool_images": 4, "pgd_images": 8, "pgd_steps": 3, "corruption_images": 8, "severities": [3]}
    there = scores.evaluate(Sees(normalised, net), images, labels, bounds=UNIT, **how)
    here = scores.evaluate(net, normalised(images), labels, bounds=PER_CHANNEL, **how)
    assert here["deepfool"]["units"] == "[0, 1]"
    assert here["deepfool_score"] == pytest.approx(there["deepfool_score"], rel=1e-6)
    assert here["bounds"] == [pytest.approx(end) for end in PER_CHANNEL]
    for part in ("accuracy", "blurred_accuracy", "pgd", "corruptions"):
        assert here[part] == there[part]
    one, other = (
        scores.corrupt(each, "gaussian_noise", 3, bounds=bounds)
        for each, bounds in ((images, UNIT), (normalised(images), torch.tensor(PER_CHANNEL).double()))
    )
    torch.testing.assert_close(other, normalised(one), atol=1e-5, rtol=0)


def test_attacks_keep_to_bounds_per_channel(net, data):
    images, labels = normalised(data[0]), data[1]
    for bounds in (PER_CHANNEL, torch.tensor(PER_CHANNEL), np.array(PER_CHANNEL), [torch.tensor(PER_CHANNEL[0]), 9.0]):
        found = scores.pgd(net, images, labels, bounds=bounds, eps=1.5, steps=3)
        moved = images + found.perturbations
        low = moved.amin((0, 2, 3)).float() - torch.tensor(PER_CHANNEL[0])
        assert low.min() >= -1e-5
        assert low.min() < 1e-5  # they are reached
    with pytest.raises(ValueError, match="no units where channels differ in width: score a model that takes images"):
        scores.autoattack(net, images, labels, bounds=PER_CHANNEL, eps=0.1)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (1.0, "bounds must be two finite numbers, the values of black and white: got 1.0"),
        ((0.0, 1.0, 2.0), "two finite numbers"),
        (("0", "1"), "two finite numbers"),
        ((0.0, float("inf")), "two finite numbers"),
        ((1.0, 0.0), "two finite numbers"),
        (([0.0, 0.0, 2.0], 1.0), "two finite numbers"),
        (([0.0, 0.0], [1.0, 1.0]), "bounds must have one number for each of 3 channels, or one"),
        ((0.2, 1.0), r"images must keep to bounds=\(0.2, 1.0\): got values from 0.0"),
        (([0.0, 0.2, 0.0], 1.0), "images must keep to bounds="),
        ("01", "two finite numbers"),
    ],
)
def test_bounds_that_are_no_range_are_refused_alike(bounds, message, net, data):
    for score in (
        lambda: scores.pgd(net, *data, bounds=bounds, eps=0.1),
        lambda: scores.pgd_accuracy(net, [data], bounds=bounds, eps=0.1),
        lambda: scores.corrupt(data[0], "contrast", 1, bounds=bounds),
        lambda: scores.corruption_accuracy(net, [data], bounds=bounds),
        lambda: scores.evaluate(net, *data, bounds=bounds),
        lambda: scores.autoattack(net, *data, bounds=bounds, eps=0.1),
    ):
        with pytest.raises(ValueError, match=message):
            score()


def test_a_range_that_nobody_named_is_not_assumed_for_images_in_0_1(net, data):
    images, labels = data
    with pytest.raises(ValueError, match=r"bounds were not given: pass bounds=\(0, 1\) if black is 0"):
        scores.evaluate(net, images, labels)
    with pytest.raises(ValueError, match=r"bounds were not given: pass bounds=\(0, 255\)"):
        scores.evaluate(net, images * 255, labels)
    score = scores.deepfool_score(net, [data], num_classes=2)
    with pytest.raises(ValueError, match="bounds were not given"):
        score.in_unit_range()
    assert score.in_unit_range((0, 1)).score == score.score
    assert score.in_unit_range((-1, 1)).score == score.score / 2
    assert scores.evaluate(net, images * 2 - 1, labels, **NO_CORRUPTIONS)["bounds"] == [-1.0, 1.0]
    with pytest.raises(ValueError, match="images must keep to bounds"):
        scores.deepfool_score(net, [(images * 3, labels)], num_classes=2).in_unit_range((0, 1))


def test_evaluate_takes_a_loader_and_numbers_of_numpy(net, data):
    how: dict[str, Any] = {**NO_CORRUPTIONS, "corruption_images": 4, "bounds": UNIT}
    expected = without_seconds(scores.evaluate(net, *data, **{**how, "severities": [1, 4], "sigmas": [1.0]}))
    numbers = {"severities": np.array([1, 4]), "sigmas": np.array([1.0])}
    found = without_seconds(scores.evaluate(net, DataLoader(TensorDataset(*data), 3), **{**how, **numbers}))
    assert json.loads(json.dumps(found)) == expected
    with pytest.raises(ValueError, match="accuracy needs labels"):
        scores.evaluate(net, data[0], bounds=UNIT)
    with pytest.raises(TypeError, match="a loader gives the labels itself: leave labels out"):
        scores.evaluate(net, [data], data[1], bounds=UNIT)


WITH_BOUNDS: dict[str, Callable[..., Any]] = {
    "pgd": lambda net, x, y, **how: scores.pgd(net, x, y, eps=0.2, steps=2, **how).perturbations,
    "adversarial": lambda net, x, y, **how: scores.adversarial(
        net, x, y, eps=0.2, steps=2, generator=torch.Generator().manual_seed(0), **how
    ),
    "pgd_accuracy": lambda net, x, y, **how: scores.pgd_accuracy(net, [(x, y)], eps=0.2, steps=2, **how),
    "corrupt": lambda net, x, y, **how: scores.corrupt(x, "gaussian_noise", 2, **how),
    "corruption_accuracy": lambda net, x, y, **how: scores.corruption_accuracy(
        net, [(x, y)], names=["contrast"], **how
    ),
    "autoattack": lambda net, x, y, **how: scores.autoattack(net, x, y, eps=0.2, attacks=["apgd-ce"], **how),
    "evaluate": lambda net, x, y, **how: scores.evaluate(net, x, y, **NO_CORRUPTIONS, **how)["deepfool"][
        "score_unit_range"
    ],
    "in_unit_range": lambda net, x, y, **how: scores.deepfool_score(net, x, num_classes=2).in_unit_range(**how).score,
}


@pytest.mark.parametrize("name", WITH_BOUNDS)
def test_bounds_have_one_default_everywhere(name, net, data):
    score, (images, labels) = WITH_BOUNDS[name], data
    signed = images * 2 - 1
    torch.testing.assert_close(score(net, signed, labels), score(net, signed, labels, bounds=(-1, 1)), rtol=0, atol=0)
    with pytest.raises(
        ValueError, match=r"bounds were not given: pass bounds=\(0, 1\) if black is 0, or bounds=\(-1, 1\)"
    ):
        score(net, images, labels)


def test_every_score_with_bounds_is_tried_above():
    takes = {name for name in scores.__all__ if "bounds" in getattr(getattr(scores, name), "__annotations__", {})}
    assert takes | {"in_unit_range"} == {*WITH_BOUNDS}


# --- models for others ----------------------------------------------------------------------------------------


def test_normalized_is_the_model_on_normalised_images(net, data):
    images, labels = data
    model = scores.Normalized(net, MEAN.tolist(), STD)
    torch.testing.assert_close(model(images), net(normalised(images)), rtol=0, atol=1e-6)
    assert model(images.float()).dtype == torch.float32  # others attack in float32, whatever the model computes in
    torch.testing.assert_close(scores.Normalized(net, 0.5, 0.5)(images), net(images * 2 - 1))
    wrapped = scores.Normalized(Returns(net, lambda z: {"logits": z}), MEAN, STD)
    assert torch.equal(wrapped(images), model(images))
    assert "mean=(0.5," in repr(model)
    there = scores.evaluate(model, images, labels, bounds=UNIT, **NO_CORRUPTIONS)
    here = scores.evaluate(net, normalised(images), labels, bounds=PER_CHANNEL, **NO_CORRUPTIONS)
    assert there["deepfool_score"] == pytest.approx(here["deepfool_score"], rel=1e-5)
    assert there["pgd"] == here["pgd"]


def test_normalized_refuses_what_it_cannot_do(net, data):
    with pytest.raises(ValueError, match="mean and std have 3 numbers for images of 1 channels"):
        scores.Normalized(net, MEAN, STD)(data[0][:, :1])
    with pytest.raises(ValueError, match="as many finite numbers, std above 0"):
        scores.Normalized(net, MEAN, [0.2, 0.0, 0.2])
    with pytest.raises(TypeError, match="must be the classifier"):
        scores.Normalized(net.forward, 0.5, 0.5)


def test_foolbox_and_autoattack_attack_a_normalized_model(net, data):
    images, labels = data[0].float(), net(normalised(data[0])).argmax(1)
    model = scores.Normalized(net, MEAN, STD).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports scipy names that are going away
        import foolbox

        theirs = foolbox.PyTorchModel(model, bounds=UNIT, device="cpu")
        _, found, fooled = foolbox.attacks.LinfPGD(steps=5)(theirs, images, labels, epsilons=0.3)
    assert fooled.any()
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(net(normalised(found.double())).argmax(1) != labels, fooled)
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, attacks=["apgd-ce"], version="custom", norm="Linf", eps=0.3, device="cpu", seed=0)
    moved = attack.run_standard_evaluation(images, labels, batch_size=8)[0]
    ours = scores.autoattack(model, images, labels, bounds=UNIT, eps=0.3, attacks=["apgd-ce"])
    assert torch.equal(moved, ours)
    assert (net(normalised(moved.double())).argmax(1) != labels).any()
