"""StyleGAN2: against a slow reference and published numbers, its laws, its files, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reference_stylegan2 as reference
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latent_mixup import files
from latent_mixup.generators import StyleGAN2, load_generator

# A small random network under the published names, with what the published code makes of it (images: every second
# pixel of the first of four). Random weights: no licence but ours.
GOLDEN = Path(__file__).parents[1] / "golden" / "stylegan2-tiny.safetensors"
TINY = {"z_dim": 6, "w_dim": 10, "img_resolution": 16, "channel_base": 96, "channel_max": 12}
KINDS = {
    "plain": {},
    "classes": {"c_dim": 4, "mapping_num_layers": 3},
    "grey, no clamp": {"img_channels": 1, "conv_clamp": None},
    "tight clamp, 8 px": {"conv_clamp": 0.2, "img_resolution": 8},
    "no noise, 32 px": {"use_noise": False, "img_resolution": 32, "channel_max": 6},
}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(seed: int = 0, **changes) -> StyleGAN2:
    """A small network, every tensor of it random: filters that are not symmetric, w_avg and noise not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = StyleGAN2(**{**TINY, **changes})
        for name, tensor in generator.state_dict().items():
            if name.endswith("resample_filter"):
                tensor.copy_(torch.rand(4, 4) / 16)
            elif name.endswith(("bias", "noise_strength", "w_avg")):
                tensor.add_(torch.randn(tensor.shape) * (30 if "fc" in name else 0.3))
    return generator


def codes(generator: StyleGAN2, n: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, generator.num_ws, generator.w_dim, generator=draw(seed))


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """The largest difference, as a share of the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# ---- the arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", ["const", "none"])
def test_images_and_gradients_are_the_slow_references(kind, dtype, tolerance, noise):
    generator = tiny(**KINDS[kind]).to(dtype)
    state, limit = generator.state_dict(), generator.conv_clamp
    ws = codes(generator).to(dtype).requires_grad_(True)
    images = generator.synthesis(ws, noise_mode=noise)
    slow = torch.stack([reference.synthesis(state, w, limit, noise == "const") for w in ws])
    assert images.dtype == dtype
    close(images.detach(), slow.detach(), tolerance)
    towards = torch.randn(images.shape, generator=draw(), dtype=dtype)
    (fast_grad,) = torch.autograd.grad((images * towards).sum(), ws)
    (slow_grad,) = torch.autograd.grad((slow * towards).sum(), ws)
    close(fast_grad, slow_grad, 10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", KINDS)
def test_w_is_the_slow_references(kind, dtype, tolerance):
    generator = tiny(**KINDS[kind]).to(dtype)
    z = torch.randn(5, 6, generator=draw(), dtype=dtype)
    c = torch.rand(5, 4, generator=draw(), dtype=dtype) if generator.c_dim else None
    layers = generator.mapping.num_layers
    slow = [reference.mapping(generator.state_dict(), z[i], None if c is None else c[i], layers) for i in range(5)]
    ws = generator.mapping(z, c)
    assert ws.shape == (5, *generator.latent_shape)
    for layer in range(generator.num_ws):
        close(ws[:, layer], torch.stack(slow), tolerance)


def test_the_published_codes_numbers():
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(GOLDEN)
    ref = {name.removeprefix("ref."): tensors.pop(name) for name in list(tensors) if name.startswith("ref.")}
    generator = StyleGAN2(**config)
    assert generator.load_state_dict(tensors, strict=True)
    z, c = ref["z"], ref["c"]
    close(generator.mapping(z, c)[:1], ref["w"], 1e-6)
    close(generator.mapping(z, c.argmax(1))[:1], ref["w"], 1e-6)
    close(generator.mapping(z, c, truncation_psi=0.7)[:1], ref["w_psi07"], 1e-6)
    close(generator.mapping(z, c, truncation_psi=0.7, truncation_cutoff=3)[:1], ref["w_psi07_cut3"], 1e-6)
    close(generator.decode(ref["wplus"])[:, :, ::2, ::2], ref["image_wplus_const"], 3e-6)
    close(generator.synthesis(ref["w_far"])[:, :, ::2, ::2], ref["image_far_const"], 3e-6)
    slow = reference.synthesis(generator.state_dict(), ref["wplus"][0], generator.conv_clamp)
    close(slow[None, :, ::2, ::2], ref["image_wplus_const"], 3e-6)


def test_gradients_reach_each_layers_code_and_only_a_code_of_the_image():
    generator = tiny()
    ws = codes(generator).requires_grad_(True)
    (gradient,) = torch.autograd.grad(generator.decode(ws)[1].square().sum(), ws)
    assert (gradient[1].abs().amax(1) > 0).all()
    assert not gradient[[0, 2]].any()


def test_second_derivatives():
    generator = tiny(img_resolution=8, channel_max=4, w_dim=5).double()
    ws = codes(generator, 2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(generator.synthesis, ws)
    assert torch.autograd.gradgradcheck(generator.synthesis, ws)


def test_a_new_network_starts_with_styles_around_one_and_without_noise():
    state = StyleGAN2(**TINY).state_dict()
    for name, tensor in state.items():
        if name.endswith(("bias", "noise_strength", "w_avg")):
            assert (tensor == (1 if "affine" in name else 0)).all()
        elif name.endswith("fc1.weight"):
            assert 80 < tensor.std() < 120
        elif name.endswith("resample_filter"):
            assert tensor.equal(torch.tensor([1.0, 3, 3, 1]).outer(torch.tensor([1.0, 3, 3, 1])) / 64)
        elif tensor.numel() > 500:
            assert 0.8 < tensor.std() < 1.2


def test_weights_can_be_trained():
    generator = tiny(c_dim=2)
    networks = torch.nn.ModuleList([generator.mapping, generator.synthesis]).requires_grad_(True)
    ws = generator.mapping(torch.randn(3, 6, generator=draw()), torch.tensor([0, 1, 1]))
    generator.synthesis(ws).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in networks.parameters())


# ---- sizes -----------------------------------------------------------------------------------------


def test_the_cifar10_network_has_its_published_size():
    with torch.device("meta"):
        generator = StyleGAN2()
    assert (generator.num_ws, generator.latent_shape) == (8, (8, 512))
    assert round(sum(parameter.numel() for parameter in generator.parameters()) / 1e6, 1) == 19.9
    assert generator.decode(torch.empty(2, 8, 512, device="meta")).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize(("channels", "space"), [(1, "w"), (3, "w+")])
def test_every_resolution(resolution, channels, space):
    with torch.device("meta"):
        generator = StyleGAN2(8, 16, img_resolution=resolution, img_channels=channels, latent_space=space)
        assert generator.num_ws == 2 * (resolution.bit_length() - 1) - 2
        images = generator.decode(torch.empty(2, *generator.latent_shape))
    assert images.shape == (2, channels, resolution, resolution)
    widths = {
        r: generator.synthesis.get_submodule(f"b{r}").conv1.weight.shape[0] for r in generator.synthesis.resolutions
    }
    assert widths == {r: min(32768 // r, 512) for r in generator.synthesis.resolutions}


# ---- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["w", "w+"])
def test_the_contract(kind, space):
    generator = tiny(latent_space=space, **KINDS[kind])
    latents = generator.sample_latents(4, draw())
    assert latents.shape == (4, *generator.latent_shape)
    assert latents.dtype == torch.float32
    assert generator.latent_shape == ((10,) if space == "w" else (generator.num_ws, 10))
    assert (generator.latent_space, generator.preferred_path, generator.has_encoder) == (space, "lerp", False)
    images = generator.decode(latents)
    assert images.shape == (4, generator.img_channels, generator.img_resolution, generator.img_resolution)
    assert images.dtype == torch.float32
    assert generator(latents).equal(images)
    assert generator.decode(latents.double()).equal(images)
    assert generator.decode(latents[:0]).shape == (0, *images.shape[1:])
    mean = generator.mean_latent()
    assert mean.shape == generator.latent_shape
    assert mean.equal(generator.mapping.w_avg.expand(generator.latent_shape))
    mean.zero_()
    assert generator.mapping.w_avg.any()


def test_a_w_is_the_same_w_for_every_layer():
    one, plus = tiny(latent_space="w"), tiny()
    w = one.sample_latents(3, draw())
    ws = plus.sample_latents(3, draw())
    assert ws.equal(w[:, None].repeat(1, plus.num_ws, 1))
    assert one.decode(w).equal(plus.decode(ws))


def test_labels_are_drawn_evenly_where_none_are_given():
    generator = tiny(c_dim=3, z_dim=1, img_resolution=8)
    source = draw(5)
    z, labels = torch.randn(300, 1, generator=source), torch.randint(3, (300,), generator=source)
    assert generator.sample_latents(300, draw(5)).equal(generator.mapping(z, labels))
    assert labels.bincount().min() > 80


def test_labels_as_integers_one_hot_and_mixed():
    generator, integers = tiny(c_dim=4), torch.tensor([2, 0, 3])
    one_hot = torch.nn.functional.one_hot(integers, 4)
    expected = generator.sample_latents(3, draw(), integers)
    for same in (integers.int(), integers.to(torch.uint8), one_hot, one_hot.float(), one_hot.double(), one_hot.bool()):
        assert generator.sample_latents(3, draw(), same).equal(expected)
    mixed = 0.5 * one_hot + 0.5 * one_hot.roll(1, 0)
    assert not generator.sample_latents(3, draw(), mixed).isclose(expected).all()
    others = generator.sample_latents(3, draw(), integers.roll(1))
    assert (others - expected).abs().amax((1, 2)).min() > 1e-3


def test_truncation():
    generator, z = tiny(), torch.randn(3, 6, generator=draw())
    ws, average = generator.mapping(z), generator.mapping.w_avg.expand(3, 6, 10)
    assert generator.mapping(z, truncation_psi=1, truncation_cutoff=2).equal(ws)
    assert generator.mapping(z, truncation_psi=0).equal(average)
    torch.testing.assert_close(generator.mapping(z, truncation_psi=0.3), average.lerp(ws, 0.3))
    cut = generator.mapping(z, truncation_psi=0.3, truncation_cutoff=2)
    assert cut[:, 2:].equal(ws[:, 2:])
    torch.testing.assert_close(cut[:, :2], average.lerp(ws, 0.3)[:, :2])
    assert generator.mapping(z, truncation_psi=0.3, truncation_cutoff=0).equal(ws)
    assert generator.mapping(z, truncation_psi=0.3, truncation_cutoff=99).equal(
        generator.mapping(z, truncation_psi=0.3)
    )


# ---- the same image in other company ---------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_an_image_does_not_depend_on_its_batch(at_once):
    generator = tiny()
    ws = codes(generator, 7)
    alone = torch.cat([generator.decode(w[None]) for w in ws])
    generator.synthesis.images_at_once = at_once  # how many go through at once on a CPU
    leaf = ws.clone().requires_grad_(True)
    images = generator.decode(leaf)
    close(images.detach(), alone, 3e-6)
    (gradient,) = torch.autograd.grad(images.square().sum(), leaf)
    single = ws[3:4].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(generator.decode(single).square().sum(), single)
    close(gradient[3:4], expected, 3e-5)


def test_large_images_go_through_one_by_one():
    with torch.device("meta"):
        assert StyleGAN2().synthesis.images_at_once == 8
        assert StyleGAN2(img_resolution=1024).synthesis.images_at_once == 1


@pytest.mark.parametrize("kind", ["plain", "no noise, 32 px"])
def test_channels_last(kind):
    generator = tiny(**KINDS[kind])
    ws = codes(generator)
    expected = generator.decode(ws)
    generator.to(memory_format=torch.channels_last)
    assert generator.synthesis.b8.conv0.weight.is_contiguous(memory_format=torch.channels_last)
    close(generator.decode(ws), expected, 3e-6)


def test_autocast_lowers_the_convolutions_only():
    generator, z = tiny(c_dim=4), torch.randn(3, 6, generator=draw())
    labels = torch.tensor([0, 1, 2])
    ws = generator.mapping(z, labels)
    expected = generator.decode(ws)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator.mapping(z, labels).equal(ws)
        leaf = ws.clone().requires_grad_(True)
        images = generator.decode(leaf)
        (gradient,) = torch.autograd.grad(images.square().sum(), leaf)
    assert images.dtype == torch.float32
    assert not images.equal(expected)
    close(images.detach(), expected, 0.03)
    assert gradient.isfinite().all()
    for name, tensor in generator.state_dict().items():
        if "conv" in name and name.endswith("weight") and "affine" not in name:
            tensor.zero_()  # what is left is noise, bias and ToRGB
    expected = generator.decode(ws)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator.decode(ws).equal(expected)


def test_large_weights_stay_finite_under_float16():
    generator = tiny(img_resolution=8)
    for block in (generator.synthesis.b4, generator.synthesis.b8):
        block.conv1.weight.mul_(2_000)
        block.conv1.affine.weight.mul_(50)
    ws = codes(generator)
    expected = generator.decode(ws)
    with torch.autocast("cpu", torch.float16):
        close(generator.decode(ws), expected, 0.03)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_compile(space):
    generator = tiny(latent_space=space, conv_clamp=0.7, img_resolution=8)
    latents = generator.sample_latents(9, draw())
    compiled = torch.compile(generator.decode, backend="aot_eager", fullgraph=True)
    close(compiled(latents), generator.decode(latents), 3e-6)
    results = []
    for decode in (compiled, generator.decode):
        leaf = latents.clone().requires_grad_(True)
        results.append(torch.autograd.grad(decode(leaf).square().sum(), leaf)[0])
    close(*results, 3e-5)


# ---- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["w", "w+"])
def test_round_trip(tmp_path, kind, space):
    generator = tiny(latent_space=space, **KINDS[kind])
    generator.metadata = {"source": "a test"}
    generator.save_pretrained(tmp_path)
    for again in (load_generator(tmp_path), StyleGAN2.from_pretrained(tmp_path)):
        assert type(again) is StyleGAN2
        assert again.arguments() == generator.arguments()
        assert again.metadata == {"source": "a test"}
        assert again.digest() == generator.digest()
        latents = generator.sample_latents(2, draw())
        assert again.decode(latents).equal(generator.decode(latents))
        assert again.sample_latents(2, draw()).equal(latents)
        assert not any(parameter.requires_grad for parameter in again.parameters())


def test_round_trip_of_channels_last(tmp_path):
    generator = tiny().to(memory_format=torch.channels_last)
    generator.save_pretrained(tmp_path)
    assert load_generator(tmp_path).digest() == tiny().digest()


def test_the_state_has_the_published_names():
    names = set(tiny(c_dim=4).state_dict())
    layer = {"weight", "bias", "affine.weight", "affine.bias", "noise_strength", "noise_const", "resample_filter"}
    rgb = {"weight", "bias", "affine.weight", "affine.bias"}
    expected = {f"mapping.{part}.{kind}" for part in ("embed", "fc0", "fc1") for kind in ("weight", "bias")}
    expected |= {"mapping.w_avg", "synthesis.b4.const"}
    for r in (4, 8, 16):
        expected |= {f"synthesis.b{r}.resample_filter"} | {f"synthesis.b{r}.torgb.{part}" for part in rgb}
        convs = ("conv1",) if r == 4 else ("conv0", "conv1")
        expected |= {f"synthesis.b{r}.{conv}.{part}" for conv in convs for part in layer}
    assert names == expected
    assert names - set(tiny(c_dim=4, use_noise=False).state_dict()) == {name for name in names if "noise" in name}


def test_a_missing_and_a_left_over_tensor(tmp_path):
    tiny().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    noise = weights.pop("synthesis.b8.conv0.noise_const")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(files.FormatError, match=r"'synthesis.b8.conv0.noise_const' is missing"):
        load_generator(tmp_path)
    save_file({**weights, "synthesis.b8.conv0.noise_const": noise, "x": noise.clone()}, tmp_path / "model.safetensors")
    with pytest.raises(files.FormatError, match=r"'x' is unknown"):
        load_generator(tmp_path)


# ---- errors ----------------------------------------------------------------------------------------

WRONG_ARGUMENTS = [
    ({"img_resolution": 4}, "img_resolution needs a power of two from 8 to 1024: got 4"),
    ({"img_resolution": 28}, "img_resolution needs a power of two from 8 to 1024: got 28"),
    ({"img_resolution": 2048}, "from 8 to 1024: got 2048"),
    ({"img_resolution": "32"}, "got '32'"),
    ({"img_resolution": 32.0}, r"got 32\.0"),
    ({"img_channels": 2}, "img_channels needs to be 1 or 3: got 2"),
    ({"img_channels": True}, "img_channels needs an integer from 1: got True"),
    ({"z_dim": 0}, "z_dim needs an integer from 1: got 0"),
    ({"w_dim": "16"}, "w_dim needs an integer from 1: got '16'"),
    ({"c_dim": -1}, "c_dim needs an integer from 0: got -1"),
    ({"c_dim": False}, "c_dim needs an integer from 0: got False"),
    ({"mapping_num_layers": 10**9}, "mapping_num_layers needs to be at most 64: got 1000000000"),
    ({"channel_base": 15}, r"channel_base needs to be at least img_resolution \(16\)"),
    ({"channel_max": 0.5}, r"channel_max needs an integer from 1: got 0\.5"),
    ({"conv_clamp": 0}, "conv_clamp needs a number above 0, or None for no clamp: got 0"),
    ({"conv_clamp": float("nan")}, "conv_clamp needs a number"),
    ({"conv_clamp": "256"}, "conv_clamp needs a number above 0, or None for no clamp: got '256'"),
    ({"use_noise": 1}, "use_noise needs to be True or False: got 1"),
    ({"latent_space": "z"}, r"latent_space needs to be 'w' or 'w\+': got 'z'"),
    ({"architecture": "resnet"}, "architecture needs to be 'skip', the published generators': got 'resnet'"),
    ({"architecture": "orig"}, "got 'orig'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_ARGUMENTS)
def test_arguments_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *(changes for changes, _ in WRONG_ARGUMENTS if changes.get("conv_clamp") == changes.get("conv_clamp")),
        {"num_fp16_res": 4},
        {"w_dim": 10**18},
        {"c_dim": 10**30},
        {"channel_max": [16]},
        {"latent_space": ["w"]},
    ],
)
def test_a_file_with_such_arguments_is_refused(tmp_path, changes):
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"].update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(files.FormatError):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    ("call", "shapes", "message"),
    [
        (lambda x: tiny().synthesis(x), [(10,), (2, 10), (2, 5, 10), (2, 6, 9), (2, 6, 10, 1)], r"ws .* \[B, 6, 10\]"),
        (
            lambda x: tiny().decode(x),
            [(10,), (2, 10), (2, 5, 10), (2, 6, 9), (2, 6, 10, 1)],
            r"latents .* \[B, 6, 10\]",
        ),
        (lambda x: tiny(latent_space="w").decode(x), [(2, 6, 10)], r"latents .* \[B, 10\]"),
        (lambda x: tiny().mapping(x), [(6,), (2, 7), (2, 6, 6)], r"z .* \[B, 6\]"),
    ],
)
def test_inputs_of_another_shape(call, shapes, message):
    for shape in shapes:
        with pytest.raises(ValueError, match=message.replace(".*", "needs? shape") + r": got \["):
            call(torch.zeros(shape))


def test_labels_and_networks_that_do_not_belong_together():
    z = torch.zeros(3, 6)
    with pytest.raises(ValueError, match=r"has 4 classes and needs labels: pass integers \[3\], or one-hot"):
        tiny(c_dim=4).mapping(z)
    for labels in (torch.tensor([0, 1, 0]), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match=r"no classes \(c_dim=0\): got labels \[3.*\], leave them out"):
            tiny().sample_latents(3, draw(), labels)
    assert tiny().mapping(z, torch.zeros(3, 0)).equal(tiny().mapping(z))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), r"integers \[3\], or .* rows \[3, 4\]: got torch.int64 \[2\]"),
        (torch.zeros(3, 5), r"got torch.float32 \[3, 5\]"),
        (torch.zeros(3, 1, dtype=torch.int64), r"got torch.int64 \[3, 1\]"),
        (torch.zeros(3), r"got torch.float32 \[3\]"),
        (torch.zeros(3, dtype=torch.bool), r"got torch.bool \[3\]"),
        (torch.tensor([0, 4, 1]), r"labels need to be in \[0, 4\): got 0 to 4"),
        (torch.tensor([0, -1, 1]), r"labels need to be in \[0, 4\): got -1 to 1"),
    ],
)
def test_labels_of_another_shape_or_range(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny(c_dim=4).mapping(torch.zeros(3, 6), labels)
    with pytest.raises(ValueError, match=message):
        tiny(c_dim=4).sample_latents(3, draw(), labels)


def test_another_noise():
    with pytest.raises(ValueError, match="noise_mode needs to be 'const', 'random' or 'none': got 'some'"):
        tiny().synthesis(torch.zeros(1, 6, 10), noise_mode="some")
