"""Fresh codes in the place of mixes, mixes that a teacher is not sure of, and the hardest of several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latent_mixup import (
    LatentBank,
    LatentMixupCollate,
    LatentMixupDataset,
    LatentMixupLoader,
    RenderedMixupDataset,
    render,
)
from latent_mixup.functional import on_sphere, slerp
from latent_mixup.generators import CompactGenerator, ConvGenerator, Generator, StyleGAN2
from latent_mixup.images import to_uint8
from latent_mixup.policies import BankView, Draw, Hardest, LowPass, Noise, OtherClass, Policy, Prior, Teacher
from latent_mixup.policies import Truncation as Truncated
from latent_mixup.sampling import keyed_generator

pytestmark = pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
CLASSES, ROWS = 3, 12


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture
def generator():
    return seeded(lambda: ConvGenerator(z_dim=6, img_resolution=16, width=8, flow_width=16))


@pytest.fixture
def bank():
    codes = torch.randn(ROWS, 6, generator=keyed_generator("test-codes"))
    return LatentBank(on_sphere(codes), torch.arange(ROWS) % CLASSES).subset(slice(None))


@pytest.fixture
def net():
    """A classifier that is sure of some images and not of others."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, CLASSES)))


def decoded(policy, draw, generator, bank):
    view = BankView(bank, None)
    return policy.decoded(draw, view, slerp, generator, CLASSES, generator.decode)[0]


def data_of(generator, bank):
    """The images that the bank has codes of."""
    return TensorDataset(generator.decode(bank[:][0]), bank.labels)


def batch(k=8):
    images = torch.rand(k, 1, 16, 16, generator=keyed_generator("test-images")) * 2 - 1
    return images, torch.arange(k) % CLASSES


# ---- the prior -------------------------------------------------------------------------------------


class OnlySamples(CompactGenerator):
    """As a user writes one: it draws its codes in ``sample_latents``, from no standard normal numbers."""

    from_noise = Generator.from_noise

    def sample_latents(self, n, generator=None):
        return torch.rand(n, *self.latent_shape, generator=generator) + 5


@pytest.mark.parametrize("make", [CompactGenerator, ConvGenerator, OnlySamples])
def test_a_code_of_the_prior_depends_on_its_seed_alone(make):
    network = seeded(lambda: make(z_dim=6, img_channels=1, img_resolution=16))
    together = network.latents_of([3, 5, 2**61])
    alone = torch.cat([network.latents_of([seed]) for seed in (3, 5, 2**61)])
    torch.testing.assert_close(together, alone)
    expected = network.sample_latents(1, torch.Generator().manual_seed(5))
    torch.testing.assert_close(together[1:2], expected)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("c_dim", [0, CLASSES])
@pytest.mark.parametrize("latent_space", ["w", "w+"])
def test_a_stylegan2_draws_codes_of_the_class_that_is_asked_for(c_dim, latent_space):
    network = seeded(
        lambda: StyleGAN2(z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=8, channel_base=32, latent_space=latent_space)
    )
    assert network.samples_classes == network.has_classes == bool(c_dim)
    targets = torch.eye(CLASSES) if c_dim else None
    z = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    ws = network.mapping(z, targets)
    assert torch.equal(network.latents_of([0, 1, 2], targets), ws[:, 0] if latent_space == "w" else ws)
    labels = torch.arange(CLASSES) if c_dim else None
    sampled = network.sample_latents(3, torch.Generator().manual_seed(7), labels)
    same = network.from_noise(torch.randn(3, 8, generator=torch.Generator().manual_seed(7)), labels)
    assert torch.equal(sampled, same)


def test_fresh_samples_take_the_place_of_mixes_and_the_teacher_labels_each(generator, bank, net):
    policy = Prior(labels=Teacher(net))
    made = LatentMixupCollate(generator, bank, policy=policy, seed=0)
    images, targets = made(*batch())
    others = LatentBank(bank[:][0].flip(0), bank.labels).subset(slice(None))
    same, _ = LatentMixupCollate(generator, others, policy=policy, seed=0)(*batch())
    torch.testing.assert_close(images, same)  # no code of the bank is in them
    torch.testing.assert_close(targets, net(images).softmax(1))
    assert not torch.allclose(images[0], images[1])
    half, labels = LatentMixupCollate(generator, bank, policy=policy, prob=0.5, seed=0)(*batch())
    own = (half == batch()[0]).flatten(1).all(1)
    assert own.sum() == 4
    assert torch.equal(labels[own], F.one_hot(batch()[1][own], CLASSES).float())


def test_what_else_happens_to_a_fresh_sample(generator, bank, net):
    plain, moved, blurred = (
        Prior(labels=Teacher(net), **more)
        for more in ({}, {"truncation": Truncated(0.5)}, {"low_pass": LowPass(1.0, 1.0)})
    )
    draw = plain.draw(4, BankView(bank), keyed_generator("test-draw"))
    latents = generator.latents_of(draw.seeds.tolist())
    mean = bank[:][0].mean(0)
    torch.testing.assert_close(decoded(plain, draw, generator, bank), generator.decode(latents))
    torch.testing.assert_close(decoded(moved, draw, generator, bank), generator.decode(torch.lerp(mean, latents, 0.5)))
    low = blurred.draw(4, BankView(bank), keyed_generator("test-draw"))
    expected = LowPass(1.0, 1.0)(generator.decode(generator.latents_of(low.seeds.tolist())), low.sigma)
    torch.testing.assert_close(decoded(blurred, low, generator, bank), expected)


def test_a_draw_without_fresh_codes_beside_one_with_them(generator, bank, net):
    policy = Prior(labels=Teacher(net))
    fresh, alone = policy.draw(2, BankView(bank), keyed_generator("test-draw")), Draw.alone(torch.tensor([4, 7]))
    together = decoded(policy, Draw.cat([alone, fresh]), generator, bank)
    torch.testing.assert_close(together[:2], generator.decode(bank[torch.tensor([4, 7])][0]))
    torch.testing.assert_close(together[2:], decoded(policy, fresh, generator, bank))
    labels = bank.labels[Draw.cat([alone, fresh]).sources]
    found, _, _ = policy.label(labels, Draw.cat([alone, fresh]), CLASSES, together)
    assert torch.equal(found[:2], F.one_hot(labels[:2, 0], CLASSES).float())
    torch.testing.assert_close(found[2:], net(together[2:]).softmax(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"unmixed": 0.5}, "not mixed"), ({"noise": Noise(0.1)}, "not mixed"), ({"project": 0.5}, "not mixed")],
)
def test_a_fresh_code_is_not_mixed(settings, message):
    with pytest.raises(ValueError, match=message):
        Policy(**{"unmixed": 1.0, "prior": True, **settings})


def test_a_fresh_sample_needs_a_label(generator, bank):
    with pytest.raises(ValueError, match=r"needs a label: pass Prior\(labels=Teacher\(classifier\)\)"):
        LatentMixupCollate(generator, bank, policy=Prior())


def test_a_pool_of_fresh_samples_has_the_teachers_labels(generator, bank, net, tmp_path):
    policy = Prior(labels=Teacher(net, 2.0))
    for batch_size in (3, 64):
        render(generator, bank, tmp_path / str(batch_size), n=10, policy=policy, batch_size=batch_size, progress=False)
    pools = [RenderedMixupDataset(tmp_path / name) for name in ("3", "64")]
    images, targets = (torch.stack(part) for part in zip(*(pools[0][k] for k in range(10)), strict=True))
    again = torch.stack([pools[1][k][1] for k in range(10)])
    torch.testing.assert_close(targets, again, atol=1e-5, rtol=0)
    torch.testing.assert_close(targets, (net(images) / 2).softmax(1), atol=0.05, rtol=0)  # of images before rounding
    assert (to_uint8(images)[0] != to_uint8(images)[1]).any()
    part = data_of(generator, bank)
    mixed = RenderedMixupDataset(tmp_path / "3", dataset=part, prob=1.0, seed=0)
    assert len(mixed) == ROWS
    with pytest.raises(ValueError, match="labels of a classifier, which is not in it"):
        RenderedMixupDataset(tmp_path / "3", dataset=part, refresh=0.5, generator=generator, bank=bank)


def test_a_pool_leaves_nothing_out(generator, bank, net, tmp_path):
    with pytest.raises(ValueError, match=r"leave out min_confidence=0\.9"):
        render(generator, bank, tmp_path / "pool", n=10, policy=Prior(labels=Teacher(net, 1.0, 0.9)), progress=False)


# ---- a teacher that is not sure --------------------------------------------------------------------


def test_where_the_teacher_is_not_sure_a_sample_stays(generator, bank, net):
    images, labels = batch(32)
    every, _ = LatentMixupCollate(generator, bank, policy=Prior(labels=Teacher(net)), seed=0)(images, labels)
    confidence = net(every).softmax(1).amax(1)
    least = float(confidence.median())
    policy = Prior(labels=Teacher(net, min_confidence=least))
    some, targets = LatentMixupCollate(generator, bank, policy=policy, seed=0)(images, labels)
    sure = confidence >= least
    assert 0 < sure.sum() < 32
    torch.testing.assert_close(some[sure], every[sure])
    assert torch.equal(some[~sure], images[~sure])
    assert torch.equal(targets[~sure], F.one_hot(labels[~sure], CLASSES).float())
    loader = LatentMixupLoader(
        [(images[:16], labels[:16]), (images[16:], labels[16:])],
        generator,
        bank,
        policy=policy,
        seed=0,
        decode_batches=2,
    )
    single = LatentMixupLoader(
        [(images[:16], labels[:16]), (images[16:], labels[16:])],
        generator,
        bank,
        policy=policy,
        seed=0,
        decode_batches=1,
    )
    for (a, b), (c, d) in zip(loader, single, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, d)


def test_a_teacher_that_is_never_sure_changes_nothing(generator, bank, net):
    images, labels = batch()
    policy = Prior(labels=Teacher(net, temperature=1e9, min_confidence=0.9))
    same, targets = LatentMixupCollate(generator, bank, policy=policy)(images, labels)
    assert torch.equal(same, images)
    assert torch.equal(targets, F.one_hot(labels, CLASSES).float())


def test_samples_of_a_data_set_stay_as_well(generator, bank, net):
    data = data_of(generator, bank)
    images, labels = data.tensors
    every = LatentMixupDataset(data, generator, bank, policy=Policy(labels=Teacher(net)), seed=0)
    mixes, taught = zip(*every.__getitems__(list(range(ROWS))), strict=True)
    confidence = torch.stack(taught).amax(1)
    least = float(confidence.median())
    policy = Policy(labels=Teacher(net, 1.0, least))
    some, again = (LatentMixupDataset(data, generator, bank, policy=policy, seed=0) for _ in range(2))
    for found in (some.__getitems__(list(range(ROWS))), [again[k] for k in range(ROWS)]):
        for k, (image, target) in enumerate(found):
            if confidence[k] > least + 1e-5:
                torch.testing.assert_close(image, mixes[k])
            elif confidence[k] < least - 1e-5:
                assert torch.equal(image, images[k])
                assert torch.equal(target, F.one_hot(labels[k], CLASSES).float())
    with pytest.raises(ValueError, match="pass dataset="):
        LatentMixupDataset(None, generator, bank, policy=Policy(labels=Teacher(net, 1.0, 0.5)))


# ---- the hardest -----------------------------------------------------------------------------------


def test_the_hardest_is_the_one_with_the_largest_loss(generator, bank, net):
    policy = Policy(partners=OtherClass(), choose=Hardest(net, 5))
    view = BankView(bank)
    draw = policy.draw(4, view, keyed_generator("test-draw"))
    assert len(draw) == 20
    assert torch.equal(draw.rows.view(4, 5), draw.rows[::5][:, None].expand(4, 5))
    images = decoded(policy, draw, generator, bank)
    pair = policy.label(bank.labels[draw.sources], draw, CLASSES)
    own, other = F.one_hot(pair[0], CLASSES).float(), F.one_hot(pair[1], CLASSES).float()
    targets = pair[2][:, None] * own + (1 - pair[2][:, None]) * other
    losses = F.cross_entropy(net(images), targets, reduction="none").view(4, 5)
    expected = [5 * k + int(losses[k].argmax()) for k in range(4)]
    assert policy.kept(images, pair, CLASSES).tolist() == expected


def test_a_batch_of_the_hardest(generator, bank, net):
    images, labels = batch()
    net.train()
    collate = LatentMixupCollate(generator, bank, policy=Policy(choose=Hardest(net, 4)), prob=0.5, seed=0)
    mixed, targets = collate(images, labels)
    assert net.training
    assert ((mixed != images).flatten(1).any(1)).sum() == 4
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    loader = LatentMixupLoader([(images, labels)], generator, bank, policy=Policy(choose=Hardest(net, 4)), seed=0)
    assert (loader.prefetch, loader.decode_batches) == (0, 1)
    assert next(iter(loader))[0].shape == images.shape


def test_the_hardest_follows_the_training(generator, bank, net):
    data = data_of(generator, bank)
    with pytest.raises(ValueError, match="leave out prefetch=2"):
        LatentMixupLoader(DataLoader(data), generator, bank, prefetch=2, policy=Policy(choose=Hardest(net)))
    wrapped = LatentMixupDataset(data, generator, bank, policy=Policy(choose=Hardest(net, 3)))
    assert len(wrapped.__getitems__([0, 1])) == 2
    with pytest.raises(RuntimeError, match="DataLoader worker has but a copy"):
        list(DataLoader(wrapped, batch_size=4, num_workers=1))
    with pytest.raises(TypeError, match="needs a classifier"):
        Hardest("resnet18")
    with pytest.raises(ValueError, match=r"Hardest.candidates needs to be in \[2"):
        Hardest(net, 1)
