"""The benchmark of inversion: the authors' loop, and what is counted."""

from __future__ import annotations

import pytest
import torch
from inversion import inversion


def test_the_authors_loop_is_one_image_at_a_time():
    """In a batch as alone; and its best step is kept, with the loss that belongs to it."""
    generator = inversion.small_stylegan2()
    codes = generator.sample_latents(3, torch.Generator().manual_seed(0))
    targets = generator.decode(codes)
    start = generator.mean_latent().expand_as(codes)
    found, losses = inversion.authors_loop(generator, targets, start, inversion.pixel_mse, steps=15)
    for row in range(3):
        one, loss = inversion.authors_loop(generator, targets[row][None], start[row][None], inversion.pixel_mse, 15)
        torch.testing.assert_close(found[row][None], one, rtol=0, atol=1e-3)
        torch.testing.assert_close(losses[row][None], loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(inversion.pixel_mse(generator.decode(found), targets), losses, rtol=1e-3, atol=0)
    assert (losses < inversion.pixel_mse(generator.decode(start), targets)).all()


def test_gradients_are_counted_an_image():
    generator = inversion.small_stylegan2()
    targets = generator.decode(generator.sample_latents(4, torch.Generator().manual_seed(0)))
    start = generator.mean_latent().expand(4, *generator.latent_shape)
    problem = inversion.Problem("", generator, targets, inversion.pixel_mse, start, start.clone())
    found = inversion.ways(problem, None, 7)
    assert list(found) == ["authors", *inversion.SETTINGS, "authors, our start"]
    tally = inversion.Tally(problem, found["authors"])
    tally.block(slice(0, 2))
    tally.block(slice(2, 4))
    assert tally.record()["gradients_an_image"] == 7
    assert tally.record()["mse"]["mean"] == pytest.approx(float(torch.cat(tally.losses).mean()), rel=1e-3)
