"""The convolutional generator and its prior."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latent_mixup import load_generator
from latent_mixup.generators import CompactGenerator, ConvGenerator
from latent_mixup.generators.conv import resolutions
from latent_mixup.generators.flow import CodeFlow
from latent_mixup.sampling import keyed_generator


@pytest.fixture
def generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvGenerator(z_dim=6, img_channels=3, img_resolution=16, width=8, detail=4, flow_width=16)


def codes(n, seed=0, dim=6):
    return torch.randn(n, dim, generator=keyed_generator("test-codes", seed))


@pytest.mark.parametrize("size", [16, 20, 24, 28, 32, 40, 48, 64, 96, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_size_that_was_asked_for(size, channels):
    generator = ConvGenerator(4, channels, size, width=8, detail=4, flow_width=8)
    images = generator.decode(codes(2, dim=4))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert generator.encode(images).shape == (2, 4)


@pytest.mark.parametrize("size", [8, 15, 30, 17, 18])
def test_a_size_that_cannot_be_halved_down_is_refused(size):
    with pytest.raises(ValueError, match=f"img_resolution needs to be .* got {size}"):
        resolutions(size)


def test_codes_have_a_direction_and_no_length(generator):
    assert torch.allclose(generator.decode(codes(3)), generator.decode(7 * codes(3)), atol=1e-5)
    norms = [
        generator.encode(generator.decode(codes(3))),
        generator.sample_latents(3),
        generator.project(codes(3), 0.3),
    ]
    assert all(torch.allclose(each.norm(dim=1), torch.full((3,), 6**0.5)) for each in norms)


def test_a_folder_keeps_it(generator, tmp_path):
    again = load_generator(generator.save_pretrained(tmp_path / "g"))
    draws = [each.sample_latents(4, keyed_generator("test-draw")) for each in (generator, again)]
    assert again.digest() == generator.digest()
    assert torch.equal(*draws)


def test_what_happens_to_a_code_does_not_depend_on_its_batch(generator):
    latents, noise, t = codes(5), codes(5, 1), torch.tensor([0.5, 0.5, 0.0, 0.5, 0.25])
    together = generator.project(latents, t, noise=noise)
    alone = [generator.project(latents[[0, k]], t[[0, k]], noise=noise[[0, k]])[1:] for k in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_time_0_leaves_a_code_and_time_1_forgets_it(generator):
    latents = generator.encode(generator.decode(codes(4)))
    assert torch.allclose(generator.project(latents, 0.0), latents)
    mixed = generator.project(latents, torch.tensor([0.0, 0.7, 0.0, 0.7]), generator=keyed_generator("test-noise"))
    moved = (mixed - latents).norm(dim=1) > 1e-3
    assert moved.tolist() == [False, True, False, True]
    forgotten = [generator.project(codes(4, seed), 1.0, noise=codes(4, 9)) for seed in (1, 2)]
    assert torch.allclose(*forgotten, atol=1e-5)


@pytest.mark.parametrize("t", [-0.1, 1.5, torch.tensor([0.5, 2.0])])
def test_a_time_out_of_range_is_refused(generator, t):
    with pytest.raises(ValueError, match=r"t needs to be in \[0, 1\]"):
        generator.project(codes(2), t)


def test_a_generator_without_a_prior_says_so():
    assert not CompactGenerator(4).has_prior
    with pytest.raises(NotImplementedError, match="CompactGenerator has no learnt prior"):
        CompactGenerator(4).project(torch.zeros(1, 4), 0.5)


class _Straight(CodeFlow):
    """Its velocity is exact for a single code ``c``: ``(x - c) / t``."""

    def __init__(self, code):
        super().__init__(len(code), width=8)
        self.code = nn.Parameter(code)

    def forward(self, x, t):
        return (x - self.code) / t.clamp_min(1e-6)[:, None]


def test_the_exact_velocity_of_one_code_leads_to_it():
    code = codes(1)[0]
    flow, noise, t = _Straight(code), codes(4, 3), torch.tensor([1.0, 0.6, 0.3, 0.1])
    start = (1 - t[:, None]) * code + t[:, None] * noise
    # the last evaluation, at t = 0, is 0 / 0 in exact arithmetic: one step of Heun's method halves the remainder
    found = flow.denoise(start, t, 40)
    assert ((found - code).norm(dim=1) <= 0.05 * (start - code).norm(dim=1)).all()


def test_the_loss_is_zero_for_the_exact_velocity():
    code = codes(1)[0]
    flow, noise, t = _Straight(code), codes(8, 4), torch.rand(8, generator=keyed_generator("test-times")) * 0.9 + 0.1
    assert flow.loss(code.expand(8, -1), noise, t) < 1e-9


def test_a_trained_flow_draws_the_codes_it_was_trained_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = CodeFlow(2, width=32)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    optimizer, draw = torch.optim.Adam(flow.parameters(), lr=3e-3), keyed_generator("test-flow")
    for _ in range(300):
        rows = torch.randint(3, (128,), generator=draw)
        loss = flow.loss(corners[rows], torch.randn(128, 2, generator=draw), torch.rand(128, generator=draw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        samples = flow.denoise(torch.randn(300, 2, generator=draw), torch.ones(300), 12)
    distance, nearest = torch.cdist(samples, corners).min(1)
    assert distance.median() < 0.25
    assert min(torch.bincount(nearest, minlength=3).tolist()) > 50
