"""Each trainer's steps against a slow, obvious form: the same losses, and the same weights after two of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import seeded

from latent_mixup.bundled import BundledImages
from latent_mixup.encoders import MLPEncoder
from latent_mixup.functional import on_sphere, slerp
from latent_mixup.generators import DCGAN, VAE, CompactGenerator
from latent_mixup.losses.base import pixel_mse
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import CompactRecipe, DCGANRecipe, EncoderRecipe, VAERecipe
from latent_mixup.training.compact import CompactTraining
from latent_mixup.training.dcgan import DCGANTraining
from latent_mixup.training.encoder import EncoderTraining
from latent_mixup.training.vae import VAETraining


@pytest.fixture(scope="module")
def data():
    images = BundledImages("fashion-mnist", train=False)
    return images.data[:24], images.targets[:24]


def images_of(data, rows):
    return data[0][rows].float() / 127.5 - 1


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def same_weights(one: nn.Module, two: nn.Module, before: nn.Module) -> None:
    """The weights moved alike. (Adam takes a whole step for a gradient that is rounding alone: few entries differ.)"""
    own, other, first = (torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (one, two, before))
    assert (own - other).norm() < 0.02 * (other - first).norm()


def test_a_step_of_the_dcgan(data):
    """Binary cross-entropy: real images are real and made ones are not; then made ones are to pass for real."""
    recipe = DCGANRecipe(epochs=1, batch_size=8, seed=5)
    training = DCGANTraining(seeded(lambda: DCGAN(z_dim=6, channels=(8, 6, 4, 4))), recipe, data[0])
    first = copy.deepcopy(training.network), copy.deepcopy(training.discriminator)
    generator, judge = copy.deepcopy(first)
    generator.network.train()
    made_by, judged_by = (
        torch.optim.AdamW(each.parameters(), lr=3e-4, betas=(0.5, 0.999)) for each in (generator.network, judge)
    )
    order = torch.randperm(24, generator=keyed_generator("order-dcgan", 5, 0))
    one, zero = torch.ones(8, 1), torch.zeros(8, 1)
    loss = F.binary_cross_entropy_with_logits
    for step in range(2):
        real = images_of(data, order[8 * step : 8 * step + 8])
        fake = generator.decode(generator.sample_latents(8, keyed_generator("train-dcgan", 5, step)))
        judged = loss(judge(real), one) + loss(judge(fake.detach()), zero)
        descend(judged_by, judged)
        fooled = loss(judge(fake), one)
        descend(made_by, fooled)
        found = training.advance()
        assert found == pytest.approx({"discriminator": judged.item(), "generator": fooled.item()}, rel=1e-3)
    same_weights(training.network, generator, first[0])
    same_weights(training.discriminator, judge, first[1])
    assert training.steps == 3
    assert (DCGANRecipe().epochs, DCGANRecipe().lr, DCGANRecipe().betas) == (80, 3e-4, (0.5, 0.999))


def test_a_step_of_the_vae(data):
    """Minus the evidence lower bound in nats an image; the rate is constant for half of the steps, then falls to 0."""
    recipe = VAERecipe(steps=4, batch_size=6, lr=1e-3, kl_weight=0.5, seed=3)
    network = seeded(lambda: VAE(z_dim=4))
    training = VAETraining(copy.deepcopy(network), recipe, data[0])
    first, network = network, copy.deepcopy(network).requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step, rate in enumerate((1.0, 1.0, 1.0, 0.5)):
        draw = keyed_generator("train-vae", 3, step)
        images = images_of(data, torch.randint(24, (6,), generator=draw))
        mean, log_variance = network.posterior(images)
        codes = mean + log_variance.exp().sqrt() * torch.randn(mean.shape, generator=draw)
        targets = (images + 1) / 2
        probabilities = torch.sigmoid(network.logits(codes).double())
        error = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).sum()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        loss = ((error + 0.5 * divergence) / 6).float()
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        descend(optimizer, loss)
        assert training.advance()["nats"] == pytest.approx(loss.item(), rel=1e-3)
    same_weights(training.network, network, first)


def test_a_step_of_the_compact_generator(data):
    """Pixels, features of an eighth, and a critic that tells mixes from images; noise on every other code."""
    network = seeded(lambda: CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,)))
    recipe = CompactRecipe(steps=300, batch_size=16, feature_weight=0.5, critic_weight=0.25, noise=0.3, seed=2)
    training = CompactTraining(copy.deepcopy(network), recipe, data[0], data[1])
    first, network, critic = network, copy.deepcopy(network), copy.deepcopy(training.critic)
    first_critic = copy.deepcopy(critic)
    trained = [*network.decoder.parameters(), *network.encoder.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    judged_by = torch.optim.Adam(critic.parameters(), lr=recipe.critic_lr, betas=(0.0, 0.99))
    for step in range(2):
        ramp = (step + 1) / 200 * (1 - step / 300)
        optimizer.param_groups[0]["lr"] = recipe.lr * ramp
        judged_by.param_groups[0]["lr"] = recipe.critic_lr * ramp
        draw = keyed_generator("train-compact", 2, step)
        real = images_of(data, torch.randint(24, (16,), generator=draw))
        codes = network.encode(real)
        sigma = 0.3 * torch.rand(16, 1, generator=draw)
        sigma[::2] = 0
        rebuilt = network.decode(on_sphere(codes + sigma * torch.randn(codes.shape, generator=draw)))
        lam = torch.rand(16, generator=draw)
        partner = torch.randperm(16, generator=draw)
        mixed = network.decode(slerp(codes, codes[partner], lam))
        judged = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(mixed.detach())).mean()
        descend(judged_by, judged)
        pixel = (rebuilt - real).square().mean()
        feature = (network.features(rebuilt[:2]) - network.features(real[:2])).square().mean()
        loss = pixel + 0.5 * feature - 0.25 * critic(mixed).mean()
        descend(optimizer, loss)
        expected = {"pixel": pixel.item(), "feature": feature.item(), "critic": judged.item()}
        assert training.advance() == pytest.approx(expected, rel=1e-3)
    same_weights(training.network.decoder, network.decoder, first.decoder)
    same_weights(training.network.encoder, network.encoder, first.encoder)
    same_weights(training.critic, critic, first_critic)


@pytest.mark.parametrize(("step", "ramp"), [(0, 1 / 200), (199, 1 - 199 / 1000), (500, 0.5), (999, 0.02)])
def test_the_compact_generators_rates(data, step, ramp):
    """Up over 200 steps, down along a line, and never below a fiftieth."""
    network = seeded(lambda: CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,)))
    training = CompactTraining(network, CompactRecipe(steps=1000, batch_size=8), data[0], data[1])
    training.step = step
    training.advance()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(training.recipe.lr * ramp)
    assert training.critic_optimizer.param_groups[0]["lr"] == pytest.approx(training.recipe.critic_lr * ramp)


def test_a_step_of_the_mlp_encoder():
    """MSE of the codes of generated images; the rate rises over a twentieth of the steps, then falls along a cosine."""
    generator = seeded(lambda: CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,)))
    encoder = seeded(lambda: MLPEncoder(generator, widths=(12,)), 1)
    recipe = EncoderRecipe(steps=40, batch_size=6, lr=1e-3, seed=4)
    training = EncoderTraining(copy.deepcopy(encoder), recipe, pixel_mse)
    first, body = encoder.body, copy.deepcopy(encoder.body).requires_grad_(True)
    optimizer = torch.optim.Adam(body.parameters(), lr=1e-3)
    for step in range(3):
        codes = generator.sample_latents(6, keyed_generator("train-encoder", 4, step))
        loss = (body(generator.decode(codes).detach().flatten(1)) - codes).square().mean()
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 40)) / 2
        descend(optimizer, loss)
        assert training.advance()["codes"] == pytest.approx(loss.item(), rel=1e-3)
    same_weights(training.network.body, body, first)


@pytest.mark.parametrize(("step", "ramp"), [(0, 0.5), (1, (1 + math.cos(math.pi / 40)) / 2), (20, 0.5), (30, 0.1464)])
def test_the_encoders_rates(step, ramp):
    """Up over a twentieth of 40 steps, down to zero along half a cosine."""
    generator = seeded(lambda: CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,)))
    training = EncoderTraining(MLPEncoder(generator, widths=(12,)), EncoderRecipe(steps=40, batch_size=2), pixel_mse)
    training.step = step
    training.advance()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(training.recipe.lr * ramp, rel=1e-3)
