"""AutoAttack's adapter."""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from classifier import Sees, noisy_patterns
from torch import Tensor, nn

from latent_mixup.robustness import accuracy, autoattack, pgd_accuracy
from latent_mixup.sampling import states_kept

BOUNDS = (-2.0, 2.0)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return noisy_patterns(limit=2, mislabelled=slice(3))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 2.5)])
def test_autoattack_stays_within_eps_and_is_no_weaker_than_pgd(norm, eps, trained, data):
    pytest.importorskip("pyautoattack")
    images, labels = data[0][:12], data[1][:12]
    state = torch.get_rng_state()
    found = autoattack(trained, images, labels, bounds=BOUNDS, eps=eps, norm=norm, attacks=["apgd-ce"])
    assert torch.equal(torch.get_rng_state(), state)
    moved = (found - images).flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert 0.9 * eps < moved.max() <= eps * (1 + 1e-5)
    assert BOUNDS[0] - 1e-6 <= found.min() <= found.max() <= BOUNDS[1] + 1e-6
    assert torch.equal(found[:3], images[:3])  # wrong already
    loader = [(images, labels)]
    standing = accuracy(trained, [(found, labels)])
    assert standing <= pgd_accuracy(trained, loader, bounds=BOUNDS, eps=eps, norm=norm) < accuracy(trained, loader)


def test_autoattack_sees_images_in_0_1(trained, data):
    pytest.importorskip("pyautoattack")
    images, labels = data[0][:8], data[1][:8]
    unit = (images - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    how = {"norm": "linf", "attacks": ["apgd-ce"], "batch_size": 5}
    own = autoattack(trained, images, labels, bounds=BOUNDS, eps=0.4, **how)
    in_units = Sees(lambda x: BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * x.double(), trained)  # for images in float32
    there = autoattack(in_units, unit.float(), labels, bounds=(0, 1), eps=0.1, **how)
    found = (own.float() - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    torch.testing.assert_close(found, there, atol=1e-5, rtol=0)  # the models compute alike, so no sign can differ


def test_autoattack_refuses_too_few_classes(trained, data):
    pytest.importorskip("pyautoattack")
    with pytest.raises(ValueError, match="targeted attacks apgd-t, fab-t need 10 classes: got 6 logits; pass attacks="):
        autoattack(trained, *data, bounds=BOUNDS, eps=0.1)
    with pytest.raises(ValueError, match="eps must be a positive length"):
        autoattack(trained, *data, bounds=BOUNDS, eps=0)
    for attacks, message in (
        ([], "attacks must be a list with an entry at least"),
        ("apgd-ce", "attacks must be a list with an entry at least"),
        (["apgd"], "no attack 'apgd': choose from apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t"),
    ):
        with pytest.raises(ValueError, match=message):
            autoattack(trained, *data, bounds=BOUNDS, eps=0.1, attacks=attacks)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_attacks_that_an_error_proposes_run(num_classes):
    pytest.importorskip("pyautoattack")
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = net(images).argmax(1)
    with pytest.raises(ValueError, match=f"need 10 classes: got {num_classes} logits; pass attacks=") as refused:
        autoattack(net, images, labels, bounds=(0, 1), eps=0.9)
    proposed = json.loads(str(refused.value).rpartition("attacks=")[2])
    assert proposed == ["apgd-ce", *(["apgd-dlr"] if num_classes > 2 else []), "fab", "square"]
    for attack in proposed:
        found = autoattack(net, images, labels, bounds=(0, 1), eps=0.9, attacks=[attack])
        assert (net(found).argmax(1) != labels).all()
    if num_classes == 2:
        with pytest.raises(ValueError, match="the attack apgd-dlr needs 3 classes: got 2 logits"):
            autoattack(net, images, labels, bounds=(0, 1), eps=0.9, attacks=["apgd-ce", "apgd-dlr"])


def test_only_the_random_states_in_use_are_saved(monkeypatch):
    """Saving that of every GPU would start them all."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda **how: asked.append(how) or contextlib.nullcontext())
    for device in ("cpu", "mps", "cuda:1", "xpu:0"):
        states_kept(torch.device(device))
    kept = [{"devices": [torch.device(name)], "device_type": name[:-2]} for name in ("cuda:1", "xpu:0")]
    assert asked == [{"devices": []}, {"devices": []}, *kept]


def test_autoattack_missing_names_the_extra(monkeypatch, trained):
    original: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pyautoattack":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'AutoAttack needs pyautoattack: pip install "latent-mixup\[robust\]"'):
        autoattack(trained, torch.zeros(1, 1, 12, 12), torch.zeros(1).long(), bounds=(0, 1), eps=0.1)
