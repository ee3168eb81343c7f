"""Inversion: codes are found, one image's result is its own, and a killed run resumes to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import LabelledImages
from PIL import Image
from reference import invert_one_image
from torch import nn
from torchvision.transforms import v2

from latent_mixup import LatentBank, invert
from latent_mixup.generators import CompactGenerator, wrap
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.inversion import FeatureLoss, optimise_codes, pixel_mse
from latent_mixup.losses.base import callable_id

BETAS = (0.95, 0.999)
QUICK = {"loss": pixel_mse, "steps": 5, "lr": 0.05, "batch_size": 7, "progress": False}


def from_zero(images: torch.Tensor) -> torch.Tensor:
    """An encoder that knows nothing, so that the steps have something to do."""
    return torch.zeros(len(images), 16)


def compact(**changes) -> CompactGenerator:
    """A compact generator of 6x6 images with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = {"z_dim": 8, "img_resolution": 6, "decoder_widths": (16,), "encoder_widths": (12,)}
        return CompactGenerator(**{**arguments, **changes})


def own_images(generator: CompactGenerator, n: int = 20) -> LabelledImages:
    """Images that the generator can make, so that an exact code of each exists."""
    latents = generator.sample_latents(n, torch.Generator().manual_seed(1))
    return LabelledImages(generator.decode(latents), torch.arange(n) % 3)


def contents(folder: Path) -> dict[str, bytes]:
    """The bank's files of an ``out`` folder."""
    return {path.name: path.read_bytes() for path in folder.glob("bank*")}


class Counted:
    """``pixel_mse`` that counts its calls, and may do something at one of them."""

    __name__ = "pixel_mse"

    def __init__(self, at: int | None = None, action=None) -> None:
        self.calls, self.at, self.action = 0, at, action

    def __call__(self, images, targets):
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return pixel_mse(images, targets)


class StopError(Exception):
    """Stands for anything that ends a run."""


def stop():
    raise StopError


# ---- the optimiser ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [from_zero, None], ids=["from zero", "from draws"])
def test_images_of_a_linear_generator_are_recovered(linear_generator, toy_dataset, encoder):
    generator = linear_generator
    if encoder is None:
        generator = wrap(linear_generator.decode, latent_shape=(16,))
    bank = invert(toy_dataset, generator, encoder=encoder, loss=pixel_mse, steps=500, lr=0.1, progress=False)
    assert bank.mse.max() < 1e-5
    torch.testing.assert_close(bank[:][0], linear_generator.encode(toy_dataset.images), atol=0.02, rtol=0)
    assert bank.labels.equal(toy_dataset.labels)
    assert bank.source_index.equal(torch.arange(50))
    assert not bank.status.any()


def test_images_of_a_compact_generator_are_recovered():
    generator = compact()
    dataset = own_images(generator)
    before = invert(dataset, generator, loss=pixel_mse, steps=0, progress=False)
    after = invert(dataset, generator, loss=pixel_mse, steps=500, lr=0.1, progress=False)
    assert after.mse.max() < 1e-5 < before.mse.min()
    torch.testing.assert_close(generator.decode(after[:][0]), dataset.images, atol=0.02, rtol=0)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.1), (1, 0.1), (12, 0.05), (12, 3.0)])
def test_the_optimiser_is_one_image_at_a_time_with_its_best_step(steps, lr):
    generator = compact()
    targets = own_images(generator, 5).images
    start = generator.encode(targets)
    codes, losses = optimise_codes(
        generator, targets, start, pixel_mse, steps=steps, lr=lr, betas=BETAS, optimizer="adam"
    )
    for row in range(5):
        best, best_loss = invert_one_image(generator.decode, targets[row], start[row], pixel_mse, steps, lr, BETAS)
        torch.testing.assert_close(codes[row], best, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(losses[row], torch.tensor(best_loss), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses, pixel_mse(generator.decode(codes), targets))  # the code's own, not the next's


def test_steps_that_only_make_it_worse_are_forgotten(linear_generator, toy_dataset):
    exact = linear_generator.encode(toy_dataset.images)
    codes, losses = optimise_codes(
        linear_generator, toy_dataset.images, exact, pixel_mse, steps=10, lr=1.0, betas=BETAS
    )
    assert (losses < 1e-12).all()
    torch.testing.assert_close(codes, exact)


def test_more_steps_are_never_worse_at_the_start(linear_generator, toy_dataset):
    """The best step is kept, so no result is worse than the encoder's."""
    banks = [invert(toy_dataset, linear_generator, encoder=from_zero, **{**QUICK, "steps": n}) for n in (0, 1, 20)]
    assert (banks[1].mse <= banks[0].mse).all()
    assert (banks[2].mse < banks[0].mse).all()


def test_no_steps_keep_the_encoders_code():
    generator = compact()
    dataset = own_images(generator)
    bank = invert(dataset, generator, loss=pixel_mse, steps=0, progress=False)
    torch.testing.assert_close(bank[:][0], generator.encode(dataset.images))
    torch.testing.assert_close(bank.mse, pixel_mse(generator.decode(bank[:][0]), dataset.images))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_images_result_does_not_depend_on_its_batch(batch_size):
    generator = compact()
    dataset = own_images(generator)
    whole, split = (
        invert(dataset, generator, **{**QUICK, "batch_size": size, "steps": 20}) for size in (20, batch_size)
    )
    decoded, expected = (generator.decode(bank[:][0]) for bank in (split, whole))  # a code's length is free
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(split.mse, whole.mse, rtol=1e-3, atol=1e-6)
    assert split.source_index.equal(whole.source_index)


@pytest.mark.parametrize("how", ["encoder", "draws"])
def test_no_global_random_number_is_drawn(linear_generator, toy_dataset, how):
    generator = linear_generator if how == "encoder" else wrap(linear_generator.decode, latent_shape=(16,))
    before = torch.get_rng_state()
    one, two = (invert(toy_dataset, generator, **QUICK) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    assert one.digest() == two.digest()
    assert not generator.training
    assert not any(tensor.requires_grad for tensor in generator.state_dict().values())


# ---- losses ----------------------------------------------------------------------------------------


def test_the_default_loss_is_the_generators_features_and_the_pixels():
    generator = compact(img_resolution=28)
    images, targets = own_images(generator, 4).images, own_images(generator, 5).images[1:]
    features = pixel_mse(generator.features(images), generator.features(targets))
    for weight in (0.0, 1.0, 2.5):
        loss = FeatureLoss(generator.features, weight)
        torch.testing.assert_close(loss(images, targets), features + weight * pixel_mse(images, targets))
    default, named = (
        invert(own_images(generator, 8), generator, loss=loss, steps=2, progress=False)
        for loss in (None, FeatureLoss(generator.features))
    )
    assert default.digest() == named.digest()
    assert default.metadata["inversion"]["loss"].startswith("features + 1 mse (")


def test_pixel_mse_is_the_mean_of_each_image():
    images, targets = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    expected = [nn.functional.mse_loss(image, target) for image, target in zip(images, targets, strict=True)]
    torch.testing.assert_close(pixel_mse(images, targets), torch.stack(expected))
    assert callable_id(pixel_mse) == "pixel_mse"


def test_an_id_tells_networks_of_one_class_apart():
    torch.manual_seed(0)
    first, second = FeatureLoss(nn.Conv2d(1, 2, 3)), FeatureLoss(nn.Conv2d(1, 2, 3))
    assert callable_id(first) == callable_id(first) != callable_id(second)


def test_without_features_the_error_says_what_to_pass(linear_generator, toy_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"has no trained features for its 1-channel images: pass loss=.pixels. "):
        invert(toy_dataset, linear_generator, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.mse_loss,
        lambda images, targets: pixel_mse(images, targets)[:, None],
        lambda images, targets: (images - targets).square(),
    ],
)
def test_a_loss_that_is_not_one_number_an_image(linear_generator, toy_dataset, loss):
    with pytest.raises(ValueError, match=r"loss needs one number per image, \[7\]: got \["):
        invert(toy_dataset, linear_generator, **{**QUICK, "loss": loss})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_image_without_a_finite_loss_fails_alone(linear_generator, toy_dataset, bad):
    special = toy_dataset.images[9, 0, 0, 0]

    def loss(images, targets):
        return pixel_mse(images, targets) * torch.where(targets[:, 0, 0, 0] == special, bad, 1.0)

    arguments = {**QUICK, "encoder": from_zero}
    with pytest.warns(UserWarning, match="1 of 50 images have no finite code: their rows have status 1"):
        bank = invert(toy_dataset, linear_generator, **{**arguments, "loss": loss})
    assert bank.status.nonzero().tolist() == [[9]]
    assert bank[9][0].equal(torch.zeros(16))  # where it started
    torch.testing.assert_close(bank.mse[9], toy_dataset.images[9].square().mean())
    others = [row for row in range(50) if row != 9]
    assert bank.subset(others).digest() == invert(toy_dataset, linear_generator, **arguments).subset(others).digest()


def test_a_loss_that_turns_nan_keeps_the_best_step_before(linear_generator, toy_dataset):
    class Turning(Counted):
        def __call__(self, images, targets):
            losses = super().__call__(images, targets)
            return losses if self.calls <= 4 else losses * torch.nan

    images, start = toy_dataset.images, torch.zeros(50, 16)
    codes, losses = optimise_codes(linear_generator, images, start, Turning(), steps=9, lr=0.05, betas=BETAS)
    assert codes.isfinite().all()
    torch.testing.assert_close(losses, pixel_mse(linear_generator.decode(codes), images))
    assert (losses < pixel_mse(torch.zeros(1), images)).all()


def test_an_encoder_that_gives_nan(linear_generator, toy_dataset):
    with pytest.warns(UserWarning, match="50 of 50 images have no finite code"):
        bank = invert(toy_dataset, linear_generator, **QUICK, encoder=lambda images: from_zero(images) * torch.nan)
    assert bank.status.all()
    assert bank[:][0].equal(torch.zeros(50, 16))
    assert bank.mse.isfinite().all()


# ---- images and labels -----------------------------------------------------------------------------


def converted(convert, n: int = 20, generator: CompactGenerator | None = None):
    """The same uint8 images, in one of the forms a data set may give them."""
    images_uint8 = to_uint8(own_images(generator or compact(), n).images)
    return [(convert(image), label % 3) for label, image in enumerate(images_uint8)]


def as_pil(image_uint8: torch.Tensor) -> Image.Image:
    return v2.functional.to_pil_image(image_uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_uint8_and_float_images_agree(channels):
    generator = compact(img_channels=channels)
    banks = [
        invert(converted(convert, generator=generator), generator, **QUICK)
        for convert in (lambda image: image, as_pil, from_uint8)
    ]
    assert len({bank.digest() for bank in banks}) == 1


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda image: image.float(), r"float images need to be in \[0, 1\] or \[-1, 1\]: got values from .* to \d+"),
        (
            lambda image: from_uint8(image)[:, :5, :5],
            r"size \[1, 6, 6\]: got \[1, 5, 5\].*Resize\(\(6, 6\)",
        ),
    ],
    ids=["[0, 255]", "5x5"],
)
def test_images_of_another_size_or_range(tmp_path, convert, message, batch_size):
    loss = Counted()
    with pytest.raises(ValueError, match=message):
        invert(converted(convert), compact(), **{**QUICK, "batch_size": batch_size, "loss": loss}, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert loss.calls == 0


def test_what_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"none of the first \d+ images can be used; image 0: an image needs to be"):
        invert(converted(lambda image: "image.png"), compact(), **QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [1.5, "1", -2, torch.tensor([0.0, 1.0, 0.0])], ids=str)
def test_a_label_that_is_no_class(tmp_path, label):
    dataset = [(image, 0) for image, _ in converted(lambda image: image)]
    dataset[3] = (dataset[3][0], label)
    with pytest.raises(ValueError, match=r"label.* at index 3$"):
        invert(dataset, compact(), **QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (2, 2)}, r"shard needs \(i, n\) with 0 <= i < n: got \(2, 2\)"),
        ({"shard": (-1, 2)}, r"got \(-1, 2\)"),
        ({"shard": (0, 0)}, r"got \(0, 0\)"),
        ({"space": "w+"}, r"this generator inverts into 'z': got space='w\+'"),
        ({"steps": -1}, "are needed: got -1, 7, 0.05"),
        ({"batch_size": 0}, "are needed: got 5, 0, 0.05"),
        ({"lr": 0.0}, "are needed: got 5, 7, 0.0"),
        ({"lr": float("nan")}, "are needed: got 5, 7, nan"),
    ],
)
def test_bad_arguments(linear_generator, toy_dataset, options, message):
    with pytest.raises(ValueError, match=message):
        invert(toy_dataset, linear_generator, **{**QUICK, **options})


def test_an_empty_data_set(linear_generator):
    with pytest.raises(ValueError, match="the data set is empty: there is nothing to invert"):
        invert([], linear_generator, **QUICK)


def test_an_encoder_of_another_code_is_named(linear_generator, toy_dataset):
    with pytest.raises(ValueError, match=r"the encoder gives codes of shape \(9,\), and the generator takes \(16,\): "):
        invert(toy_dataset, linear_generator, **QUICK, encoder=lambda images: torch.zeros(len(images), 9))


# ---- the folder ------------------------------------------------------------------------------------


def test_out_gets_a_bank_that_knows_where_it_comes_from(linear_generator, toy_dataset, tmp_path):
    toy_dataset.targets = toy_dataset.labels
    bank = invert(toy_dataset, linear_generator, **QUICK, out=tmp_path / "a" / "b")
    read = LatentBank.from_pretrained(tmp_path / "a" / "b", verify=True)
    assert read.digest() == bank.digest()
    assert read.metadata == bank.metadata
    assert read.mse.equal(bank.mse)
    assert read.dtype == torch.float32
    assert read.metadata["inversion"] == {
        "start": callable_id(linear_generator.encode),
        "loss": "pixel_mse",
        "steps": 5,
        "restarts": 1,
        "optimizer": "lbfgs",
        "lr": 0.05,
        "tolerance": 1e-3,
        "draws": 1024,
        "target": None,
        "batch_size": 7,
        "seed": 0,
    }
    for either in (bank, read):
        either.check(linear_generator)
        either.check(toy_dataset)
    with pytest.raises(ValueError, match="shape"):
        read.check(compact())
    with pytest.raises(ValueError, match="has label 1 in the data set and 0 in the bank"):
        read.check(LabelledImages(toy_dataset.images, toy_dataset.labels + 1))
