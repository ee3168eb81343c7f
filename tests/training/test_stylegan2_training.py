"""Training StyleGAN2: its losses, discriminator, augmentation and distance against slow references, and its files."""

from __future__ import annotations

import copy
import io
import json
import math
import statistics

import pytest
import reference_stylegan2 as reference
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import linalg
from trainings import KINDS, STYLEGAN2, STYLEGAN2_RECIPE, halves, seeded

from latent_mixup.classifiers import FeatureCNN
from latent_mixup.generators import StyleGAN2
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.pictures import CAPTION_WIDTH
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import StyleGAN2Recipe, pad_to_power_of_two, shuffled_batches
from latent_mixup.training import frechet as frechet_module
from latent_mixup.training.frechet import FeatureDistance, frechet_distance, moments
from latent_mixup.training.stylegan2 import augment as ada
from latent_mixup.training.stylegan2 import train as train_module
from latent_mixup.training.stylegan2.discriminator import Discriminator, DownBlock, EqualConv, with_batch_deviation
from latent_mixup.training.stylegan2.train import (
    StyleGAN2Training,
    class_deviations,
    discriminator_loss,
    draw_rows_by_class,
    generator_loss,
    r1_penalty,
    samples,
    training_sheet,
)

DATA = halves()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**changes) -> StyleGAN2:
    return seeded(lambda: StyleGAN2(**{**STYLEGAN2, "img_resolution": 8, "img_channels": 1, **changes}))


def images_of(n: int, channels: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=draw(), dtype=dtype) * 2 - 1


# ---- losses ----------------------------------------------------------------------------------------


def test_losses_are_minus_log_of_the_probabilities():
    real, fake = torch.randn(2, 9, generator=draw(), dtype=torch.float64) * 3
    probability = [1 / (1 + math.exp(-score)) for score in fake]
    expected = sum(-math.log(p) for p in probability) / 9
    assert generator_loss(fake).item() == pytest.approx(expected, rel=1e-12)
    expected = sum(-math.log(1 - p) for p in probability) / 9
    expected += sum(-math.log(1 / (1 + math.exp(-score))) for score in real) / 9
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)


def test_losses_of_undecided_and_of_extreme_scores():
    none, sure = torch.zeros(3), torch.full((3,), 1e4)
    assert generator_loss(none).item() == pytest.approx(math.log(2))
    assert discriminator_loss(none, none).item() == pytest.approx(2 * math.log(2))
    assert (generator_loss(-sure), discriminator_loss(sure, -sure)) == (1e4, 0)
    losing = (-sure).requires_grad_(True)
    generator_loss(losing).backward()
    assert losing.grad.allclose(torch.tensor(-1 / 3))  # where the generator loses, its gradient does not vanish


def bowl(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A discriminator that scores each image alone."""
    return (weight * images.square()).sum((1, 2, 3)) + images.prod(3).sum((1, 2))


def test_r1_is_half_the_mean_squared_slope_by_finite_differences():
    images, weight, step = images_of(3, 2, 4), images_of(1, 2, 4)[0], 1e-6
    total = 0.0
    for image in images:
        for place in range(image.numel()):
            nudge = torch.zeros(image.numel(), dtype=image.dtype)
            nudge[place] = step
            up, down = (bowl((image + sign * nudge.view_as(image))[None], weight) for sign in (1, -1))
            total += ((up - down) / (2 * step)).item() ** 2
    leaf = images.requires_grad_(True)
    assert r1_penalty(bowl(leaf, weight), leaf).item() == pytest.approx(total / 3 / 2, rel=1e-6)


def test_r1_is_trained_through_and_spares_a_constant_discriminator():
    images = images_of(3, 2, 4).requires_grad_(True)
    weight = images_of(1, 2, 4)[0].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda weight: r1_penalty(bowl(images, weight), images), weight)
    assert r1_penalty((images * 0).sum((1, 2, 3)) + 5, images) == 0
    slope = r1_penalty(7 * images[:, 0, 0, 0], images)
    assert slope.item() == pytest.approx(49 / 2)


# ---- the discriminator -----------------------------------------------------------------------------


def slow_conv(state, name, x, size, down=False, activate=True):
    """``[I, R, R]``: the filter, then the convolution at every place, then every other one of them."""
    weight = state[f"{name}.weight"] / math.sqrt(x.shape[0] * size**2)
    row = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 8
    if down:
        edge = size // 2 + 1
        kernel = torch.stack([torch.stack([a * b for b in row]) for a in row])[None, None]
        x = torch.cat([reference.correlate(reference.pad(channel[None], edge, edge), kernel) for channel in x])
    else:
        x = reference.pad(x, size // 2, size // 2)
    x = reference.correlate(x, weight)
    x = x[:, ::2, ::2] if down else x
    return reference.leaky(x + state[f"{name}.bias"][:, None, None]) if activate else x


def slow_deviation(features):
    """One number for each image: its group is every image as far from it as a quarter of the batch divides."""
    n = len(features)
    size = 4 if n % 4 == 0 else n
    found = []
    for image in range(n):
        group = [features[other] for other in range(n) if (other - image) % (n // size) == 0]
        assert len(group) == size
        mean = sum(group) / size
        variance = sum((member - mean) ** 2 for member in group) / size
        found.append((variance + 1e-8).sqrt().mean())
    return found


def slow_scores(state, images, classes):
    features = []
    for image in images:
        x, block = slow_conv(state, "from_rgb", image, 1), 0
        while f"blocks.{block}.skip.weight" in state:
            name = f"blocks.{block}"
            long = slow_conv(state, f"{name}.conv1", slow_conv(state, f"{name}.conv0", x, 3), 3, down=True)
            x = (long + slow_conv(state, f"{name}.skip", x, 1, down=True, activate=False)) / math.sqrt(2)
            block += 1
        features.append(x)
    scores = []
    for i, (x, deviation) in enumerate(zip(features, slow_deviation(features), strict=True)):
        x = slow_conv(state, "conv", torch.cat([x, deviation.expand(1, 4, 4)]), 3)
        x = reference.leaky(reference.linear(state, "fc", x.flatten()))
        score = reference.linear(state, "out", x)[0]
        if classes is not None:
            score = score + (reference.linear(state, "embed", classes[i]) @ x) / math.sqrt(len(x))
        scores.append(score)
    return torch.stack(scores)


def random_discriminator(*arguments, **changes) -> Discriminator:
    """In float64, its biases not zero."""
    model = seeded(lambda: Discriminator(*arguments, **{"channel_base": 64, "channel_max": 6, **changes})).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw(len(name)), dtype=torch.float64))
    return model


@pytest.mark.parametrize(("resolution", "channels", "c_dim", "n"), [(8, 1, 0, 4), (16, 3, 3, 8), (8, 3, 2, 3)])
def test_scores_are_the_slow_references(resolution, channels, c_dim, n):
    model = random_discriminator(resolution, channels, c_dim)
    images = images_of(n, channels, resolution)
    classes = torch.rand(n, c_dim, generator=draw(), dtype=torch.float64) if c_dim else None
    scores = model(images, classes)
    assert scores.shape == (n,)
    torch.testing.assert_close(scores, slow_scores(model.state_dict(), images, classes), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("resolution", "c_dim"), [(8, 0), (16, 3), (32, 0)])
def test_gradients_reach_every_weight_and_pixel(resolution, c_dim):
    model = seeded(lambda: Discriminator(resolution, 3, c_dim, 64, 8))
    images = images_of(4, 3, resolution, torch.float32).requires_grad_(True)
    classes = F.one_hot(torch.arange(4) % c_dim, c_dim).float() if c_dim else None
    model(images, classes).square().sum().backward()
    assert (images.grad.abs().flatten(1).amax(1) > 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    widths = [min(64 // r, 8) for r in (32, 16, 8) if r <= resolution]
    assert [block.conv0.weight.shape[1] for block in model.blocks] == widths


def test_classes_come_in_as_a_projection():
    """The difference between two classes' scores is the difference of their embeddings, on the same features."""
    model = random_discriminator(8, 1, 3)
    images = images_of(4, 1, 8)
    one, two, three = (model(images, row.expand(4, 3)) for row in torch.eye(3, dtype=torch.float64))
    assert (one - two).abs().min() > 1e-3
    mixed = model(images, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(4, 3))
    torch.testing.assert_close(mixed, 0.5 * one + 0.3 * two + 0.2 * three)
    model.embed.weight.data[:, 0] = 2 * model.embed.weight.data[:, 0] - model.embed.weight.data[:, 1]
    torch.testing.assert_close(model(images, torch.eye(3)[0].double().expand(4, 3)) - two, 2 * (one - two))
    model.embed.weight.data.zero_()
    one, two = (model(images, row.expand(4, 3)) for row in torch.eye(3, dtype=torch.float64)[:2])
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8, 12])
def test_the_deviation_over_the_batch_is_the_loops(n):
    x = torch.randn(n, 3, 4, 4, generator=draw(), dtype=torch.float64)
    out = with_batch_deviation(x)
    assert out[:, :3].equal(x)
    expected = torch.stack(slow_deviation(list(x)))[:, None, None].expand(n, 4, 4)
    torch.testing.assert_close(out[:, 3], expected)
    assert with_batch_deviation(x[:1].expand(n, 3, 4, 4))[:, 3].allclose(torch.tensor(1e-4, dtype=torch.float64))


def test_the_deviation_keeps_to_its_group():
    x = torch.randn(8, 3, 4, 4, generator=draw())
    changed = x.clone()
    changed[2] += 1  # images 0, 2, 4 and 6 are a group
    differs = (with_batch_deviation(x)[:, 3] != with_batch_deviation(changed)[:, 3]).flatten(1).all(1)
    assert differs.tolist() == [True, False] * 4


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_the_filter_keeps_constants_away_from_the_edge(padding, stride):
    conv = EqualConv(3, 5, 3, down=True)
    out = conv.low_pass(torch.full((1, 3, 16, 16), 0.7), padding, stride)
    assert out[..., 2:-2, 2:-2].allclose(torch.tensor(0.7))
    assert (out[..., 0, :] < 0.69).all()


@pytest.mark.parametrize(("size", "down", "side"), [(1, False, 8), (3, False, 8), (1, True, 4), (3, True, 4)])
def test_a_convolution_keeps_the_size_or_halves_it(size, down, side):
    assert EqualConv(3, 5, size, down=down)(torch.zeros(2, 3, 8, 8)).shape == (2, 5, side, side)
    assert EqualConv(3, 5, size, down=down, activate=False).bias is None


def test_halving_does_not_shift_the_image():
    """Both paths of a block commute with a mirror: a filter of even width has to be centred between two pixels."""
    block = seeded(lambda: DownBlock(2, 3)).double()
    for conv in (block.conv0, block.conv1):
        conv.weight.data += conv.weight.data.flip(3)
    x = torch.randn(1, 2, 16, 16, generator=draw(), dtype=torch.float64)
    torch.testing.assert_close(block(x.flip(3)), block(x).flip(3))


def test_features_start_with_the_variance_of_what_comes_in():
    x = torch.randn(8, 64, 16, 16, generator=draw())
    conv = seeded(lambda: EqualConv(64, 64, 3))
    assert conv(x)[..., 1:-1, 1:-1].square().mean().item() == pytest.approx(1.0, abs=0.1)


# ---- augmentation ----------------------------------------------------------------------------------


class Only(ada.Chance):
    """Of the things that may happen, the one at ``place`` happens to every image, and no other."""

    def __init__(self, n: int, place: int, p: float = 0.5) -> None:
        super().__init__(n, p, draw(place))
        self.place, self.asked = place, []

    def maybe(self, value, neutral, p=None):
        self.asked.append(self.p if p is None else p)
        happens = len(self.asked) - 1 == self.place
        return value if happens else torch.as_tensor(neutral).expand_as(value)


FLIP, QUARTERS, SHIFT, SIZE, TURN, STRETCH, TURN_AGAIN, MOVE = range(8)


def only(place: int, n: int = 2000, size: int = 16) -> torch.Tensor:
    return ada.geometry(Only(n, place), size).double()


def test_without_chance_nothing_happens():
    images, source = images_of(4), draw()
    before = source.get_state()
    assert ada.augment(images, 0, source) is images
    assert source.get_state().equal(before)
    assert ada.geometry(ada.Chance(4, 0, source), 8).equal(torch.eye(3).expand(4, 3, 3))
    for channels in (1, 3):
        identity = torch.eye(channels, channels + 1).expand(4, channels, channels + 1)
        torch.testing.assert_close(ada.colours(ada.Chance(4, 0, source), channels), identity)
    torch.testing.assert_close(ada.resample(images, torch.eye(3).double().expand(4, 3, 3)), images)


def test_mirroring_is_a_mirror():
    images = images_of(40, size=16)
    seen = ada.resample(images, only(FLIP, 40))
    mirrored = [index for index in range(40) if seen[index].allclose(images[index].flip(2))]
    same = [index for index in range(40) if seen[index].allclose(images[index])]
    assert sorted(mirrored + same) == list(range(40))
    assert min(len(mirrored), len(same)) > 5


def test_quarter_turns_are_rot90():
    images = images_of(40, size=16)
    seen = ada.resample(images, only(QUARTERS, 40))
    turns = [
        [k for k in range(4) if seen[index].allclose(torch.rot90(images[index], k, (1, 2)), atol=1e-5)]
        for index in range(40)
    ]
    assert all(len(found) == 1 for found in turns)
    assert {found[0] for found in turns} == {0, 1, 2, 3}


def test_shifts_are_whole_pixels_in_two_directions_and_mirror_beyond_the_edge():
    images, found = images_of(120, size=16), set()
    seen = ada.resample(images, only(SHIFT, 120))
    wide = torch.cat([images.flip(3), images, images.flip(3)], 3)
    wide = torch.cat([wide.flip(2), wide, wide.flip(2)], 2)
    steps = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]
    for index in range(120):
        shifts = [
            (down, right)
            for down, right in steps
            if seen[index].allclose(wide[index, :, 16 + down : 32 + down, 16 + right : 32 + right], atol=1e-4)
        ]
        assert len(shifts) == 1
        found.update(shifts)
    # up to an eighth of the width, along either axis whatever the other one does
    assert {down for down, _ in found} == {right for _, right in found} == {-2, -1, 0, 1, 2}
    assert len(found) > 20


def test_half_the_scale_is_twice_the_size():
    images = images_of(2, size=16)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    seen = ada.resample(images, ada.scale(half, half))
    expected = F.interpolate(images[..., 4:12, 4:12], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(seen[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_what_stands_first_in_the_product_happens_first():
    images, angle = images_of(1, size=16), torch.full((1,), math.pi / 2, dtype=torch.float64)
    turn, move = ada.rotate(angle), ada.translate(2 * angle / angle / 8, 0 * angle)
    torch.testing.assert_close(ada.resample(images, turn @ move), ada.resample(ada.resample(images, turn), move))


@pytest.mark.parametrize(("place", "spread"), [(SIZE, 0.2), (STRETCH, 0.2)])
def test_sizes_are_log_normal(place, spread):
    matrix = only(place)
    x, y = matrix[:, 0, 0], matrix[:, 1, 1]
    assert matrix.equal(ada.scale(x, y))
    torch.testing.assert_close(y, x if place == SIZE else 1 / x, rtol=1e-6, atol=0)  # a stretch keeps the area
    assert x.log2().mean().abs() < 0.02
    assert x.log2().std().item() == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("place", [TURN, TURN_AGAIN])
def test_turns_are_rotations_by_every_angle(place):
    matrix = only(place)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).double().expand_as(matrix))
    assert matrix.det().min() > 0
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert angle.histc(8, -math.pi, math.pi).min() > 180  # 250 of 2,000 each


def test_moves_are_normal_and_independent_along_the_axes():
    matrix = only(MOVE)
    by = matrix[:, :2, 2].clone()
    matrix[:, :2, 2] = 0
    assert matrix.equal(torch.eye(3).double().expand_as(matrix))
    assert by.std(0).tolist() == pytest.approx([0.25, 0.25], rel=0.08)  # an eighth of the width
    assert by.T.corrcoef()[0, 1].abs() < 0.1


class OnlyPerhaps(Only):
    """The one at ``place`` happens with probability p."""

    def maybe(self, value, neutral, p=None):
        return ada.Chance.maybe(self, super().maybe(value, neutral, p), neutral)


@pytest.mark.parametrize(("place", "entries"), [(SHIFT, "translation"), (MOVE, "translation"), (STRETCH, "diagonal")])
def test_what_may_happen_happens_to_both_axes_or_to_neither(place, entries):
    """At 1024 px nearly no shift is by less than half a pixel."""
    matrix = ada.geometry(OnlyPerhaps(2000, place), 1024)
    found = matrix[:, :2, 2] if entries == "translation" else matrix[:, :2, :2].diagonal(0, 1, 2) - 1
    happened = found != 0
    assert happened.all(1).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (happened.all(1) == happened.any(1)).double().mean() > 0.98


@pytest.mark.parametrize("p", [0.1, 0.75, 1.0])
def test_of_two_turns_one_happens_with_p(p):
    chance = Only(2, -1, p)
    ada.geometry(chance, 8)
    assert len(chance.asked) == 8
    none_of_two = (1 - chance.asked[TURN]) * (1 - chance.asked[TURN_AGAIN])
    assert none_of_two == pytest.approx(1 - p)
    assert {asked for place, asked in enumerate(chance.asked) if place not in (TURN, TURN_AGAIN)} == {p}


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8])
def test_each_thing_happens_to_a_share_p_of_the_images(p):
    n, normal = 8000, draw()
    chance = ada.Chance(n, p, normal)
    kept = chance.maybe(chance.normal(), 0) != 0
    assert abs(kept.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_share_of_images_that_are_changed(channels):
    """An image stays as it is where nothing happens to it, or a mirror, turn or shift that leaves it alone."""
    n, p = 4000, 0.06
    images = images_of(1, channels, 8, torch.float32).expand(n, channels, 8, 8)
    same = (ada.augment(images, p, draw()) - images).abs().flatten(1).amax(1) < 1e-4
    # mirror 1/2, quarter turn 1/4, shift 1/4 (at 8 px: along each axis half of them by less than half a pixel)
    expected = (1 - p / 2) * (1 - 3 * p / 4) * (1 - 3 * p / 4) * (1 - p) ** 4
    expected *= (1 - p / 2) * (1 - p) ** (4 if channels == 3 else 2)
    assert abs(same.double().mean().item() - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_each_image_has_draws_of_its_own():
    image = images_of(1).expand(12, 3, 8, 8)
    before = torch.get_rng_state()
    one, again, other = (ada.augment(image, 1, draw(seed)) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.equal(again)
    every = torch.cat([one, other]).flatten(1)
    distance = torch.cdist(every, every) + 9 * torch.eye(24)
    assert distance.min() > 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_affine_and_its_gradient_the_adjoint(channels):
    images, change, towards = images_of(30, channels).chunk(3)
    leaf = images.clone().requires_grad_(True)
    out = ada.augment(leaf, 0.5, draw())
    assert (out.shape, out.dtype) == (images.shape, images.dtype)
    (gradient,) = torch.autograd.grad((out * towards).sum(), leaf)
    moved = ada.augment(images + change, 0.5, draw())
    torch.testing.assert_close((gradient * change).sum(), ((moved - out.detach()) * towards).sum())


BRIGHTNESS, CONTRAST, LUMA, HUE, SATURATION = range(5)


def only_colour(place: int, channels: int = 3, n: int = 500) -> torch.Tensor:
    return ada.colours(Only(n, place), channels).double()


def test_hue_turns_around_the_grey_axis():
    angle = torch.tensor([0.0, 0.4, 2 * math.pi / 3, -2.5], dtype=torch.float64)
    turn, identity = ada.turn_hue(angle).double(), torch.eye(3).double()
    torch.testing.assert_close(turn @ turn.mT, identity.expand(4, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn.det(), torch.ones(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn.sum(2), torch.ones(4, 3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[0], identity, atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[2], identity.roll(1, 0), atol=1e-6, rtol=0)  # a third of a turn: R to G to B
    torch.testing.assert_close(turn.diagonal(0, 1, 2).sum(1), 1 + 2 * angle.cos(), atol=1e-6, rtol=0)
    drawn = only_colour(HUE)
    assert not drawn[:, :, 3].any()
    cosine = (drawn[:, :, :3].diagonal(0, 1, 2).sum(1) - 1) / 2
    assert cosine.clamp(-1, 1).acos().histc(4, 0, math.pi).min() > 80  # 125 of 500 each


@pytest.mark.parametrize("channels", [1, 3])
def test_turning_the_luma_over_twice_is_nothing(channels):
    matrix = only_colour(LUMA, channels)
    linear, identity = matrix[:, :, :-1], torch.eye(channels).double()
    assert not matrix[:, :, -1].any()
    torch.testing.assert_close(linear @ linear, identity.expand_as(linear), atol=1e-6, rtol=0)
    turned = (linear.sum(2) < 0).all(1)
    assert 180 < turned.sum() < 320
    torch.testing.assert_close(linear[turned].sum(2), -torch.ones(int(turned.sum()), channels).double())
    if channels == 3:
        colour = torch.tensor([1.0, -2.0, 1.0]).double()  # no luma
        torch.testing.assert_close(linear @ colour, colour.expand(500, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast(channels):
    identity = torch.eye(channels).double()
    brighter = only_colour(BRIGHTNESS, channels)
    torch.testing.assert_close(brighter[:, :, :-1], identity.expand(500, channels, channels))
    torch.testing.assert_close(brighter[:, :, -1], brighter[:, :1, -1].expand(500, channels))
    assert brighter[:, 0, -1].std().item() == pytest.approx(0.2, rel=0.1)
    contrast = only_colour(CONTRAST, channels)
    factor = contrast[:, 0, 0]
    torch.testing.assert_close(contrast[:, :, :-1], factor[:, None, None] * identity)
    assert not contrast[:, :, -1].any()
    assert factor.log2().std().item() == pytest.approx(0.5, rel=0.1)


def test_saturation_stretches_away_from_grey():
    matrix = only_colour(SATURATION)[:, :, :3]
    torch.testing.assert_close(matrix.sum(2), torch.ones(500, 3).double(), atol=1e-4, rtol=0)
    colour = torch.tensor([1.0, -2.0, 1.0]).double()
    factor = (matrix @ colour)[:, 0]
    torch.testing.assert_close(matrix @ colour, factor[:, None] * colour, rtol=1e-3, atol=1e-4)
    assert factor.log2().std().item() == pytest.approx(1.0, rel=0.1)


def test_brightness_comes_before_contrast_and_both_before_the_rest():
    """So what is added is grey: the linear part's grey times the brightness."""
    matrix = ada.colours(ada.Chance(50, 1, draw()), 3)
    linear, added = matrix[:, :, :3], matrix[:, :, 3]
    torch.testing.assert_close(added, added[:, :1].expand(50, 3), atol=1e-5, rtol=1e-4)
    assert (added[:, 0] / linear.sum(2)[:, 0]).std().item() == pytest.approx(0.2, rel=0.25)


def test_recolouring_is_a_matrix_for_each_pixel():
    images, matrix = images_of(2, 3, 4), torch.randn(2, 3, 4, generator=draw(), dtype=torch.float64)
    out = ada.recolour(images, matrix)
    for i in range(2):
        for y in range(4):
            for x in range(4):
                expected = matrix[i] @ torch.cat([images[i, :, y, x], torch.ones(1).double()])
                torch.testing.assert_close(out[i, :, y, x], expected)


def test_p_follows_the_signs_of_the_scores():
    step = {"target": 0.6, "images_to_one": 1000}
    assert ada.adapt(0.3, 0.9, 40, **step) == pytest.approx(0.34)
    assert ada.adapt(0.3, 0.1, 40, **step) == pytest.approx(0.26)
    assert (ada.adapt(0.99, 1.0, 40, **step), ada.adapt(0.01, -1.0, 40, **step)) == (1.0, 0.0)
    p = 0.0
    for _ in range(25):
        assert p < 1 - 1e-9
        p = ada.adapt(p, 0.61, 40, **step)
    assert p == pytest.approx(1.0)


# ---- the distance ----------------------------------------------------------------------------------


def gaussian(seed: int, size: int = 5, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    root = torch.randn(size, rank or size, generator=draw(seed), dtype=torch.float64)
    return torch.randn(size, generator=draw(seed + 100), dtype=torch.float64), root @ root.T


@pytest.mark.parametrize("rank", [None, 3])
def test_the_distance_is_the_formula_with_scipys_root(rank):
    (mean1, cov1), (mean2, cov2) = ours, theirs = gaussian(1, rank=rank), gaussian(2)
    root = linalg.sqrtm((cov1 @ cov2).numpy())
    expected = (mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * root.trace().real
    assert frechet_distance(ours, theirs) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(theirs, ours) == pytest.approx(frechet_distance(ours, theirs), rel=1e-9)


def test_distances_that_are_known():
    mean, cov = gaussian(1)
    assert frechet_distance((mean, cov), (mean, cov)) == pytest.approx(0, abs=1e-9)
    shift = torch.arange(5).double()
    assert frechet_distance((mean + shift, cov), (mean, cov)) == pytest.approx(30)
    ours, theirs = torch.tensor([1.0, 4, 9]).double(), torch.tensor([4.0, 4, 0]).double()
    zero = torch.zeros(3).double()
    # of diagonal ones: the sum of (s1 - s2)^2 over the standard deviations
    assert frechet_distance((zero, ours.diag()), (zero, theirs.diag())) == pytest.approx(1 + 0 + 9)
    assert frechet_distance((mean, 9 * cov), (mean, cov)) == pytest.approx(4 * cov.trace().item())


def test_moments_are_the_loops():
    features = torch.randn(7, 3, generator=draw())
    mean, covariance = moments(features)
    rows = features.double()
    middle = sum(rows) / 7
    torch.testing.assert_close(mean, middle)
    torch.testing.assert_close(covariance, sum((row - middle).outer(row - middle) for row in rows) / 6)
    with pytest.raises(ValueError, match="a covariance needs two images or more: got 1"):
        moments(features[:1])


def test_the_distance_knows_the_images_from_noise():
    images, labels = DATA
    before = torch.get_rng_state()
    distance, again = (FeatureDistance(images, labels, steps=30, seed=3) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    assert distance.accuracy == 1
    same = from_uint8(images)
    assert abs(distance([same])) < 1e-6
    assert distance(same.flip(0).split(50)) == pytest.approx(0, abs=1e-6)
    noise = torch.rand(same.shape, generator=draw()) * 2 - 1
    shifted = (same + 0.1).clamp(-1, 1)
    assert distance([noise]) > 10 * distance([shifted]) > 1e-4
    assert again([noise]) == distance([noise])
    assert not any(parameter.requires_grad for parameter in distance.model.parameters())


def test_a_class_that_is_missing_is_far():
    images, labels = DATA
    distance = FeatureDistance(images, labels, steps=30)
    one_class, some = from_uint8(images[labels == 0]), from_uint8(images[:128])
    assert distance([one_class]) > 10 * abs(distance([some]))


def test_accuracy_is_that_of_images_it_was_not_trained_on(monkeypatch):
    images, labels = DATA
    shown = []

    def watched(images, labels, *arguments, **options):
        shown.append(labels)
        return shuffled_batches(images, labels, *arguments, **options)

    monkeypatch.setattr(frechet_module, "shuffled_batches", watched)
    wrong = labels.clone()
    wrong[-51:] = 1 - wrong[-51:]  # a fifth
    assert FeatureDistance(images, wrong, steps=30).accuracy == 0
    assert shown[0].equal(labels[:-51])


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 1), (28, 1), (32, 3), (64, 3)])
def test_the_feature_classifier_takes_any_size(size, channels):
    model = FeatureCNN(channels, 7)
    images = torch.zeros(2, channels, size, size)
    assert model.features(images).shape == (2, 128)
    assert model(images).shape == (2, 7)
    assert model(images).equal(model.head(model.features(images)))


# ---- random noise ----------------------------------------------------------------------------------


def noisy(strength: float = 0.5, **changes) -> StyleGAN2:
    generator = tiny(c_dim=0, img_resolution=16, **changes)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(strength)
    return generator


def test_random_noise_is_each_images_own_and_its_generators():
    generator, before = noisy(), torch.get_rng_state()
    ws = generator.sample_latents(1, draw()).expand(5, -1, -1)
    one, same, other = (generator.synthesis(ws, "random", draw(seed)) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.equal(same)
    every = torch.cat([one, other, generator.synthesis(ws[:1])]).flatten(1)
    assert (torch.cdist(every, every) + 9 * torch.eye(11)).min() > 0.01


def test_random_noise_is_the_stored_noise_drawn_anew():
    generator, source = noisy(), draw(7)
    ws = generator.sample_latents(1, draw())
    image = generator.synthesis(ws, "random", draw(7))
    for name, buffer in generator.named_buffers():
        if name.endswith("noise_const"):
            buffer.copy_(torch.randn(1, 1, *buffer.shape, generator=source)[0, 0])
    torch.testing.assert_close(generator.synthesis(ws, "const"), image)


@pytest.mark.parametrize("generator", [noisy(0.0), noisy(use_noise=False)], ids=["strength 0", "no noise"])
def test_without_strength_all_noise_is_none(generator):
    ws = generator.sample_latents(3, draw())
    none = generator.synthesis(ws, "none")
    assert generator.synthesis(ws, "random", draw()).equal(none)
    assert generator.synthesis(ws, "const").equal(none)


def test_little_random_noise_averages_to_none():
    """Nearly: where a leaky ReLU bends, noise has a mean."""
    generator = noisy(0.01)
    w = generator.sample_latents(1, draw())
    change = generator.synthesis(w.expand(400, -1, -1), "random", draw(3)) - generator.synthesis(w, "none")
    spread = change.std(0).square().mean().sqrt()
    assert spread > 1e-3
    assert change.mean(0).square().mean().sqrt() < 0.2 * spread


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_random_noise_where_images_go_through_a_few_at_a_time(at_once):
    generator = noisy()
    generator.synthesis.images_at_once = at_once
    ws = generator.sample_latents(1, draw()).expand(6, -1, -1)
    images = generator.synthesis(ws, "random", draw()).flatten(1)
    assert (torch.cdist(images, images) + 9 * torch.eye(6)).min() > 0.01


def test_the_strength_of_the_noise_is_trained():
    generator = noisy(0.1).requires_grad_(True)
    generator.synthesis(generator.sample_latents(3, draw()), "random", draw()).square().mean().backward()
    strengths = [value for name, value in generator.named_parameters() if name.endswith("noise_strength")]
    assert len(strengths) == 5
    assert all(value.grad.abs() > 0 for value in strengths)


# ---- the rows of a batch ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8, 20])
def test_the_images_of_a_deviation_group_share_a_class(n):
    labels, source, seen = torch.tensor([0, 5, 5, 2, 2, 2, 9, 0]), draw(), set()
    for _ in range(40):
        rows = draw_rows_by_class(labels, n, source)
        assert rows.shape == (n,)
        # images whose features are their class: whoever shares a group with another class would deviate
        features = labels[rows].double()[:, None, None, None].expand(n, 1, 4, 4)
        assert with_batch_deviation(features)[:, 1].allclose(torch.tensor(1e-4, dtype=torch.float64))
        seen.update(rows.tolist())
    assert seen == set(range(8))


def test_each_image_is_as_likely_as_any_other():
    """So the classes have the shares that they have in the data, at every place of the batch."""
    labels, source, n = torch.tensor([0] * 5 + [1] * 2 + [3]), draw(), 5000
    rows = torch.stack([draw_rows_by_class(labels, 8, source) for _ in range(n)])
    shares = F.one_hot(rows, 8).double().mean(0)
    assert (shares - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 * 7 / 8 / n)


@pytest.mark.parametrize("c_dim", [0, 2])
def test_a_step_groups_real_and_generated_images_by_class(monkeypatch, c_dim):
    training, asked = StyleGAN2Training(tiny(c_dim=c_dim), StyleGAN2Recipe(batch_size=16), *DATA), []
    forward = training.discriminator.forward

    def watched(images, classes):
        asked.append((images.detach(), classes))
        return forward(images, classes)

    monkeypatch.setattr(training.discriminator, "forward", watched)
    for _ in range(4):
        training.advance()
    mixed = 0
    for images, classes in asked:
        bright = images[:, 0, 4:].mean((1, 2)) > images[:, 0, :, 4:].mean((1, 2))  # real images: the class
        groups = (classes.argmax(1) if c_dim else bright.long()).view(4, 4)
        mixed += int((groups != groups[0]).any())
    assert len(asked) == 13  # real, fake, and after a step fake again; the penalty once
    assert (mixed == 0) == bool(c_dim)
    if c_dim:
        real, classes = asked[0]
        bright = real[:, 0, 4:].mean((1, 2)) > real[:, 0, :, 4:].mean((1, 2))
        assert classes.argmax(1).equal(bright.long())


@pytest.mark.parametrize("batch_size", [1, 6, 30])
def test_a_batch_with_classes_is_of_whole_groups(tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"a multiple of 4 for a network with classes, .*: got {batch_size}"):
        KINDS["stylegan2"].train(tmp_path / "out", settings={"batch_size": batch_size})
    assert not (tmp_path / "out").exists()
    StyleGAN2Training(tiny(c_dim=0), StyleGAN2Recipe(batch_size=batch_size), *DATA)


# ---- a step ----------------------------------------------------------------------------------------


def test_a_step_moves_every_weight_and_leaves_the_random_state_alone():
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(**STYLEGAN2_RECIPE), *DATA)
    networks = (training.generator, training.discriminator, training.network)
    old = [{name: value.clone() for name, value in network.named_parameters()} for network in networks]
    before = torch.get_rng_state()
    for _ in range(3):
        losses = training.advance()
    assert torch.get_rng_state().equal(before)
    assert set(losses) == {"generator", "discriminator"}
    assert all(math.isfinite(loss) for loss in losses.values())
    for network, values in zip(networks, old, strict=True):
        for name, parameter in network.named_parameters():
            assert not parameter.equal(values[name]), name
    assert all(parameter.requires_grad for network in networks[:2] for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in training.network.parameters())


def test_each_network_moves_towards_its_own_aim():
    """After one step from the same start, on the same draws, each has the lower loss against the old other."""
    recipe = StyleGAN2Recipe(batch_size=16, r1_gamma=0, lr=1e-3)
    before, after = (StyleGAN2Training(tiny(), recipe, *DATA) for _ in range(2))
    after.advance()
    classes = F.one_hot(torch.arange(64) % 2, 2).float()
    z = torch.randn(64, 4, generator=draw())
    real = from_uint8(DATA[0][:64])

    def fake(training):
        return training.generator.synthesis(training.generator.mapping(z, classes), "none")

    def judge(training, images):
        return training.discriminator(images, classes)

    fooled = [generator_loss(judge(after, fake(training))) for training in (after, before)]
    assert fooled[0] < fooled[1]
    judged = [discriminator_loss(judge(training, real), judge(training, fake(before))) for training in (after, before)]
    assert judged[0] < judged[1]


def test_the_penalty_is_due_at_every_kth_step(monkeypatch):
    due = []
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(**{**STYLEGAN2_RECIPE, "r1_every": 3, "r1_gamma": 2.0}), *DATA)

    def counted(scores, real):
        due.append(training.step)
        return r1_penalty(scores, real)

    monkeypatch.setattr(train_module, "r1_penalty", counted)
    for _ in range(7):
        training.advance()
    assert due == [0, 3, 6]
    (group,) = training.discriminator_optimizer.param_groups
    assert group["lr"] == pytest.approx(2.5e-3 * 3 / 4)
    assert group["betas"] == pytest.approx((0, 0.99**0.75))
    (group,) = training.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (2.5e-3, (0, 0.99))


def test_a_strong_penalty_flattens_the_discriminator():
    slopes = []
    real = from_uint8(DATA[0][:32]).requires_grad_(True)
    for gamma in (0.0, 10.0):
        recipe = StyleGAN2Recipe(batch_size=8, lr=0.01, r1_gamma=gamma, r1_every=2)
        training = StyleGAN2Training(tiny(c_dim=0), recipe, *DATA)
        for _ in range(20):
            training.advance()
        slopes.append(r1_penalty(training.discriminator(real), real).item())
    assert slopes[1] < 0.4 * slopes[0]


def test_augmentation_is_adjusted_every_four_steps_by_their_mean_sign():
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(**{**STYLEGAN2_RECIPE, "ada_images": 160}), *DATA)
    seen = []
    for signs in ([1, 1, 1, -1], [1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1]) * 2:
        # the mean sign of four steps is (2 + 4 + 2 + 0) / 4 / 4 = 0.5
        training._adapt(torch.tensor(signs) * 3.0, 0.4 if training.step < 4 else 0.6)
        training.step += 1
        seen.append(training.p)
    assert seen == [0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0]


def test_without_a_target_nothing_is_augmented(monkeypatch):
    seen = []
    monkeypatch.setattr(train_module, "augment", lambda images, p, _: seen.append(p) or images)
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(**{**STYLEGAN2_RECIPE, "ada_target": None}), *DATA)
    for _ in range(5):
        training.advance()
    assert seen == [0] * 15
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(**STYLEGAN2_RECIPE), *DATA)
    for _ in range(5):
        training.advance()
    assert seen[15:] == [0] * 11 + [0.5] * 4  # fake, real, and after the discriminator's step fake again


def weights_at(network, value: float) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(value)


def test_the_running_mean_forgets_half_in_its_half_life():
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(batch_size=4, ema_images=40, ema_ramp=1e9), *DATA)
    weights_at(training.network, 0.0)
    weights_at(training.generator, 1.0)
    for step in range(1, 21):
        training.step = step
        training._average(torch.zeros(4, 8))
        expected = torch.tensor(1 - 0.5 ** (4 * step / 40))
        assert all(parameter.allclose(expected) for parameter in training.network.parameters())
    assert all(parameter.eq(1).all() for parameter in training.generator.parameters())


def test_the_half_life_is_short_at_first():
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(batch_size=4, ema_images=1000, ema_ramp=0.05), *DATA)
    weights_at(training.generator, 1.0)
    for step, half_life in ((1, 0.2), (100, 20.0), (10_000, 1000.0)):
        weights_at(training.network, 0.0)
        training.step = step
        training._average(torch.zeros(4, 8))
        expected = torch.tensor(1 - 0.5 ** (4 / half_life))
        assert all(parameter.allclose(expected) for parameter in training.network.parameters())


def test_the_mean_of_w_follows():
    training = StyleGAN2Training(tiny(), StyleGAN2Recipe(batch_size=4), *DATA)
    w = torch.randn(4, 8, generator=draw())
    for step in range(1, 51):
        training.step = step
        training._average(w)
    torch.testing.assert_close(training.generator.mapping.w_avg, (1 - 0.998**50) * w.mean(0))
    assert training.network.mean_latent()[0].equal(training.generator.mapping.w_avg)
    buffers = dict(training.network.named_buffers())
    for name, buffer in training.generator.named_buffers():
        assert buffer.equal(buffers[name]), name
        assert buffer is not buffers[name]


def test_a_tiny_network_learns_easy_images():
    """In pixels: the distance of its images from the real ones falls, and each class looks like its own."""
    images, labels = DATA
    real = from_uint8(images)
    recipe = StyleGAN2Recipe(batch_size=16, lr=0.01, r1_gamma=0.3, r1_every=4, ema_images=300, ema_ramp=1.0)
    training = StyleGAN2Training(tiny(channel_max=8), recipe, *DATA)

    def made():
        return torch.cat(list(samples(training.network, 256)))

    def distance():
        return frechet_distance(moments(made().flatten(1)), moments(real.flatten(1)))

    start = distance()
    for _ in range(100):
        training.advance()
    assert distance() < 0.2 * start
    means = [real[labels == label].mean(0) for label in (0, 1)]
    for label in (0, 1):
        found = made()[label::2].mean(0)
        own, other = ((found - mean).square().mean().item() for mean in (means[label], means[1 - label]))
        assert own < 0.2 * other


# ---- a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, its generator, and the last row of its log."""
    out = tmp_path_factory.mktemp("trained")
    generator = KINDS["stylegan2"].train(out, DATA)
    return out, generator, json.loads((out / "log.json").read_text())


def test_what_is_kept_is_the_running_mean(trained):
    out, generator, log = trained
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert same(generator.state_dict(), state["network"])
    assert not same(generator.state_dict(), state["generator"])
    assert state["network"]["mapping.w_avg"].any()
    facts = {"img_resolution": 8, "img_channels": 1, "c_dim": 2, "latent_space": "w+"}
    assert {name: getattr(generator, name) for name in facts} == facts
    assert [(row["images"], row["p"]) for row in log] == [(8, 0.0), (16, 0.5), (24, 0.5)]


def same(one, two) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.equal(two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def test_the_distance_in_the_log_is_that_of_samples(trained):
    distance = FeatureDistance(*DATA, steps=2, seed=0)
    row = trained[2][-1]
    assert row["feature_distance"] == pytest.approx(distance(samples(trained[1], 20)), abs=1e-4)
    assert row["classifier_accuracy"] == distance.accuracy


def test_the_deviations_in_the_log_are_those_within_a_class(trained):
    _, generator, log = trained
    images, labels = DATA
    means = {"class_deviation": 0.0, "real_class_deviation": 0.0}
    for label in (0, 1):
        source = keyed_generator("class-samples", label)
        made = generator.decode(generator.sample_latents(64, source, torch.full((64,), label)))
        real = from_uint8(images)[labels == label][:64]
        for name, shown in zip(means, (made, real), strict=True):
            pixels = [statistics.pstdev(column.tolist()) for column in shown.flatten(1).T]
            means[name] += statistics.fmean(pixels) / 2
    row = log[-1]
    assert {name: row[name] for name in means} == pytest.approx(means, abs=1e-4)
    assert class_deviations(generator, images, labels) == {name: row[name] for name in means}


def test_one_image_a_class_has_no_deviation():
    images, labels = DATA
    collapsed = tiny()
    collapsed.mapping.fc0.weight[:, :4] = 0  # the class is all that is left of a code
    assert class_deviations(tiny(), images, labels)["class_deviation"] > 0.01
    found = class_deviations(collapsed, images, labels)
    assert found["class_deviation"] == pytest.approx(0, abs=1e-6)
    assert found["real_class_deviation"] > 0.05
    # a class of one image, and one that is missing
    found = class_deviations(tiny(c_dim=4), images[:3], torch.tensor([0, 0, 3]), images_a_class=2)
    expected = from_uint8(images[:2]).std(0, correction=0).mean().item() / 2
    assert found["real_class_deviation"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_samples_are_the_same_each_time_with_classes_in_turn(trained, batch_size):
    generator = trained[1]
    batches = list(samples(generator, 7, batch_size))
    assert [len(batch) for batch in batches] == {3: [3, 3, 1], 7: [7], 100: [7]}[batch_size]
    assert torch.cat(batches).equal(torch.cat(list(samples(generator, 7, batch_size))))
    classes = (torch.arange(7) % 2).split(batch_size)
    for start, batch, labels in zip(range(0, 7, batch_size), batches, classes, strict=True):
        codes = generator.sample_latents(len(batch), keyed_generator("frechet-samples", start), labels)
        assert batch.equal(generator.decode(codes))


def test_the_sheet_shows_the_rows_it_says(trained):
    """Samples, the same ones truncated twice, and five mixes with a neighbour, twenty columns of 16 pixels."""
    out, generator, _ = trained
    sheet = Image.open(out / "sheet-000006.png")
    assert (sheet.format, sheet.size) == ("PNG", (CAPTION_WIDTH + 20 * 18 + 2, 8 * 18 + 2))
    assert (out / "sheet-000006.png").read_bytes() == training_sheet(generator)
    ws = generator.sample_latents(40, keyed_generator("sheet-stylegan2"), torch.arange(40) % 2)
    own, other = ws[:20], ws[20:].roll(1, 0)
    mean = generator.mean_latent()
    rows = [own, mean.lerp(own, 0.7), mean.lerp(own, 0.5)]
    rows += [lam * own + (1 - lam) * other for lam in (1, 0.75, 0.5, 0.25, 0)]
    pixels = torch.frombuffer(bytearray(sheet.convert("L").tobytes()), dtype=torch.uint8).view(sheet.height, -1)
    for row, latents in enumerate(rows):
        expected = to_uint8(generator.decode(latents))
        for column in (0, 7, 19):
            tile = pixels[2 + 18 * row :, CAPTION_WIDTH + 2 + 18 * column :][:16:2, :16:2].int()
            assert (tile - expected[column, 0].int()).abs().max() <= 1


def test_a_sheet_without_classes():
    sheet = Image.open(io.BytesIO(training_sheet(tiny(c_dim=0, img_channels=3), columns=5)))
    assert sheet.size == (CAPTION_WIDTH + 5 * 18 + 2, 8 * 18 + 2)


def test_the_state_is_all_that_the_next_steps_depend_on():
    recipe = StyleGAN2Recipe(**{**STYLEGAN2_RECIPE, "ada_target": 0.0})
    one, two = (StyleGAN2Training(tiny(), recipe, *DATA) for _ in range(2))
    for _ in range(3):
        one.advance()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.signs != 0
    assert same(two.state_dict(), one.state_dict())
    assert one.advance() == two.advance()
    assert same(two.state_dict(), one.state_dict())


@pytest.mark.parametrize(
    ("size", "channels", "labels", "message"),
    [
        (12, 1, [0, 1, 0, 1], "a power of two from 8 to 1024: got 12"),
        (8, 2, [0, 1, 0, 1], "img_channels needs to be 1 or 3: got 2"),
        (8, 1, [0, 1, 2, 1], r"labels need .* \[0, 2\), .*: got 2"),
    ],
)
def test_data_that_the_network_cannot_be_trained_on(tmp_path, size, channels, labels, message):
    images = torch.zeros(4, channels, size, size, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        KINDS["stylegan2"].train(tmp_path / "out", (images, torch.tensor(labels)))
    assert not (tmp_path / "out").exists()


def test_a_distance_needs_two_samples(tmp_path):
    with pytest.raises(ValueError, match="distance_samples needs to be 0 or from 2: got 1"):
        KINDS["stylegan2"].train(tmp_path / "out", distance_samples=1)


# ---- the border ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "padded"), [(2, 8), (6, 8), (8, 8), (28, 32), (32, 32), (34, 64), (1024, 1024)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_border_is_black_and_even(size, padded, channels):
    images = torch.randint(1, 256, (1, channels, size, size), generator=draw(), dtype=torch.uint8)
    out = pad_to_power_of_two(images)
    assert (out.shape, out.dtype) == ((1, channels, padded, padded), torch.uint8)
    border = (padded - size) // 2
    assert out[..., border : border + size, border : border + size].equal(images)
    assert int(out.count_nonzero()) == images.numel()


@pytest.mark.parametrize(("height", "width"), [(28, 30), (27, 27), (1026, 1026), (1, 1)])
def test_images_that_get_no_even_border(height, width):
    with pytest.raises(ValueError, match=f"of an even size up to 1024 px: got {height}x{width}; crop or resize"):
        pad_to_power_of_two(torch.zeros(1, 1, height, width, dtype=torch.uint8))
