"""DeepFool against the one-image loop, its closed form and foolbox, and by its laws."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from classifier import CLASSES, Sees, loader_of, small_cnn
from reference import deepfool_one_image
from torch import Tensor, nn

from latent_mixup.robustness import DeepFoolResult, accuracy, blurred_accuracy, deepfool, deepfool_score


def test_equals_the_one_image_loop(trained, data):
    images = data[0][:16]
    result = deepfool(trained, images, num_classes=5)
    expected = [deepfool_one_image(trained, image, num_classes=5) for image in images]
    torch.testing.assert_close(result.perturbations, torch.stack([r for r, _ in expected]), atol=1e-5, rtol=1e-5)
    assert result.iterations.tolist() == [steps for _, steps in expected]
    assert result.iterations.max() > 1
    assert result.fooled.all()


def test_equals_the_one_image_loop_in_float32(trained, data):
    net, images = copy.deepcopy(trained).float(), data[0][:16].float()
    norms = deepfool(net, images, num_classes=CLASSES).norms
    expected = [deepfool_one_image(net, image, CLASSES)[0].norm() for image in images]
    # rounding, which hangs on the processor, may decide at the kink of a ReLU: 3e-4 at the most in 1,000 images
    torch.testing.assert_close(norms, torch.stack(expected), atol=2e-3, rtol=0)


def test_is_cut_off_like_the_one_image_loop(trained, data):
    images = data[0][:12]
    result = deepfool(trained, images, num_classes=CLASSES, max_iter=1, overshoot=0)
    expected = [deepfool_one_image(trained, image, CLASSES, 0, 1) for image in images]
    torch.testing.assert_close(result.perturbations, torch.stack([r for r, _ in expected]), atol=1e-5, rtol=1e-5)
    assert not result.fooled.all()


def test_what_it_returns_fools(trained, data):
    images = data[0]
    result = deepfool(trained, images, num_classes=CLASSES)
    with torch.no_grad():
        assert torch.equal(trained(images).argmax(1), result.labels)
        assert (trained(images + result.perturbations).argmax(1) != result.labels).all()
    torch.testing.assert_close(result.norms, result.perturbations.flatten(1).norm(dim=1))
    assert result.perturbations.shape == images.shape
    assert (result.iterations.dtype, result.fooled.dtype) == (torch.int64, torch.bool)


def test_a_linear_classifier_has_a_closed_form(linear):
    images = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    result = deepfool(linear, images, num_classes=4)
    weight, logits = linear[1].weight.detach(), linear(images).detach()
    for logit, label, norm in zip(logits, result.labels, result.norms, strict=True):
        others = [k for k in range(4) if k != label]
        exact = min((logit[label] - logit[k]) / (weight[k] - weight[label]).norm() for k in others)
        torch.testing.assert_close(norm, 1.02 * (exact + 1e-4), atol=1e-5, rtol=1e-5)
    assert result.iterations.eq(1).all()


def test_only_the_likeliest_classes_are_looked_at():
    class ThirdIsNearest(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x, y = images.flatten(1).T
            return torch.stack([2 + 0 * x, 1 + x, 10 * y], dim=1)

    image = torch.zeros(1, 1, 1, 2)
    for num_classes, distance in ((2, 1.0), (3, 0.2)):
        norm = deepfool(ThirdIsNearest(), image, num_classes=num_classes).norms.item()
        assert norm == pytest.approx(1.02 * (distance + 1e-4), abs=1e-6)


def test_the_norm_has_the_units_of_the_input(linear):
    unit = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    in_unit = deepfool(Sees(lambda x: x * 2 - 1, linear), unit, num_classes=4).norms
    in_symmetric = deepfool(linear, unit * 2 - 1, num_classes=4).norms
    torch.testing.assert_close(in_symmetric, 2 * in_unit, atol=2e-4, rtol=0)


def test_equals_foolbox(trained, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports scipy names that are going away
        import foolbox

        images = data[0]
        ours = deepfool(trained, images, num_classes=CLASSES)
        wrapped = foolbox.PyTorchModel(trained, bounds=(-1e6, 1e6), device="cpu")
        attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=CLASSES, overshoot=0.02)
        fooling, _, _ = attack(wrapped, images, ours.labels, epsilons=None)
    torch.testing.assert_close(fooling - images, ours.perturbations, atol=1e-5, rtol=1e-5)


def test_an_image_does_not_depend_on_its_batch(trained, data, monkeypatch):
    images = data[0]
    whole = deepfool(trained, images, num_classes=CLASSES)

    def same_as_whole(result: DeepFoolResult, rows: Tensor) -> None:
        torch.testing.assert_close(result.perturbations, whole.perturbations[rows], atol=1e-5, rtol=1e-5)
        assert torch.equal(result.iterations, whole.iterations[rows])

    for rows in (torch.tensor([7]), torch.arange(48).flip(0), torch.tensor([3, 3, 40])):
        same_as_whole(deepfool(trained, images[rows], num_classes=CLASSES), rows)
    monkeypatch.setattr("latent_mixup.robustness.shared.CHUNK_IMAGES", 5)
    same_as_whole(deepfool(trained, images, num_classes=CLASSES), torch.arange(48))


class DeadBelowZero(nn.Module):
    """Logits that a ReLU makes constant for an image below zero."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.sum(dim=(1, 2, 3)).relu()
        return torch.stack([torch.ones_like(total), 2 + 0 * total, total], dim=1)


def test_a_dead_gradient_ends_unfooled():
    images = torch.stack([torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), 0.1)])
    result = deepfool(DeadBelowZero(), images, num_classes=3)
    assert result.fooled.tolist() == [False, True]
    assert result.iterations.tolist() == [0, 1]
    assert result.norms[0] == 0
    assert result.perturbations.isfinite().all()
    score = deepfool_score(DeadBelowZero(), images, num_classes=3)
    assert (score.fooled_fraction, score.max_iter_hits, score.mean_iterations) == (0.5, 0, 0.5)


def test_an_image_thrown_out_of_float_range_ends_unfooled():
    class Faint(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            s = images.sum(dim=(1, 2, 3))
            return torch.stack([1 + s * s * s, 1e-15 * s - 1], dim=1)

    result = deepfool(Faint(), torch.zeros(1, 1, 2, 2), num_classes=2)
    assert not result.fooled.any()
    assert result.perturbations.isfinite().all()


def test_leaves_the_model_and_the_random_state_as_they_were(data):
    images, labels = data
    net = small_cnn().double().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()

    deepfool(net, images[:4], num_classes=CLASSES, max_iter=2)
    accuracy(net, [(images, labels)])
    blurred_accuracy(net, [(images, labels)])
    with pytest.raises(ValueError, match="num_classes=10 is more than"):
        deepfool(net, images[:4])

    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()][:2] == [False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.zeros(1, 4, 4), {}, r"images must be a float tensor \[B, C, H, W\]: got float32 \[1, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {}, r"got uint8 \[1, 3, 4, 4\]"),
        (torch.zeros(0, 3, 4, 4), {}, r"images must not be empty: got float32 \[0, 3, 4, 4\]"),
        (torch.full((1, 3, 4, 4), float("nan")), {}, "images must be finite: got 48 nan or inf"),
        (torch.zeros(1, 3, 4, 4), {"num_classes": 10}, "more than the model's 4 logits: pass num_classes=4"),
        (torch.zeros(1, 3, 4, 4), {"num_classes": 1}, "num_classes must be at least 2: got 1"),
        (torch.zeros(1, 3, 4, 4), {"overshoot": -0.1}, "overshoot must be .*: got -0.1"),
        (torch.zeros(1, 3, 4, 4), {"max_iter": 0}, "max_iter must be at least 1: got 0"),
    ],
)
def test_bad_input_is_refused(images, settings, message, linear):
    with pytest.raises(ValueError, match=message):
        deepfool(linear, images, **settings)


def test_bad_models_are_refused(linear):
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 4)

    for model in (Sees(torch.detach, linear), Constant()):
        with pytest.raises(ValueError, match="no gradient back to the images"):
            deepfool(model, torch.zeros(2, 3, 4, 4), num_classes=4)


def test_score_is_the_mean_over_the_first_images(trained, data):
    images, labels = data
    labels = labels.roll(1)
    labels[:5] = data[1][:5]  # five right ones
    result = deepfool(trained, images[:20], num_classes=CLASSES)
    for batch_size in (1, 7, 48):
        score = deepfool_score(trained, loader_of((images, labels), batch_size), num_classes=CLASSES, max_images=20)
        assert float(score) == score.score == pytest.approx(result.norms.mean().item(), abs=1e-5)
        right = result.labels == labels[:20]
        assert score.score_correct == pytest.approx(result.norms[right].mean().item(), abs=1e-5)
        assert (score.n_images, score.input_size, score.fooled_fraction) == (20, (1, 12, 12), 1.0)
        assert score.n_correct == int(right.sum()) > 0
        assert score.mean_iterations == pytest.approx(result.iterations.double().mean().item())


def test_score_in_unit_range_has_the_units_of_images_in_0_1(linear):
    unit = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = linear(unit * 2 - 1).argmax(1)
    score = deepfool_score(linear, [(unit * 2 - 1, labels)], num_classes=4)
    there = deepfool_score(Sees(lambda x: x * 2 - 1, linear), [(unit, labels)], num_classes=4)
    halved = score.in_unit_range()
    assert (halved.score, halved.score_correct) == (score.score / 2, score.score_correct / 2)
    assert halved.score == pytest.approx(there.score, abs=2e-4)
    assert there.in_unit_range((0, 1)) == there
    assert (halved.n_images, halved.input_size) == (score.n_images, score.input_size)
    with pytest.raises(ValueError, match=r"two finite numbers, the values of black and white: got \(1, -1\)"):
        score.in_unit_range((1, -1))


def test_score_of_a_tensor_has_no_correct_part(trained, data):
    from_tensor = deepfool_score(trained, data[0], num_classes=CLASSES)
    from_loader = deepfool_score(trained, loader_of(data, 16), num_classes=CLASSES)
    assert from_tensor.score == pytest.approx(from_loader.score, abs=1e-5)
    assert from_tensor.score_correct != from_tensor.score_correct  # nan
    assert (from_tensor.n_images, from_tensor.n_correct) == (48, 0)


def test_score_counts_the_images_that_ran_out_of_steps(trained, data):
    result = deepfool(trained, data[0], num_classes=CLASSES, overshoot=0, max_iter=1)
    score = deepfool_score(trained, data[0], num_classes=CLASSES, overshoot=0, max_iter=1)
    assert score.max_iter_hits == int((~result.fooled).sum()) > 0


def test_score_shows_progress_when_asked(trained, data, capsys):
    deepfool_score(trained, data[0], num_classes=CLASSES, max_images=3)
    assert capsys.readouterr().err == ""
    deepfool_score(trained, data[0], num_classes=CLASSES, max_images=3, progress=True)
    assert "3/3" in capsys.readouterr().err
