"""The paper's GAN and VAEs: what they decode, how they are trained, and that a stopped training goes on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_mixup import invert, load_generator
from latent_mixup.generators import DCGAN, VAE
from latent_mixup.generators.vae import sharpened
from latent_mixup.images import from_uint8
from latent_mixup.inversion import pixel_mse
from latent_mixup.training import DCGANRecipe, VAERecipe, train_dcgan, train_vae
from latent_mixup.training import dcgan as dcgan_module
from latent_mixup.training import vae as vae_module
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


def test_decode_is_differentiable_and_the_weights_are_frozen(make):
    generator, latents = make(), codes().requires_grad_(True)
    (gradient,) = torch.autograd.grad(generator.decode(latents).square().sum(), latents)
    assert gradient.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_a_folder_gives_the_same_generator(make, tmp_path):
    generator = make(img_resolution=16)
    generator.metadata = {"name": "tiny"}
    generator.save_pretrained(tmp_path)
    read = load_generator(tmp_path)
    assert (read.digest(), read.arguments(), read.metadata) == (
        generator.digest(),
        generator.arguments(),
        generator.metadata,
    )
    assert read.decode(codes()).equal(generator.decode(codes()))


def test_draws_are_standard_normal_and_depend_on_their_generator_alone(make):
    generator = make()
    draws = generator.sample_latents(4000, torch.Generator().manual_seed(3))
    assert draws.equal(generator.sample_latents(4000, torch.Generator().manual_seed(3)))
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


@pytest.fixture(scope="module")
def images_uint8():
    """64 images of two kinds: the bright half is at the top or at the bottom."""
    images = torch.randint(0, 50, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[::2, :, :14] += 200
    images[1::2, :, 14:] += 200
    return images


def train_small_vae(images, out, checkpoint_every=2, **changes):
    recipe = VAERecipe(**{"steps": 6, "batch_size": 16, **changes})
    return train_vae(
        images,
        out,
        network={"z_dim": 4, "hidden": (16,)},
        recipe=recipe,
        checkpoint_every=checkpoint_every,
        progress=False,
    )


def train_small_dcgan(images, out, **changes):
    recipe = DCGANRecipe(**{"epochs": 2, "batch_size": 20, **changes})  # three steps an epoch
    network = {"z_dim": 4, "channels": (8, 4, 4, 4)}
    return train_dcgan(images, out, network=network, recipe=recipe, checkpoint_every=2, progress=False)


TRAININGS = {
    "vae": (train_small_vae, vae_module.VAETraining, "advance", {"steps": 7}),
    "dcgan": (train_small_dcgan, dcgan_module.DCGANTraining, "advance", {"epochs": 3}),
}


@pytest.fixture(params=TRAININGS)
def training(request):
    return TRAININGS[request.param]


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_stopped_training_goes_on_bit_for_bit(training, images_uint8, tmp_path, monkeypatch, stopped_after):
    train, owner, name, _ = training
    before = torch.get_rng_state()
    whole = train(images_uint8, tmp_path / "whole")
    assert torch.get_rng_state().equal(before)
    advance, taken = getattr(owner, name), []

    def stops(*arguments):
        if len(taken) == stopped_after:
            raise KeyboardInterrupt
        taken.append(1)
        return advance(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            train(images_uint8, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "config.json").exists()
    assert train(images_uint8, tmp_path / "stopped").digest() == whole.digest()
    for sheet in ("sheet-000004.png", "sheet-000006.png"):
        assert (tmp_path / "stopped" / sheet).read_bytes() == (tmp_path / "whole" / sheet).read_bytes()
    assert not whole.training
    assert not any(module.training for module in whole.modules())


def test_another_recipe_or_seed(training, images_uint8, tmp_path):
    train, _, _, other = training
    first = train(images_uint8, tmp_path / "one")
    assert train(images_uint8, tmp_path / "two", seed=1).digest() != first.digest()
    with pytest.raises(ValueError, match=r"the checkpoint in .* was made with another recipe"):
        train(images_uint8, tmp_path / "one", **other)


def test_a_vae_learns_two_kinds_and_its_bank_takes_one_pass(images_uint8, tmp_path):
    vae = train_small_vae(images_uint8, tmp_path, checkpoint_every=300, steps=300)
    images = from_uint8(images_uint8)
    labels = torch.arange(64) % 2
    bank = invert(list(zip(images, labels.tolist(), strict=True)), vae, steps=0, loss=pixel_mse, progress=False)
    assert bank.labels.equal(labels)
    torch.testing.assert_close(bank[:][0], vae.encode(images), atol=2e-3, rtol=0)
    assert float(bank.mse.median()) < 0.3 * float(pixel_mse(images.mean(0, keepdim=True), images).median())


def test_more_images_than_a_batch_are_needed(images_uint8, tmp_path):
    with pytest.raises(ValueError, match="batch_size needs to be at most 64, the number of images"):
        train_dcgan(images_uint8, tmp_path, recipe=DCGANRecipe(batch_size=65), progress=False)


def test_the_players_pull_in_opposite_directions():
    """Each step of the discriminator lowers its loss on the batch, each of the generator raises it."""
    logits = torch.tensor([[2.0], [-1.0]])
    real, made = (dcgan_module.non_saturating(logits, kind) for kind in (True, False))
    torch.testing.assert_close(real, -F.logsigmoid(logits).mean())
    torch.testing.assert_close(made, -F.logsigmoid(-logits).mean())
