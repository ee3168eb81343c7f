"""``Policy(project=t)``: mixed codes are brought back to likely ones by the generator's prior."""

from __future__ import annotations

import pytest
import torch

from latent_mixup import LatentBank, LatentMixupCollate, RenderedMixupDataset, render
from latent_mixup.functional import on_sphere
from latent_mixup.generators import CompactGenerator, ConvGenerator
from latent_mixup.policies import BankView, Policy
from latent_mixup.policies.draws import Draw
from latent_mixup.sampling import keyed_generator


@pytest.fixture
def pair():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = ConvGenerator(z_dim=6, img_resolution=16, width=8, flow_width=16)
    codes = torch.randn(12, 6, generator=keyed_generator("test-codes"))
    return generator, LatentBank(on_sphere(codes), torch.arange(12) % 3)


def mixed(pair, policy, *, seed=0):
    generator, bank = pair
    collate = LatentMixupCollate(generator, bank.subset(slice(None)), policy=policy, seed=seed)
    return collate(torch.zeros(8, 1, 16, 16), torch.zeros(8, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
def test_the_mix_is_projected_and_the_label_stays(pair):
    (images, targets), (projected, same) = mixed(pair, Policy()), mixed(pair, Policy(project=0.5))
    assert torch.equal(targets, same)
    assert (images - projected).abs().flatten(1).amax(1).gt(1e-3).all()


def test_the_draws_of_a_mix_decide_its_projection(pair):
    generator, bank = pair
    policy = Policy(project=0.5)
    draws = [policy.draw(4, view_of(bank), keyed_generator("test-draw", k)) for k in range(2)]
    codes = torch.randn(8, 6, generator=keyed_generator("test-mixed"))
    together = policy.projected(codes, Draw.cat(draws), generator)
    alone = [policy.projected(part, draw, generator) for part, draw in zip(codes.split(4), draws, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    with_plain = policy.projected(
        codes, Draw.cat([draws[0], Policy().draw(4, view_of(bank), keyed_generator("t"))]), generator
    )
    assert torch.allclose(with_plain[:4], together[:4], atol=1e-5)
    assert torch.allclose(with_plain[4:], on_sphere(codes[4:]), atol=1e-5)


def view_of(bank):
    return BankView(bank, None)


def test_a_generator_without_a_prior_is_refused(pair):
    _, bank = pair
    with pytest.raises(
        ValueError, match=r"Policy\(project=0.5\) needs a generator with a learnt prior.*CompactGenerator"
    ):
        LatentMixupCollate(CompactGenerator(6, 1, 16), bank.subset(slice(None)), policy=Policy(project=0.5))


def test_a_pool_is_projected_as_well(pair, tmp_path):
    generator, bank = pair
    pools = []
    for t in (0.0, 0.5):
        render(generator, bank, tmp_path / str(t), n=8, policy=Policy(project=t), progress=False)
        pools.append(RenderedMixupDataset(tmp_path / str(t)))
    plain, projected = ([pool[k][0] for k in range(8)] for pool in pools)
    assert all((a.float() - b.float()).abs().max() > 1e-3 for a, b in zip(plain, projected, strict=True))
