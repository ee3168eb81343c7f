import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import one_hot_bank
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

import latent_mixup as lm
from latent_mixup import functional
from latent_mixup.augment.base import Mixer, MixSettings
from latent_mixup.bank import LatentBank
from latent_mixup.interpolation import PATHS, lerp
from latent_mixup.policies import (
    Anyone,
    BankView,
    Beta,
    Channels,
    ClassPairs,
    Curve,
    Dirichlet,
    Draw,
    Farthest,
    Layers,
    LowPass,
    NearEnds,
    Nearest,
    Noise,
    OtherClass,
    Policy,
    SameClass,
    Scheduled,
    Teacher,
    Truncation,
    Uniform,
    from_config,
    to_config,
)
from latent_mixup.sampling import draw_lam, keyed_generator

NUM_WS, W_DIM, CLASSES = 6, 4, 3
WEIGHTS = [
    Beta(0.3),
    Beta(1.0, "batch"),
    Uniform(0.5, 1.0),
    Uniform(0.3, 0.3, "batch"),
    NearEnds(0.2),
    NearEnds(0.5, "batch"),
    Dirichlet(1.0, 2),
    Dirichlet(0.5, 4),
    Scheduled(Beta(1.0), (0, 10), (0.0, 1.0)),
    Scheduled(Dirichlet(1.0, 3), (2,), (0.5,)),
]
PARTNERS = [
    Anyone(),
    SameClass(),
    SameClass(nearest=3),
    OtherClass(),
    ClassPairs([[0, 1, 1], [1, 0, 0], [0.5, 0, 3]]),
    Nearest(8),
    Nearest(4, SameClass()),
    Farthest(8),
    Farthest(3, ClassPairs([[0, 1, 1], [1, 0, 1], [1, 1, 0]])),
]
BLENDS = [Layers(2), Layers(4, 0.9, "coarse"), Layers(1, 0.0, "fine"), Channels()]
LABELS = [Curve((0, 0.1, 0.5, 0.9, 1)), Curve((0, 0, 1, 1))]
POLICIES = [
    *(Policy(weights) for weights in WEIGHTS),
    *(Policy(partners=partners) for partners in PARTNERS),
    *(Policy(blend=blend) for blend in BLENDS),
    *(Policy(Dirichlet(1.0, 3), blend=blend) for blend in BLENDS),
    *(Policy(labels=labels) for labels in LABELS),
    Policy(Dirichlet(1.0, 3), labels=LABELS[0]),
    Policy(Dirichlet(5.0, 3), labels=Curve((0.0, 0.0, 1.0))),  # flat at 0 for all three, often
    Policy(Scheduled(Dirichlet(0.1, 4), (0,), (1.0,))),
    Policy(unmixed=0.5),
    Policy(path="slerp"),
    Policy(Dirichlet(0.7, 3), SameClass(), Channels(), unmixed=0.3, labels=LABELS[0]),
]
BLURRED = [Policy(noise=Noise(0.3)), Policy(truncation=Truncation(0.5)), Policy(low_pass=LowPass(0.5, 2.0))]


@pytest.fixture(scope="module")
def bank():
    draw = keyed_generator("test", 0)
    labels = torch.arange(60) % CLASSES
    return LatentBank(torch.randn(60, NUM_WS, W_DIM, generator=draw) + 3 * labels[:, None, None], labels)


@pytest.fixture(scope="module")
def rows(bank):
    return BankView(bank)


def named(policy):
    """What differs from the plain policy."""
    plain = Policy()
    return ",".join(str(value) for name, value in vars(policy).items() if value != getattr(plain, name)) or "plain"


def drawn(policy, bank, k=200, key=(0,), **more):
    return policy.draw(k, bank, keyed_generator("test", *key), **more)


def mixed(policy, rows, draw, path=lerp):
    codes = rows.codes(draw.sources.flatten()).unflatten(0, draw.sources.shape)
    return policy.mix(codes, draw, rows, path)


def soft(policy, rows, draw):
    labels_a, labels_b, lam = policy.label(rows.classes[draw.sources], draw, CLASSES)
    return functional.mix_targets(labels_a, labels_b, lam, CLASSES)


# ---- laws of all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
@pytest.mark.parametrize("k", [0, 1, 37])
def test_label_mass_is_one(policy, rows, k):
    draw = drawn(policy, rows, k, epoch=3)
    targets = soft(policy, rows, draw)
    assert targets.shape == (k, CLASSES)
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(k))
    for weights in (draw.weights, draw.label_weights):
        assert weights.shape == (k, policy.num_sources)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(k))
    assert mixed(policy, rows, draw).shape == (k, NUM_WS, W_DIM)
    assert policy.finish(torch.zeros(k, 1, 8, 8), draw).shape == (k, 1, 8, 8)


@pytest.mark.parametrize("policy", POLICIES, ids=named)
def test_weight_one_gives_back_the_source(policy, rows):
    draw = drawn(replace(policy, unmixed=1.0), rows)
    assert (draw.lam == 1).all()
    path = PATHS[policy.path or "lerp"]
    assert torch.equal(mixed(policy, rows, draw, path), rows.codes(draw.rows))
    assert torch.equal(soft(policy, rows, draw), functional.soft_targets(rows.classes[draw.rows], CLASSES))


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
def test_a_stream_is_one_draw(policy, rows):
    first, again, other = (drawn(policy, rows, key=(key,)) for key in (1, 1, 2))
    for name, value in vars(first).items():
        assert value is None or torch.equal(value, getattr(again, name))
    assert not torch.equal(first.sources, other.sources)


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
def test_the_callers_defaults_change_nothing(policy, bank):
    def made():
        view = BankView(bank, torch.arange(60, device="cpu"))
        draw = drawn(policy, view, 20)
        targets, images = soft(policy, view, draw), torch.ones(20, 1, 8, 8, device="cpu", dtype=torch.float32)
        return [*vars(draw).values(), mixed(policy, view, draw), targets, policy.finish(images, draw)]

    expected = made()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            found = made()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(expected, found, strict=True):
        assert one is other is None or (one.dtype == other.dtype and torch.equal(one, other))


@pytest.mark.parametrize("alpha", [1e-320, 1e-300, 1e-12, 1e12, 1e300])
@pytest.mark.parametrize("kind", [Beta, Dirichlet])
def test_extreme_alphas_give_weights(kind, alpha):
    weights = kind(alpha).draw(1000, keyed_generator("test", 0), 0)
    torch.testing.assert_close(weights.sum(1), torch.ones(1000))
    if alpha < 1:
        assert ((weights == 0) | (weights == 1)).all()
        assert weights[:, 0].mean() == pytest.approx(1 / weights.shape[1], abs=0.06)
    else:
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / weights.shape[1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
def test_json_and_back(policy):
    said = json.loads(json.dumps(to_config(policy)))
    assert from_config(said) == policy


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
def test_draws_together_are_the_draws_apart(policy, rows):
    draws = [drawn(policy, rows, k, key=(k,)) for k in (3, 0, 5)]
    whole = Draw.cat(draws)
    torch.testing.assert_close(mixed(policy, rows, whole), torch.cat([mixed(policy, rows, draw) for draw in draws]))
    for part, draw in zip(whole.split([3, 0, 5]), draws, strict=True):
        for name, value in vars(draw).items():
            assert value is None or torch.equal(value, getattr(part, name))


@pytest.mark.parametrize("policy", POLICIES + BLURRED, ids=named)
def test_rows_that_are_given_are_mixed(policy, rows):
    own = torch.arange(60).flip(0)
    draw = drawn(policy, rows, 60, rows=own)
    assert torch.equal(draw.rows, own)
    assert torch.equal(draw.sources[:, 0], own)


def test_the_plain_policy_is_the_paper(rows):
    draw = drawn(Policy(), rows, 64, key=(7,))
    stream = keyed_generator("test", 7)
    expected_rows, partners = torch.randint(60, (2, 64), generator=stream)
    lam = draw_lam(64, 1.0, stream)
    assert torch.equal(draw.rows, expected_rows)
    assert torch.equal(draw.partners, partners)
    assert torch.equal(draw.lam, lam)
    assert torch.equal(draw.label_weights[:, 0], lam)
    codes = lam[:, None, None] * rows.codes(expected_rows) + (1 - lam)[:, None, None] * rows.codes(partners)
    assert torch.equal(mixed(Policy(), rows, draw), codes)


# ---- weights ---------------------------------------------------------------------------------------


def moments(weights, k=20_000, epoch=0):
    found = weights.draw(k, keyed_generator("test", 0), epoch)
    return found.mean(0), found[:, 0].min(), found[:, 0].max()


def test_a_dirichlet_of_two_is_beta():
    assert torch.equal(
        Dirichlet(0.4, 2).draw(99, keyed_generator("test", 0), 0)[:, 0], draw_lam(99, 0.4, keyed_generator("test", 0))
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_a_dirichlet_has_its_moments(alpha):
    found = Dirichlet(alpha, 4).draw(20_000, keyed_generator("test", 0), 0).double()
    variance = (1 / 4) * (3 / 4) / (4 * alpha + 1)
    torch.testing.assert_close(found.mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(found.var(0), torch.full((4,), variance, dtype=torch.float64), atol=0, rtol=0.06)


def test_uniform_weights():
    mean, least, most = moments(Uniform(0.5, 0.9))
    assert abs(mean[0] - 0.7) < 0.01
    assert 0.5 <= least < 0.51
    assert 0.89 < most <= 0.9
    assert (Uniform(0.3, 0.3).draw(5, keyed_generator("test", 0), 0)[:, 0] == 0.3).all()


def test_weights_near_the_ends():
    lam = NearEnds(0.1).draw(20_000, keyed_generator("test", 0), 0)[:, 0]
    assert abs((lam < 0.5).float().mean() - 0.5) < 0.02
    assert (torch.minimum(lam, 1 - lam) <= 0.1 + 1e-6).all()
    assert (torch.minimum(lam, 1 - lam) > 0.09).any()


@pytest.mark.parametrize("weights", [Beta(1.0, "batch"), Uniform(mode="batch"), NearEnds(mode="batch")], ids=str)
def test_one_lam_for_the_batch(weights):
    lam = weights.draw(9, keyed_generator("test", 0), 0)[:, 0]
    assert torch.equal(lam, lam[:1].expand(9))
    assert Policy(weights).by_batch
    assert Policy(Scheduled(weights)).by_batch
    assert not Policy(replace(weights, mode="elem")).by_batch


@pytest.mark.parametrize(
    ("epoch", "strength"), [(-1, 0.2), (0, 0.2), (2, 0.2), (3, 0.4), (6, 1.0), (7, 0.75), (10, 0.0), (99, 0.0)]
)
def test_a_schedule_is_linear_between_its_epochs(epoch, strength):
    schedule = Scheduled(Beta(1.0), (2, 6, 10), (0.2, 1.0, 0.0))
    assert schedule.strength(epoch) == pytest.approx(strength)
    plain = Beta(1.0).draw(50, keyed_generator("test", 0), 0)[:, 0]
    lam = schedule.draw(50, keyed_generator("test", 0), epoch)[:, 0]
    torch.testing.assert_close(1 - lam, strength * (1 - plain))


# ---- partners --------------------------------------------------------------------------------------


def table_of(partners, rows, k=30_000):
    """How often a sample of each class meets each class."""
    draw = drawn(Policy(partners=partners), rows, k)
    classes = rows.classes[draw.sources]
    counts = torch.zeros(CLASSES, CLASSES).index_put((classes[:, 0], classes[:, 1]), torch.tensor(1.0), accumulate=True)
    return draw, counts / counts.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("partners", "expected"),
    [
        (Anyone(), torch.full((3, 3), 1 / 3)),
        (SameClass(), torch.eye(3)),
        (OtherClass(), (1 - torch.eye(3)) / 2),
        (
            ClassPairs([[0, 1e308, 1e308], [5e-324, 0, 0], [0, 1, 0]]),
            torch.tensor([[0, 0.5, 0.5], [1, 0, 0], [0, 1.0, 0]]),
        ),
        (ClassPairs([[0, 1, 3], [2, 2, 0], [0, 5, 0]]), torch.tensor([[0, 0.25, 0.75], [0.5, 0.5, 0], [0, 1.0, 0]])),
    ],
    ids=str,
)
def test_partners_are_of_the_classes_asked_for(partners, expected, rows):
    draw, found = table_of(partners, rows)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert (found[expected == 0] == 0).all()
    for label in range(CLASSES):  # and each row of a class is as likely
        counts = torch.bincount(draw.partners[rows.classes[draw.partners] == label], minlength=60)[label::CLASSES]
        assert counts.min() > 0.7 * counts.float().mean()


def test_classes_of_unequal_size():
    labels = torch.tensor([0] * 5 + [1] * 40 + [2] * 15)[torch.randperm(60, generator=keyed_generator("test", 4))]
    rows = BankView(LatentBank(torch.zeros(60, 2), labels))
    draw = drawn(Policy(partners=OtherClass()), rows, 40_000)
    own, other = labels[draw.rows], labels[draw.partners]
    assert (own != other).all()
    counts = torch.bincount(draw.partners[own == 0], minlength=60)
    assert (counts[labels == 0] == 0).all()
    assert counts[labels != 0].min() > 0.5 * counts[labels != 0].float().mean()


@pytest.mark.parametrize(("partners", "best"), [(Nearest(5, Anyone()), min), (Farthest(5, Anyone()), max)], ids=str)
def test_the_nearest_and_the_farthest_of_what_was_drawn(partners, best, rows):
    own = torch.arange(60)
    stream = keyed_generator("test", 3)
    found = partners.draw(own, 2, rows, stream)
    candidates = Anyone().draw(own, 10, rows, keyed_generator("test", 3))
    codes = rows.codes(own)
    for row in range(60):
        for number in range(2):
            some = [c for c in candidates[row, 5 * number : 5 * number + 5].tolist() if best is max or c != row]
            distances = [float((codes[row] - codes[c]).norm()) for c in some]
            chosen = float((codes[row] - codes[found[row, number]]).norm())
            assert chosen == pytest.approx(best(distances))


def test_more_candidates_are_nearer(rows):
    def distance(partners):
        draw = drawn(Policy(partners=partners), rows, 500)
        return float((rows.codes(draw.rows) - rows.codes(draw.partners)).flatten(1).norm(dim=1).mean())

    ways = [Nearest(16), Nearest(2), OtherClass(), Farthest(2), Farthest(16)]
    assert sorted(ways, key=distance) == ways


def test_partners_that_a_bank_has_not():
    one = BankView(LatentBank(torch.zeros(3, 4), [1, 1, 1], metadata={"num_classes": 3}))
    with pytest.raises(ValueError, match="OtherClass needs a bank of at least two classes: got one"):
        Policy(partners=Nearest(3)).check(one)
    with pytest.raises(ValueError, match="is of 2 classes, the bank of 3"):
        Policy(partners=ClassPairs([[0, 1], [1, 0]])).check(one)
    with pytest.raises(ValueError, match="pairs class 1 with class 2: the bank has none"):
        Policy(partners=ClassPairs([[1, 0, 0], [0, 1, 1], [0, 0, 1]])).check(one)
    Policy(partners=SameClass()).check(one)
    with pytest.raises(ValueError, match="at least one row"):
        Policy().draw(3, BankView(one.bank, torch.arange(0)), keyed_generator("test", 0))


@pytest.mark.parametrize("partners", PARTNERS, ids=str)
def test_a_view_of_some_rows_gives_no_others(partners, bank):
    some = torch.arange(60).reshape(20, 3)[::2].flatten()  # ten of each class
    view, policy = BankView(bank, some), Policy(Dirichlet(1.0, 3), partners)
    policy.check(view)
    draw = drawn(policy, view, 400)
    assert torch.isin(draw.sources, some).all()
    assert set(draw.sources.flatten().tolist()) == set(some.tolist())
    assert view.class_counts.tolist() == [10, 10, 10]
    alone = BankView(bank.subset(some))
    assert torch.equal(view.mean, alone.mean)
    assert torch.equal(view.spread, alone.spread)
    assert torch.equal(some[drawn(policy, alone, 400).sources], draw.sources)  # as of a bank of these rows


@pytest.mark.parametrize("some", [[3, 2], [2, 2], [-1, 0], [0, 60]])
def test_a_view_needs_rows_of_the_bank(some, bank):
    with pytest.raises(ValueError, match="rows needs rows of a bank of 60, ascending and each once"):
        BankView(bank, torch.tensor(some))


def test_a_view_without_a_second_class_is_refused(bank):
    with pytest.raises(ValueError, match="at least two classes: got one"):
        Policy(partners=OtherClass()).check(BankView(bank, torch.tensor([0, 3])))


def test_soft_labels_are_of_their_likeliest_class(toy_bank):
    hard, soft_ = BankView(toy_bank), BankView(one_hot_bank(toy_bank))
    for partners in (SameClass(), OtherClass()):
        pair = [drawn(Policy(partners=partners), rows).sources for rows in (hard, soft_)]
        assert torch.equal(*pair)


# ---- blends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixes", ["both", "coarse", "fine"])
def test_layers_have_their_own_weights(rows, mixes):
    policy = Policy(blend=Layers(2, 0.8, mixes))
    draw = drawn(policy, rows)
    own, other = rows.codes(draw.rows), rows.codes(draw.partners)
    coarse, fine = draw.shares[:, 0, 0, 0], draw.shares[:, 0, 5, 0]
    expected = torch.cat([lerp(own[:, :2], other[:, :2], coarse), lerp(own[:, 2:], other[:, 2:], fine)], 1)
    torch.testing.assert_close(mixed(policy, rows, draw), expected)
    torch.testing.assert_close(draw.label_weights[:, 0], 0.8 * coarse + 0.2 * fine)
    assert (coarse == 1).all() == (mixes == "fine")
    assert (fine == 1).all() == (mixes == "coarse")
    assert not torch.equal(coarse, fine)


def test_channels_are_one_sources_alone(rows):
    policy = Policy(Dirichlet(1.0, 3), blend=Channels())
    draw = drawn(policy, rows)
    codes, found = rows.codes(draw.sources.flatten()).unflatten(0, (200, 3)), mixed(policy, rows, draw)
    for k in range(200):
        for channel in range(W_DIM):
            source = int(draw.shares[k, :, 0, channel].argmax())
            assert torch.equal(found[k, :, channel], codes[k, source, :, channel])
    torch.testing.assert_close(draw.label_weights, draw.shares[:, :, 0].mean(2))


def test_a_mask_has_its_weight_on_average():
    rows = BankView(LatentBank(torch.zeros(4, 1000), [0, 1, 0, 1]))
    draw = drawn(Policy(Uniform(0.3, 0.3), blend=Channels()), rows)
    assert abs(draw.label_weights[:, 0].mean() - 0.3) < 0.005


def test_blends_that_codes_do_not_have(rows, toy_bank):
    with pytest.raises(ValueError, match=r"needs codes of W\+, \[num_ws, w_dim\]: got \[16\]"):
        Policy(blend=Layers(2)).check(BankView(toy_bank))
    with pytest.raises(ValueError, match="coarse=6 leaves no fine layer: codes have 6"):
        Policy(blend=Layers(6)).check(rows)
    with pytest.raises(ValueError, match=r"from_layer=6 needs codes of W\+ with more layers: got \[6, 4\]"):
        Policy(truncation=Truncation(0.0, 6)).check(rows)


# ---- vicinity --------------------------------------------------------------------------------------


def test_noise_is_in_units_of_the_banks_spread():
    codes = torch.randn(500, 3, generator=keyed_generator("test", 0)) * torch.tensor([1.0, 10.0, 0.1])
    rows = BankView(LatentBank(codes, torch.arange(500) % 2))
    policy = Policy(noise=Noise(0.5))
    draw = drawn(policy, rows, 20_000)
    plain = drawn(Policy(), rows, 20_000)
    assert torch.equal(draw.sources, plain.sources)
    moved = mixed(policy, rows, draw) - mixed(Policy(), rows, plain)
    torch.testing.assert_close(moved.std(0), 0.5 * codes.std(0), rtol=0.03, atol=0)


def test_truncation_moves_towards_the_mean(rows):
    draw = drawn(Policy(), rows)
    codes, mean = mixed(Policy(), rows, draw), rows.codes(torch.arange(60)).mean(0)
    found = mixed(Policy(truncation=Truncation(0.6)), rows, draw)
    torch.testing.assert_close(found, mean + 0.6 * (codes - mean))
    coarse = mixed(Policy(truncation=Truncation(0.0, 2)), rows, draw)
    assert torch.equal(coarse[:, :2], codes[:, :2])
    torch.testing.assert_close(coarse[:, 2:], mean[2:].expand(200, -1, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_low_pass_is_torchvisions_blur_of_each_image(channels):
    images = torch.rand(6, channels, 24, 20, generator=keyed_generator("test", 0))
    sigma = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.5, 2.0])
    found = LowPass(0.0, 2.0)(images, sigma)
    assert torch.equal(found[0], images[0])
    for image, blurred, width in zip(images[1:], found[1:], sigma[1:].tolist(), strict=True):
        torch.testing.assert_close(blurred, gaussian_blur(image, [13, 13], [width, width]))


def test_a_low_pass_of_small_images():
    images = torch.rand(2, 1, 3, 3)
    assert LowPass(9.0, 9.0)(images, torch.tensor([9.0, 9.0])).isfinite().all()
    assert LowPass(0.0, 0.0)(images, torch.zeros(2)) is images


# ---- labels ----------------------------------------------------------------------------------------


def test_a_curve_is_numpys_interpolation():
    curve, lam = Curve((0, 0.05, 0.5, 0.95, 1)), torch.linspace(0, 1, 101)
    expected = np.interp(lam.numpy(), np.linspace(0, 1, 5), curve.points)
    np.testing.assert_allclose(curve.at(lam), expected, atol=1e-6)
    assert torch.equal(curve(torch.eye(3)), torch.eye(3))


def test_a_teacher_labels_mixes_and_no_others(rows):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    policy = Policy(unmixed=0.5, labels=Teacher(net, 2.0))
    draw, images = drawn(policy, rows, 40), torch.rand(40, 1, 4, 4)
    found = functional.mix_targets(*policy.label(rows.classes[draw.sources], draw, CLASSES, images), CLASSES)
    alone = draw.lam == 1
    assert alone.sum() == 20
    own = functional.soft_targets(rows.classes[draw.rows], CLASSES)
    assert torch.equal(found[alone], own[alone])
    torch.testing.assert_close(found[~alone], torch.softmax(net(images[~alone]) / 2, 1))
    assert not any(parameter.requires_grad for parameter in net.parameters())
    config = json.loads(json.dumps(to_config(policy)))
    assert config["labels"] == {**policy.labels.facts(), "temperature": 2.0, "min_confidence": 0.0}
    with pytest.raises(ValueError, match="need its network"):
        from_config(config)


class Output:
    def __init__(self, logits):
        self.logits = logits


class Returns(nn.Module):
    """A classifier whose forward returns ``make(logits)``."""

    def __init__(self, make, num_classes=CLASSES):
        super().__init__()
        self.net, self.make = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, num_classes)), make

    def forward(self, images):
        return self.make(self.net(images))


IMAGES = torch.linspace(-1, 1, 80).view(5, 1, 4, 4)


@pytest.mark.parametrize(
    "make", [lambda x: x, Output, lambda x: {"logits": x}, lambda x: (x,), lambda x: [Output(x)], lambda x: x.half()]
)
def test_a_teacher_reads_the_logits_of_whatever_its_model_returns(make):
    model = Returns(make)
    found = Teacher(model)(IMAGES, CLASSES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.net(IMAGES).softmax(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x, x), "needs to return logits, a tensor .B, K.: got a tuple of 2"),
        (lambda x: {"out": x}, "got a dict with 'out'"),
        (lambda x: None, "got NoneType"),
        (lambda x: x[:, :2], r"logits \[5, 3\]: got \[5, 2\]"),
        (lambda x: x[:4], r"logits \[5, 3\]: got \[4, 3\]"),
        (lambda x: x[..., None, None], r"got \[5, 3, 1, 1\]"),
        (lambda x: x * math.nan, "NaN or infinite logits for 5 of 5 images"),
    ],
)
def test_outputs_that_are_no_logits_of_the_classes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Teacher(Returns(make))(IMAGES, CLASSES)


def test_a_teachers_labels_stay_when_its_owner_trains_on():
    model = Returns(lambda x: x)
    teacher = Teacher(model)
    before = teacher(IMAGES)
    nn.ModuleList([model]).train()
    assert torch.equal(teacher(IMAGES), before)
    assert model.training  # as its owner left it


def test_a_teacher_that_works_in_place_changes_no_image():
    images = IMAGES.clone()
    Teacher(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, CLASSES)))(images)
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1.0, 1e300])
def test_a_teacher_of_any_temperature_gives_distributions(temperature):
    found = Teacher(Returns(lambda x: x * 1000), temperature)(IMAGES)
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    if temperature in (1e-300, 1e300):
        torch.testing.assert_close(found.amax(1), torch.full((5,), 1.0 if temperature < 1 else 1 / CLASSES))


def test_probabilities_in_the_place_of_logits_are_told_once():
    teacher = Teacher(Returns(lambda x: x.softmax(1)))
    with pytest.warns(UserWarning, match="the teacher returns probabilities") as caught:
        teacher(IMAGES), teacher(IMAGES)
    assert len(caught) == 1


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (Beta, "alpha", "0.4", "Beta.alpha needs to be a finite number: got '0.4'"),
        (Beta, "alpha", True, "needs to be a finite number: got True"),
        (Beta, "alpha", None, "needs to be a finite number: got None"),
        (Beta, "alpha", math.inf, "needs to be a finite number: got inf"),
        (Beta, "alpha", 10**400, "needs to be a finite number"),
        (Beta, "alpha", [0.4], r"needs to be a finite number: got \[0.4\]"),
        (Beta, "mode", ["elem"], 'Beta.mode needs to be "elem" or "batch"'),
        (Uniform, "low", {}, "needs to be a finite number: got {}"),
        (Dirichlet, "num_sources", 2.5, "Dirichlet.num_sources needs to be an integer: got 2.5"),
        (Dirichlet, "num_sources", 10**30, "num_sources needs to be an integer"),
        (Dirichlet, "num_sources", 2**40, "num_sources needs to be in"),
        (Scheduled, "weights", 1, "Scheduled.weights needs to be Beta, Uniform, NearEnds or Dirichlet: got 1"),
        (Scheduled, "epochs", 5, "Scheduled.epochs needs a list: got 5"),
        (Scheduled, "epochs", (0, 1.5), r"Scheduled.epochs\[1\] needs to be an integer: got 1.5"),
        (Scheduled, "strengths", "01", "Scheduled.strengths needs a list: got '01'"),
        (SameClass, "nearest", 2.5, "SameClass.nearest needs to be an integer: got 2.5"),
        (SameClass, "nearest", True, "SameClass.nearest needs to be an integer: got True"),
        (Nearest, "candidates", 2.5, "Nearest.candidates needs to be an integer: got 2.5"),
        (Nearest, "among", Nearest(2), "Nearest.among needs to be Anyone, SameClass, OtherClass or ClassPairs"),
        (Farthest, "among", Anyone, "got <class .*make one, .*Anyone"),
        (ClassPairs, "matrix", ((1, None),), r"ClassPairs.matrix\[0\]\[1\] needs to be a finite number: got None"),
        (ClassPairs, "matrix", (1, 2), r"ClassPairs.matrix\[0\] needs a list: got 1"),
        (Layers, "coarse", 2.0, "Layers.coarse needs to be an integer"),
        (Noise, "scale", "a", "Noise.scale needs to be a finite number"),
        (Curve, "points", None, "Curve.points needs a list: got None"),
        (Policy, "weights", None, "Policy.weights needs to be Beta, .* or Scheduled: got None"),
        (Policy, "weights", Beta, "Policy.weights needs to be .*make one"),
        (Policy, "partners", "nearest", "Policy.partners needs to be .*: got 'nearest'"),
        (Policy, "path", 1, 'Policy.path needs to be "lerp" or "slerp": got 1'),
        (Policy, "low_pass", 1.0, "Policy.low_pass needs to be LowPass: got 1.0"),
        (Policy, "unmixed", "half", "Policy.unmixed needs to be a finite number"),
    ],
)
def test_a_setting_of_another_type_is_refused(kind, field, value, message):
    required = {Scheduled: {"weights": Beta()}, Layers: {"coarse": 2}}.get(kind, {})
    with pytest.raises(ValueError, match=message):
        kind(**{**required, field: value})


def test_numbers_of_other_libraries_are_plain_numbers_afterwards():
    assert Beta(np.float32(0.5)) == Beta(0.5) == Beta(torch.tensor(0.5))
    assert Nearest(np.int64(3)).candidates == 3
    assert ClassPairs(torch.eye(2)) == ClassPairs(np.eye(2)) == ClassPairs([[1, 0], [0, 1]])
    json.dumps(to_config(Policy(Uniform(np.float64(0.5), 1), ClassPairs(np.ones((3, 3))))))


def nested(depth, innermost, wrap):
    for _ in range(depth):
        innermost = wrap(innermost)
    return innermost


@pytest.mark.parametrize(
    "config",
    [
        {"partners": nested(2000, {"kind": "Anyone"}, lambda inner: {"kind": "Nearest", "among": inner})},
        {"weights": nested(2000, {"kind": "Beta"}, lambda inner: {"kind": "Scheduled", "weights": inner})},
        {"labels": {"kind": "Curve", "points": nested(2000, [], lambda inner: [inner])}},
        {"weights": None},
        {"weights": {"kind": ["Beta"]}},
        {"weights": {"kind": "Beta", "alpha": 10**400}},
        {"weights": {"kind": "Beta", "num_sources": 2}},
        {"partners": {"kind": "Nearest", "candidates": 2.5}},
        {"partners": {"kind": "Anyone", "kind ": 1}},
        {"labels": {"kind": "Teacher", "model": {}}},
        {"blend": []},
        {1: 2},
        None,
        "robust",
    ],
    ids=lambda config: str(config)[:40] if not isinstance(config, dict) else next(iter(config)),
)
def test_whatever_json_holds_the_error_is_a_short_value_error(config):
    with pytest.raises(ValueError, match=r".") as caught:
        from_config(config)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 300
    assert "not supported between" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beta(0.0), "alpha needs to be above 0"),
        (lambda: Beta(1.0, "half"), 'mode needs to be "elem" or "batch"'),
        (lambda: Uniform(0.5, 0.4), "needs 0 <= low <= high <= 1: got low=0.5, high=0.4"),
        (lambda: NearEnds(0.6), "width needs to be above 0, and at most 0.5: got 0.6"),
        (lambda: Dirichlet(1.0, 1), "num_sources needs to be in .2, 65535.: got 1"),
        (lambda: Scheduled(Beta(), (0, 1), (1.0,)), "one strength an epoch"),
        (lambda: Scheduled(Beta(), (1, 1), (1.0, 0.0)), r"epochs need to ascend: got \(1, 1\)"),
        (lambda: Scheduled(Beta(), (1,), (1.5,)), r"strengths need to be in \[0, 1\]"),
        (lambda: ClassPairs([[1, 0]]), "needs to be square"),
        (lambda: ClassPairs([[1, -1], [0, 1]]), "row 0 of the class-pair matrix"),
        (lambda: ClassPairs([[1, 0], [0, 0]]), "row 1 of the class-pair matrix"),
        (lambda: Nearest(0), "candidates needs to be in .1, 65535.: got 0"),
        (lambda: Farthest(0), "candidates needs to be in .1, 65535.: got 0"),
        (lambda: SameClass(0), "nearest needs to be in .1, 1024.: got 0"),
        (lambda: SameClass(1025), "nearest needs to be in .1, 1024.: got 1025"),
        (lambda: Layers(0), "coarse needs to be at least 1 layer: got 0"),
        (lambda: Layers(2, 1.5), r"label_share needs to be in \[0, 1\]: got 1.5"),
        (lambda: Layers(2, mixed="none"), 'mixed needs to be "both", "coarse" or "fine": got \'none\''),
        (lambda: Noise(-1), "scale needs to be from 0"),
        (lambda: Noise(math.nan), "Noise.scale needs to be a finite number: got nan"),
        (lambda: Truncation(1.5), r"psi needs to be in \[0, 1\]: got 1.5"),
        (lambda: Truncation(0.5, -1), "from_layer needs to be from 0: got -1"),
        (lambda: LowPass(2.0, 1.0), "needs 0 <= low <= high: got low=2.0, high=1.0"),
        (lambda: Curve((0, 0.5)), "points from 0 to 1 that never fall"),
        (lambda: Curve((0, 0.6, 0.5, 1)), "points from 0 to 1 that never fall"),
        (lambda: Teacher(nn.Identity(), 0), "temperature needs to be above 0: got 0"),
        (lambda: Policy(unmixed=1.5), r"unmixed needs to be in \[0, 1\]: got 1.5"),
        (lambda: Policy(path="arc"), 'path needs to be "lerp" or "slerp"'),
        (lambda: Policy(Dirichlet(1.0, 3), path="slerp"), 'use path="lerp" with Dirichlet of 3 and Whole'),
        (lambda: Policy(blend=Channels(), path="slerp"), 'use path="lerp" with Beta of 2 and Channels'),
        (lambda: to_config(Beta(0.4)), "to_config needs to be Policy: got Beta"),
        (lambda: from_config([]), r"a policy needs to be an object: got \[\]"),
        (lambda: from_config({"alpha": 1.0}), "a policy has no setting 'alpha': expected some of weights, partners"),
        (
            lambda: from_config({"weights": {"kind": "Gamma"}}),
            "weights needs an object with a kind, one of Beta, Uniform",
        ),
        (lambda: from_config({"weights": "Beta"}), "got 'Beta'"),
        (lambda: from_config({"noise": {"kind": "Noise", "sigma": 1}}), "Noise has no setting 'sigma'"),
        (lambda: from_config({"partners": {"kind": "OtherClass", "n": 1}}), "expected some of none"),
        (lambda: from_config({"labels": {"kind": "Curve"}}), "Curve needs the setting 'points', which is missing"),
        (
            lambda: from_config({"weights": {"kind": "Beta", "alpha": "1"}}),
            "Beta.alpha needs to be a finite number: got '1'",
        ),
        (lambda: MixSettings(policy=Policy(), alpha=2.0), r"alpha, mode and path are parts of a policy: got alpha=2.0"),
        (lambda: MixSettings(policy=Policy(), path="lerp"), r"got alpha=1.0, mode='elem', path='lerp' beside policy="),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- in the wrappers -------------------------------------------------------------------------------


@pytest.mark.parametrize("target_format", ["soft", "pair"])
@pytest.mark.parametrize(
    "policy",
    [
        Policy(Dirichlet(1.0, 3), OtherClass(), noise=Noise(0.2)),
        Policy(Beta(0.5), Nearest(4), Channels(), unmixed=0.4),
        Policy(Uniform(0.5, 1.0), labels=Curve((0, 0.2, 1)), low_pass=LowPass(0.0, 0.5)),
    ],
    ids=str,
)
def test_the_three_entry_points_follow_it(policy, target_format, linear_generator, toy_bank, toy_dataset):
    settings = {"policy": policy, "prob": 0.5, "seed": 0, "target_format": target_format}
    dataset = lm.LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **settings)
    collate = lm.LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, **settings)
    plain = torch.utils.data.DataLoader(toy_dataset, 10)
    loader = lm.LatentMixupLoader(plain, linear_generator, toy_bank, **settings)
    one_by_one = [dataset[i] for i in range(len(dataset))]
    again = lm.LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **settings)
    together = again.__getitems__(list(range(len(again))))
    for (image, target), (same, also) in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(image, same)
        torch.testing.assert_close(target, also)
    for images, targets in [collate([toy_dataset[i] for i in range(12)]), next(iter(loader))]:
        assert images.shape[1:] == (1, 4, 4)
        found = targets if target_format == "soft" else functional.mix_targets(*targets, 3)
        torch.testing.assert_close(found.sum(1), torch.ones(len(images)))


def test_wrappers_without_a_policy_follow_the_plain_one(linear_generator, toy_bank, toy_dataset):
    key = (0, 0, 0, 5)
    batch = toy_dataset.images[:12], toy_dataset.labels[:12]
    ways = [{"alpha": 0.4, "path": "slerp"}, {"policy": Policy(Beta(0.4), path="slerp")}]
    (images, targets), (same, also) = (
        Mixer(linear_generator, toy_bank, MixSettings(seed=0, **way)).blend(*batch, key) for way in ways
    )
    assert torch.equal(images, same)
    assert torch.equal(targets, also)


def test_a_schedule_follows_the_epoch(linear_generator, toy_bank, toy_dataset):
    policy = Policy(Scheduled(Beta(1.0), (0, 5), (0.0, 1.0)))
    dataset = lm.LatentMixupDataset(toy_dataset, linear_generator, toy_bank, policy=policy, seed=0)
    one_hot = torch.stack([target for _, target in dataset.__getitems__(range(50))])
    dataset.set_epoch(5)
    mixed_ = torch.stack([target for _, target in dataset.__getitems__(range(50))])
    assert ((one_hot == 0) | (one_hot == 1)).all()
    assert ((mixed_ > 0) & (mixed_ < 1)).any()


def test_a_data_set_refuses_one_lam_a_batch(linear_generator, toy_bank):
    with pytest.raises(ValueError, match='mode="batch" needs a batch'):
        lm.LatentMixupDataset(None, linear_generator, toy_bank, policy=Policy(Beta(1.0, "batch")))


def test_what_is_known_of_a_bank_stays_in_its_process(bank):
    rows = BankView(bank)
    drawn(Policy(partners=Nearest(4), noise=Noise(0.1)), rows)
    assert set(vars(pickle.loads(pickle.dumps(rows)))) == {"bank", "rows", "num_rows", "_neighbours"}  # noqa: S301


def test_widths_of_a_low_pass_are_uniform_between_its_ends():
    widths = LowPass(1.0, 3.0).draw(4000, keyed_generator("test", 0))
    assert widths.min() >= 1
    assert widths.max() <= 3
    assert widths.mean().item() == pytest.approx(2.0, abs=0.05)
    assert widths.std().item() == pytest.approx(2 / 12**0.5, abs=0.03)


def test_two_weights_go_through_the_curve():
    curve = Curve((0.0, 0.1, 0.5, 0.9, 1.0))
    found = curve(torch.tensor([[0.25, 0.75], [0.75, 0.25], [1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.9], [0.9, 0.1], [1.0, 0.0]]))


@pytest.mark.parametrize("policy", [Policy(labels=Curve((0.0, 0.1, 0.5, 0.9, 1.0))), Policy(blend=Channels())])
def test_the_weight_of_the_first_label_is_the_label_weight(rows, policy):
    draw = drawn(policy, rows, 200)
    first, second, weight = policy.label(rows.classes[draw.sources], draw, CLASSES)
    assert torch.equal(first, rows.classes[draw.rows])
    assert torch.equal(second, rows.classes[draw.partners])
    assert torch.equal(weight, draw.label_weights[:, 0])
    assert not torch.allclose(weight, draw.weights[:, 0], atol=0.05)
