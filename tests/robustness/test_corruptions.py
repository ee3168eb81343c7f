"""C-style corruptions against slow, independent computations, and by their laws."""

from __future__ import annotations

import colorsys
import math
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from classifier import loader_of
from PIL import Image
from torch import Tensor, nn

from latent_mixup import robustness
from latent_mixup.robustness import accuracy, corruption_accuracy
from latent_mixup.robustness import corruption_names as names_for
from latent_mixup.robustness.corruptions import CORRUPTIONS

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
corrupt = partial(robustness.corrupt, bounds=(0, 1))
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def colours(n: int = 2, height: int = 9, width: int = 11, channels: int = 3) -> Tensor:
    """Random images in [0, 1] that hold black, white, grey and primary colours."""
    images = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(4))
    if channels == 3:
        corners = torch.tensor(
            [[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0, 0.2]]
        )
        images[0, :, 0, :7] = corners.T
    return images


def test_the_strengths_rise():
    """Each severity changes an image more than the one before; but for those whose strengths do not have that order."""
    smooth = nn.functional.interpolate(colours(4, 8, 8), (32, 32), mode="bicubic").clamp(0, 1)
    for name in names_for(3):
        change = [(corrupt(smooth, name, severity) - smooth).square().mean().item() for severity in range(1, 6)]
        if name == "saturate":
            assert change[0] < change[1]
            assert change[2] < change[3] < change[4]
        elif name == "pixelate":  # how the blocks fall on the image's own pixels decides as well
            assert max(change[:4]) < change[4]
        else:
            assert change == sorted(change), name
            assert len(set(change)) == 5, name


@pytest.mark.parametrize(
    ("channels", "name"), [(channels, name) for channels in (1, 3) for name in names_for(channels)]
)
def test_any_size_range_and_type_is_kept(channels, name):
    unit = colours(channels=channels)
    corrupted = corrupt(unit, name, 5, seed=1)
    assert (corrupted.shape, corrupted.dtype) == (unit.shape, unit.dtype)
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert not torch.equal(corrupted, unit)
    signed = corrupt((unit * 2 - 1).double(), name, 5, bounds=(-1, 1), seed=1)
    assert signed.dtype == torch.float64
    tolerance = 1e-2 if name in ("pixelate", "jpeg_compression", "shot_noise") else 1e-5
    assert ((signed.float() + 1) / 2 - corrupted).abs().median() < tolerance
    assert torch.equal(unit, colours(channels=channels))


@pytest.mark.parametrize("name", names_for(3))
def test_an_image_does_not_depend_on_its_batch(name):
    images = colours(6)
    whole = corrupt(images, name, 3, seed=2)
    part = corrupt(images[2:4], name, 3, seed=2, first_index=2)
    torch.testing.assert_close(part, whole[2:4], atol=1e-6, rtol=0)
    if name in NOISES:
        same = torch.stack([images[0]] * 2)
        draws = [corrupt(same, name, 3, seed=2), corrupt(same, name, 3, seed=3), corrupt(same, name, 4, seed=2)]
        assert not torch.equal(draws[0][0], draws[0][1])
        assert not torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


def test_draws_leave_the_random_state_as_it_was():
    state = torch.get_rng_state()
    for name in NOISES:
        corrupt(colours(), name, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("severity", range(1, 6))
def test_noises_have_their_moments(severity):
    """On grey of 0.5, whose noise is not clipped: 120,000 numbers."""
    grey = torch.full((40, 3, 32, 32), 0.5)

    def noise(name: str) -> Tensor:
        return corrupt(grey, name, severity, seed=5) - grey

    strength = {name: CORRUPTIONS[name].strengths[severity - 1] for name in NOISES}
    deviations = {
        "gaussian_noise": strength["gaussian_noise"],
        "speckle_noise": 0.5 * strength["speckle_noise"],
        "shot_noise": math.sqrt(0.5 / strength["shot_noise"]),
        "impulse_noise": 0.5 * math.sqrt(strength["impulse_noise"]),
    }
    for name, deviation in deviations.items():
        found = noise(name)
        assert found.std().item() == pytest.approx(deviation, rel=0.03), name
        assert found.mean().item() == pytest.approx(0, abs=4 * deviation / math.sqrt(found.numel())), name
        channels = found.transpose(0, 1).flatten(1)
        assert channels.corrcoef().fill_diagonal_(0).abs().max() < 0.05, name
    impulse = noise("impulse_noise")
    assert set(impulse.unique().tolist()) == {-0.5, 0.0, 0.5}
    photons = (noise("shot_noise") + 0.5) * strength["shot_noise"]
    torch.testing.assert_close(photons, photons.round(), atol=1e-3, rtol=0)


def test_published_strengths():
    """The noise of severities 1 to 5 that tells CIFAR-10-C from ImageNet-C, whose first is 0.08."""
    assert CORRUPTIONS["gaussian_noise"].strengths == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert all(len(corruption.strengths) == 5 for corruption in CORRUPTIONS.values())


def filtered_slowly(image: Tensor, weights: dict[tuple[int, int], float], outside: str) -> Tensor:
    """Each pixel as the weighted sum of its neighbours, one by one; ``image`` is ``[H, W]``."""

    def at(index: int, size: int) -> int:
        if outside == "edge":
            return min(max(index, 0), size - 1)
        return -index if index < 0 else 2 * (size - 1) - index if index >= size else index  # mirrored

    height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            result[y, x] = sum(w * image[at(y + dy, height), at(x + dx, width)] for (dy, dx), w in weights.items())
    return result


def gaussian_weights(sigma: float, reach: int) -> dict[tuple[int, int], float]:
    offsets = range(-reach, reach + 1)
    weights = {(dy, dx): math.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma)) for dy in offsets for dx in offsets}
    return {offset: weight / sum(weights.values()) for offset, weight in weights.items()}


@pytest.mark.parametrize(("severity", "sigma", "reach"), [(1, 0.4, 2), (3, 0.7, 3), (5, 1.0, 4)])
def test_gaussian_blur_is_a_weighted_sum_of_neighbours(severity, sigma, reach):
    image = colours(1, 6, 7, channels=1)
    expected = filtered_slowly(image[0, 0], gaussian_weights(sigma, reach), "edge")
    torch.testing.assert_close(corrupt(image, "gaussian_blur", severity)[0, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("severity", "radius", "softness"), [(1, 0.3, 0.4), (4, 1.0, 0.2), (5, 1.5, 0.1)])
def test_defocus_blur_is_a_softened_disk(severity, radius, softness):
    image = colours(1, 6, 7, channels=1)
    disk = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if dy * dy + dx * dx <= radius * radius]
    assert len(disk) == {0.3: 1, 1.0: 5, 1.5: 9}[radius]
    weights: dict[tuple[int, int], float] = {}
    for y, x in disk:
        for (dy, dx), weight in gaussian_weights(softness, 1).items():
            weights[y + dy, x + dx] = weights.get((y + dy, x + dx), 0) + weight / len(disk)
    assert sum(weights.values()) == pytest.approx(1)
    expected = filtered_slowly(image[0, 0], weights, "mirror")
    torch.testing.assert_close(corrupt(image, "defocus_blur", severity)[0, 0], expected, atol=1e-5, rtol=0)


def test_scipy_agrees_with_the_gaussian_blur():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = colours(1, 20, 17)[0]
    for severity, sigma in enumerate((0.4, 0.6, 0.7, 0.8, 1.0), start=1):
        expected = np.stack([ndimage.gaussian_filter(channel, sigma, mode="nearest") for channel in image.numpy()])
        found = corrupt(image[None], "gaussian_blur", severity)[0]
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=0)


def hsv_slowly(images: Tensor, change) -> Tensor:
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    n, _, height, width = images.shape
    return torch.tensor(changed).view(n, height, width, 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("severity", "more"), [(1, 0.05), (3, 0.15), (5, 0.3)])
def test_brightness_raises_the_value_of_hsv(severity, more):
    expected = hsv_slowly(colours(), lambda h, s, v: (h, s, min(v + more, 1)))
    torch.testing.assert_close(corrupt(colours(), "brightness", severity), expected, atol=1e-5, rtol=0)
    grey = colours(channels=1)
    torch.testing.assert_close(corrupt(grey, "brightness", severity), (grey + more).clamp(max=1))


@pytest.mark.parametrize(("severity", "factor", "shift"), [(1, 0.3, 0), (3, 1.5, 0), (4, 2, 0.1), (5, 2.5, 0.2)])
def test_saturate_changes_the_saturation_of_hsv(severity, factor, shift):
    expected = hsv_slowly(colours(), lambda h, s, v: (h, min(s * factor + shift, 1), v))
    torch.testing.assert_close(corrupt(colours(), "saturate", severity), expected, atol=1e-5, rtol=0)


def test_contrast_shrinks_around_the_mean_of_each_channel():
    images = colours()
    for severity, share in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), start=1):
        faded = corrupt(images, "contrast", severity)
        torch.testing.assert_close(faded.mean((2, 3)), images.mean((2, 3)))
        torch.testing.assert_close(faded.std((2, 3)), share * images.std((2, 3)))


def test_pixelate_keeps_fewer_pixels():
    side = 32
    ramp = torch.arange(side * side).view(1, 1, side, side) / (side * side)
    for severity, share in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), start=1):
        for images in (ramp, ramp.expand(1, 3, side, side)):
            blocky = corrupt(images, "pixelate", severity)[0, 0]
            assert len(blocky.unique(dim=0)) <= int(side * share)
            assert len(blocky.unique(dim=1).T) <= int(side * share)
            assert (blocky - ramp[0, 0]).abs().max() < 2 / side


@CHANNELS
def test_jpeg_is_what_a_file_of_that_quality_holds(channels):
    bytes_in = (colours(1, 16, 24, channels)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = BytesIO()
    Image.fromarray(bytes_in.squeeze(-1) if channels == 1 else bytes_in).save(file, "JPEG", quality=58)
    expected = np.asarray(Image.open(file)).reshape(16, 24, channels)
    found = corrupt(colours(1, 16, 24, channels), "jpeg_compression", 3)[0].permute(1, 2, 0) * 255
    assert np.array_equal(found.round().numpy(), expected)


class Brightest(nn.Module):
    """Class 0 where the left half is the brighter one, else 1."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.chunk(2, dim=3)
        return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], dim=1)


def test_accuracy_is_that_on_corrupted_images():
    images = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = Brightest()(images).argmax(1)

    def slowly(name: str, severity: int) -> float:
        return accuracy(Brightest(), [(corrupt(images, name, severity, bounds=(-1, 1), seed=4), labels)])

    expected = {name: [slowly(name, 5), slowly(name, 1)] for name in names_for(1)}
    assert min(map(min, expected.values())) < 1
    for size in (1, 7, 30):
        loader = loader_of((images, labels), size)
        found = corruption_accuracy(Brightest(), loader, bounds=(-1, 1), severities=(5, 1), seed=4)
        assert found == expected
    only = corruption_accuracy(Brightest(), loader, bounds=(-1, 1), names=["contrast"], max_images=10)
    assert only == {"contrast": [1.0] * 5}


@pytest.mark.parametrize(
    ("shape", "name", "severity", "message"),
    [
        ((1, 1, 8, 8), "saturate", 1, "no corruption 'saturate' for 1 channels: choose from gaussian_noise, "),
        ((1, 3, 8, 8), "fog", 1, "no corruption 'fog' for 3 channels: choose from .*jpeg_compression"),
        ((1, 3, 8, 8), "contrast", 0, "severity must be from 1 to 5: got 0"),
        ((1, 2, 8, 8), "contrast", 1, "corruptions need images of 1 or 3 channels: got 2"),
        ((1, 3, 2, 8), "contrast", 1, "corruptions need images of 3x3 pixels or more: got 2x8"),
    ],
)
def test_bad_corruptions_are_refused(shape, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(torch.zeros(shape), name, severity)
    loader = [(torch.zeros(shape), torch.zeros(1).long())]
    with pytest.raises(ValueError, match=message):
        corruption_accuracy(Brightest(), loader, bounds=(0, 1), names=[name], severities=[severity])


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match=r"images must keep to bounds=\(0, 1\): got values from -1 to 1"):
        corrupt(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 1, 4, 2), "contrast", 1)
    with pytest.raises(ValueError, match="at least one image: the loader gave none"):
        corruption_accuracy(Brightest(), [], bounds=(0, 1))
    with pytest.raises(ValueError, match="needs labels"):
        corruption_accuracy(Brightest(), torch.zeros(1, 1, 4, 4), bounds=(0, 1))
