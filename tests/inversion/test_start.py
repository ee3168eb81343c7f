"""Where an inversion without an encoder starts: the nearest draw, or a linear guess where that is nearer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup.generators import wrap
from latent_mixup.generators.base import Generator
from latent_mixup.inversion import pixel_mse
from latent_mixup.inversion import start as module
from latent_mixup.inversion.start import DrawnStart, coarse
from latent_mixup.sampling import keyed_generator

DRAWS = 100


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curved(shape: tuple[int, ...] = (6,), resolution: int = 4) -> Generator:
    """Images that are far from linear in their code: a guess may be far off."""
    size = torch.Size(shape).numel()
    first, second = normal(size, 12, seed=1) / 3, normal(12, resolution * resolution, seed=2) / 4
    return wrap(
        lambda z: ((z.flatten(1) @ first).sin() @ second).tanh().view(-1, 1, resolution, resolution), latent_shape=shape
    )


def nearest_draw(generator: Generator, target: Tensor, seed: int) -> Tensor:
    """Of the mean code and the draws, that whose coarse image is nearest: one after the other."""
    codes = [generator.mean_latent(), *generator.sample_latents(DRAWS, keyed_generator("start", seed))]
    return min(codes, key=lambda code: float((coarse(generator.decode(code[None])) - coarse(target[None])).norm()))


def test_the_start_of_a_linear_generator_is_exact(linear_generator, toy_dataset, monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 1e-6)
    images = toy_dataset.images
    torch.testing.assert_close(
        DrawnStart(linear_generator, DRAWS, 0)(images), linear_generator.encode(images), rtol=0, atol=1e-3
    )


def test_the_guess_is_ridge_regression(linear_generator, toy_dataset):
    """The dual form against the primal one, with its matrix of pixels x pixels."""
    start = DrawnStart(linear_generator, DRAWS, 0)
    draws = torch.cat(
        [torch.zeros(1, 16), linear_generator.sample_latents(DRAWS, keyed_generator("start", 0))]
    ).double()
    images = linear_generator.decode(draws.float()).flatten(1).double()
    x, z = images - images.mean(0), draws - draws.mean(0)
    penalty = module.RIDGE * x.square().sum(1).mean()
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(16, dtype=torch.float64), x.T @ z)
    wanted = draws.mean(0) + (toy_dataset.images.flatten(1) - images.mean(0)) @ weights
    torch.testing.assert_close(start(toy_dataset.images), wanted.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", [4, 40])
def test_the_start_is_the_nearest_draw_or_better(resolution):
    generator = curved(resolution=resolution)
    drawn = generator.sample_latents(DRAWS, keyed_generator("start", 3))[:20]
    targets = generator.decode(
        torch.cat([0.95 * drawn, normal(20, 6, seed=7)])
    )  # of codes beside the draws, and others
    starts = DrawnStart(generator, DRAWS, 3)(targets)
    same = 0
    for code, target in zip(starts, targets, strict=True):
        nearest = nearest_draw(generator, target, 3)
        same += torch.equal(code, nearest)
        errors = pixel_mse(generator.decode(torch.stack([code, nearest])), target[None])
        assert errors[0] <= errors[1] + 1e-6
    assert 10 < same < 35  # sometimes the draw, sometimes the guess


def test_the_mean_code_is_one_of_the_draws():
    """The image of the mean code starts from it, whatever was drawn."""
    generator = curved()
    mean = generator.mean_latent()[None]
    assert DrawnStart(generator, DRAWS, 0)(generator.decode(mean)).equal(mean)


def test_a_start_does_not_depend_on_its_batch():
    generator = curved(shape=(2, 3))
    targets = normal(70, 1, 4, 4).clamp(-1, 1)  # more than are decoded at a time
    start = DrawnStart(generator, DRAWS, 0)
    together = start(targets)
    assert together.shape == (70, 2, 3)
    alone = torch.cat([start(target[None]) for target in targets])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)
    assert start(targets[:0]).shape == (0, 2, 3)


def test_a_start_depends_on_the_seed_alone():
    generator, targets, before = curved(), normal(20, 1, 4, 4), torch.get_rng_state()
    first, again, other = (DrawnStart(generator, DRAWS, seed)(targets) for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(before)


def test_large_images_are_compared_at_32_px():
    images = normal(3, 2, 64, 64)
    blocks = images.view(3, 2, 32, 2, 32, 2).mean((3, 5))
    torch.testing.assert_close(coarse(images), blocks.flatten(1))
    assert coarse(normal(3, 2, 33, 33)).shape == (3, 2 * 32 * 32)
    assert coarse(blocks).equal(blocks.flatten(1))
    assert coarse(F.avg_pool2d(blocks, 2)).shape == (3, 2 * 16 * 16)


def test_draws_that_are_all_the_same_image_say_nothing():
    generator = wrap(lambda z: torch.zeros(len(z), 1, 4, 4), latent_shape=(3,))
    start = DrawnStart(generator, 10, 0)(normal(5, 1, 4, 4))
    assert start.isfinite().all()
    assert DrawnStart(curved(), 0, 0)(normal(2, 1, 4, 4)).equal(torch.zeros(2, 6))  # no draw but the mean code
