"""Encoders: codes of the right shape, passes that are one pass repeated, folders, and a training that goes on."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from commands import error_of, output_of
from torch import nn
from trainings import KINDS, compact, seeded
from trainings import RESTYLE as TINY

from latent_mixup import cli, inversion, training
from latent_mixup.encoders import MLPEncoder, ReStyleEncoder, load_encoder
from latent_mixup.encoders.restyle import stride_for
from latent_mixup.files import FormatError
from latent_mixup.generators import StyleGAN2, load_generator, wrap
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.inversion import FeatureLoss, invert, pixel_mse
from latent_mixup.losses import chosen
from latent_mixup.sampling import keyed_generator
from latent_mixup.training import EncoderRecipe, train_encoder
from latent_mixup.training.encoder import ARCHES, EncoderTraining


def stylegan2(space="w+"):
    generator = seeded(lambda: StyleGAN2(6, 6, 0, 8, 3, channel_base=64, channel_max=4, latent_space=space))
    generator.mapping.w_avg.copy_(torch.randn(6, generator=keyed_generator("test", 1)))
    return generator


def awake(encoder, scale=0.1):
    """The encoder with a head that is no longer zero: each pass moves the codes."""
    draw = keyed_generator("test", 3)
    for parameter in encoder.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=draw)
    return encoder


GENERATORS = {
    "z": compact,
    "w": lambda: stylegan2("w"),
    "w+": lambda: stylegan2("w+"),
    "wrapped": lambda: wrap(nn.Sequential(nn.Linear(5, 50), nn.Unflatten(1, (2, 5, 5))), latent_shape=(5,)),
}


@pytest.fixture(params=GENERATORS)
def generator(request):
    return seeded(GENERATORS[request.param])


@pytest.fixture(params=[lambda g: MLPEncoder(g, (7,)), lambda g: ReStyleEncoder(g, passes=2, **TINY)])
def make(request):
    return request.param


def random_images(generator, n=3):
    size = (n, generator.img_channels, generator.img_resolution, generator.img_resolution)
    return torch.rand(size, generator=keyed_generator("test", 5)) * 2 - 1


# ---- the networks ----------------------------------------------------------------------------------


def test_images_become_codes(generator, make):
    encoder = make(generator)
    codes = awake(encoder)(random_images(generator))
    assert codes.shape == (3, *generator.latent_shape)
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    assert not encoder.training
    assert codes.flatten(1).std(0).min() > 0
    with pytest.raises(ValueError, match=r"images need shape \[B, \d, \d, \d\]: got \[2, 1, 3, 3\]"):
        encoder(torch.zeros(2, 1, 3, 3))


def test_the_generator_is_at_hand_but_not_a_part(generator, make):
    encoder = make(generator)
    assert encoder.generator is generator
    owned = {parameter.data_ptr() for parameter in generator.state_dict().values()}
    assert not owned & {tensor.data_ptr() for tensor in encoder.state_dict().values()}
    assert [name for name, _ in encoder.named_modules() if name.startswith("generator")] == []
    assert not any(module is generator for module in encoder.modules())


def test_the_papers_mlp():
    generator = wrap(lambda z: z[:, :784].view(-1, 1, 28, 28), latent_shape=(1024,))
    encoder = MLPEncoder(generator)
    sizes = [(layer.in_features, layer.out_features) for layer in encoder.body if isinstance(layer, nn.Linear)]
    assert sizes == [(784, 1024), (1024, 1024), (1024, 1024)]
    images = random_images(generator)
    hidden = images.flatten(1)
    for weight, bias in zip(*[[*encoder.parameters()][start::2] for start in (0, 1)], strict=True):
        hidden = F.linear(hidden, weight, bias)
        if weight is not [*encoder.parameters()][-2]:
            hidden = hidden.clamp_min(0)
    torch.testing.assert_close(encoder(images), hidden)


def test_before_training_the_mlp_gives_codes_around_the_mean_code(generator):
    encoder = MLPEncoder(generator, (7,))
    assert encoder.body[-1].bias.equal(generator.mean_latent().flatten())


def test_before_training_restyle_gives_the_mean_code(generator):
    codes = ReStyleEncoder(generator, **TINY)(random_images(generator))
    assert codes.equal(generator.mean_latent().expand(3, *generator.latent_shape))


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_n_passes_are_one_pass_repeated(generator, passes):
    encoder = awake(ReStyleEncoder(generator, passes=passes, **TINY))
    images = random_images(generator)
    codes = generator.mean_latent().repeat(3, *[1] * len(generator.latent_shape))
    expected = [codes]
    for _ in range(passes):
        both = torch.cat([images, generator.decode(codes)], 1)
        codes = codes + encoder.head(encoder.backbone(both)).view(3, *generator.latent_shape)
        expected.append(codes)
    found = encoder.trajectory(images)
    assert len(found) == passes + 1
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert encoder(images).equal(found[-1])
    assert (found[-1] - found[-2]).abs().max() > 1e-3


def test_an_image_keeps_its_code_in_another_batch():
    generator = compact()
    encoder = awake(ReStyleEncoder(generator, **TINY)).train()
    images = random_images(generator, 6)
    torch.testing.assert_close(encoder(images)[2:4], encoder(images[2:4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "stride", "last"), [(8, 1, 1), (28, 1, 4), (32, 1, 4), (64, 2, 4), (128, 4, 4), (256, 4, 8)]
)
def test_the_stem_leaves_the_last_stage_some_pixels(resolution, stride, last):
    generator = wrap(lambda z: z.view(-1, 1, 1, 1).expand(-1, 1, resolution, resolution), latent_shape=(1,))
    encoder = ReStyleEncoder(generator, **TINY)
    assert stride_for(resolution) == encoder.stem_stride == stride
    assert encoder.backbone(torch.zeros(1, 2, resolution, resolution)).shape == (1, 8, last, last)
    assert encoder.head[2].in_features == 8 * min(last, 4) ** 2


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet26d", "seresnext26d_32x4d"])
def test_other_resnets_of_timm(backbone):
    generator = compact()
    encoder = ReStyleEncoder(generator, backbone, channels=(32, 32, 32, 32), layers=(1, 1, 1, 1))
    assert awake(encoder)(random_images(generator)).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [8, 0]}, r"widths needs at most 64 integers from 1: got \[8, 0\]"),
        ({"backbone": "vit_tiny_patch16_224"}, r"backbone needs a ResNet of timm .*: got 'vit_tiny"),
        ({"backbone": "hf-hub:someone/else"}, r"backbone needs a ResNet of timm .*: got 'hf-hub"),
        ({"backbone": "resnetblur18"}, r"backbone 'resnetblur18' keeps filters outside its weights: choose another"),
        ({"passes": 0}, "passes needs an integer from 1 to 64: got 0"),
        ({"passes": 65}, "passes needs an integer from 1 to 64: got 65"),
        ({"stem_stride": 3}, "stem_stride needs to be 1, 2, 4 or None: got 3"),
        ({"channels": (8, 8, 8)}, r"channels needs one integer for each of four stages: got \[8, 8, 8\]"),
        ({"layers": (1, 1, 1, 10**9)}, r"layers needs integers up to 64: got \[1, 1, 1, 1000000000\]"),
        ({"layers": (1, 1, 1, 0)}, r"layers needs at most 64 integers from 1: got \(1, 1, 1, 0\)"),
    ],
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPEncoder(compact(), **arguments) if "widths" in arguments else ReStyleEncoder(compact(), **TINY | arguments)


@pytest.mark.parametrize(
    ("generator", "advice"),
    [
        ("fashion-mnist", r"got str; load it: latent_mixup.load_generator\('fashion-mnist'\)"),
        (nn.Linear(2, 2), "got Linear; wrap it: latent_mixup.generators.wrap"),
        (None, "got NoneType; "),
        (torch.zeros(2), "got Tensor; "),
    ],
)
def test_what_is_not_a_generator_is_refused_with_advice(tmp_path, generator, advice):
    calls = [
        lambda: MLPEncoder(generator),
        lambda: ReStyleEncoder(generator),
        lambda: MLPEncoder.from_pretrained(tmp_path, generator),
        lambda: load_encoder(tmp_path, generator),
        lambda: train_encoder(generator, tmp_path / "out"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"a Generator is wanted: {advice}"):
            call()
    assert not (tmp_path / "out").exists()


# ---- folders ---------------------------------------------------------------------------------------


def test_a_folder_gives_the_encoder_back(generator, make, tmp_path):
    encoder, before = awake(make(generator)), torch.get_rng_state()
    encoder.metadata = {"note": "made here"}
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path, generator)
    assert torch.get_rng_state().equal(before)
    assert type(again) is type(encoder)
    assert again.arguments() == encoder.arguments()
    assert again.metadata == encoder.metadata
    assert again.digest() == encoder.digest()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    images = random_images(generator)
    assert again(images).equal(encoder(images))
    assert type(encoder).from_pretrained(tmp_path, generator)(images).equal(encoder(images))


def test_half_precision_is_half_the_size(tmp_path):
    generator = compact()
    encoder = awake(MLPEncoder(generator, (64, 64)))
    encoder.save_pretrained(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 1.8 < sizes[0] / sizes[1] < 2.2
    images = random_images(generator)
    half = load_encoder(tmp_path / "half", generator)
    torch.testing.assert_close(half(images), encoder(images), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"dtype needs to be torch.float32 or torch.float16: got torch.int8"):
        encoder.save_pretrained(tmp_path / "bytes", dtype=torch.int8)


def test_another_generator_is_refused_by_name(tmp_path):
    generator, other = compact(), compact(seed=1)
    generator.metadata, other.metadata = {"name": "shoes"}, {"name": "bags"}
    MLPEncoder(generator, (7,)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"belongs to generator 'shoes' \(digest {generator.digest()[:12]}, codes of \[4\] in 'z'\): "
        rf"got generator 'bags' \(digest {other.digest()[:12]}, .*load that generator, or train",
    ):
        load_encoder(tmp_path, other)


def test_another_space_of_the_same_generator_is_refused(tmp_path):
    assert stylegan2("w").digest() == stylegan2("w+").digest()
    MLPEncoder(stylegan2("w"), (7,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"codes of \[6\] in 'w'\): got generator None .*codes of \[4, 6\] in 'w\+'"):
        load_encoder(tmp_path, stylegan2("w+"))


def test_another_class_is_refused(tmp_path):
    generator = compact()
    MLPEncoder(generator, (7,)).save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="field 'architecture' needs one of ReStyleEncoder, found 'MLPEncoder'"):
        ReStyleEncoder.from_pretrained(tmp_path, generator)
    generator.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"field 'generator' is missing"):
        load_encoder(tmp_path, generator)
    with pytest.raises(FileNotFoundError, match=r"no encoder is called '.*nowhere': expected a folder, a bundled name"):
        load_encoder(tmp_path / "nowhere", generator)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("arguments", {"widths": [-1]}, "field 'arguments' is not understood: widths needs"),
        ("arguments", {"widths": [7], "generator": 1}, "field 'arguments' is not understood: .*multiple values"),
        ("arguments", {"widths": [8]}, r"tensor 'body.0.weight' needs \[8, 64\], found \[7, 64\]"),
        ("arguments", {"widths": [10**12]}, "field 'arguments' is not understood|needs"),
        ("generator", {"digest": "1"}, "needs name, digest, latent_space, latent_shape: found digest"),
        ("generator", 3, "field 'generator' needs a dict, found 3"),
    ],
)
def test_a_spoilt_config_is_named(tmp_path, field, value, message):
    generator = compact()
    MLPEncoder(generator, (7,)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(FormatError, match=message):
        load_encoder(tmp_path, generator)


def test_an_inversion_starts_from_an_encoder(tmp_path, toy_dataset, linear_generator):
    encoder = seeded(lambda: MLPEncoder(linear_generator, (7,)))
    bank = invert(toy_dataset, linear_generator, encoder=encoder, loss=pixel_mse, steps=0, progress=False)
    torch.testing.assert_close(bank[torch.arange(50)][0], encoder(toy_dataset.images))
    assert bank.metadata["inversion"]["start"] == f"MLPEncoder ({encoder.digest()[:12]})"


# ---- training --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images_uint8():
    generator = compact()
    return to_uint8(generator.decode(generator.sample_latents(40, keyed_generator("test", 8))))


def test_the_contracts_name():
    assert inversion.train_encoder is training.train_encoder
    assert "train_encoder" in inversion.__all__
    with pytest.raises(AttributeError, match=r"'latent_mixup.inversion' has no attribute 'nothing'"):
        _ = inversion.nothing


@pytest.mark.parametrize("kind", ["mlp", "restyle"])
def test_a_training_leaves_the_generator_alone(tmp_path, kind):
    generator = compact()
    digest = generator.digest()
    encoder = KINDS[kind].train(tmp_path, generator=generator)
    assert encoder.generator is generator
    assert generator.digest() == digest
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arch": "unet"}, "arch needs to be 'mlp' or 'restyle': got 'unet'"),
        (
            {"images_uint8": torch.zeros(4, 1, 9, 9, dtype=torch.uint8)},
            "images need the size of the generator's, .*'img_resolution': 8.*: got .*'img_resolution': 9",
        ),
        ({"arch": "restyle", "loss": "lpips2"}, "loss needs one of lpips, features, pixels, or a callable"),
        ({"arch": "restyle", "loss": 5}, "loss needs one of lpips, features, pixels, or a callable"),
    ],
)
def test_settings_that_cannot_be(tmp_path, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train_encoder(compact(), tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_a_loss_by_its_name_is_that_loss(tmp_path):
    digests = [
        KINDS["restyle"].train(tmp_path / str(number), settings={"steps": 2}, loss=loss).digest()
        for number, loss in enumerate((None, "pixels", pixel_mse))
    ]
    assert len(set(digests)) == 1


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_generated_images_that_cannot_be(share):
    with pytest.raises(ValueError, match="generated needs to be "):
        EncoderRecipe(generated=share)


def test_one_step_of_restyle_is_the_formula(images_uint8):
    """Adam on the sum of the passes' gradients; each pass takes the codes before it as constants."""
    recipe = EncoderRecipe(steps=10, batch_size=6, generated=0.5, code_weight=0.3, mean_weight=0.2, seed=4)
    generator = compact()
    loss = FeatureLoss(nn.Flatten(), pixel_weight=2.0)
    encoder, expected = (awake(seeded(lambda: ReStyleEncoder(generator, passes=2, **TINY))) for _ in range(2))
    run = EncoderTraining(encoder, recipe, loss, images_uint8)
    images, known = run.batch()
    run.advance()

    draw = keyed_generator("train-encoder", 4, 0)
    rows = torch.randint(40, (3,), generator=draw)
    assert images[:3].equal(from_uint8(images_uint8[rows]))
    assert known.equal(generator.sample_latents(3, draw))
    assert images[3:].equal(generator.decode(known))

    expected.requires_grad_(True)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)  # the first twentieth of ten steps: the peak at once
    mean = generator.mean_latent()
    codes = mean.repeat(6, 1)
    for _ in range(2):
        before = codes.detach()
        codes = before + expected.head(expected.backbone(torch.cat([images, generator.decode(before)], 1)))
        total = 3 * (generator.decode(codes) - images).square().mean()
        total = total + 0.2 * (codes - mean).square().mean() + 0.3 * (codes[3:] - known).square().mean()
        total.backward()
    optimizer.step()
    torch.testing.assert_close(dict(encoder.named_buffers()), dict(expected.named_buffers()), rtol=1e-4, atol=1e-6)
    for found, reference in zip(encoder.parameters(), expected.parameters(), strict=True):
        assert found.grad is not None
        assert reference.grad is not None
        rounding = 1e-3 * float(reference.grad.abs().max())
        torch.testing.assert_close(found.grad, reference.grad, rtol=0, atol=rounding)
        clear = reference.grad.abs() > 10 * rounding  # Adam's first step is a sign, which rounding decides near zero
        torch.testing.assert_close(found[clear], reference[clear], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "real", "share", "num_generated"),
    [("mlp", True, 0.0, 8), ("mlp", False, 0.0, 8), ("restyle", True, 0.0, 0), ("restyle", True, 0.25, 2),
     ("restyle", True, 1.0, 8), ("restyle", False, 0.0, 8)],
)  # fmt: skip
def test_what_a_batch_is_made_of(images_uint8, arch, real, share, num_generated):
    recipe = EncoderRecipe(steps=4, batch_size=8, generated=share)
    encoder = ARCHES[arch](compact(), **(TINY if arch == "restyle" else {}))
    images, known = EncoderTraining(encoder, recipe, pixel_mse, images_uint8 if real else None).batch()
    assert images.shape == (8, 1, 8, 8)
    assert known.shape == (num_generated, 4)
    assert images[8 - num_generated :].equal(encoder.generator.decode(known))


# ---- the command -----------------------------------------------------------------------------------


class GreyImages:
    """What the command reads of a torchvision data set: 20 grey images of 6x6."""

    data = torch.randint(0, 256, (20, 6, 6), generator=keyed_generator("test", 0), dtype=torch.uint8)
    targets = torch.arange(20) % 2

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index][None], int(self.targets[index])


SMALL = ("--channels", "8,8,8,8", "--layers", "1,1,1,1", "--batch-size", 4)


@pytest.fixture
def bordered(tmp_path, monkeypatch):
    """The folder of a generator that was trained with a border of one pixel, and data for it."""
    monkeypatch.setattr(cli.shared, "torchvision_dataset", lambda *_, train: GreyImages())
    generator = compact()
    generator.metadata = {"name": "small", "border": 1}
    return generator.save_pretrained(tmp_path / "generator")


def test_the_command_trains_and_resumes(bordered, tmp_path):
    out = tmp_path / "out"
    data = ("--dataset", "mnist", "--data-root", tmp_path, "--steps", 2)
    for _ in range(2):
        output = output_of("train-encoder", bordered, "--arch", "restyle", "--out", out, "--passes", 2, *SMALL, *data)
        assert "images get a black border of 1 px" in output
    generator = load_generator(bordered)
    encoder = load_encoder(out, generator)
    assert isinstance(encoder, ReStyleEncoder)
    assert encoder.passes == 2
    assert encoder.metadata["dataset"]["name"] == "mnist"
    assert f"ReStyleEncoder for small, digest {encoder.digest()[:12]}" in output
    padded, network = F.pad(GreyImages.data[:, None], (1, 1, 1, 1)), {"passes": 2, **TINY}
    expected = KINDS["restyle"].train(
        tmp_path / "expected", (padded,), generator=generator, network=network, settings={"steps": 2, "batch_size": 4}
    )
    assert encoder.digest() == expected.digest()


def test_the_command_trains_an_mlp_without_images(bordered, tmp_path):
    output_of("train-encoder", bordered, "--out", tmp_path / "out", "--steps", 1)
    encoder = load_encoder(tmp_path / "out", load_generator(bordered))
    assert isinstance(encoder, MLPEncoder)
    assert encoder.metadata["command"] == ["latent-mixup", "train-encoder", "generator", "--steps", "1"]
    assert "dataset" not in encoder.metadata


def test_a_generator_without_a_name_is_called_as_it_was_typed(tmp_path):
    nameless = compact().save_pretrained(tmp_path / "nameless")
    output = output_of("train-encoder", nameless, "--out", tmp_path / "out", "--steps", 1)
    assert f"MLPEncoder for {nameless}, digest" in " ".join(output.split())


def test_lpips_is_a_loss_of_the_command(bordered, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(chosen, "named_loss", lambda _, *name, **weights: asked.append((name, weights)) or pixel_mse)
    lpips = ("--loss", "lpips", "--lpips-weights", "vgg.pth", "--download-lpips")
    output_of("train-encoder", bordered, "--out", tmp_path / "out", "--arch", "restyle", "--steps", 1, *SMALL, *lpips)
    assert asked == [(("lpips",), {"lpips_weights": "vgg.pth", "download": True})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "lpips", "--download-lpips"), "mlp has no --loss and no --download-lpips: leave out, or pass"),
        (("--passes", 2), "mlp has no --passes: leave out, or pass --arch restyle"),
        (("--dataset", "mnist"), "--dataset needs --data-root"),
        (("--arch", "restyle", "--layers", "1,x"), "--layers needs integers with commas between them"),
        (("--arch", "restyle", "--loss", "features"), "has no trained features"),
        (("--arch", "restyle", "--backbone", "vgg11"), "backbone needs a ResNet of timm"),
    ],
)
def test_the_command_says_what_is_wrong(bordered, tmp_path, arguments, message):
    output = error_of("train-encoder", bordered, "--out", tmp_path / "out", *arguments)
    assert message in " ".join(output.split())
    assert not (tmp_path / "out").exists()


# ---- it learns -------------------------------------------------------------------------------------


def reconstruction_errors(generator, codes):
    images = generator.decode(generator.sample_latents(256, keyed_generator("test", 9)))
    return [float(pixel_mse(generator.decode(code), images).mean()) for code in codes(images)]


def test_the_mlp_learns_to_invert(tmp_path):
    generator = compact()
    recipe = EncoderRecipe(steps=300, batch_size=64, lr=3e-3)
    encoder = train_encoder(generator, tmp_path, network={"widths": (64, 64)}, recipe=recipe, progress=False)
    mean = generator.mean_latent().expand(256, 4)
    mean_code, encoded = reconstruction_errors(generator, lambda images: (mean, encoder(images)))
    assert encoded < mean_code / 100  # measured: 3,000 times smaller


def test_restyle_learns_to_invert_and_gains_by_its_passes(tmp_path):
    generator = compact()
    images = to_uint8(generator.decode(generator.sample_latents(500, keyed_generator("test", 10))))
    encoder = KINDS["restyle"].train(
        tmp_path,
        (images,),
        generator=generator,
        network={**TINY, "channels": (16, 16, 16, 16)},
        settings={"steps": 150, "batch_size": 16, "lr": 2e-3},
    )
    mean_code, first, _, third = reconstruction_errors(generator, encoder.trajectory)
    assert third < mean_code / 4  # measured with four seeds: 9 to 39 times smaller
    assert third < 0.95 * first  # measured: 0.53 to 0.82
