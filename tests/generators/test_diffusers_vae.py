"""Autoencoders of diffusers, small ones with random weights: the contract, files of theirs and ours, banks, mixing."""

from __future__ import annotations

import copy
import json
import pickle
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from commands import call
from conftest import LabelledImages
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from latent_mixup import (
    LatentBank,
    LatentMixupCollate,
    LatentMixupDataset,
    LatentMixupLoader,
    files,
    hub,
    invert,
    refine,
)
from latent_mixup.cli import main
from latent_mixup.generators import CompactGenerator, DiffusersVAE, load_generator
from latent_mixup.generators.base import sides
from latent_mixup.interpolation import slerp
from latent_mixup.inversion import pixel_mse
from latent_mixup.quality.info import generator_info

diffusers = pytest.importorskip("diffusers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what older releases say while they are imported is not ours
    _ = diffusers.AutoencoderKL, diffusers.AutoencoderTiny

KL = {
    "block_out_channels": (8, 8, 16, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TINY = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1,) * 4,
    "num_decoder_blocks": (1,) * 4,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def theirs(name: str = "AutoencoderKL", seed: int = 0, **changes) -> nn.Module:
    """An autoencoder of diffusers, 8 times smaller, with random weights that keep its images inside [-1, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(diffusers, name)(**{**(KL if name == "AutoencoderKL" else TINY), **changes})
    last = module.decoder.conv_out if name == "AutoencoderKL" else module.decoder.layers[-1]
    nn.init.constant_(last.bias, 0.0 if name == "AutoencoderKL" else 0.5)  # of [-1, 1], and of [0, 1]
    with torch.no_grad():
        last.weight.mul_(0.3)
    return module.eval().requires_grad_(False)


def ours(
    name: str = "AutoencoderKL", img_resolution: int | tuple[int, int] = 32, img_channels: int = 3, **changes
) -> DiffusersVAE:
    return DiffusersVAE.from_module(theirs(name, **changes), img_resolution=img_resolution, img_channels=img_channels)


def pictures(n: int = 3, channels: int = 3, resolution: int | tuple[int, int] = 32, seed: int = 0) -> torch.Tensor:
    """Smooth images in [-1, 1]."""
    noise = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(noise, size=sides(resolution), mode="bilinear")


def codes(n: int = 3, side: int = 4) -> torch.Tensor:
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(n))


both = pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])


# ---- the contract ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("resolution", "channels"),
    [(32, 3), (64, 3), (256, 3), (32, 1), (28, 1), (36, 3), (5, 1), ((24, 40), 3), ((28, 9), 1)],
)
def test_images_become_codes_and_codes_images(name, resolution, channels):
    generator, images = ours(name, resolution, channels), pictures(2, channels, resolution)
    latents = generator.encode(images)
    assert latents.shape == (2, *generator.latent_shape) == (2, 4, *(-(-side // 8) for side in sides(resolution)))
    decoded = generator.decode(latents)
    assert decoded.shape == images.shape
    assert latents.dtype == decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1
    assert generator(latents).equal(decoded)
    assert generator.encode(images).equal(latents)  # the mode: nothing is drawn
    assert (generator.latent_space, generator.preferred_path, generator.has_encoder) == ("vae", "slerp", True)
    assert generator.mean_latent().equal(torch.zeros(generator.latent_shape))


UNITS = [
    ({"scaling_factor": 0.18215}, lambda raw: raw * 0.18215),
    ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, lambda raw: (raw - 0.1159) * 0.3611),
    (
        {"scaling_factor": 0.5, "latents_mean": [0.1, 0.2, -0.3, 0.4], "latents_std": [1.0, 2.0, 4.0, 0.5]},
        lambda raw: (
            (raw - torch.tensor([0.1, 0.2, -0.3, 0.4]).view(4, 1, 1))
            * 0.5
            / torch.tensor([1.0, 2.0, 4.0, 0.5]).view(4, 1, 1)
        ),
    ),
    ({"scaling_factor": 0.5, "shift_factor": 1.0, "latents_mean": [0.1, 0.2, -0.3, 0.4]}, lambda raw: (raw - 1) * 0.5),
]


@pytest.mark.parametrize(("changes", "scaled"), UNITS)
def test_codes_are_in_the_units_of_the_diffusion_model_once(changes, scaled):
    module, images = theirs(**changes), pictures()
    raw = module.encode(images).latent_dist.mode()
    generator = ours(**changes)
    torch.testing.assert_close(generator.encode(images), scaled(raw))
    torch.testing.assert_close(generator.decode(scaled(raw)), module.decode(raw).sample.clamp(-1, 1))


def test_a_tiny_one_has_the_codes_of_diffusers_and_its_images():
    module, images = theirs("AutoencoderTiny"), pictures()
    latents = module.encode(images).latents
    torch.testing.assert_close(ours("AutoencoderTiny").encode(images), latents)
    torch.testing.assert_close(ours("AutoencoderTiny").decode(latents), module.decode(latents).sample.clamp(-1, 1))


@both
def test_a_grey_image_is_three_equal_channels_and_the_mean_of_three(name):
    grey, colour, images = ours(name, img_channels=1), ours(name), pictures(channels=1)
    assert grey.encode(images).equal(colour.encode(images.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(grey.decode(codes()), colour.decode(codes()).mean(1, keepdim=True))
    assert grey.digest() == colour.digest()


def test_an_autoencoder_of_one_channel_takes_grey_images_as_they_are():
    module = theirs(in_channels=1, out_channels=1)
    generator = DiffusersVAE.from_module(module, img_resolution=32, img_channels=1)
    raw = module.encode(pictures(channels=1)).latent_dist.mode()
    torch.testing.assert_close(generator.encode(pictures(channels=1)), raw * 0.18215)
    assert generator.decode(codes()).shape == (3, 1, 32, 32)


@both
@pytest.mark.parametrize(("resolution", "before", "behind"), [(28, 2, 2), (27, 2, 3)])
def test_other_sizes_are_padded_by_their_edge_and_cropped(name, resolution, before, behind):
    generator, whole, images = ours(name, resolution), ours(name, 32), pictures(resolution=resolution)
    rows = torch.arange(-before, resolution + behind).clamp(0, resolution - 1)
    torch.testing.assert_close(generator.encode(images), whole.encode(images[..., rows, :][..., rows]))
    inside = slice(before, before + resolution)
    assert generator.decode(codes()).equal(whole.decode(codes())[..., inside, inside])


@both
@pytest.mark.parametrize("resolution", [32, 28])
def test_the_gradient_is_that_of_finite_differences(name, resolution):
    """The quotient in float64, where its rounding is 1e-10; ours, in float32, against the gradient in float64."""
    generator, latents = ours(name, resolution), codes(2) * 0.1
    weights = torch.randn(generator.decode(latents).shape, generator=torch.Generator().manual_seed(9))
    assert generator.decode(latents).abs().max() < 1
    latents.requires_grad_(True)
    (generator.decode(latents) * weights).sum().backward()
    exact, before = copy.deepcopy(generator.autoencoder).double(), generator._padding()[0]
    part = slice(before, before + resolution)

    def scalar(codes: torch.Tensor) -> torch.Tensor:
        raw = codes * generator.latent_scale.double() + generator.latent_centre.double()
        return (exact.decode(raw).sample[..., part, part] * weights.double()).sum()

    precise = latents.detach().double().requires_grad_(True)
    (slope,) = torch.autograd.grad(scalar(precise), precise)
    direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(8)).double()
    with torch.no_grad():
        quotient = (scalar(precise + 1e-6 * direction) - scalar(precise - 1e-6 * direction)) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(
        float(quotient), abs=1e-5 * float(slope.norm() * direction.norm())
    )
    assert (latents.grad - slope).norm() < 1e-3 * slope.norm()
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_images_are_clamped_and_a_clamped_pixel_has_no_gradient():
    module = theirs()
    module.decoder.conv_out.bias[0], module.decoder.conv_out.bias[1] = 50.0, -50.0
    latents = codes().requires_grad_(True)
    images = DiffusersVAE.from_module(module, img_resolution=32).decode(latents)
    assert images[:, 0].equal(torch.ones(3, 32, 32))
    assert images[:, 1].equal(-torch.ones(3, 32, 32))
    (gradient,) = torch.autograd.grad(images[:, :2].sum(), latents)
    assert not gradient.any()


@both
def test_an_images_code_does_not_depend_on_its_batch(name):
    generator, images = ours(name), pictures(5)
    torch.testing.assert_close(
        generator.encode(images), torch.cat([generator.encode(image[None]) for image in images]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        generator.decode(codes()), torch.cat([generator.decode(code[None]) for code in codes()]), rtol=1e-4, atol=1e-5
    )


@both
def test_it_is_a_frozen_copy_without_tiling_and_slicing(name):
    module = theirs(name)
    module.enable_tiling()
    module.enable_slicing()
    module.train().requires_grad_(True)
    generator = DiffusersVAE.from_module(module, img_resolution=32)
    before = generator.digest()
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert not any(part.training for part in generator.train().modules())
    assert not generator.autoencoder.use_tiling
    assert not generator.autoencoder.use_slicing
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert generator.digest() == before
    assert all(parameter.requires_grad for parameter in module.parameters())


@both
def test_under_autocast_codes_and_images_are_float32_and_nearly_the_same(name):
    generator, images = ours(name), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        latents, decoded = generator.encode(images), generator.decode(codes())
    assert latents.dtype == decoded.dtype == torch.float32
    for half, full in ((latents, generator.encode(images)), (decoded, generator.decode(codes()))):
        assert not half.equal(full)
        assert (half - full).abs().max() < 0.1 * full.abs().max()


def test_it_pickles_for_worker_processes():
    generator = ours()
    again = pickle.loads(pickle.dumps(generator))  # noqa: S301
    assert again.digest() == generator.digest()
    assert again.decode(codes()).equal(generator.decode(codes()))


@both
def test_info_counts_its_parts(name):
    facts = generator_info(ours(name, 28, 1))
    assert facts["latent_shape"] == (4, 4, 4)
    assert (facts["img_channels"], facts["img_resolution"]) == (1, 28)
    assert facts["decode_multiply_adds"] > 0
    assert facts["encode_multiply_adds"] > 0


# ---- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "sizes", "message"),
    [
        ("VQModel", {}, {}, "needs to be one of AutoencoderKL, AutoencoderTiny: got 'VQModel'"),
        ("os", {}, {}, "needs to be one of AutoencoderKL, AutoencoderTiny: got 'os'"),
        (["AutoencoderKL"], {}, {}, "needs to be one of AutoencoderKL, AutoencoderTiny"),
        ("AutoencoderKL", {"codebook": 3}, {}, "knows no codebook: upgrade diffusers"),
        ("AutoencoderKL", {"layers_per_block": 10**9}, {}, "layers_per_block needs integers up to 64: got 1000000000"),
        ("AutoencoderKL", {"layers_per_block": -1}, {}, "layers_per_block needs integers up to 64: got -1"),
        ("AutoencoderKL", {"block_out_channels": [4] * 9}, {}, "block_out_channels needs at most 8 entries: got 9"),
        ("AutoencoderKL", {"norm_num_groups": 0}, {}, "diffusers cannot build this AutoencoderKL: ZeroDivisionError"),
        ("AutoencoderKL", {"norm_num_groups": 3}, {}, "diffusers cannot build this AutoencoderKL: ValueError"),
        ("AutoencoderKL", {"act_fn": "eval"}, {}, "diffusers cannot build this AutoencoderKL"),
        ("AutoencoderKL", {"down_block_types": ["X"] * 4}, {}, "diffusers cannot build this AutoencoderKL"),
        ("AutoencoderKL", {"scaling_factor": 0.0}, {}, "need to be finite, for 4 channels, scales above 0"),
        ("AutoencoderKL", {"scaling_factor": float("nan")}, {}, "need to be finite"),
        ("AutoencoderKL", {"shift_factor": float("inf")}, {}, "need to be finite"),
        ("AutoencoderKL", {"latents_mean": [0.0], "latents_std": [1.0]}, {}, "need to be finite, for 4 channels"),
        ("AutoencoderKL", {"latents_mean": [0.0] * 4, "latents_std": [1.0, -1.0, 1, 1]}, {}, "scales above 0"),
        ("AutoencoderKL", {"in_channels": 4}, {}, "got 3 for an autoencoder from 4 to 3 channels"),
        ("AutoencoderKL", {}, {"img_channels": 2}, "img_channels needs to be 3, or 1 for grey images: got 2"),
        ("AutoencoderKL", {}, {"img_resolution": 0}, "img_resolution needs an integer from 1, .*: got 0"),
        ("AutoencoderKL", {}, {"img_resolution": 32.0}, "img_resolution needs an integer from 1, .*: got 32.0"),
        ("AutoencoderTiny", {"num_encoder_blocks": [10**9] * 4}, {}, "num_encoder_blocks needs integers up to 64"),
        (
            "AutoencoderTiny",
            {"decoder_block_out_channels": [8] * 3, "num_decoder_blocks": [1] * 3},
            {},
            "makes images 8 times smaller and codes 4 times larger",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, config, sizes, message):
    small = TINY if name == "AutoencoderTiny" else KL
    with pytest.raises(ValueError, match=message):
        DiffusersVAE(name, {**small, **config}, **{"img_resolution": 32, **sizes})


def test_images_and_codes_of_another_shape():
    for shape in ((3, 32, 32), (2, 3, 28, 28), (2, 1, 32, 32), (2, 3, 32, 28)):
        with pytest.raises(ValueError, match=r"images need shape \[B, 3, 32, 32\]: got \["):
            ours().encode(torch.zeros(shape))
    for shape in ((4, 4, 4), (2, 4, 8, 8), (2, 64)):
        with pytest.raises(ValueError, match=r"latents need shape \[B, 4, 4, 4\]: got \["):
            ours().decode(torch.zeros(shape))


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    ours().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call_it in (lambda: DiffusersVAE("AutoencoderKL", KL, 32), lambda: load_generator(tmp_path)):
        with pytest.raises(
            ImportError, match=r'AutoencoderKL needs diffusers: pip install "latent-mixup\[diffusers\]"'
        ):
            call_it()


# ---- our files -------------------------------------------------------------------------------------


@both
def test_it_is_saved_as_ours_and_read_again(name, tmp_path):
    generator = ours(name, 28, 1)
    generator.metadata = {"name": "mine"}
    generator.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
    for read in (load_generator(tmp_path), DiffusersVAE.from_pretrained(tmp_path)):
        assert isinstance(read, DiffusersVAE)
        assert read.digest() == generator.digest()
        assert (read.arguments(), read.metadata) == (generator.arguments(), generator.metadata)
        assert read.decode(codes()).equal(generator.decode(codes()))
        assert read.encode(pictures(3, 1, 28)).equal(generator.encode(pictures(3, 1, 28)))
        assert not any(parameter.requires_grad for parameter in read.parameters())
    arguments = json.loads((tmp_path / "config.json").read_text())["arguments"]
    assert arguments == json.loads(json.dumps(generator.arguments()))


def test_in_half_the_bytes(tmp_path):
    generator = ours()
    generator.save_pretrained(tmp_path / "full")
    generator.save_pretrained(tmp_path / "half", dtype=torch.float16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    difference = load_generator(tmp_path / "half").decode(codes()) - generator.decode(codes())
    assert 0 < difference.abs().max() < 0.01


def test_other_units_are_another_digest_and_another_size_is_not():
    plain = ours(scaling_factor=0.5)
    assert plain.digest() == ours(scaling_factor=0.5, img_resolution=64).digest()
    digests = {plain.digest(), ours(scaling_factor=0.25).digest(), ours(scaling_factor=0.5, seed=1).digest()}
    digests.add(ours(scaling_factor=0.5, shift_factor=0.1).digest())
    assert len(digests) == 4


def test_a_config_of_ours_that_says_something_else(tmp_path):
    ours().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"autoencoder": "VQModel"}, "needs to be one of AutoencoderKL, AutoencoderTiny"),
        ({"config": {**config["arguments"]["config"], "layers_per_block": 10**9}}, "needs integers up to 64"),
        ({"config": {**config["arguments"]["config"], "latent_channels": 8}}, r"needs \[.*found \["),
        ({"config": 3}, "'arguments' is not understood: config needs to be the arguments of AutoencoderKL: got int"),
    ):
        path.write_text(json.dumps({**config, "arguments": {**config["arguments"], **change}}))
        with pytest.raises(files.FormatError, match=message):
            load_generator(tmp_path)


# ---- files of diffusers ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """An AutoencoderKL, as diffusers writes it."""
    theirs().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def rewrite(folder, change):
    """Change the tensors of a folder."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@both
def test_a_folder_of_diffusers_is_read(name, tmp_path):
    theirs(name).save_pretrained(tmp_path / "some vae")
    read = DiffusersVAE.from_diffusers(tmp_path / "some vae", img_resolution=64)
    assert read.digest() == ours(name).digest()
    assert read.decode(codes(side=8)).equal(ours(name, 64).decode(codes(side=8)))
    assert read.metadata == {
        "name": f"{name} of some vae, for 64 px",
        "source": {"folder": "some vae", "sha256": files.sha256(tmp_path / "some vae" / WEIGHTS)},
        "licence": "that of the source",
    }
    assert read.device.type == "cpu"
    read.save_pretrained(tmp_path / "ours")
    assert load_generator(tmp_path / "ours").digest() == read.digest()
    assert read.metadata["source"]["sha256"] in (tmp_path / "ours" / "README.md").read_text()


def test_former_names_of_attention_layers_are_read_as_diffusers_reads_them(folder):
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in list(tensors):
            for new, old in former.items():
                if f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)

    rewrite(folder, rename)
    assert sum(".query." in name for name in load_file(folder / WEIGHTS)) == 4
    assert DiffusersVAE.from_diffusers(folder, img_resolution=32).digest() == ours().digest()
    module = diffusers.AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    assert DiffusersVAE.from_module(module, img_resolution=32).digest() == ours().digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_read_as_float32(folder, dtype):
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    read = DiffusersVAE.from_diffusers(folder, img_resolution=32)
    assert {tensor.dtype for tensor in read.state_dict().values()} == {torch.float32}
    expected = DiffusersVAE.from_module(theirs().to(dtype), img_resolution=32)
    assert read.digest() == expected.digest()


def test_of_a_pipeline_the_subfolder_is_asked_for(folder):
    folder.rename(folder.parent / "vae")
    (folder.parent / "model_index.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"config\.json is missing: pass subfolder='vae' of this whole pipeline"
    ):
        DiffusersVAE.from_diffusers(folder.parent, img_resolution=32)
    read = DiffusersVAE.from_diffusers(folder.parent, img_resolution=32, subfolder="vae")
    assert read.digest() == ours().digest()
    with pytest.raises(ValueError, match=r"a subfolder looks like vae or a/b: got '\.\./vae'"):
        DiffusersVAE.from_diffusers(folder.parent, img_resolution=32, subfolder="../vae")


def test_a_pickle_is_not_opened(folder, tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="safetensors is missing: expected a folder that diffusers wrote"):
        DiffusersVAE.from_diffusers(folder, img_resolution=32)
    torch.save({"weights": Canary()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model.bin is a pickle, which could execute code: .* as safetensors"):
        DiffusersVAE.from_diffusers(folder, img_resolution=32)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "VQModel"},
            "field '_class_name' needs one of AutoencoderKL, AutoencoderTiny: found 'VQModel'",
        ),
        ({"_class_name": ["AutoencoderKL"]}, "field '_class_name' needs one of"),
        ({"_class_name": None}, "field '_class_name' needs one of AutoencoderKL, AutoencoderTiny: found None"),
        ({"codebook": 1}, "knows no codebook: upgrade diffusers"),
        ({"layers_per_block": 10**9}, "layers_per_block needs integers up to 64"),
        ({"layers_per_block": 2}, "tensor 'decoder.up_blocks.0.resnets.2.conv1.bias' is missing"),
        ({"mid_block_add_attention": False}, "attentions.0.* is unknown"),
        ({"latent_channels": 2**40}, "is not understood|needs"),
    ],
)
def test_a_config_of_another_network(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(files.FormatError, match=message):
        DiffusersVAE.from_diffusers(folder, img_resolution=32)


def spoil(tensors, name, value):
    tensors[name] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: spoil(tensors, "extra", torch.zeros(1)), "tensor 'extra' is unknown"),
        (
            lambda tensors: spoil(tensors, "encoder.mid_block.attentions.0.query.bias", torch.zeros(16)),
            "has a tensor twice, under a former and its present name",
        ),
        (
            lambda tensors: spoil(tensors, "quant_conv.bias", torch.zeros(9)),
            r"'quant_conv.bias' needs \[8\], found \[9\]",
        ),
        (lambda tensors: spoil(tensors, "quant_conv.bias", torch.full((8,), torch.nan)), "not finite"),
        (lambda tensors: spoil(tensors, "quant_conv.bias", torch.zeros(8, dtype=torch.int8)), "F32 or F16 or BF16"),
    ],
)
def test_tensors_of_another_network(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(files.FormatError, match=message):
        DiffusersVAE.from_diffusers(folder, img_resolution=32)


def test_theirs_and_ours_are_told_apart(folder, tmp_path):
    with pytest.raises(files.FormatError, match=r"is a 'AutoencoderKL' of diffusers: .* generators.DiffusersVAE"):
        load_generator(folder)
    ours().save_pretrained(tmp_path / "ours")
    with pytest.raises(
        files.FormatError, match=r"'_class_name' needs one of .*: found that of a DiffusersVAE of latent-mix"
    ):
        DiffusersVAE.from_diffusers(tmp_path / "ours", img_resolution=32)
    CompactGenerator(z_dim=4).save_pretrained(tmp_path / "compact")
    with pytest.raises(files.FormatError, match="field 'architecture' needs one of DiffusersVAE"):
        DiffusersVAE.from_pretrained(tmp_path / "compact")


@pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")  # the client, of the library below it
@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_from_the_hub_its_two_files_alone_are_downloaded(hub_server, folder, tmp_path, subfolder):
    before = f"{subfolder}/" if subfolder else ""
    content = {before + path.name: path.read_bytes() for path in folder.iterdir()}
    pickled = {f"{before}diffusion_pytorch_model.bin": b"no", "README.md": b"", "unet/config.json": b"{}"}
    commit = hub_server.repo("model", "org/vae").commit({**content, **pickled})
    for revision in (None, commit):  # the second time from the cache
        read = DiffusersVAE.from_diffusers("org/vae", img_resolution=32, subfolder=subfolder, revision=revision)
        assert read.digest() == ours().digest()
    source = {"repo": "org/vae", "commit": commit, "sha256": files.sha256(folder / WEIGHTS)}
    assert read.metadata["source"] == {**source, **({"subfolder": subfolder} if subfolder else {})}
    assert read.metadata["name"] == f"AutoencoderKL of org/vae@{commit}, for 32 px"
    assert hub.stated_origin(read.metadata) is None  # load_generator could not read it from there
    assert hub_server.asked() == [
        "GET /api/models/org/vae",
        f"HEAD /org/vae/resolve/main/{before}config.json",
        f"GET /org/vae/resolve/main/{before}config.json",
        f"HEAD /org/vae/resolve/{commit}/{before}{WEIGHTS}",
    ]
    snapshot = tmp_path / "home/hub/models--org--vae/snapshots" / commit
    assert sorted(path.name for path in snapshot.rglob("*.*")) == ["config.json", WEIGHTS]


@pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")
def test_a_repository_of_pickles_is_refused(hub_server, folder):
    content = {"config.json": (folder / "config.json").read_bytes(), "diffusion_pytorch_model.bin": b"no"}
    hub_server.repo("model", "org/vae").commit(content)
    with pytest.raises(hub.HubError, match=f"cannot read {WEIGHTS} .* the repository lacks the file"):
        DiffusersVAE.from_diffusers("org/vae", img_resolution=32)
    with pytest.raises(hub.HubError, match=r"cannot read vae/config.json .* the repository lacks the file"):
        DiffusersVAE.from_diffusers("org/vae", img_resolution=32, subfolder="vae")
    with pytest.raises(files.FormatError, match="is a 'AutoencoderKL' of diffusers"):
        load_generator("org/vae")
    assert not any(path.endswith(".bin") for path in hub_server.asked())


# ---- a data set, and mixes of it -------------------------------------------------------------------


@pytest.fixture
def dataset():
    return LabelledImages(pictures(20), torch.arange(20) % 3)


def test_a_data_set_is_encoded_in_one_pass(dataset, monkeypatch):
    """Without a loss, so without the weights of LPIPS; each image goes through the network once, each code once."""
    generator, seen = ours(), {"encode": 0, "decode": 0}
    for name in seen:
        method = getattr(DiffusersVAE, name)

        def counted(self, batch, name=name, method=method):
            seen[name] += len(batch)
            return method(self, batch)

        monkeypatch.setattr(DiffusersVAE, name, counted)
    bank = invert(dataset, generator, steps=0, batch_size=8, progress=False)
    assert seen == {"encode": 20, "decode": 20}
    latents, labels = bank[:]
    expected = generator.encode(dataset.images)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
    assert labels.equal(dataset.labels)
    torch.testing.assert_close(bank.mse, pixel_mse(generator.decode(latents), dataset.images), rtol=1e-4, atol=1e-6)
    assert not bank.status.any()
    assert (bank.latent_space, bank.metadata["inversion"]["steps"]) == ("vae", 0)
    bank.check(generator)
    bank.check(dataset)


def test_one_pass_says_which_codes_are_not_finite(dataset):
    def broken(images):
        latents = ours().encode(images)
        latents[1] = torch.nan
        return latents

    with pytest.warns(UserWarning, match="1 of 20 images have no finite code"):
        bank = invert(dataset, ours(), encoder=broken, steps=0, batch_size=20, progress=False)
    assert bank.status.tolist() == [0, 1] + [0] * 18
    assert bank.mse.isinf().tolist() == [False, True] + [False] * 18
    assert bank[1][0].equal(torch.zeros(4, 4, 4))


def test_a_bank_belongs_to_its_generator(dataset, tmp_path):
    theirs().save_pretrained(tmp_path / "a vae")
    generator = DiffusersVAE.from_diffusers(tmp_path / "a vae", img_resolution=32)
    bank = invert(dataset, generator, steps=0, out=tmp_path / "bank", progress=False)
    generator.save_pretrained(tmp_path / "ours")
    LatentBank.from_pretrained(tmp_path / "bank", verify=True).check(load_generator(tmp_path / "ours"))
    for other in (ours(seed=1), ours(scaling_factor=0.5)):
        with pytest.raises(ValueError, match=r"digest .{12} \(AutoencoderKL of a vae, for 32 px\), this one has .{12}"):
            bank.check(other)
    with pytest.raises(ValueError, match=r"codes have shape \(4, 4, 4\), the generator takes \(4, 8, 8\)"):
        bank.check(ours(img_resolution=64))


def test_codes_may_be_refined(dataset):
    generator = ours("AutoencoderTiny")
    bank = invert(dataset, generator, steps=0, progress=False)
    better = refine(bank, dataset, generator, above=0.0, steps=5, loss=pixel_mse, progress=False)
    assert (better.mse <= bank.mse).all()
    assert better.mse.mean() < 0.99 * bank.mse.mean()


@pytest.fixture
def pair(dataset):
    """Two samples of two classes, so that a target says which mix an image is."""
    return LabelledImages(dataset.images[:2], torch.tensor([0, 1]))


@both
@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")  # random weights decode to next to none
def test_all_three_decode_mixes_along_the_sphere(name, pair):
    generator = ours(name)
    bank = invert(pair, generator, steps=0, progress=False)
    mixes = LatentMixupDataset(pair, generator, bank, seed=1)
    batches = [
        tuple(torch.stack(part) for part in zip(*(mixes[i] for i in range(2)), strict=True)),
        LatentMixupCollate(generator, bank, dataset=pair, seed=1)([pair[i % 2] for i in range(8)]),
        next(iter(LatentMixupLoader(DataLoader(pair, batch_size=2), generator, bank, seed=1))),
    ]
    for images, targets in batches:
        own, other = (code.expand(len(images), -1, -1, -1) for code in bank[:][0])
        mixed = slerp(own, other, targets[:, 0])
        assert mixed.flatten(1).norm(dim=1).min() > 0.99 * bank[:][0].flatten(1).norm(dim=1).min()
        torch.testing.assert_close(images, generator.decode(mixed), rtol=1e-4, atol=1e-5)
    assert ((batches[1][1] > 0.1) & (batches[1][1] < 0.9)).any()


@both
def test_the_loader_decodes_in_half_precision(name, pair):
    generator = ours(name)
    bank = invert(pair, generator, steps=0, progress=False)
    loader = DataLoader(pair, batch_size=2)
    (images, targets), (half, same) = (
        next(iter(LatentMixupLoader(loader, generator, bank, seed=1, autocast=autocast)))
        for autocast in (None, torch.bfloat16)
    )
    assert same.equal(targets)
    assert half.dtype == torch.float32
    assert 0 < (half - images).abs().max() < 0.05


# ---- the command line ------------------------------------------------------------------------------


def test_two_commands_make_a_bank(folder, data_root, tmp_path):
    code, output = call("convert", folder, tmp_path / "vae", "--resolution", "28", "--channels", "1")
    assert code == 0, output
    assert ours().digest()[:12] in output
    assert "(4, 4, 4)" in output
    command = ("invert", tmp_path / "vae", "--steps", "0", "--dataset", "fashion-mnist", "--data-root", data_root)
    code, output = call(*command, "--out", tmp_path / "bank")
    assert code == 0, output
    assert "40 codes, mse mean" in output
    bank, generator = LatentBank.from_pretrained(tmp_path / "bank", verify=True), load_generator(tmp_path / "vae")
    bank.check(generator)
    assert bank.latent_shape == (4, 4, 4)
    assert generator.img_channels == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "needs --resolution, the size of your images"),
        (("--channels", "1"), "needs --resolution, the size of your images"),
        (("--resolution", "32", "--subfolder", "vae"), "config.json is missing"),
    ],
)
def test_convert_says_what_an_autoencoder_needs(folder, tmp_path, options, message):
    code, output = call("convert", folder, tmp_path / "out", *options)
    assert code == 1
    assert message in output
    assert not (tmp_path / "out").exists()


# ---- the page and the example ----------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "autoencoders.md").read_text()


def test_options_on_the_page_are_those_of_the_command_line():
    (_, commands), *_ = re.findall(r"^```(bash)\nlatent-mixup (.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    lines = ("latent-mixup " + commands).splitlines()
    assert [line.split()[1] for line in lines] == ["convert", "invert"]
    for line in lines:
        known = {option for parameter in main.commands[line.split()[1]].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", line)) <= known


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
def test_the_pages_code_runs(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs("AutoencoderTiny").save_pretrained("taesd")
    training, once = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert "madebyollin/taesd" in once
    names = {"dataset": dataset, "loader": DataLoader(dataset, batch_size=4)}
    exec(once.replace("madebyollin/taesd", "taesd"), names)
    names["bank"].save_pretrained("my-bank")
    exec(training, names)
    images, targets = next(iter(names["loader"]))
    assert (images.shape, targets.shape) == ((4, 3, 32, 32), (4, 3))


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
def test_the_example_runs_on_random_weights_and_on_a_folder(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "autoencoder.py"))
    theirs("AutoencoderTiny").save_pretrained(tmp_path)
    with torch.random.fork_rng(devices=[]):
        for name in (None, str(tmp_path)):
            bank = example["main"](name, count=100)
            assert (len(bank), bank.latent_shape) == (100, (4, 4, 4))
    assert capsys.readouterr().out.count("epoch 1: loss") == 2
