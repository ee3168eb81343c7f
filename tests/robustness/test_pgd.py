"""PGD against the one-image loop and foolbox, and by its laws."""

from __future__ import annotations

import warnings

import pytest
import torch
from classifier import Sees, loader_of, noisy_patterns
from reference import pgd_one_image
from torch import Tensor, nn

from latent_mixup.robustness import accuracy, deepfool, pgd, pgd_accuracy

BOUNDS = (-1.5, 1.5)
RADII = {"linf": 0.22, "l2": 2.0}  # at which some images are fooled late, some never
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Some of the images reach the bounds, one has a wrong label."""
    return noisy_patterns(limit=1.5, mislabelled=slice(5, 6))


def lengths(perturbations: Tensor, norm: str) -> Tensor:
    return perturbations.flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)


@NORMS
def test_equals_the_one_image_loop(norm, trained, data):
    images, labels = data
    how = {"eps": RADII[norm], "step_size": RADII[norm] / 4, "steps": 8, "bounds": BOUNDS}
    found = pgd(trained, images, labels, norm=norm, random_start=False, **how)
    for i in range(24):
        reached, steps, fooled = pgd_one_image(trained, images[i], int(labels[i]), images[i], norm, **how)
        torch.testing.assert_close(images[i] + found.perturbations[i], reached, atol=1e-9, rtol=0)
        assert (int(found.iterations[i]), bool(found.fooled[i])) == (steps, fooled)
    assert 0 < found.fooled.sum() < 48
    assert found.iterations[found.fooled].max() > 1


@NORMS
def test_equals_foolbox(norm, trained, data):
    """foolbox does not stop where an image is fooled, so each is compared after as many steps as ours took."""
    images, labels = data
    step = RADII[norm] / 4
    found = pgd(
        trained, images, labels, norm=norm, eps=RADII[norm], step_size=step, steps=8, bounds=BOUNDS, random_start=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports scipy names that are going away
        import foolbox

        wrapped = foolbox.PyTorchModel(trained, bounds=BOUNDS, device="cpu")
        attack_type = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
        for steps in found.iterations.unique().tolist():
            if steps == 0:
                continue
            rows = found.iterations == steps
            attack = attack_type(abs_stepsize=step, steps=steps, random_start=False)
            _, theirs, fooled = attack(wrapped, images[rows], labels[rows], epsilons=RADII[norm])
            torch.testing.assert_close(images[rows] + found.perturbations[rows], theirs, atol=1e-6, rtol=0)
            assert torch.equal(found.fooled[rows], fooled)


@NORMS
def test_stays_in_the_ball_and_in_the_bounds_and_fools(norm, trained, data):
    images, labels = data
    found = pgd(trained, images, labels, norm=norm, eps=RADII[norm], bounds=BOUNDS)
    moved = images + found.perturbations
    assert lengths(found.perturbations, norm).max() <= RADII[norm] * (1 + 1e-6)
    assert lengths(found.perturbations, norm).max() > 0.9 * RADII[norm]
    assert BOUNDS[0] - 1e-9 <= moved.min()
    assert moved.max() <= BOUNDS[1] + 1e-9
    assert torch.equal(trained(moved).argmax(1) != labels, found.fooled)


def test_a_wrong_image_is_fooled_from_the_start(trained, data):
    found = pgd(trained, *data, eps=0.1, bounds=BOUNDS, steps=2)
    assert found.fooled[5]
    assert found.iterations[5] == 0
    assert found.perturbations[5].abs().max() == 0


@NORMS
def test_a_linear_classifier_falls_exactly_at_its_distance(norm):
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0]]).double()

    class Line(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1) @ weight.T
            return torch.cat([score, -score], dim=1)

    image = torch.full((1, 1, 2, 2), 0.1).double()
    score = float(image.flatten() @ weight[0])
    distance = score / float(weight.abs().sum() if norm == "linf" else weight.norm())
    for share, fooled in ((0.99, False), (1.01, True)):
        eps = share * distance
        found = pgd(Line(), image, torch.zeros(1).long(), norm=norm, eps=eps, step_size=eps, bounds=(-1, 1))
        assert bool(found.fooled) is fooled


@NORMS
def test_an_image_does_not_depend_on_its_batch(norm, trained, data, monkeypatch):
    images, labels = data
    how = {"norm": norm, "eps": RADII[norm], "bounds": BOUNDS, "restarts": 2, "steps": 3, "seed": 3}
    whole = pgd(trained, images, labels, **how)
    part = pgd(trained, images[7:19], labels[7:19], first_index=7, **how)
    torch.testing.assert_close(part.perturbations, whole.perturbations[7:19], atol=1e-9, rtol=0)
    assert torch.equal(part.iterations, whole.iterations[7:19])
    monkeypatch.setattr("latent_mixup.robustness.shared.CHUNK_IMAGES", 5)
    chunked = pgd(trained, images, labels, **how)
    torch.testing.assert_close(chunked.perturbations, whole.perturbations, atol=1e-9, rtol=0)
    elsewhere = pgd(trained, images[7:19], labels[7:19], **how)
    assert not torch.equal(elsewhere.perturbations, part.perturbations)


@NORMS
def test_random_starts_fill_the_ball(norm):
    """Of a model that no step moves, what is found is the start."""

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([1 + 0 * images.sum((1, 2, 3)), 0 * images.sum((1, 2, 3))], dim=1)

    images, labels = torch.zeros(2000, 1, 1, 2), torch.zeros(2000).long()
    starts = pgd(Flat(), images, labels, norm=norm, eps=0.5, bounds=(-1, 1), steps=1).perturbations
    assert lengths(starts, norm).max() <= 0.5 + 1e-6
    assert starts.mean((0, 1, 2)).abs().max() < 0.02
    inner = (lengths(starts, norm) < 0.25).float().mean()  # half the radius of a disk or square holds a quarter
    assert inner == pytest.approx(0.25, abs=0.03)
    assert len(starts.flatten(1).unique(dim=0)) == 2000


def test_restarts_only_add(trained, data):
    how = {"eps": 0.26, "steps": 2, "bounds": BOUNDS}  # where for several images the start decides
    once, thrice = (pgd(trained, *data, restarts=n, **how) for n in (1, 3))
    assert thrice.fooled[once.fooled].all()
    assert thrice.fooled.sum() > once.fooled.sum()
    assert (thrice.iterations[~thrice.fooled] == 6).all()


def test_accuracy_is_what_was_right_and_stays_right(trained, data):
    how = {"eps": RADII["linf"], "bounds": BOUNDS, "steps": 5}
    expected = 1 - pgd(trained, *data, **how).fooled.double().mean().item()
    for size in (1, 7, 48):
        loader = loader_of(data, size)
        assert pgd_accuracy(trained, loader, **how) == pytest.approx(expected)
    first = 1 - pgd(trained, data[0][:10], data[1][:10], **how).fooled.double().mean().item()
    assert pgd_accuracy(trained, loader, max_images=10, **how) == pytest.approx(first)
    tiny = pgd_accuracy(trained, [data], eps=1e-9, bounds=BOUNDS)
    assert tiny == accuracy(trained, [data]) > expected > pgd_accuracy(trained, [data], eps=1.0, bounds=BOUNDS)


def test_a_shorter_way_than_deepfools_is_rarely_missed(trained, data):
    """Within DeepFool's own norm of an image, the attack finds nearly all that DeepFool found."""
    images, _ = data
    near = deepfool(trained, images, num_classes=6)
    eps = near.norms.median().item()
    inside = near.norms < 0.98 * eps
    found = pgd(trained, images, near.labels, norm="l2", eps=eps, bounds=(-9, 9), steps=40)
    assert found.fooled[inside].double().mean() > 0.95


def test_leaves_the_model_and_the_random_state_as_they_were(data, trained):
    trained.train()
    grads = [parameter.grad.clone() for parameter in trained.parameters()]  # left over from its training
    state = torch.get_rng_state()
    with torch.no_grad():
        pgd_accuracy(trained, [data], eps=0.1, bounds=BOUNDS, steps=2)
        assert not torch.is_grad_enabled()
    assert trained.training
    trained.eval()
    assert all(
        torch.equal(parameter.grad, before) for parameter, before in zip(trained.parameters(), grads, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps must be a positive length in the units of the images: got 0.0"),
        ({"step_size": -1.0}, "step_size must be a positive length"),
        ({"steps": 0}, "steps must be at least 1: got 0"),
        ({"restarts": 0}, "restarts must be at least 1: got 0"),
        ({"norm": "l1"}, 'norm must be "linf" or "l2": got \'l1\''),
        ({"restarts": 2, "random_start": False}, "restarts=2 from one start all end alike"),
        ({"bounds": (0.0, 1.0)}, r"images must keep to bounds=\(0.0, 1.0\): got values from -1.5 to 1.5"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be two finite numbers, the values of black and white: got \(1.0, 0.0\)"),
    ],
)
def test_bad_settings_are_refused(settings, message, trained, data):
    with pytest.raises(ValueError, match=message):
        pgd(trained, *data, **{"eps": 0.1, "bounds": BOUNDS, **settings})


def test_bad_models_and_batches_are_refused(trained, data):
    images, labels = data
    with pytest.raises(ValueError, match="no gradient back to the images"):
        pgd(Sees(torch.detach, trained), images, labels, eps=0.1, bounds=BOUNDS)
    with pytest.raises(ValueError, match="needs labels: pass a loader"):
        pgd_accuracy(trained, images, eps=0.1, bounds=BOUNDS)
    with pytest.raises(ValueError, match="at least one image: the loader gave none"):
        pgd_accuracy(trained, [], eps=0.1, bounds=BOUNDS)
