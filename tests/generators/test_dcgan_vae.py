"""The paper's GAN and VAEs: what they decode, and their losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import halves

from latent_mixup import invert
from latent_mixup.generators import DCGAN, VAE
from latent_mixup.generators.vae import sharpened
from latent_mixup.images import from_uint8
from latent_mixup.inversion import pixel_mse
from latent_mixup.training import VAERecipe, train_vae
from latent_mixup.training.dcgan import non_saturating
from latent_mixup.training.vae import negative_elbo

MAKERS = {
    "dcgan": lambda **changes: DCGAN(**{"z_dim": 6, "channels": (8, 6, 4, 4), **changes}),
    "vae": lambda **changes: VAE(**{"z_dim": 6, "hidden": (16,), **changes}),
    "vae with convolutions": lambda **changes: VAE(**{"z_dim": 6, "hidden": (16,), "channels": (4, 6), **changes}),
}


@pytest.fixture(params=MAKERS)
def make(request):
    def seeded(**changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MAKERS[request.param](**changes)

    return seeded


def codes(n=5):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(("channels", "resolution"), [(1, 28), (3, 32), (2, 16)])
def test_codes_become_images_in_range(make, channels, resolution):
    generator = make(img_channels=channels, img_resolution=resolution)
    images = generator.decode(10 * codes())
    assert images.shape == (5, channels, resolution, resolution)
    assert images.abs().max() <= 1
    assert (generator.img_channels, generator.img_resolution, generator.latent_shape) == (channels, resolution, (6,))


def test_an_image_depends_on_its_own_code_alone(make):
    generator = make()
    generator.train()  # the paper's mistake: BatchNorm looked at the whole batch
    alone = torch.cat([generator.decode(code[None]) for code in codes()])
    torch.testing.assert_close(generator.decode(codes()), alone, atol=1e-5, rtol=0)


def test_draws_are_standard_normal(make):
    generator = make()
    draws = generator.sample_latents(4000, torch.Generator().manual_seed(3))
    assert draws.mean().abs() < 0.02
    assert abs(draws.std() - 1) < 0.02
    assert generator.mean_latent().equal(torch.zeros(6))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DCGAN(channels=(8, 8, 8)), r"channels needs four numbers, one a hidden layer: got \[8, 8, 8\]"),
        (lambda: DCGAN(img_resolution=33), r"img_resolution needs to be in \[1, 32\]: got 33"),
        (lambda: VAE(img_resolution=30, channels=(4, 4)), "a multiple of 4 for 2 convolutions: got 30"),
        (lambda: VAE(sharpen=-1), "sharpen needs to be a finite strength from 0: got -1"),
        (lambda: VAE(sharpen=float("nan")), "sharpen needs to be a finite strength"),
    ],
)
def test_arguments_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_dcgan_is_the_middle_of_five_doublings_of_a_pixel():
    generator = MAKERS["dcgan"]()
    convolutions = [layer for layer in generator.network if isinstance(layer, nn.ConvTranspose2d)]
    assert len(convolutions) == 5
    whole = generator.network(codes()[:, :, None, None])
    assert whole.shape == (5, 1, 32, 32)
    assert generator.decode(codes()).equal(whole[:, :, 2:30, 2:30])


# ---- the sharpening filter -------------------------------------------------------------------------


def test_the_filter_is_the_papers_kernel():
    images = 0.1 * torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]).expand(2, 1, 3, 3)
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=2).clamp(-1, 1)
    torch.testing.assert_close(sharpened(images, 1.0), expected)


def test_the_filter_leaves_flat_images_and_strength_zero_alone():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert sharpened(images, 0.0).equal(images)
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(sharpened(flat, 2.0), flat)


def test_a_sharpened_vae_decodes_the_same_codes_sharper():
    plain = MAKERS["vae"]()
    filtered = VAE(**{**plain.arguments(), "sharpen": 1.0})
    filtered.load_state_dict(plain.state_dict())
    assert filtered.decode(codes()).equal(sharpened(plain.decode(codes()), 1.0))
    assert filtered.digest() == plain.digest()  # so that a bank serves both


# ---- the lower bound -------------------------------------------------------------------------------


def test_the_bound_is_the_likelihood_and_the_divergence():
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(4, 1, 3, 3, generator=draw), torch.rand(4, 1, 3, 3, generator=draw)
    mean, log_variance = torch.randn(4, 2, generator=draw), torch.randn(4, 2, generator=draw)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    pixel = logits.sigmoid()
    error = -(targets * pixel.log() + (1 - targets) * (1 - pixel).log()).flatten(1).sum(1)
    for weight in (0.0, 1.0, 3.0):
        expected = (error + weight * divergence).mean()
        torch.testing.assert_close(negative_elbo(logits, targets, mean, log_variance, weight), expected)


# ---- training --------------------------------------------------------------------------------------


def test_a_vae_learns_two_kinds_and_its_bank_takes_one_pass(tmp_path):
    images_uint8, labels = halves(64, 28)
    recipe, network = VAERecipe(steps=300, batch_size=16), {"z_dim": 4, "hidden": (16,)}
    vae = train_vae(images_uint8, tmp_path, network=network, recipe=recipe, progress=False)
    images = from_uint8(images_uint8)
    bank = invert(list(zip(images, labels.tolist(), strict=True)), vae, steps=0, loss=pixel_mse, progress=False)
    assert bank.labels.equal(labels)
    torch.testing.assert_close(bank[:][0], vae.encode(images), atol=2e-3, rtol=0)
    assert float(bank.mse.median()) < 0.3 * float(pixel_mse(images.mean(0, keepdim=True), images).median())


def test_the_players_pull_in_opposite_directions():
    """Each step of the discriminator lowers its loss on the batch, each of the generator raises it."""
    logits = torch.tensor([[2.0], [-1.0]])
    real, made = (non_saturating(logits, kind) for kind in (True, False))
    torch.testing.assert_close(real, -F.logsigmoid(logits).mean())
    torch.testing.assert_close(made, -F.logsigmoid(-logits).mean())
