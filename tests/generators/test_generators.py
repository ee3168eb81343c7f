"""The contract of a generator, ``wrap``, and generators as folders that are read strictly."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import LinearGenerator
from safetensors.torch import load_file, save_file
from systems import link
from test_golden import NETWORKS
from torch import nn

from latent_mixup import files
from latent_mixup.classifiers import PaperCNN
from latent_mixup.generators import (
    DCGAN,
    VAE,
    CompactGenerator,
    ConvGenerator,
    Generator,
    Linear,
    StyleGAN2,
    load_generator,
    wrap,
)
from latent_mixup.generators.base import check_generator

TINY = {"z_dim": 8, "img_resolution": 6, "decoder_widths": (16,), "encoder_widths": (12, 10)}


def tiny(seed: int = 0, **changes) -> CompactGenerator:
    """A compact generator of 6x6 images with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CompactGenerator(**{**TINY, **changes})


def codes(n: int = 5, dim: int = 8) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(n))


# ---- the compact generator -------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "resolution"), [(1, 28), (3, 6), (1, 5)])
def test_codes_become_images_and_images_codes(channels, resolution):
    generator = tiny(img_channels=channels, img_resolution=resolution)
    images = generator.decode(codes())
    assert images.shape == (5, channels, resolution, resolution)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert generator(codes()).equal(images)
    latents = generator.encode(images)
    assert latents.shape == (5, *generator.latent_shape) == (5, 8)
    torch.testing.assert_close(latents.norm(dim=1), torch.full((5,), 8**0.5))
    assert (generator.latent_space, generator.preferred_path, generator.has_encoder) == ("z", "slerp", True)


def test_only_grey_images_of_28_pixels_bring_the_papers_features():
    assert tiny().features is None
    features = tiny(img_resolution=28).features
    assert features(torch.zeros(2, 1, 28, 28)).shape == (2, 32, 12, 12)
    assert PaperCNN().features.load_state_dict(features.state_dict())


@pytest.mark.parametrize("scale", [1e-3, 0.5, 7.0, 1e4])
def test_the_length_of_a_code_does_not_matter(scale):
    torch.testing.assert_close(tiny().decode(codes() * scale), tiny().decode(codes()))


def test_a_code_of_zeros_and_half_precision_codes_decode():
    assert tiny().decode(torch.zeros(1, 8)).isfinite().all()
    assert tiny().decode(codes().half()).dtype == torch.float32
    assert tiny().decode(torch.zeros(0, 8)).shape == (0, 1, 6, 6)


@pytest.mark.parametrize("shape", [(8,), (5, 7), (5, 8, 1), (5, 1, 8)])
def test_codes_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"latents need shape \[B, 8\]: got \["):
        tiny().decode(torch.zeros(shape))


def test_decode_is_differentiable_in_the_codes():
    latents = codes(3).requires_grad_(True)
    tiny().decode(latents).square().sum().backward()
    assert latents.grad.abs().sum() > 0
    along = (latents.grad * latents.detach()).sum(1)  # nothing changes along the code itself
    torch.testing.assert_close(along, torch.zeros(3), atol=1e-5, rtol=0)


def test_the_prior_is_the_gaussian_of_the_codes():
    generator, draw = tiny(), torch.Generator().manual_seed(1)
    latents = torch.randn(2_000, 8, generator=draw) @ torch.randn(8, 8, generator=draw) + 2
    generator.fit_prior(latents)
    torch.testing.assert_close(generator.mean_latent(), latents.mean(0))
    factor = generator.latent_factor
    torch.testing.assert_close(factor @ factor.T, torch.cov(latents.T), rtol=1e-4, atol=1e-4)
    assert factor.equal(factor.tril())
    drawn = generator.sample_latents(4, torch.Generator().manual_seed(3))
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    expected = latents.mean(0) + noise @ torch.linalg.cholesky(torch.cov(latents.T)).T
    torch.testing.assert_close(drawn, expected / expected.norm(dim=1, keepdim=True) * 8**0.5, rtol=1e-4, atol=1e-4)


def test_a_generator_without_an_encoder_says_so():
    generator = wrap(tiny().decode, latent_shape=(8,))
    assert not generator.has_encoder
    with pytest.raises(NotImplementedError, match=r"has no encoder: pass encoder= to latent_mixup.invert"):
        generator.encode(torch.zeros(1, 1, 6, 6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fashion-mnist", r"got str; load it: latent_mixup.load_generator\('fashion-mnist'\)"),
        (nn.Linear(2, 3), r"got Linear; wrap it: latent_mixup.generators.wrap\(module, latent_shape=...\)"),
        ([1, 2], r"got list; is the order of the arguments another one\?"),
    ],
)
def test_what_is_no_generator_is_told_how_to_become_one(given, message):
    check_generator(tiny())
    with pytest.raises(TypeError, match=f"^a Generator is wanted: {message}$"):
        check_generator(given)


# ---- laws of every generator -----------------------------------------------------------------------

SAVED = {name: make for name, make in NETWORKS.items() if isinstance(make(), Generator)}
SAVED |= {"compact, grey, 28 px": lambda: tiny(img_resolution=28), "compact, RGB": lambda: tiny(img_channels=3)}
ALL = {**SAVED, "wrap": lambda: wrap(tiny().decode, latent_shape=(8,))}
every = pytest.mark.parametrize("name", ALL)


@every
def test_draws_depend_on_their_generator_alone(name):
    generator, before = ALL[name](), torch.get_rng_state()
    one, two, other = (generator.sample_latents(6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (6, *generator.latent_shape)
    assert one.dtype == torch.float32
    assert one.equal(two)
    assert not one.equal(other)
    assert torch.get_rng_state().equal(before)


@every
def test_it_stays_frozen_inside_a_model_that_is_trained(name):
    generator = ALL[name]()
    assert nn.Sequential(generator, nn.Dropout()).train().training
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert generator.train() is generator
    latents = generator.sample_latents(3, torch.Generator().manual_seed(1)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(generator.decode(latents).square().sum(), latents)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", SAVED)
def test_a_round_trip_in_float32_is_exact(name, tmp_path):
    generator = SAVED[name]()
    generator.metadata = {"name": "tiny", "steps": 3}
    generator.save_pretrained(tmp_path)
    latents = generator.sample_latents(3, torch.Generator().manual_seed(1))
    for read in (load_generator(tmp_path), type(generator).from_pretrained(str(tmp_path))):
        assert type(read) is type(generator)
        assert read.digest() == generator.digest()
        assert (read.metadata, read.arguments()) == (generator.metadata, generator.arguments())
        assert all(map(torch.equal, read.state_dict().values(), generator.state_dict().values()))
        assert read.decode(latents).equal(generator.decode(latents))
        assert read.sample_latents(3, torch.Generator().manual_seed(1)).equal(latents)
        assert not read.training
        assert not any(parameter.requires_grad for parameter in read.parameters())
        assert not any(tensor.is_meta for tensor in read.state_dict().values())


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_decode_to_float32(name, dtype):
    exact = ALL[name]()
    generator = ALL[name]().to(dtype)
    latents = exact.sample_latents(3, torch.Generator().manual_seed(1))
    images = generator.decode(latents)
    assert images.dtype == generator.sample_latents(2).dtype == generator.mean_latent().dtype == torch.float32
    assert generator.decode(latents.to(dtype)).dtype == torch.float32
    if dtype == torch.float64:
        torch.testing.assert_close(images, exact.decode(latents), rtol=1e-3, atol=1e-4)
    if generator.has_encoder:
        assert generator.encode(images).dtype == torch.float32


@every
def test_defaults_of_torch_change_nothing(name):
    generator = ALL[name]()

    def look() -> tuple[torch.Tensor, ...]:
        latents = generator.sample_latents(2, torch.Generator("cpu").manual_seed(3))
        images = generator.decode(latents)
        return latents, images, generator.mean_latent(), *([generator.encode(images)] if generator.has_encoder else [])

    expected = look()
    with torch.device("meta"):
        on_meta = look()
    torch.set_default_dtype(torch.float64)
    try:
        in_double = look()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        in_inference = look()
    for other in (on_meta, in_double, in_inference):
        for found, wanted in zip(other, expected, strict=True):
            assert found.dtype == torch.float32
            assert found.equal(wanted)
    assert generator.decode(expected[0].clone().requires_grad_(True)).requires_grad


# ---- sizes -----------------------------------------------------------------------------------------


class Rows(Generator):
    """Somebody's own, which sets one of the two."""

    def __init__(self, **sizes) -> None:
        super().__init__()
        self.img_channels, self.latent_shape = 2, (3,)
        for name, value in sizes.items():
            setattr(self, name, value)

    def decode(self, latents):
        return latents.new_zeros(len(latents), *self.image_shape)


@pytest.mark.parametrize(
    ("given", "img_size", "img_resolution"),
    [
        ({"img_resolution": 4}, (4, 4), 4),
        ({"img_size": (4, 4)}, (4, 4), 4),
        ({"img_resolution": (4, 6)}, (4, 6), (4, 6)),
        ({"img_size": (4, 6)}, (4, 6), (4, 6)),
    ],
)
def test_one_number_says_the_size_of_square_images_and_two_that_of_others(given, img_size, img_resolution):
    generator = Rows(**given)
    assert (generator.img_size, generator.img_resolution) == (img_size, img_resolution)
    assert generator.decode(torch.zeros(5, 3)).shape == (5, *generator.image_shape) == (5, 2, *img_size)


def test_two_equal_numbers_are_one_and_the_file_says_so(tmp_path):
    assert Linear(3, img_resolution=(6, 6)).arguments() == Linear(3, img_resolution=6).arguments()
    assert json.loads((Linear(3, 1, (6, 6)).save_pretrained(tmp_path) / "config.json").read_text())["arguments"] == {
        **{"latent_dim": 3, "img_channels": 1, "img_resolution": 6, "noise_std": 0.0}
    }


@pytest.mark.parametrize("architecture", [CompactGenerator, ConvGenerator, DCGAN, VAE, StyleGAN2])
def test_what_is_square_by_nature_says_so_and_what_to_do(architecture):
    with pytest.raises(
        ValueError,
        match=rf"^{architecture.__name__} makes square images, so img_resolution needs one number: got \(16, 32\); "
        r"bring the images of the data set to a square, e\.g\. v2\.Resize\(64\) and v2\.CenterCrop\(64\)$",
    ):
        architecture(img_resolution=(16, 32))


# ---- wrap ------------------------------------------------------------------------------------------


def sigmoid_decoder() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 36), nn.Dropout(), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1, 1), (-0.5, 0.5)])
def test_wrap_brings_any_range_to_ours_and_back(low, high):
    inside = sigmoid_decoder().eval()
    seen = []
    generator = wrap(
        lambda latents: inside(latents) * (high - low) + low,
        latent_shape=(8,),
        image_range=(low, high),
        encoder=lambda images: seen.append(images) or images.flatten(1)[:, :8],
    )
    images = generator.decode(codes())
    torch.testing.assert_close(images, inside(codes()) * 2 - 1)
    assert (generator.img_channels, generator.img_resolution, generator.has_encoder) == (1, 6, True)
    assert generator.encode(images).shape == (5, 8)
    torch.testing.assert_close(seen[0], inside(codes()) * (high - low) + low, rtol=1e-5, atol=1e-5)


def test_wrap_freezes_a_module_in_place():
    module, encoder = sigmoid_decoder().train(), nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
    generator = wrap(module, latent_shape=(8,), image_range=(0, 1), encoder=encoder)
    for part in (module, encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    latents = codes().requires_grad_(True)
    generator.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


class Autoencoder(nn.Module):
    """Somebody else's: a method decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = sigmoid_decoder()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents)


@pytest.mark.parametrize("bound", [False, True], ids=["module", "bound method"])
def test_wrap_decodes_in_eval_mode_whatever_the_owner_does(bound):
    owner = Autoencoder()
    module = owner.decode if bound else owner.decoder
    generator = wrap(module, latent_shape=(8,), encoder=nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout()))
    images, latents = generator.decode(codes()), generator.encode(generator.decode(codes()))
    owner.train()
    generator.encoder.train()
    assert generator.decode(codes()).equal(images)
    assert generator.encode(images).equal(latents)
    assert owner.training
    assert owner.decoder[1].training  # whose owner goes on training it


def test_wrap_takes_what_decoders_of_diffusers_return():
    plain = sigmoid_decoder()
    found = wrap(lambda latents: SimpleNamespace(sample=plain.eval()(latents)), latent_shape=(8,)).decode(codes())
    assert found.equal(wrap(plain, latent_shape=(8,)).decode(codes()))


def test_wrap_takes_a_function_without_parameters():
    generator = wrap(lambda latents: latents.view(-1, 2, 3, 3).tanh(), latent_shape=(2, 9), latent_space="vae")
    assert generator.device == torch.device("cpu")
    assert generator.mean_latent().equal(torch.zeros(2, 9))
    assert generator.sample_latents(3).shape == (3, 2, 9)
    assert generator.decode(torch.zeros(3, 2, 9)).shape == (3, 2, 3, 3)


def test_wrap_takes_decoders_of_images_that_are_not_square():
    generator = wrap(lambda latents: latents.view(-1, 1, 2, 4), latent_shape=(8,))
    assert (generator.img_size, generator.img_resolution, generator.image_shape) == ((2, 4), (2, 4), (1, 2, 4))
    torch.testing.assert_close(generator.decode(codes()), codes().view(5, 1, 2, 4))


@pytest.mark.parametrize(("space", "path"), [("z", "slerp"), ("w", "lerp"), ("w+", "lerp"), ("vae", "lerp")])
def test_wrap_mixes_along_the_sphere_in_z_alone(space, path):
    assert wrap(sigmoid_decoder(), latent_shape=(8,), latent_space=space).preferred_path == path


FROZEN = sigmoid_decoder().requires_grad_(False)
NO_TENSOR = r"needs to return a tensor of images \[B, C, H, W\]: got a {}; wrap a func"
NOT_TAKEN = "cannot decode one code of zeros, .*its first linear layer takes 8 numbers"


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (FROZEN, {"image_range": (1, 0)}, ValueError, r"image_range needs \(low, high\) with low < high: got \(1, 0\)"),
        (FROZEN, {"image_range": (0, 0)}, ValueError, "with low < high"),
        (lambda latents: latents, {}, ValueError, r"images \[B, C, H, W\]: got \[1, 8\] for latents \[1, 8\]"),
        (lambda latents: (FROZEN(latents),), {}, ValueError, NO_TENSOR.format("tuple")),
        (lambda latents: {"x": FROZEN(latents)}, {}, ValueError, NO_TENSOR.format("dict")),
        (lambda latents: FROZEN(latents).numpy(), {}, ValueError, NO_TENSOR.format("ndarray")),
        *((FROZEN, {"latent_shape": shape}, ValueError, NOT_TAKEN) for shape in ((9,), (8, 2), ())),
        (tiny(), {}, TypeError, "takes a module that is no Generator yet: got a CompactGenerator"),
        ("fashion-mnist", {}, TypeError, r"takes an nn\.Module or a callable: got str"),
    ],
)
def test_wrap_refuses(module, options, error, message):
    with pytest.raises(error, match=message):
        wrap(module, **{"latent_shape": (8,), **options})


def test_what_is_not_ours_cannot_be_saved(tmp_path):
    for generator in (wrap(sigmoid_decoder(), latent_shape=(8,)), LinearGenerator()):
        with pytest.raises(NotImplementedError, match="only latent_mixup's own generators have a file format"):
            generator.save_pretrained(tmp_path / "generator")
    assert not any(tmp_path.iterdir())


# ---- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A generator as a folder."""
    generator = tiny()
    generator.metadata = {"name": "tiny"}
    return generator.save_pretrained(tmp_path / "tiny")


def test_a_round_trip_in_float16_rounds_once(tmp_path):
    generator = tiny()
    generator.save_pretrained(tmp_path, dtype=torch.float16)
    read = load_generator(tmp_path)
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(generator.state_dict()[name].half().float())
    content = (tmp_path / "model.safetensors").read_bytes()
    read.save_pretrained(tmp_path, dtype=torch.float16)
    assert (tmp_path / "model.safetensors").read_bytes() == content
    assert load_generator(tmp_path).digest() == read.digest() != generator.digest()


def test_the_digest_is_that_of_the_weights():
    generator = tiny()
    assert generator.digest() == tiny().digest() == generator.digest()
    assert generator.digest() != tiny(seed=1).digest()
    generator.metadata = {"name": "other"}
    assert generator.digest() == tiny().digest()
    generator.latent_mean[3] += 1e-6
    assert generator.digest() != tiny().digest()


def test_what_float16_cannot_hold_is_refused(folder):
    generator = tiny()
    generator.latent_mean[0] = 1e6
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"latent_mean has a value that is not finite in torch.float16.*dtype="):
        generator.save_pretrained(folder, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype needs to be torch.float32 or torch.float16: got torch.bfloat16"):
        generator.save_pretrained(folder, dtype=torch.bfloat16)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


@pytest.mark.parametrize("where", ["save_tensors", "first replace", "second replace"])
def test_a_failed_write_leaves_the_old_generator(folder, monkeypatch, where):
    calls, replace = [], os.replace

    def fails(*arguments):
        calls.append(arguments)
        if where == "second replace" and len(calls) == 1:
            return replace(*arguments)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((files, "save_tensors") if where == "save_tensors" else (os, "replace")), fails)
        with pytest.raises(OSError, match="no space left"):
            tiny(seed=1).save_pretrained(folder)
    assert calls
    assert load_generator(folder).digest() == tiny().digest()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_without_a_generator(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing: expected a folder that save_pretrained"):
        load_generator(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load_generator(folder)


# ---- a config that says something else -------------------------------------------------------------


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def edit_arguments(folder, **changes):
    edit_config(folder, arguments={**json.loads((folder / "config.json").read_text())["arguments"], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, r"has format_version 3, this version reads up to 2: upgrade latent-mixup"),
        ({"format_version": 3, "new": 1}, "upgrade latent-mixup"),
        ({"format_version": "1"}, "field 'format_version' needs"),
        ({"format_version": 0}, "field 'format_version' needs"),
        ({"format_version": True}, "field 'format_version' needs"),
        (
            {"architecture": "StyleGAN9"},
            "field 'architecture' needs one of CompactGenerator, ConvGenerator, DCGAN, DiffusersVAE, Identity, "
            "Linear, StyleGAN2, VAE, found 'StyleGAN9'",
        ),
        ({"architecture": ["CompactGenerator"]}, "field 'architecture' needs a str"),
        ({"architecture": "os.system"}, "field 'architecture' needs one of"),
        ({"arguments": [8]}, r"field 'arguments' needs a dict, with at most 64 entries in each value, found \[8\]"),
        ({"metadata": "x"}, "field 'metadata' needs a dict"),
        ({"__class__": "os.system"}, "field '__class__' is unknown, expected the fields format_version, architecture,"),
        ({"format_version": ...}, "needs an integer"),
        *(({name: ...}, "is missing, expected the fields") for name in ("architecture", "arguments", "metadata")),
    ],
)
def test_a_wrong_or_missing_field_is_named(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(files.FormatError, match=message) as caught:
        load_generator(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_config_that_is_no_json_object(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(files.FormatError, match=r"config.json (is not valid JSON|needs to hold a JSON object)"):
        load_generator(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        {"__class__": "os.system"},
        {"__init__": {}},
        {"self": 1},
        {"unknown": 1},
        {"z_dim": "8"},
        {"z_dim": 8.5},
        {"z_dim": -8},
        {"z_dim": None},
        {"z_dim": [8]},
        {"z_dim": 10**40},
        {"img_resolution": 10**400},
        {"img_resolution": "28"},
        {"decoder_widths": 16},
        {"decoder_widths": {"16": 1}},
        {"decoder_widths": [[16]]},
        {"decoder_widths": None},
    ],
    ids=str,
)
def test_hostile_arguments_are_refused(folder, arguments):
    edit_arguments(folder, **arguments)
    with pytest.raises(files.FormatError, match="field 'arguments' is not understood: "):
        load_generator(folder)


@pytest.mark.parametrize(
    "arguments",
    [{"z_dim": 10**9}, {"img_resolution": 10**6}, {"decoder_widths": [10**9, 10**9]}, {"encoder_widths": [10**9] * 3}],
    ids=str,
)
def test_a_network_larger_than_its_file_is_refused_before_it_is_allocated(folder, arguments):
    edit_arguments(folder, **arguments)
    resource = pytest.importorskip("resource")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(files.FormatError, match=r"model.safetensors: tensor '.*' (needs|is missing|is unknown)"):
        load_generator(folder)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * unit < 200e6


# ---- weights that are something else ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.skip.bias"), "tensor 'encoder.skip.bias' is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "tensor 'extra' is unknown"),
        (lambda tensors: tensors.update(latent_mean=torch.zeros(9)), r"'latent_mean' needs \[8\], found \[9\]"),
        (lambda tensors: tensors.update(latent_mean=torch.zeros(8, 1)), r"needs \[8\], found \[8, 1\]"),
        (lambda tensors: tensors.clear(), "is missing"),
    ],
)
def test_a_missing_extra_or_reshaped_tensor(folder, change, message):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(files.FormatError, match=message) as caught:
        load_generator(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, 0.25, 0.5, 0.75, -1])
def test_a_truncated_file(folder, cut):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    with pytest.raises(files.FormatError, match=r"model.safetensors is not a whole safetensors file: "):
        load_generator(folder)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", ["pickle", "torch", "torch legacy"])
def test_a_pickle_is_refused_and_not_executed(folder, tmp_path, write):
    canary, path = tmp_path / "canary", folder / "model.safetensors"
    bomb = Bomb(f"touch {canary}")
    if write == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(files.FormatError, match="is not a whole safetensors file"):
        load_generator(folder)
    assert not canary.exists()
    pickle.loads(pickle.dumps(bomb))  # noqa: S301  (the canary sings where a pickle is read)
    assert canary.exists()


def test_weights_that_are_a_link_out_of_the_folder(folder, tmp_path):
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    link(folder / "model.safetensors", tmp_path / "elsewhere")
    with pytest.raises(files.FormatError, match="is a link that leaves its folder"):
        load_generator(folder)


class OtherGenerator(CompactGenerator):
    """Another architecture."""


def test_a_class_reads_its_own_folders_only(folder):
    with pytest.raises(files.FormatError, match="'architecture' needs one of OtherGenerator, found 'CompactGenerator'"):
        OtherGenerator.from_pretrained(folder)


# ---- a look ----------------------------------------------------------------------------------------


def test_samples_are_shown_without_touching_the_random_state(linear_generator):
    before = torch.get_rng_state()
    picture = linear_generator.show()
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    assert linear_generator.show().tobytes() == picture.tobytes() != linear_generator.show(seed=1).tobytes()
    assert linear_generator._repr_png_().startswith(b"\x89PNG")


def test_images_that_are_no_picture_are_not_shown():
    generator = wrap(lambda z: z.view(-1, 2, 2, 2), latent_shape=(8,))
    assert generator._repr_png_() is None
    with pytest.raises(ValueError, match="this generator has 2 channels"):
        generator.show()
