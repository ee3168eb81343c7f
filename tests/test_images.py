import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from latent_mixup.images import check_size, from_uint8, range_mismatch, to_uint8, to_unit


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
