import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from latent_mixup.images import (
    MIN_IMAGES,
    SIGNED,
    UNIT,
    ImageFormat,
    check_loader,
    check_size,
    detect_format,
    from_uint8,
    from_uint16,
    open_folder,
    open_image,
    pixel_values,
    range_mismatch,
    to_uint8,
    to_unit,
)


def images(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth images that nearly fill [-1, 1]."""
    noise = torch.randn(n, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(1.5 * torch.nn.functional.interpolate(noise, size=16, mode="bilinear"))


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (to_unit(x) - mean[:, None, None]) / std[:, None, None]


def own_normalisation(x: Tensor) -> Tensor:
    return normalised(x, to_unit(x).mean((0, 2, 3)), to_unit(x).std((0, 2, 3)))


def imagenet(x: Tensor) -> Tensor:
    return normalised(x, torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))


CONVENTIONS = {
    "[0, 1]": to_unit,
    "[0, 255]": lambda x: (x + 1) * 127.5,
    "ImageNet": imagenet,
    "the set's own": own_normalisation,
}


def test_uint8_round_trip():
    everything = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(from_uint8(everything)), everything)
    assert from_uint8(everything).aminmax() == (torch.tensor(-1.0), torch.tensor(1.0))
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_to_unit():
    assert to_unit(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("seed", range(20))
def test_other_images_of_the_same_range_pass(n, seed):
    assert range_mismatch(images(n, seed=seed), images(n, seed=seed + 100)) is None


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("seed", range(20))
def test_mixes_vary_less_and_pass(n, seed):
    lam = torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    mixes = lam * images(n, seed=seed + 100) + (1 - lam) * images(n, seed=seed + 200)
    assert range_mismatch(images(n, seed=seed), mixes) is None


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_another_convention_is_noticed_either_way(n, convention):
    for seed in range(20):
        real, decoded = images(n, seed=seed), images(n, seed=seed + 100)
        assert range_mismatch(CONVENTIONS[convention](real), decoded)
        assert range_mismatch(real, CONVENTIONS[convention](decoded))
        assert range_mismatch(CONVENTIONS[convention](real), CONVENTIONS[convention](decoded)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_the_message_shows_both_and_its_transform_mends_it(channels):
    decoded = images(32, channels, seed=1)
    for convert in (to_unit, CONVENTIONS["[0, 255]"], own_normalisation):
        real = convert(images(32, channels))
        message = range_mismatch(real, decoded)
        assert message is not None
        for batch in (real, decoded):
            assert f"std [{float(batch[:, 0].std()):.4g}" in message
        transform = eval(message.split("transform=")[1], {"v2": v2})
        mended = torch.stack([transform(image) for image in decoded])
        assert range_mismatch(real, mended) is None


def test_a_known_range_gives_its_own_constants():
    real, decoded = to_unit(images(8, 1)), images(8, 1, seed=1)
    message = range_mismatch(real, decoded)
    assert message is not None
    assert f"the data set's have mean [{float(real.mean()):.4g}]" in message
    assert f"decoded ones have mean [{float(decoded.mean()):.4g}]" in message
    assert message.endswith("transform=v2.Normalize(mean=[-1], std=[2])")


def test_constant_images_pass():
    assert range_mismatch(torch.zeros(8, 1, 4, 4), torch.zeros(8, 1, 4, 4)) is None


def test_large_batches_are_sampled():
    assert range_mismatch(torch.rand(64, 3, 300, 300), torch.rand(64, 3, 300, 300)) is None


def test_sizes():
    with pytest.raises(ValueError, match=r"got \[C, H, W\] = \[3, 32, 32\] for \[3, 28, 28\].*v2.Resize\(\(28, 28\)\)"):
        range_mismatch(torch.rand(8, 3, 28, 28), torch.rand(8, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\[1, 28, 28\] for \[3, 28, 28\].*v2.Grayscale\(3\)"):
        check_size(torch.rand(8, 3, 28, 28), torch.rand(8, 1, 28, 28))


# ---- any image: the same picture in every form -----------------------------------------------------

SIZE = 6
IMAGENET = ImageFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY_MOMENTS = ImageFormat((0.1307,), (0.3081,))


def picture(channels: int, seed: int = 0) -> Tensor:
    """A uint8 picture ``[C, 6, 6]`` with black and white in it."""
    values = torch.randint(0, 256, (channels, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    values[:, 0, 0], values[:, 0, 1] = 0, 255
    return values.to(torch.uint8)


def pil(image_uint8: Tensor) -> Image.Image:
    array = image_uint8.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if len(image_uint8) == 1 else array)


def with_alpha(image_uint8: Tensor) -> Image.Image:
    """Half of it is transparent."""
    image = pil(image_uint8)
    image.putalpha(Image.fromarray((np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2 * 255).astype(np.uint8)))
    return image


def palette(image_uint8: Tensor) -> Image.Image:
    """Mode P: each pixel has a colour of its own, and one of the colours is transparent."""
    pixels = image_uint8.flatten(1).T
    image = Image.fromarray(torch.arange(SIZE * SIZE).view(SIZE, SIZE).to(torch.uint8).numpy())
    image = image.convert("P")
    image.putpalette(pixels.expand(-1, 3).flatten().tolist())
    image.info["transparency"] = bytes([0, 255, 100])
    return image


def floats(image_uint8: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """In [0, 1]."""
    return (image_uint8.double() / 255).to(dtype)


def normalise(image_uint8: Tensor, moments: ImageFormat) -> Tensor:
    return v2.functional.normalize(floats(image_uint8), list(moments.mean), list(moments.std))


EXACT = {
    "PIL": pil,
    "PIL with alpha": with_alpha,
    "PIL palette": palette,
    "array HWC": lambda x: x.permute(1, 2, 0).numpy(),
    "array CHW": lambda x: x.numpy(),
    "array, negative strides": lambda x: x.flip(1, 2).numpy()[:, ::-1, ::-1],
    "tensor HWC": lambda x: x.permute(1, 2, 0),
    "tensor CHW": lambda x: x,
    "tv_tensor": tv_tensors.Image,
    "16-bit array": lambda x: x.numpy().astype(np.uint16) * 257,
    "16-bit array, big-endian": lambda x: (x.numpy().astype(np.uint16) * 257).astype(">u2"),
    "16-bit tensor": lambda x: torch.from_numpy(x.numpy().astype(np.uint16) * 257),
}
EXACT_GREY = {
    "PIL I;16": lambda x: Image.fromarray(x[0].numpy().astype(np.uint16) * 257),
    "PIL I;16B": lambda x: Image.frombytes("I;16B", (SIZE, SIZE), (x[0].numpy().astype(">u2") * 257).tobytes()),
    "PIL I": lambda x: Image.fromarray(x[0].numpy().astype(np.int32) * 257),
    "PIL La": lambda x: pil(x).convert("LA").convert("La"),
    "array HW": lambda x: x[0].numpy(),
    "tensor HW": lambda x: x[0],
    "three channels": lambda x: x.expand(3, -1, -1),
    "PIL RGB": lambda x: pil(x).convert("RGB"),
}
EXACT_RGB = {
    "PIL CMYK": lambda x: pil(x).convert("CMYK"),
    "PIL RGBX": lambda x: pil(x).convert("RGBX"),
    "PIL RGBa": lambda x: pil(x).convert("RGBA").convert("RGBa"),
}
CLOSE = {
    "[0, 1]": (UNIT, floats),
    "[0, 1] HWC": (UNIT, lambda x: floats(x).permute(1, 2, 0)),
    "[0, 1] double": (UNIT, lambda x: floats(x, torch.float64).numpy()),
    "[-1, 1]": (SIGNED, from_uint8),
    "[-1, 1] double": (SIGNED, lambda x: floats(x, torch.float64) * 2 - 1),
}
CLOSE_GREY = {
    "PIL F": (UNIT, lambda x: Image.fromarray(floats(x)[0].numpy())),
    "normalised": (GREY_MOMENTS, lambda x: normalise(x, GREY_MOMENTS)),
    "normalised as RGB": (IMAGENET, lambda x: normalise(x.expand(3, -1, -1), IMAGENET)),
}
CLOSE_RGB = {"ImageNet": (IMAGENET, lambda x: normalise(x, IMAGENET))}


def cases(grey, colour):
    return [pytest.param(1, form, id=f"1-{name}") for name, form in grey.items()] + [
        pytest.param(3, form, id=f"3-{name}") for name, form in colour.items()
    ]


@pytest.mark.parametrize(("channels", "form"), cases({**EXACT, **EXACT_GREY}, {**EXACT, **EXACT_RGB}))
def test_the_same_integers_in_every_form_are_the_same_image(channels, form):
    image = picture(channels)
    format = detect_format([form(image)])
    assert format == ImageFormat()
    assert format.convert(form(image), (channels, SIZE, SIZE)).equal(from_uint8(image))


@pytest.mark.parametrize(("channels", "case"), cases({**CLOSE, **CLOSE_GREY}, {**CLOSE, **CLOSE_RGB}))
def test_the_same_floats_in_every_form_are_the_same_image(channels, case):
    format, form = case
    pictures = [picture(channels, seed) for seed in range(MIN_IMAGES)]
    given = {} if format in (UNIT, SIGNED) else {"mean": format.mean, "std": format.std}
    assert detect_format([form(image) for image in pictures], **given) == format
    for image in pictures:
        converted = format.convert(form(image), (channels, SIZE, SIZE))
        assert converted.dtype == torch.float32
        torch.testing.assert_close(converted, from_uint8(image), rtol=0, atol=1e-6)


def test_images_in_the_generators_range_stay_as_they_are_to_the_bit():
    image = from_uint8(picture(3))
    assert SIGNED.convert(image, (3, SIZE, SIZE)).equal(image)


def test_half_precision():
    for dtype, close in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        converted = UNIT.convert(floats(picture(3), dtype), (3, SIZE, SIZE))
        torch.testing.assert_close(converted, from_uint8(picture(3)), rtol=0, atol=close)


def test_black_and_white():
    bits = picture(1) > 127
    for form in (bits, bits.numpy(), Image.fromarray(bits[0].numpy()), pil(bits.to(torch.uint8) * 255)):
        assert ImageFormat().convert(form, (1, SIZE, SIZE)).equal(bits.float() * 2 - 1)
    assert Image.fromarray(bits[0].numpy()).mode == "1"


@pytest.mark.parametrize("form", [pil, with_alpha, palette, lambda x: x, lambda x: x[0].numpy()])
def test_a_grey_image_is_repeated_for_an_rgb_generator(form):
    converted = ImageFormat().convert(form(picture(1)), (3, SIZE, SIZE))
    assert converted.equal(from_uint8(picture(1)).repeat(3, 1, 1))


@pytest.mark.parametrize("form", [pil, with_alpha, palette, lambda x: x])
def test_a_grey_generator_takes_no_colours(form):
    with pytest.raises(ValueError, match=r"size \[1, 6, 6\]: got \[3, 6, 6\] with colours.* e.g. v2.Grayscale\(\)$"):
        ImageFormat().convert(form(picture(3)), (1, SIZE, SIZE))
    ImageFormat().convert(v2.Grayscale()(pil(picture(3))), (1, SIZE, SIZE))
    nearly = picture(1).repeat(3, 1, 1)
    nearly[1, 2, 3] ^= 1
    with pytest.raises(ValueError, match="with colours"):
        ImageFormat().convert(nearly, (1, SIZE, SIZE))


def test_alpha_is_dropped_as_torchvisions_loader_drops_it(tmp_path):
    for name, image in (("rgba.png", with_alpha(picture(3))), ("p.png", palette(picture(3)).convert("RGBA"))):
        image.save(tmp_path / name)
        assert pixel_values(Image.open(tmp_path / name)).equal(pixel_values(default_loader(tmp_path / name)))
        assert pixel_values(image).equal(picture(3))


def test_the_first_axis_is_the_channels_where_both_may_be():
    image = torch.randint(0, 256, (3, SIZE, 3)).to(torch.uint8)
    assert pixel_values(image).equal(image)
    assert pixel_values(image[:1]).shape == (1, SIZE, 3)
    assert pixel_values(image[:2]).equal(image[:2].permute(2, 0, 1))  # two rows are no channels
    assert pixel_values(image[:2], img_channels=2).equal(image[:2])


RESIZE = "; resize them in the data set, e.g. v2.Resize((32, 32))"


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (torch.zeros(1, 28, 28), 32, f"size [1, 32, 32]: got [1, 28, 28]{RESIZE}, or v2.Pad(2)"),
        (torch.zeros(28, 28, 1), 32, f"got [1, 28, 28]{RESIZE}, or v2.Pad(2)"),
        (torch.zeros(1, 8, 8), 32, f"got [1, 8, 8]{RESIZE}"),
        (torch.zeros(1, 27, 27), 32, f"got [1, 27, 27]{RESIZE}"),
        (torch.zeros(1, 40, 40), 32, f"got [1, 40, 40]{RESIZE}"),
        (torch.zeros(1, 32, 40), 32, "[1, 32, 40]; resize them in the data set, e.g. v2.Resize(32) and v2.CenterC"),
    ],
)
def test_another_size_says_how_to_mend_it(image, size, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        SIGNED.convert(image, (1, size, size))
    assert ("v2.Pad" in str(error.value)) == (28 in image.shape)
    transform = v2.Compose(eval(f"[{str(error.value).split('e.g. ')[1].split(', or')[0].replace(' and ', ', ')}]"))
    assert SIGNED.convert(transform(pixel_values(image)), (1, size, size)).shape == (1, size, size)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, SIZE, SIZE), r"channels, without alpha \(image\[..., :3\] of RGBA\): got \[4, 6, 6\]"),
        (np.zeros((SIZE, SIZE, 2), np.uint8), r"or \[H, W, C\] with 1 or 3 channels: got \[6, 6, 2\]"),
        (torch.zeros(1, 1, SIZE, SIZE), r"got \[1, 1, 6, 6\]"),
        (torch.zeros(SIZE), r"got \[6\]"),
        (torch.zeros(3, 0, 0), r"got \[3, 0, 0\]"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "mode I needs 16 bits: got values from 70000 to 70000"),
        (torch.full((1, SIZE, SIZE), torch.nan), "finite numbers: got NaN or infinity"),
        (torch.full((1, SIZE, SIZE), -torch.inf), "finite numbers: got NaN or infinity"),
        (torch.full((1, SIZE, SIZE), 1.1), r"values from 1.1 to 1.1: this data set's are in \[-1, 1\]"),
    ],
)  # fmt: skip
def test_a_bad_image(image, message):
    with pytest.raises(ValueError, match=message):
        SIGNED.convert(image, (1, SIZE, SIZE))


@pytest.mark.parametrize(
    "image",
    [
        None,
        "a.png",
        [[0, 1], [2, 3]],
        torch.zeros(1, 6, 6).long(),
        np.zeros((6, 6), np.int32),
        torch.zeros(1, 6, 6, dtype=torch.complex64),
        np.array([[None]]),
    ],
    ids=repr,
)
def test_what_is_no_image(image):
    with pytest.raises(TypeError, match=r"an image needs (to be a PIL image|uint8, uint16 or float)|can't convert"):
        pixel_values(image)


def test_a_generator_of_other_channels():
    image = picture(4)
    assert ImageFormat().convert(image.permute(1, 2, 0), (4, SIZE, SIZE)).equal(from_uint8(image))
    with pytest.raises(ValueError, match=r"size \[4, 6, 6\]: got \[3, 6, 6\]$"):
        ImageFormat().convert(picture(3), (4, SIZE, SIZE))


# ---- the range of a data set -----------------------------------------------------------------------


def test_sixteen_bits():
    assert from_uint16(torch.tensor([0, 65535]).to(torch.uint16)).tolist() == [-1, 1]
    everything = torch.arange(256)
    assert from_uint16((everything * 257).to(torch.uint16)).equal(from_uint8(everything.to(torch.uint8)))


@pytest.mark.parametrize("format", [ImageFormat(), UNIT, SIGNED, IMAGENET])
def test_a_format_survives_json(format):
    assert ImageFormat(**json.loads(json.dumps(format.to_dict()))) == format


@pytest.mark.parametrize("moments", [(0.5, 0.5), ([0.5], [0.5]), (torch.tensor([0.5]), np.array([0.5]))])
def test_one_number_is_for_every_channel(moments):
    format = detect_format([from_uint8(picture(3))], *moments)
    assert format == SIGNED
    assert format.convert(from_uint8(picture(3)), (3, SIZE, SIZE)).equal(from_uint8(picture(3)))


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("seed", range(20))
def test_the_range_of_float_images_is_noticed(n, seed):
    batch = images(n, seed=seed)
    assert detect_format(batch) == SIGNED
    assert detect_format(to_unit(batch)) == UNIT
    for convention in ("[0, 255]", "ImageNet", "the set's own"):
        with pytest.raises(ValueError, match=r"need to be in \[0, 1\] or \[-1, 1\]: got values from .*mean= and std="):
            detect_format(CONVENTIONS[convention](batch))


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(MIN_IMAGES - 1, 1, 6, 6),
        torch.zeros(16, 1, 6, 6),
        torch.full((16, 1, 6, 6), -1.0),
        torch.rand(16, 1, 6, 6) / 255,  # divided by 255 twice
        torch.rand(16, 1, 6, 6) / 255 * 2 - 1,
        torch.rand(16, 1, 6, 6) * 0.6 + 0.4,
        torch.rand(16, 1, 6, 6) * 1.05 - 0.05,
    ],
    ids=["too few", "all 0", "all -1", "dark", "dark from -1", "bright", "a little below 0"],
)
def test_a_range_that_nobody_can_tell(batch):
    with pytest.raises(
        ValueError, match=r"may be in \[0, 1\] or in \[-1, 1\]: got .* in \d+ images; pass mean=0, std=1"
    ):
        detect_format(batch)
    assert detect_format(batch.abs(), mean=0, std=1) == UNIT
    assert detect_format(batch, mean=0.5, std=0.5) == SIGNED


def test_one_image_in_minus_one_to_one_is_enough():
    assert detect_format(images(1)) == SIGNED


def test_a_resize_that_goes_below_zero_is_not_taken_for_minus_one():
    """Bicubic weights overshoot: few values of images in [0, 1] are negative."""
    noise = (torch.rand(64, 1, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.5).float() * 0.7
    resized = v2.functional.resize(noise, [32, 32], interpolation=v2.InterpolationMode.BICUBIC)
    assert -0.2 < resized.min() < -0.1
    with pytest.raises(ValueError, match="pass mean=0, std=1"):
        detect_format(resized)
    assert detect_format(resized.clamp(0, 1)) == UNIT


def test_a_few_bad_images_do_not_decide():
    batch = to_unit(images(16))
    bad = [torch.full((3, 4, 4), torch.nan), torch.full((3, 4, 4), 300.0), "broken", np.zeros((2, 2, 2, 2))]
    assert detect_format([*bad, *batch]) == UNIT
    assert detect_format([*bad, *(batch * 2 - 1)]) == SIGNED
    assert detect_format([*bad, *imagenet(images(16))], IMAGENET.mean, IMAGENET.std) == IMAGENET
    with pytest.raises(ValueError, match=r"need to be in \[0, 1\] or \[-1, 1\]"):
        detect_format([*batch[:7], *imagenet(images(8))])
    with pytest.raises(ValueError, match="finite numbers"):
        detect_format(bad[:1])
    with pytest.raises(TypeError, match="got 'broken'"):
        detect_format(bad[2:])


def test_mean_and_std_have_to_fit():
    batch = images(8)
    with pytest.raises(
        ValueError, match=r"do not fit: x \* std \+ mean needs to be in \[0, 1\], and goes from -\d.* to \d"
    ):
        detect_format(batch * 5, IMAGENET.mean, IMAGENET.std)
    with pytest.raises(ValueError, match="these are integers: leave mean and std out"):
        detect_format([picture(3)], 0.5, 0.5)
    for moments in (
        (0.5, None),
        (None, 0.5),
        (0.5, 0.0),
        (0.5, -1),
        ([0.5], [0.5, 0.5]),
        (torch.nan, 1),
        (0, torch.inf),
    ):
        with pytest.raises(ValueError, match="as many finite numbers, std above 0: got"):
            detect_format(batch, *moments)
    with pytest.raises(ValueError, match="have 3 numbers for an image of 1 channels"):
        detect_format(batch[:, :1], IMAGENET.mean, IMAGENET.std)


@pytest.mark.parametrize("white", [1, 16, 17, 0])
def test_eight_bits_that_were_not_scaled_are_told(white):
    values = (picture(1).double() / 255 * white).round().to(torch.uint8)
    said = pytest.warns(UserWarning, match=f"8-bit images whose largest value is {white} are nearly black")
    with said if white in (1, 16) else nullcontext():
        assert detect_format([values]) == ImageFormat()


def test_sixteen_bits_that_are_eight():
    with pytest.raises(ValueError, match="16-bit images end at 65535, and these at 255: give 8-bit values as uint8"):
        detect_format([picture(1).numpy().astype(np.uint16)])
    assert detect_format([np.zeros((6, 6), np.uint16)]) == ImageFormat()


@pytest.mark.parametrize("form", [lambda x: x, torch.from_numpy, lambda x: Image.fromarray(x[0])])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_bit_depth_of_images_in_uint16_is_told_by_the_first_of_them(bits, form):
    """Black and white are the ends of their own range; fewer bits than 16 are said once."""
    values = (picture(1).numpy().astype(np.float64) / 255 * (2**bits - 1)).round().astype(np.uint16)
    said = pytest.warns(UserWarning, match=f"are read as {bits} bits, white is {2**bits - 1}")
    with nullcontext() if bits == 16 else said:
        format = detect_format([form(values), form(values // 2)])
    assert format.bits == bits
    assert ImageFormat(**json.loads(json.dumps(format.to_dict()))) == format
    converted = format.convert(form(values), (1, SIZE, SIZE))
    torch.testing.assert_close(converted, from_uint8(picture(1)), rtol=0, atol=4 / 2**bits)
    assert (converted.min(), converted.max()) == (-1, 1)
    assert format.convert(picture(1), (1, SIZE, SIZE)).equal(from_uint8(picture(1)))  # 8 bits say it themselves
    if bits < 16:
        with pytest.raises(ValueError, match=f"from 0 to 65535: the first images of this data set had {bits} bits"):
            format.convert(picture(1).numpy().astype(np.uint16) * 257, (1, SIZE, SIZE))


FILES = {
    "8 bits.png": lambda x: x,
    "16 bits.png": lambda x: x.astype(np.uint16) * 257,
    "16 bits.tif": lambda x: x.astype(np.uint16) * 257,
    "float.tif": lambda x: x.astype(np.float32) / 255,
    "32 bits.tif": lambda x: x.astype(np.int32) * 257,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_its_bit_depth(tmp_path, name):
    """ImageFolder with our loader gives the same image for all of them; with its own it is refused beyond 8 bits."""
    folder = tmp_path / "class"
    folder.mkdir()
    for index in range(MIN_IMAGES):
        Image.fromarray(FILES[name](picture(1, index)[0].numpy())).save(folder / f"{index} {name}")
    images = [image for image, _ in ImageFolder(str(tmp_path), loader=open_image)]
    format = detect_format(images)
    for index, image in enumerate(images):
        torch.testing.assert_close(
            format.convert(image, (1, SIZE, SIZE)), from_uint8(picture(1, index)), rtol=0, atol=1e-6
        )
    spoiling = ImageFolder(str(tmp_path))
    check_loader(ImageFolder(str(tmp_path), loader=open_image), 0)
    for dataset in (spoiling, Subset(spoiling, [3])):
        refused = pytest.raises(ValueError, match=r"pass loader=latent_mixup.images.open_image")
        with nullcontext() if name.startswith("8") else refused:
            check_loader(dataset, 0)


def test_a_later_image_of_another_range_is_no_image_of_this_data_set():
    unit = detect_format(to_unit(images(8)))
    for values in (images(1)[0], to_unit(images(1)[0]) * 255):
        with pytest.raises(ValueError, match=r"values from .*: this data set's are in \[0, 1\]; clamp them there"):
            unit.convert(values, (3, 16, 16))
    with pytest.raises(ValueError, match=r"x \* std \+ mean needs to be in \[0, 1\] with mean=\(0.485"):
        IMAGENET.convert(imagenet(images(1))[0] * 2, (3, 16, 16))
    with pytest.raises(ValueError, match="a float image in a data set of integers"):
        ImageFormat().convert(images(1)[0], (3, 16, 16))
    assert unit.convert(picture(3), (3, SIZE, SIZE)).equal(
        from_uint8(picture(3))
    )  # integers say their range themselves


# --- folders


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".PNG"):
            Image.new("L", (4, 4), len(path.stem)).save(path, format="PNG")
        else:
            path.touch()
    return folder


def test_a_folder_per_class_has_labels_and_images_alone_have_none(tmp_path):
    classes = open_folder(write(tmp_path / "classes", "dog/b.png", "cat/a.png", "cat/c.png", "README", ".DS_Store"))
    assert (classes.classes, [label for _, label in classes]) == (["cat", "dog"], [0, 0, 1])
    flat = open_folder(str(write(tmp_path / "flat", "bb.png", "Ccc.PNG", "a.png", "labels.csv", ".DS_Store")))
    assert [path.name for path in flat.paths] == ["Ccc.PNG", "a.png", "bb.png"]  # on Windows as well
    samples = [flat[index] for index in range(len(flat))]
    assert [(image.getpixel((0, 0)), label) for image, label in samples] == [(3, -1), (1, -1), (2, -1)]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ((), FileNotFoundError, "has nothing: expected images, or a folder of images per class"),
        (("a.txt", "b.txt"), FileNotFoundError, r"has other files alone \(2: a.txt, b.txt\)"),
        (("cat/a.txt", "dog/a.png"), FileNotFoundError, "no valid file for the classes cat"),
        (
            ("a.png", "b.png", "cat/c.png"),
            ValueError,
            r"has images \(2: a.png, b.png\) and folders \(1: cat\): expected",
        ),
        (("a.png", "._a.png"), ValueError, r"1 in all, such as '\._a\.png', .*: remove"),
        (("cat/a.png", ".git/config"), ValueError, r"1 in all, such as '\.git'"),
        (("cat/a.png", "cat/.thumbs/a.png", "cat/._a.png"), ValueError, r"2 in all, such as 'cat[/\\]+\.[_t]"),
    ],
)
def test_a_folder_that_is_no_data_set_says_what_is_there(tmp_path, names, error, message):
    with pytest.raises(error, match=message):
        open_folder(write(tmp_path, *names))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none is not there"):
        open_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file"):
        open_folder(write(tmp_path, "a.png") / "a.png")
