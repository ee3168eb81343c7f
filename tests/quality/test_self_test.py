"""The self test: what works passes, and each way to be broken is called by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import foreign
import pytest
import torch
from defaults import other_defaults
from torch import Tensor, nn

from latent_mixup import load_generator
from latent_mixup.generators import Generator, StyleGAN2, wrap
from latent_mixup.inversion import FeatureLoss, pixel_mse, self_test
from latent_mixup.inversion import optimise as optimise_module
from latent_mixup.quality import checks
from latent_mixup.quality.checks import CheckResult, Errors
from latent_mixup.quality.self_test import SelfTest, self_test_table
from latent_mixup.sampling import keyed_generator


def working(latent_space: str = "w+", **sizes: int) -> StyleGAN2:
    """A small random StyleGAN2 that keeps what a trained one does: w_avg is the mean of w, images are in range."""
    generator = foreign.tiny(img_resolution=8, latent_space=latent_space, **sizes)
    with torch.no_grad():
        for name, tensor in generator.mapping.named_parameters():
            if name.startswith("fc"):
                tensor.mul_(100)
        w = generator.sample_latents(4_000, keyed_generator("test", 1))
        generator.mapping.w_avg.copy_((w if latent_space == "w" else w[:, 0]).mean(0))
        scale = 0.5 / generator.decode(generator.sample_latents(64, keyed_generator("test", 2))).std()
        for name, tensor in generator.synthesis.named_parameters():
            if ".torgb." in name and ".affine." not in name:
                tensor.mul_(scale)
    return generator


def mlp() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 16), nn.Tanh()
        return nn.Sequential(*layers, nn.Unflatten(1, (1, 4, 4))).eval()


def wrapped(decode: Callable[[Tensor], Tensor]) -> Generator:
    return wrap(decode, latent_shape=(8,))


def quietly(generator: Generator, **settings: object) -> SelfTest:
    return self_test(generator, progress=False, **settings)  # type: ignore[arg-type]


def failures(result: SelfTest) -> list[str]:
    return [check.name for check in result.failed]


# ---- what works ------------------------------------------------------------------------------------


def test_bundled_generator_passes():
    result = quietly(load_generator("fashion-mnist"))
    assert result.verdict == "passed"
    assert result.mse.found < 0.05 * result.mse.guess
    assert result.mse.found < result.mse.start < result.mse.guess
    assert [check.name for check in result.checks][-2:] == ["encoder", "re-inversion"]


@pytest.mark.parametrize(("space", "classes"), [("w", 0), ("w+", 0), ("w+", 3)])
def test_stylegan2_passes(space, classes):
    result = quietly(working(space, c_dim=classes))
    assert result.verdict == "passed"
    assert {check.name: check.passed for check in result.checks}["mean code"] is True
    assert result.mse.ratio == result.mse.found / result.mse.guess < 0.3


def test_untrained_network_passes_and_says_that_its_mean_was_not_tracked():
    result = quietly(StyleGAN2(16, 16, img_resolution=8, channel_base=64, channel_max=8))
    assert result.passed
    assert CheckResult("mean code", None, "not tracked: w_avg is zero") in result.checks


def test_wrapped_module_passes_without_an_encoder():
    result = quietly(wrapped(mlp()))
    assert result.verdict == "passed"
    assert "encoder" not in [check.name for check in result.checks]


def test_exact_encoder_passes(linear_generator):
    result = quietly(linear_generator, steps=40)
    assert result.verdict == "passed"
    assert result.mse.start < 1e-10


def test_result_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    first, second = (quietly(wrapped(mlp()), steps=5) for _ in range(2))
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert quietly(wrapped(mlp()), steps=5, seed=1).mse != first.mse
    assert torch.equal(torch.get_rng_state(), state)


def test_generator_is_left_as_it_was():
    generator = working()
    digest = generator.digest()
    quietly(generator, steps=2)
    assert generator.digest() == digest
    assert not any(parameter.requires_grad for parameter in generator.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(mode):
    with mode():
        assert quietly(wrapped(mlp())).passed  # made in this mode as well


@pytest.mark.parametrize(("thing", "advice"), [(mlp(), "wrap"), ("fashion-mnist", "load_generator")])
def test_what_is_no_generator_is_refused_with_the_way_to_one(thing, advice):
    with pytest.raises(TypeError, match=advice):
        self_test(thing)


def test_result_does_not_depend_on_the_default_device_and_dtype():
    generator = load_generator("fashion-mnist")
    expected = replace(quietly(generator, steps=2, images=1), seconds=0)
    for defaults in other_defaults():
        with defaults:
            assert replace(quietly(generator, steps=2, images=1), seconds=0) == expected


def test_no_float64_is_made_beside_the_cpu(monkeypatch):
    """MPS has none: what is summed in it is on the CPU before."""
    cpu, double, seen = Tensor.cpu, Tensor.double, []
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: seen.append(id(moved := cpu(tensor).clone())) or moved)
    monkeypatch.setattr(Tensor, "double", lambda tensor: (seen.index(id(tensor)), double(tensor))[1])
    assert quietly(load_generator("fashion-mnist"), steps=2, images=1).checks


def test_start_knows_nothing_of_the_codes(monkeypatch):
    seen = {}

    def spy(generator: Generator, targets: Tensor, start: Tensor, *rest: object, **settings: object) -> object:
        seen.update(targets=targets, start=start)
        return optimise_module.optimise_codes(generator, targets, start, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["latent_mixup.quality.self_test"], "optimise_codes", spy)
    generator = wrapped(mlp())
    quietly(generator, steps=1, images=3)
    assert len(seen["start"]) == 3
    others = generator.decode(generator.sample_latents(64, keyed_generator("self-test-codes", 0, 1)))
    nearest = torch.stack([pixel_mse(others, target).min() for target in seen["targets"]])
    assert nearest.min() > 0
    torch.testing.assert_close(pixel_mse(generator.decode(seen["start"]), seen["targets"]), nearest)


def test_loss_is_the_one_that_was_given():
    counted = []

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        counted.append(len(images))
        return pixel_mse(images, targets)

    assert quietly(wrapped(mlp()), loss=loss, steps=7, images=2).steps == 7
    assert counted == [2] * 8
    features = FeatureLoss(nn.Conv2d(1, 3, 3))
    assert quietly(wrapped(mlp()), loss=features).passed


@pytest.mark.parametrize("settings", [{"images": 0}, {"steps": 0}, {"draws": 3}, {"lr": 0.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=r"images >= 1, steps >= 1, draws >= 4, lr > 0 are needed: got"):
        quietly(wrapped(mlp()), **settings)


# ---- what is broken --------------------------------------------------------------------------------


def zero(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state[name].zero_()


def mapping_without_scale(state: dict[str, Tensor]) -> None:
    for name in ("mapping.fc0.weight", "mapping.fc1.weight"):
        state[name].mul_(0.01)


@pytest.mark.parametrize(
    ("break_it", "check", "hint"),
    [
        (zero("synthesis.b4.const"), "weights", "synthesis.b4.const is all zero: a layer that was not read"),
        (zero("synthesis.b8.conv0.weight"), "weights", "synthesis.b8.conv0.weight is all zero"),
        (
            zero("synthesis.b8.conv1.affine.weight"),
            "latents",
            r"of 4 layers in W\+, 2 \(from 0\) do not move the image",
        ),
        (zero("mapping.fc0.weight"), "codes", "the mapping network's weights may be missing"),
        (mapping_without_scale, "mean code", "the mapping network's weights or their scale are wrong"),
        (lambda state: state["mapping.w_avg"].add_(3), "mean code", "w_avg is not the mean of w"),
        (lambda state: state["mapping.fc1.weight"].view(-1)[3].fill_(torch.nan), "codes", "the mapping is broken"),
        (lambda state: state["synthesis.b8.conv0.weight"].view(-1)[3].fill_(torch.nan), "images", "a weight is broken"),
        (
            lambda state: state["synthesis.b8.conv1.weight"].copy_(state["synthesis.b4.conv1.weight"]),
            "weights",
            "synthesis.b8.conv1.weight is the same as synthesis.b4.conv1.weight",
        ),
        (lambda state: state["synthesis.b8.torgb.weight"].mul_(100), "range", "the last layer has lost its scale"),
    ],
)
def test_broken_stylegan2(break_it, check, hint):
    generator = working()
    break_it(generator.state_dict())
    result = quietly(generator, images=2, steps=2)
    assert not result.passed
    assert check in failures(result)
    with pytest.raises(ValueError, match=hint):
        raise ValueError(result.verdict)


def test_weight_that_is_not_finite_is_named():
    generator = working()
    generator.state_dict()["synthesis.b8.conv0.weight"].view(-1)[3] = torch.inf
    assert "synthesis.b8.conv0.weight is not finite" in quietly(generator).checks[0].found


def training_batch_norm() -> Callable[[Tensor], Tensor]:
    network = mlp().train()
    return lambda codes: network(codes) if len(codes) > 1 else mlp()(codes)


@pytest.mark.parametrize(
    ("decode", "check", "hint"),
    [
        (lambda net: lambda z: net(z) + 0.01 * torch.randn(len(z), 1, 4, 4), "repeats", "decode draws random numbers"),
        (lambda net: training_batch_norm(), "batch", "a normalisation over the batch, in training mode"),
        (lambda net: lambda z: net(z - z.mean(0)), "batch", "an image depends on its batch"),
        (lambda net: lambda z: (net(z) + 1) * 127.5, "range", "the images are in another range"),
        (lambda net: lambda z: (net(z) + 1) / 2, "range", r"wrap takes image_range=\(0, 1\)"),
        (lambda net: lambda z: 0 * net(z), "variety", "decodes of different codes are the same"),
        (lambda net: lambda z: net(z.detach()), "gradient", "no gradient reaches the codes"),
        (lambda net: torch.no_grad()(net.forward), "gradient", "no gradient reaches the codes"),
        (lambda net: lambda z: (net(z) * 8).round() / 8, "gradient", "no gradient reaches the codes"),
        (lambda net: lambda z: net(z) + 0.5 * net(z.flip(1)).detach(), "gradient", "is not the slope of decode"),
        (lambda net: lambda z: net(z) + 0 * z.sum().sqrt(), "images", "a weight is broken, or a layer overflows"),
        (lambda net: lambda z: net(torch.cat([z[:, :6], 0 * z[:, 6:]], 1)), "latents", "2 of 8 numbers of a code"),
    ],
)
def test_broken_decoder(decode, check, hint):
    result = quietly(wrapped(decode(mlp())))
    assert check in failures(result)
    with pytest.raises(ValueError, match=hint):
        raise ValueError(result.verdict)


class Promises(Generator):
    """What it gives is not what it says."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, code: int) -> None:
        super().__init__()
        self.latent_shape, self.latent_space, self.preferred_path = (4,), "z", "lerp"
        self.img_channels, self.img_resolution = 1, 4
        self.size, self.images_dtype, self.code = size, dtype, code

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sum(1).to(self.images_dtype)[:, None, None, None].expand(-1, *self.size)

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, self.code, generator=generator)

    def mean_latent(self) -> Tensor:
        return torch.zeros(4)


@pytest.mark.parametrize(
    ("generator", "check", "found"),
    [
        (Promises((3, 4, 4), torch.float32, 4), "images", "[3, 4, 4] float32, promised [1, 4, 4] float32"),
        (Promises((1, 4, 4), torch.float64, 4), "images", "[1, 4, 4] float64, promised [1, 4, 4] float32"),
        (Promises((1, 4, 4), torch.float32, 5), "codes", "[1000, 5] float32, promised [1000, 4] float32"),
    ],
)
def test_promises_that_are_not_kept(generator, check, found):
    result = quietly(generator)
    assert (result.checks[-1].name, result.checks[-1].found) == (check, found)
    assert result.mse is None


def test_encoder_of_another_decoder():
    generator = load_generator("fashion-mnist")
    weight = generator.encoder[-1].weight.data
    weight.copy_(weight.flip(0))
    assert failures(quietly(generator, images=8)) == ["encoder"]
    made = torch.zeros(3, 1, 28, 28)
    wrong = checks.check_encoder(generator, torch.zeros(3, 5), made, made[0])
    assert (wrong.passed, wrong.found) == (False, "[3, 5], promised [3, 128]")


def test_too_few_steps_fail_at_the_last_check_alone():
    result = quietly(wrapped(mlp()), steps=1)
    assert failures(result) == ["re-inversion"]
    assert result.verdict.endswith("decode is not smooth, or needs more steps than these")
    assert result.mse.ratio > 0.3


def test_smooth_but_wrong_network_passes():
    """The limit that the documentation states: only its images tell."""
    generator = working()
    state = generator.state_dict()
    for name in ("synthesis.b8.conv0.weight", "synthesis.b8.conv1.weight"):
        state[name].copy_(state[name].transpose(2, 3).clone())
    assert quietly(generator, steps=60).passed


# ---- single checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.3, True), (0.5, False)])
def test_mean_code_counts_in_deviations_of_w(shift, passed):
    generator = working("w")
    draws = torch.randn(1000, 8, generator=keyed_generator("test", 3)) * 5
    draws = draws - draws.mean(0)
    generator.mapping.w_avg.copy_(draws.std(0) * shift)
    assert checks.check_prior(generator, draws).passed is (passed if shift else None)
    assert checks.check_prior(generator, draws + 100).passed is (False if shift else None)


def test_mean_code_of_a_z_is_not_looked_at(linear_generator):
    assert checks.check_prior(linear_generator, torch.ones(2, 16)).passed is None


def test_range_counts_what_is_far_outside():
    images = torch.linspace(-1, 1, 100).view(1, 1, 10, 10).repeat(2, 1, 1, 1)
    assert checks.check_range(images).passed
    assert checks.check_range(images * 1.4).found == "-1.4 to 1.4; 30.0% of the values outside [-1, 1], 0.0% beyond 1.5"
    assert checks.check_range(images * 2.9).passed
    assert not checks.check_range(images * 3.1).passed
    assert not checks.check_range((images + 1) / 2).passed


def test_variety_starts_at_half_a_grey_level():
    images = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4) / 2**0.5  # a standard deviation of 1
    assert checks.check_spread(images / 250).passed
    assert not checks.check_spread(images / 260).passed
    assert checks.check_spread(images).found.endswith("the nearest other is at 200.0% of a guess's mse")
    assert checks.check_spread(torch.cat([images, images])).found.endswith(
        "the nearest other is at 0.0% of a guess's mse"
    )


def test_repeats_asks_for_the_same_bytes():
    counter = iter(range(100))
    generator = wrapped(lambda codes: mlp()(codes) + 1e-7 * next(counter))
    assert not checks.check_repeats(generator, torch.ones(2, 8)).passed


def test_weights_may_be_small_filters_and_biases_of_zero():
    network = nn.Sequential(nn.Conv2d(1, 1, 4), nn.Conv2d(1, 1, 4), nn.Linear(2, 2))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    nn.init.zeros_(network[2].bias)
    network.register_buffer("count", torch.tensor(3))
    generator = wrapped(mlp())
    generator.module.add_module("filters", network)
    assert checks.check_weights(generator).passed
    nn.init.zeros_(network[2].weight)
    assert checks.check_weights(generator).found == "module.filters.2.weight is all zero"


def test_errors_that_are_not_finite_fail():
    assert not checks.check_errors(Errors(1.0, 0.5, float("nan")), 3).passed
    assert checks.check_errors(Errors(1.0, 0.5, 0.29), 3).passed
    assert not checks.check_errors(Errors(1.0, 0.5, 0.31), 3).passed


def test_table_and_verdict():
    results = (
        CheckResult("a", True, "fine"),
        CheckResult("long name", False, "bad", "mend it"),
        CheckResult("b", None, "nothing"),
    )
    result = SelfTest(results, None, 4, 100, 0, 1.0)
    assert self_test_table(result).splitlines() == [
        "ok      a          fine",
        "FAILED  long name  bad",
        "-       b          nothing",
    ]
    assert result.verdict == "long name: mend it"
    assert not result.passed


def test_two_broken_things_are_both_named():
    generator = working()
    state = generator.state_dict()
    state["mapping.w_avg"].add_(3)
    state["synthesis.b8.torgb.weight"].mul_(100)
    assert set(failures(quietly(generator, steps=40))) >= {"mean code", "range"}
