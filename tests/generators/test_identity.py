"""Pixels as codes: whatever is mixed by way of them is pixel mixup, to the bit."""

from __future__ import annotations

import pytest
import torch
from commands import json_of
from conftest import LabelledImages

import latent_mixup as lm
from latent_mixup.generators import Identity, load_generator
from latent_mixup.images import from_uint8, to_uint8

SIZES = pytest.mark.parametrize(("channels", "size"), [(1, 4), (3, (4, 6)), (3, (7, 2))])


def data(channels, size, n=24) -> LabelledImages:
    draw = torch.Generator().manual_seed(0)
    shape = Identity(channels, size).image_shape
    images = torch.randint(0, 256, (n, *shape), generator=draw, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(n) % 3)


def mixed(dataset, sources, lam) -> torch.Tensor:
    """Pixel mixup, one image at a time: ``lam * image + (1 - lam) * other``."""
    own, other = (from_uint8(dataset.images[rows]) for rows in sources.T)
    return torch.stack([weight * a + (1 - weight) * b for a, b, weight in zip(own, other, lam, strict=True)])


@SIZES
def test_codes_are_images(channels, size, tmp_path):
    generator = Identity(channels, size)
    images = from_uint8(data(channels, size).images)
    assert generator.latent_shape == generator.image_shape == images.shape[1:]
    for made in (generator.encode(images), generator.decode(images)):
        assert made.equal(images)
        assert made.data_ptr() != images.data_ptr()  # what is done to it does not reach the codes
    assert generator.decode(3 * images).equal(3 * images)  # nothing is clamped
    read = load_generator(generator.save_pretrained(tmp_path))
    assert (type(read), read.image_shape, read.digest()) == (Identity, generator.image_shape, generator.digest())
    assert (read.latent_space, read.preferred_path, read.has_encoder) == ("vae", "lerp", True)


def test_generators_of_other_sizes_have_other_digests():
    digests = [Identity(*size).digest() for size in ((1, 4), (3, 4), (1, (4, 6)), (1, (6, 4)))]
    assert len(set(digests)) == 4


def test_samples_are_uniform_noise():
    draws = Identity(3, (20, 30)).sample_latents(40, torch.Generator().manual_seed(0))
    assert draws.abs().max() <= 1
    shares = torch.histc(draws, 10, -1, 1) / draws.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=5e-3, rtol=0)


@SIZES
def test_an_inversion_keeps_the_pixels(channels, size, tmp_path):
    dataset, generator = data(channels, size), Identity(channels, size)
    bank = lm.invert(dataset, generator, progress=False)
    assert bank[:][0].equal(from_uint8(dataset.images))
    assert bank.mse.max() == 0
    bank.save_pretrained(tmp_path)  # in half precision: less than half a grey level
    assert to_uint8(lm.LatentBank.from_pretrained(tmp_path)[:][0]).equal(dataset.images)


@SIZES
@pytest.mark.parametrize("mode", ["elem", "batch"])
def test_mixes_are_those_of_pixel_mixup_exactly(channels, size, mode):
    dataset, generator = data(channels, size), Identity(channels, size)
    bank = lm.invert(dataset, generator, progress=False)
    mixer = lm.LatentMixupCollate(generator, bank, dataset=dataset, seed=3, mode=mode)._mixer
    draw = mixer.draw(16, mixer.key(3, 0))
    images, (labels_a, labels_b, lam) = mixer.decode(draw)
    assert mixed(dataset, draw.sources, lam).equal(images)
    assert labels_a.equal(dataset.labels[draw.sources[:, 0]])
    assert labels_b.equal(dataset.labels[draw.sources[:, 1]])
    assert 0 < lam.min() <= lam.max() < 1


def test_a_rendered_pool_holds_mixed_pixels(tmp_path):
    dataset, generator = data(3, (4, 6)), Identity(3, (4, 6))
    bank = lm.invert(dataset, generator, progress=False)
    lm.render(generator, bank, tmp_path, n=20, progress=False)
    pool = lm.RenderedMixupDataset(tmp_path)._pool
    assert pool.images.equal(to_uint8(mixed(dataset, pool.columns["sources"], pool.columns["lam"])))


def test_the_command_line_takes_its_folder_and_its_name(tmp_path):
    folder = Identity(1, (6, 8)).save_pretrained(tmp_path / "generator")
    for name, size in ((str(folder), [1, 6, 8]), ("latent_mixup.generators:Identity", [1, 28, 28])):
        told = json_of("info", name)
        assert told["generator"]["latent_shape"] == size
        assert told["self_test"]["passed"], told["self_test"]["verdict"]
