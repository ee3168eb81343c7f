"""Latent diffusion models of diffusers, small ones with random weights: against diffusers' own pipelines, and laws."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from conftest import LabelledImages
from torch import nn
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup.generators import DiffusersPipeline, DiffusersVAE, diffusers_pipeline
from latent_mixup.images import to_uint8
from latent_mixup.pool.files import Pool
from latent_mixup.quality.info import generator_info, multiply_adds

diffusers = pytest.importorskip("diffusers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers and transformers say while they are imported is not ours
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DiTTransformer2DModel,
        UNet2DConditionModel,
        UNet2DModel,
    )

LATENT = {"in_channels": 4, "out_channels": 4, "sample_size": 4, "norm_num_groups": 4, "layers_per_block": 1}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", {}),
]


def seeded(make, *args, **settings) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make(*args, **settings).eval().requires_grad_(False)


def autoencoder() -> nn.Module:
    """32 px to 4 x 4 x 4; its images stay inside [-1, 1]."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    module = seeded(AutoencoderKL, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, **blocks)
    nn.init.zeros_(module.decoder.conv_out.bias)
    module.decoder.conv_out.weight.mul_(0.3)
    return module


def parts(kind: str = "plain", num_classes: int = 5, **changes) -> dict[str, object]:
    """The parts of a pipeline; plain and classed: a UNet without text; dit: a transformer with classes."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = {**LATENT, **blocks, "block_out_channels": (8, 16)}
    if kind == "dit":
        sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_embeds_ada_norm": num_classes}
        shape = {"in_channels": 4, "out_channels": 8, "sample_size": 4, "patch_size": 1}
        denoiser = {"transformer": seeded(DiTTransformer2DModel, **sizes, **shape)}
        for part in denoiser["transformer"].parameters():  # some are zeros, so that nothing comes out
            part.data += torch.randn(part.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    else:
        unet |= {"num_class_embeds": num_classes} if kind == "classed" else {}
        denoiser = {"unet": seeded(UNet2DModel, **unet)}
    scheduler = DDIMScheduler(clip_sample=False, **BETAS)
    return {"vae": autoencoder(), "scheduler": scheduler, **denoiser, **changes}


def codes(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(7))


def pictures(n: int) -> LabelledImages:
    noise = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return LabelledImages(noise, torch.arange(n) % 3)


# ---- a text model, against diffusers' own image-to-image pipeline -----------------------------------


@pytest.fixture(scope="module")
def text_parts():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["<|startoftext|>", "<|endoftext|>", "c", "a", "t", "d", "o", "g", "cat</w>", "dog</w>", "t</w>", "g</w>"]
    vocab = {word: number for number, word in enumerate([*words, "ca", "do"])}
    merges = [("c", "a"), ("d", "o"), ("ca", "t</w>"), ("do", "g</w>")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.CLIPTokenizer(vocab, merges, model_max_length=6)
        config = transformers.CLIPTextConfig(vocab_size=14, max_position_embeddings=6, eos_token_id=1, **sizes)
        encoder = seeded(transformers.CLIPTextModel, config)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = {"block_out_channels": (8, 16), "cross_attention_dim": 8, "attention_head_dim": 2}
    unet = seeded(UNet2DConditionModel, **LATENT, **blocks, **sizes)
    return {**parts(), "unet": unet, "text_encoder": encoder, "tokenizer": tokenizer}


@pytest.fixture(scope="module")
def stable_diffusion(text_parts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionImg2ImgPipeline(
            **text_parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    theirs.set_progress_bar_config(disable=True)
    return theirs


HOW = [*((*each, 0.5, 4.0) for each in SCHEDULERS), (*SCHEDULERS[0], 1.0, 1.0), (*SCHEDULERS[2], 0.17, 1.0)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, with a new numpy
@pytest.mark.parametrize(("name", "settings", "strength", "guidance"), HOW)
def test_denoised_codes_are_those_of_diffusers(stable_diffusion, name, settings, strength, guidance):
    """Their pipeline gets our noise, so that nothing but rounding may differ: noise levels, times, text, guidance."""
    stable_diffusion.scheduler = getattr(diffusers, name)(**BETAS, **settings)
    how = {"strength": strength, "guidance": guidance, "prompts": "cat", "steps": 6}
    ours = DiffusersPipeline(stable_diffusion, **how)
    theirs = stable_diffusion(
        prompt=["cat"] * 3,
        image=codes(),
        strength=strength,
        num_inference_steps=6,
        guidance_scale=guidance,
        generator=ours._streams(codes()),
        output_type="latent",
    ).images
    assert (theirs - codes()).std() > 0.1
    torch.testing.assert_close(ours.decode(codes()), ours.vae.decode(theirs), rtol=1e-3, atol=1e-4)


def test_prompts_by_their_weights(text_parts):
    both = DiffusersPipeline(text_parts, prompts=["cat", "dog"], guidance=2.0, steps=4)
    for number, prompt in enumerate(["cat", "dog"]):
        alone = DiffusersPipeline(text_parts, prompts=prompt, guidance=2.0, steps=4)
        targets = torch.eye(2)[[number] * 3]
        torch.testing.assert_close(both.decode(codes(), targets), alone.decode(codes()))
    unconditional = DiffusersPipeline(text_parts, steps=4).decode(codes())
    torch.testing.assert_close(both.decode(codes()), unconditional)
    torch.testing.assert_close(DiffusersPipeline(text_parts, prompts="", steps=4).decode(codes()), unconditional)
    assert len({DiffusersPipeline(text_parts, prompts=prompt).digest() for prompt in ("cat", "dog", None)}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "cat dog cat dog cat"}, r"prompts need at most 6 tokens each: got 7 for 'cat dog cat dog cat'"),
        ({"classes": 1}, "UNet2DConditionModel takes prompts: got classes"),
    ],
)
def test_a_text_model_says_what_it_cannot_take(text_parts, changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusersPipeline(text_parts, **changes)
    with pytest.raises(ValueError, match="text_encoder needs to be a CLIPTextModel, with its tokenizer: got NoneType"):
        DiffusersPipeline({**text_parts, "text_encoder": None})


# ---- a class model, against diffusers' own -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_transformers_images_are_those_of_diffusers():
    """At full strength, with a schedule that ends in noise alone, a code names its noise and nothing else."""
    scheduler = DDIMScheduler(
        clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    given = parts("dit", num_classes=1000)  # their pipeline knows no other number
    theirs = diffusers.DiTPipeline(given["transformer"], given["vae"], scheduler)
    theirs.set_progress_bar_config(disable=True)
    ours = DiffusersPipeline(theirs, classes=7, guidance=3.0, strength=1, steps=4)
    streams = ours._streams(codes())
    images = theirs([7] * 3, 3.0, streams, num_inference_steps=4, output_type="np").images
    images = torch.from_numpy(images).movedim(3, 1)
    torch.testing.assert_close(ours.decode(codes()), images * 2 - 1, rtol=1e-3, atol=1e-4)
    assert (images - images.flip(0)).abs().max() > 0.01


# ---- laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "dit"])
def test_without_strength_it_is_the_autoencoder(kind):
    generator = DiffusersPipeline(parts(kind), strength=0)
    vae = DiffusersVAE.from_module(autoencoder(), img_resolution=32)
    images = pictures(2).images
    assert generator.decode(codes()).equal(vae.decode(codes()))
    assert generator.encode(images).equal(vae.encode(images))
    assert generator.coder.digest() == vae.digest()
    assert (generator.latent_shape, generator.latent_space, generator.preferred_path) == ((4, 4, 4), "vae", "slerp")
    assert generator.has_encoder


def test_images_that_are_not_square():
    generator = DiffusersPipeline(parts(), steps=4, img_resolution=(48, 32))
    assert (generator.img_size, generator.latent_shape) == ((48, 32), (4, 6, 4))
    latents = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(7))
    images = generator.decode(latents)
    assert images.shape == (2, 3, 48, 32)
    assert generator.encode(images).shape == latents.shape
    assert DiffusersPipeline(parts(), img_resolution=(32, 32)).img_resolution == 32


@pytest.mark.parametrize("kind", ["plain", "classed", "dit"])
def test_a_code_has_one_image_in_any_batch_and_beside_its_rounding(kind):
    settings = {} if kind == "plain" else {"classes": [4, 0, 2]}
    generator = DiffusersPipeline(parts(kind), steps=6, **settings)
    targets = () if kind == "plain" else (torch.tensor([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0], [0.5, 0.2, 0.3]]),)
    images = generator.decode(codes(), *targets)
    assert (images.shape, images.dtype) == ((3, 3, 32, 32), torch.float32)
    assert images.abs().max() <= 1
    assert generator.decode(codes(), *targets).equal(images)
    alone = [generator.decode(codes()[i : i + 1], *(part[i : i + 1] for part in targets)) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator.decode(codes() * (1 + 1e-6), *targets), images, rtol=1e-3, atol=1e-4)


def test_noise_is_normal_and_depends_on_code_and_seed():
    several = torch.randn(200, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    noises = []
    for seed in (0, 1):
        generator = DiffusersPipeline(parts(), seed=seed)
        streams = generator._streams(several)
        noises += [torch.stack([torch.randn(64, generator=stream) for stream in streams])]
    noise = torch.cat(noises)
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert (noise.std() - 1).abs() < 5 / (2 * noise.numel()) ** 0.5
    correlations = torch.corrcoef(torch.cat([noise, several.flatten(1)])).triu(1)
    assert correlations.abs().max() < 0.75  # of 64 numbers each: six standard deviations; the same noise has 1


def test_a_slow_reference_without_conditions():
    """DDIM with no noise in its steps: equations 4 and 12 of Song et al. 2021, one code at a time."""
    generator = DiffusersPipeline(parts(), strength=0.6, steps=5)
    alphas, times = generator.scheduler.alphas_cumprod, [400, 200, 0]
    expected = []
    for code in codes():
        (stream,) = generator._streams(code[None])
        noisy = alphas[400].sqrt() * code + (1 - alphas[400]).sqrt() * torch.randn(4, 4, 4, generator=stream)
        for time in times:
            predicted = generator.denoiser(noisy[None], time).sample[0]
            clean = (noisy - (1 - alphas[time]).sqrt() * predicted) / alphas[time].sqrt()
            earlier = alphas[time - 200] if time else torch.tensor(1.0)
            noisy = earlier.sqrt() * clean + (1 - earlier).sqrt() * predicted
        expected.append(noisy)
    torch.testing.assert_close(generator.decode(codes()), generator.vae.decode(torch.stack(expected)))


@pytest.mark.parametrize("kind", ["classed", "dit"])
def test_a_mix_of_classes_is_predicted_by_the_mean_of_their_predictions(kind):
    given = {"steps": 4, "strength": 0.25, "guidance": 3.0 if kind == "dit" else 1.0}
    generator = DiffusersPipeline(parts(kind), classes=[4, 1], **given)
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(
        generator.decode(codes(), weights[[1] * 3]), DiffusersPipeline(parts(kind), classes=4, **given).decode(codes())
    )
    time = torch.tensor(500)

    def predicted(number):
        found = generator.denoiser(codes(), time.expand(3), class_labels=torch.full((3,), number)).sample
        return found[:, :4]

    expected = weights[:, 0].view(3, 1, 1, 1) * predicted(4) + weights[:, 1].view(3, 1, 1, 1) * predicted(1)
    if kind == "dit":
        expected = 3 * expected - 2 * predicted(5)
    terms = generator._terms(3, weights)
    found = sum(weight.view(3, 1, 1, 1) * generator._predict(codes(), time, rows) for weight, rows in terms)
    torch.testing.assert_close(found, expected)
    assert not predicted(4).allclose(predicted(1), atol=1e-2)


def test_strength_is_the_distance_from_the_autoencoders_image():
    apart = []
    for strength in (0.1, 0.3, 1.0):
        generator = DiffusersPipeline(parts(), strength=strength, steps=10)
        apart.append(float((generator.decode(codes()) - generator.vae.decode(codes())).square().mean()))
    assert apart == sorted(apart)


def test_in_half_precision_codes_and_images_stay_float32():
    whole, half = (DiffusersPipeline(parts(), steps=4) for _ in range(2))
    half.denoiser.to(torch.bfloat16)
    images = half.decode(codes())
    assert images.dtype == half.encode(images).dtype == torch.float32
    assert 0 < (images - whole.decode(codes())).abs().max() < 0.1


def test_the_users_own_objects_are_used_and_their_scheduler_stays_as_it_is():
    given = parts()
    generator = DiffusersPipeline(given, steps=4)
    before = given["scheduler"].timesteps.clone()
    generator.decode(codes())
    assert generator.denoiser is given["unet"]
    assert given["scheduler"].timesteps.equal(before)
    assert not any(parameter.requires_grad for parameter in given["unet"].parameters())
    assert not generator.train().denoiser.training


def test_all_that_decides_an_image_is_in_the_digest():
    others = [
        DiffusersPipeline(parts(), **change)
        for change in ({}, {"strength": 0.4}, {"steps": 10}, {"seed": 1}, {"img_resolution": 64})
    ]
    scheduler = DDIMScheduler(clip_sample=False)
    others += [DiffusersPipeline(parts(scheduler=scheduler)), DiffusersPipeline(parts("dit"), classes=[0, 1])]
    others += [DiffusersPipeline(parts("dit"), classes=[0, 1], guidance=2.0)]
    digests = [generator.digest() for generator in others]
    assert len(set(digests[:4] + digests[5:])) == len(digests) - 1
    assert digests[4] == digests[0]  # as with DiffusersVAE, the size is that of the codes
    assert DiffusersPipeline(parts()).digest() == digests[0]


# ---- banks and pools --------------------------------------------------------------------------------


def test_a_bank_is_inverted_by_the_autoencoder_and_serves_any_strength():
    generator, dataset = DiffusersPipeline(parts()), pictures(8)
    bank = lm.invert(dataset, generator, steps=0, progress=False)
    torch.testing.assert_close(bank[:][0], generator.encode(dataset.images), rtol=1e-4, atol=1e-5)
    same = lm.invert(dataset, generator.vae, steps=0, progress=False)
    assert bank.digest() == same.digest()
    assert bank.generator_digest == generator.vae.digest()
    for other in (generator.vae, DiffusersPipeline(parts("dit"), strength=0.9)):
        bank.check(other)
    broken = parts()
    broken["vae"].decoder.conv_out.bias.add_(1.0)
    with pytest.raises(ValueError, match="the bank belongs to a generator with digest"):
        bank.check(DiffusersPipeline(broken))
    better = lm.refine(bank, dataset, generator, above=0.0, steps=2, loss="pixels", progress=False)
    assert (better.mse <= bank.mse).all()


def test_decode_says_that_it_has_no_gradient():
    generator, latents = DiffusersPipeline(parts(), steps=4), codes().requires_grad_(True)
    with pytest.raises(NotImplementedError, match=r"no gradient with strength=0.5: invert with the autoencoder, .*vae"):
        generator.decode(latents)
    with torch.no_grad():
        generator.decode(latents)
    (gradient,) = torch.autograd.grad(DiffusersPipeline(parts(), strength=0).decode(latents).sum(), latents)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", ["plain", "dit"])
def test_a_pool_is_decoded_under_the_labels_of_its_mixes(kind, tmp_path, monkeypatch):
    generator = DiffusersPipeline(parts(kind), steps=4, **({"classes": [4, 0, 2]} if kind == "dit" else {}))
    bank, seen = lm.invert(pictures(9), generator, steps=0, progress=False), []
    decode = DiffusersPipeline.decode
    monkeypatch.setattr(DiffusersPipeline, "decode", lambda self, *given: (seen.append(given), decode(self, *given))[1])
    assert lm.render(generator, bank, tmp_path / "pool", n=10, batch_size=4, progress=False)
    pool = Pool(tmp_path / "pool")
    latents, *targets = map(torch.cat, zip(*seen, strict=True))
    labels_a, labels_b, lam = (pool.columns[name] for name in ("labels_a", "labels_b", "lam"))
    if kind == "dit":
        torch.testing.assert_close(targets[0], lm.functional.mix_targets(labels_a, labels_b, lam, 3))
    else:
        assert not targets
    expected = to_uint8(decode(generator, latents, *targets))
    assert (pool.images.int() - expected.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="holds a pool with other settings"):
        lm.render(DiffusersPipeline(parts(kind)), bank, tmp_path / "pool", n=10, progress=False)


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")  # random weights
def test_the_loader_hands_the_labels_too():
    dataset = pictures(8)
    generator = DiffusersPipeline(parts("dit"), steps=2, classes=[4, 0, 2])
    bank = lm.invert(dataset, generator, steps=0, progress=False)
    images, targets = next(iter(lm.LatentMixupLoader(DataLoader(dataset, 8), generator, bank, seed=1)))
    assert (images.shape, targets.shape) == ((8, 3, 32, 32), (8, 3))
    wrong = DiffusersPipeline(parts("dit"), steps=2, classes=[4, 0])
    with pytest.raises(ValueError, match=r"targets need one weight a prompt or class, \[8, 2\]: got \[8, 3\]"):
        next(iter(lm.LatentMixupLoader(DataLoader(dataset, 8), wrong, bank, seed=1)))


def test_the_cost_grows_with_the_steps_that_are_taken():
    cost = {}
    for taken in (0, 5, 10):
        generator = DiffusersPipeline(parts(), strength=taken / 20)
        cost[taken] = multiply_adds(generator.decode, codes(1))
    assert cost[0] == multiply_adds(generator.vae.decode, codes(1))
    assert cost[10] - cost[5] == 5 * multiply_adds(lambda noisy: generator.denoiser(noisy, 1), codes(1))
    assert cost[5] - cost[0] == pytest.approx(cost[10] - cost[5], rel=0.01)  # and the names of the noise
    assert generator_info(generator)["decode_multiply_adds"] == cost[10]


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("plain", {"strength": 1.1}, "strength a number in .0, 1.: got 20, 1.1"),
        ("plain", {"steps": 0}, "steps needs an integer from 1"),
        ("plain", {"strength": 0.01}, "strength=0.01 is less than one of 20 steps"),
        ("plain", {"guidance": 2.0}, "guidance needs a finite number, .* got 2.0 for UNet2DModel with 0 of them"),
        ("classed", {"classes": [1], "guidance": 2.0}, "got 2.0 for UNet2DModel with 1 of them"),
        ("plain", {"classes": 1}, "UNet2DModel takes neither prompts nor classes: got classes"),
        ("dit", {"prompts": "cat"}, "DiTTransformer2DModel takes classes: got prompts"),
        ("dit", {"classes": 5}, "classes needs integers from 0 to 4, which the model knows: got 5"),
        ("classed", {}, "classes is needed: this UNet2DModel knows 5 classes"),
        ("dit", {"img_resolution": 64}, "takes codes of 4 x 4: got 8 x 8"),
        ("dit", {"img_resolution": (32, 64)}, "takes codes of 4 x 4: got 4 x 8"),
        ("plain", {"img_resolution": (32, 24)}, "are multiples of 2: got 4 x 3"),
        ("plain", {"img_resolution": 24}, "takes codes whose height and width are multiples of 2: got 3 x 3"),
    ],
)
def test_settings_that_cannot_be(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusersPipeline(parts(kind), **settings)


def test_parts_that_are_not_supported():
    with pytest.raises(TypeError, match="a pipeline of diffusers, or a dict of its parts, is wanted: got Linear"):
        DiffusersPipeline(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"unet or transformer needs to be one of .*: got NoneType"):
        DiffusersPipeline({**parts(), "unet": None})
    with pytest.raises(ValueError, match=r"got PNDMScheduler; set pipeline.scheduler = DDIMScheduler.from_config"):
        DiffusersPipeline(parts(scheduler=diffusers.PNDMScheduler()))
    with pytest.raises(ValueError, match="vae needs to be one of AutoencoderKL, AutoencoderTiny: got Linear"):
        DiffusersPipeline(parts(vae=nn.Linear(1, 1)))
    narrow = seeded(AutoencoderKL, latent_channels=3, block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ValueError, match="from 4 to 4 channels, and the codes have 3"):
        DiffusersPipeline(parts(vae=narrow))
    with pytest.raises(ValueError, match="decode needs targets, the weight of each class"):
        DiffusersPipeline(parts("classed"), classes=[0, 1]).decode(codes())
    with pytest.raises(NotImplementedError, match="DiffusersPipeline cannot be saved"):
        DiffusersPipeline(parts()).save_pretrained("nowhere")


# ---- the page ---------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "diffusion.md"


def test_the_pages_code_runs(stable_diffusion, tmp_path, monkeypatch, capsys):
    """On tiny parts in place of the download, and on the CPU."""
    monkeypatch.chdir(tmp_path)
    loaded = diffusers.StableDiffusionPipeline
    monkeypatch.setattr(loaded, "from_pretrained", lambda name, **how: stable_diffusion)
    made, counted = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    here = {
        '"cuda"': '"cpu"',
        "10_000": "6",
        "a photo of a cat": "cat",
        "a photo of a dog": "dog",
        "a photo of a horse": "",
    }
    for there, value in here.items():
        assert there in made
        made = made.replace(there, value)
    names = {"dataset": pictures(6)}
    exec(made, names)
    image, target = names["mixes"][0]
    assert (image.shape, target.shape, len(names["mixes"])) == ((3, 64, 64), (3,), 6)
    exec(counted, names)
    generator, count = names["generator"], int(capsys.readouterr().out.split()[0].replace(",", ""))
    text = generator.conditions[:1]
    run = multiply_adds(lambda noisy: generator.denoiser(noisy, 1, encoder_hidden_states=text), codes(1))
    assert count == pytest.approx(16 * run + multiply_adds(generator.vae.decode, codes(1)), rel=0.01)


def test_the_page_names_what_is_supported():
    supported = [*diffusers_pipeline.SCHEDULERS, *diffusers_pipeline.CONDITION_KEYS, *diffusers_pipeline.CLASSES]
    assert all(f"`{name}`" in PAGE.read_text() for name in supported)
    assert {name for name, _ in SCHEDULERS} == set(diffusers_pipeline.SCHEDULERS)
