import math

import pytest
import torch

from latent_mixup.interpolation import lerp, path_named, slerp

PATHS = [lerp, slerp]


def codes(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw), torch.randn(*shape, generator=draw)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(5, 16), (5, 8, 4), (5, 2, 3, 3)])
def test_endpoints_are_exact(path, shape):
    a, b = codes(*shape)
    assert torch.equal(path(a, b, torch.ones(5)), a)
    assert torch.equal(path(a, b, torch.zeros(5)), b)


@pytest.mark.parametrize("path", PATHS)
def test_swapping_the_codes_swaps_the_weights(path):
    a, b = codes(7, 32)
    lam = torch.linspace(0, 1, 7)
    torch.testing.assert_close(path(a, b, lam), path(b, a, 1 - lam))


@pytest.mark.parametrize("path", PATHS)
def test_each_code_has_its_own_weight(path):
    a, b = codes(4, 3, 8)
    lam = torch.tensor([0.1, 0.4, 0.7, 1.0])
    one_by_one = [path(a[i : i + 1], b[i : i + 1], lam[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(path(a, b, lam), torch.cat(one_by_one))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_stays(path, dtype):
    a, b = (code.to(dtype) for code in codes(3, 8))
    assert path(a, b, torch.full((3,), 0.3)).dtype == dtype


def test_slerp_of_perpendicular_codes_walks_the_circle():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    mixed = slerp(a, b, torch.tensor([1 / 3]))
    expected = 2 * torch.tensor([[math.cos(math.radians(60)), math.sin(math.radians(60))]])
    torch.testing.assert_close(mixed, expected)


def test_slerp_interpolates_the_norm_linearly():
    a, b = codes(6, 64)
    lam = torch.rand(6, generator=torch.Generator().manual_seed(1))
    norm = lam * a.norm(dim=1) + (1 - lam) * (3 * b).norm(dim=1)
    torch.testing.assert_close(slerp(a, 3 * b, lam).norm(dim=1), norm)


@pytest.mark.parametrize(
    "partner",
    [lambda a: a, lambda a: 2 * a, lambda a: -a, lambda a: 0 * a, lambda a: a + 1e-7, lambda a: a + 1e-4],
    ids=["same", "parallel", "antiparallel", "zero", "nearly the same", "close"],
)
def test_slerp_of_flat_codes_is_lerp_with_finite_gradients(partner):
    a = codes(4, 16)[0].requires_grad_(True)
    b = partner(a.detach()).requires_grad_(True)
    lam = torch.tensor([0.0, 0.25, 0.5, 1.0], requires_grad=True)
    mixed = slerp(a, b, lam)
    torch.testing.assert_close(mixed, lerp(a, b, lam), rtol=1e-4, atol=1e-5)
    mixed.sum().backward()
    for tensor in (a, b, lam):
        assert tensor.grad.isfinite().all()


def test_slerp_of_two_zero_codes_is_zero():
    zero = torch.zeros(2, 8, requires_grad=True)
    mixed = slerp(zero, zero, torch.tensor([0.3, 0.6]))
    mixed.sum().backward()
    assert torch.equal(mixed, torch.zeros(2, 8))
    assert zero.grad.isfinite().all()


def test_slerp_gradient():
    a, b = (code.double().requires_grad_(True) for code in codes(2, 5))
    lam = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(slerp, (a, b, lam))


@pytest.mark.parametrize("path", PATHS)
def test_errors_name_the_two_numbers(path):
    a, b = codes(8, 4)
    with pytest.raises(ValueError, match=r"lam needs one weight per code: got \[7\] for 8 codes"):
        path(a, b, torch.ones(7))
    with pytest.raises(ValueError, match=r"got \[8, 4\] and \[7, 4\]"):
        path(a, b[:7], torch.ones(8))


def test_path_named():
    assert path_named("lerp") is lerp
    assert path_named("slerp") is slerp
    with pytest.raises(ValueError, match=r'path needs to be "lerp" or "slerp": got \'nlerp\''):
        path_named("nlerp")


@pytest.mark.parametrize("degrees", [5.0, 30.0, 60.0, 120.0])
def test_slerp_turns_by_its_share_of_the_angle(degrees):
    angle = math.radians(degrees)
    own, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
    for lam in (0.25, 0.5, 0.75):
        turned = (1 - lam) * angle
        found = slerp(own.double(), other.double(), torch.tensor([lam]))
        expected = torch.tensor([[math.cos(turned), math.sin(turned)]], dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
