"""PCA as a generator: the laws of principal components, and the controls that it has to pass as a generator."""

from __future__ import annotations

import pytest
import torch

from latent_mixup.generators import Linear, load_generator


def images(n: int = 60, channels: int = 1, resolution: int = 6, seed: int = 0) -> torch.Tensor:
    """Correlated images well inside [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    size = channels * resolution**2
    mixing = torch.randn(size, size, generator=draw) / size**0.5
    flat = 0.15 * torch.randn(n, size, generator=draw) @ mixing + 0.1
    return flat.clamp(-1, 1).view(n, channels, resolution, resolution)


@pytest.mark.parametrize(("n", "channels"), [(200, 1), (30, 3)])  # more images than pixels, and fewer
def test_the_error_is_the_variance_that_is_left_out(n, channels):
    real = images(n, channels)
    variances = torch.linalg.svdvals((real - real.mean(0)).flatten(1).double()).square()
    for count in (1, 5, 20):
        fitted = Linear.fit(real, count)
        error = (fitted.decode(fitted.encode(real)) - real).square().sum()
        assert float(error) == pytest.approx(float(variances[count:].sum()), rel=1e-3)


@pytest.mark.parametrize(("n", "channels"), [(200, 1), (30, 3)])
def test_codes_of_the_fitted_images_are_white(n, channels):
    codes = Linear.fit(images(n, channels), 7).encode(images(n, channels))
    torch.testing.assert_close(codes.mean(0), torch.zeros(7), atol=1e-3, rtol=0)
    torch.testing.assert_close(codes.T.cov(), torch.eye(7), atol=1e-3, rtol=0)


def test_a_decode_that_clips_nothing_encodes_to_its_code():
    fitted = Linear.fit(images(), 5)
    codes = fitted.sample_latents(20, torch.Generator().manual_seed(1))
    torch.testing.assert_close(fitted.encode(fitted.decode(codes)), codes, rtol=1e-3, atol=1e-3)
    assert fitted.decode(100 * codes).abs().max() == 1


def test_directions_without_variance_change_nothing():
    real = images()
    real[:, :, :3] = -1  # 18 of 36 pixels are constant
    fitted = Linear.fit(real, 30)
    codes = fitted.encode(real)
    assert codes.isfinite().all()
    assert (codes[:, 18:] == 0).all()
    torch.testing.assert_close(fitted.decode(codes), real, atol=1e-4, rtol=0)
    assert fitted.decode(codes + 5 * (torch.arange(30) >= 18)).equal(fitted.decode(codes))


def test_the_same_images_give_the_same_generator():
    torch.manual_seed(8)
    before = torch.get_rng_state()
    one = Linear.fit(images(), 4)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(9)
    assert one.digest() == Linear.fit(images(), 4).digest()


def test_noise_is_a_function_of_the_code_and_of_the_asked_size(tmp_path):
    real = images(200)
    plain, noisy = Linear.fit(real, 5), Linear.fit(real, 5, noise_std=0.1)
    codes = plain.encode(real)
    noise = noisy.decode(codes) - plain.decode(codes)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert noise[0].ne(noise[1]).any()
    assert noisy.decode(codes).equal(noisy.decode(codes))
    torch.testing.assert_close(noisy.decode(codes[7:9]), noisy.decode(codes)[7:9])
    noisy.save_pretrained(tmp_path)
    assert load_generator(tmp_path).decode(codes).equal(noisy.decode(codes))
    assert load_generator(tmp_path).digest() == plain.digest()


@pytest.mark.parametrize(
    ("given", "latent_dim", "message"),
    [
        (images(10), 10, r"latent_dim needs to be in \[1, 9\] for 10 images of 36 numbers: got 10"),
        (images(100), 37, r"latent_dim needs to be in \[1, 36\]"),
        (images(10), 0, r"latent_dim needs to be in \[1, 9\]"),
        (images(10)[0], 2, r"fit needs float images .* got torch.float32 \[1, 6, 6\]"),
        (torch.zeros(10, 1, 6, 6, dtype=torch.uint8), 2, "fit needs float images .* got torch.uint8"),
    ],
)
def test_what_cannot_be_fitted(given, latent_dim, message):
    with pytest.raises(ValueError, match=message):
        Linear.fit(given, latent_dim)


def test_images_that_are_not_square(tmp_path):
    """The same numbers in another shape give the same directions."""
    square = images(channels=3)
    long, whole = Linear.fit(square.view(60, 3, 4, 9), 5), Linear.fit(square, 5)
    assert (long.img_size, long.img_resolution, long.arguments()["img_resolution"]) == ((4, 9), (4, 9), [4, 9])
    codes = whole.encode(square)
    assert long.encode(square.view(60, 3, 4, 9)).equal(codes)
    assert long.decode(codes).equal(whole.decode(codes).view(60, 3, 4, 9))
    assert Linear.from_pretrained(long.save_pretrained(tmp_path)).decode(codes).equal(long.decode(codes))


@pytest.mark.parametrize("size", [(4,), (4, 0), (4, 5, 6), "28", 2.0, True])
def test_a_size_is_one_or_two_counts(size):
    with pytest.raises(ValueError, match=r"img_resolution needs an integer from 1, or \(height, width\): got"):
        Linear(img_resolution=size)


def test_noise_needs_a_size():
    with pytest.raises(ValueError, match="noise_std needs to be finite and from 0: got -1"):
        Linear(noise_std=-1)
