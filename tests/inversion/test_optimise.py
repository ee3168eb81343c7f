"""The optimiser of codes: each image on its own in a batch that is kept full; best step, restarts, ends and errors."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from reference import invert_one_image
from torch import Tensor

from latent_mixup.generators import wrap
from latent_mixup.generators.base import Generator
from latent_mixup.inversion import optimise_codes, pixel_mse
from latent_mixup.inversion.curvature import learn_curvature

N = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FIRST, SECOND = normal(8, 24, seed=1) / 2, normal(24, 36, seed=2) / 4
STEEP = torch.linalg.qr(normal(16, 16, seed=3)).Q * torch.logspace(0, -2, 16)[:, None]


class Curved(Generator):
    """A small network that, unlike others, decodes float64 in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_shape, self.latent_space, self.preferred_path = (8,), "z", "slerp"
        self.img_channels, self.img_resolution = 1, 6

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        return ((latents @ FIRST.to(latents)).tanh() @ SECOND.to(latents)).view(-1, 1, 6, 6)

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError

    def mean_latent(self) -> Tensor:
        raise NotImplementedError


curved = Curved()
stretched = wrap(lambda z: (z @ STEEP).view(-1, 1, 4, 4), latent_shape=(16,))  # condition number of the MSE: 10,000
plain = wrap(lambda z: z.view(-1, 1, 4, 4), latent_shape=(16,))

CODES = normal(N, 8, seed=4)
TARGETS = curved.decode(CODES) + 0.1 * normal(N, 1, 6, 6, seed=6)  # no code decodes to them exactly
START = CODES + normal(N, 8, seed=5) / 2


class Counted:
    """A loss that counts how often it saw each image; a target says in its first pixel which one it is."""

    def __init__(self, n: int = N, loss=pixel_mse) -> None:
        self.seen, self.calls, self.loss = torch.zeros(n, dtype=torch.int64), 0, loss

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        self.seen[targets[:, 0, 0, 0].long()] += 1
        self.calls += 1
        return self.loss(images[..., 1:], targets[..., 1:])


def numbered(targets: Tensor) -> Tensor:
    targets = targets.clone()
    targets[:, 0, 0, 0] = torch.arange(len(targets))
    return targets


def loss_at(generator, codes: Tensor, targets: Tensor) -> Tensor:
    return pixel_mse(generator.decode(codes), targets)


def solve(targets: Tensor = TARGETS, start: Tensor = START, loss=pixel_mse, generator=curved, steps: int = 30, **how):
    return optimise_codes(generator, targets, start, loss, steps=steps, **how)


# ---- each image on its own -------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"restarts": 2}, {"optimizer": "adam"}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_an_images_code_does_not_depend_on_its_batch(batch_size, how):
    """In float64, where rounding stays small over all the steps; places are given to images that wait."""
    targets, start = TARGETS.double(), START.double()
    whole, losses = solve(targets, start, **how)
    codes, same_losses = solve(targets, start, batch_size=batch_size, **how)
    assert codes.dtype == losses.dtype == torch.float64
    torch.testing.assert_close(codes, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(same_losses, losses, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_nor_does_its_loss_in_float32_but_for_rounding(batch_size):
    """How far the rounding of a code's numbers grows hangs on the processor; at a minimum the loss hardly feels it."""
    (_, whole), (_, losses) = solve(), solve(batch_size=batch_size)
    torch.testing.assert_close(losses, whole, rtol=0.05, atol=1e-4)


def test_the_order_of_the_images_does_not_matter():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    targets, start = TARGETS.double(), START.double()
    (codes, losses), (shuffled, shuffled_losses) = (
        solve(*given, restarts=1, batch_size=6) for given in ((targets, start), (targets[order], start[order]))
    )
    torch.testing.assert_close(shuffled, codes[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled_losses, losses[order], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.1), (12, 0.05), (12, 3.0)])
def test_adam_is_one_image_at_a_time_with_its_best_step(steps, lr):
    targets, start = TARGETS.double(), START.double()  # in float32 rounding decides some numbers at a rate of 3
    codes, losses = solve(targets, start, steps=steps, lr=lr, optimizer="adam", batch_size=7)
    for row in range(N):
        best, loss = invert_one_image(curved.decode, targets[row], start[row], pixel_mse, steps, lr, (0.95, 0.999))
        torch.testing.assert_close(codes[row], best, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(losses[row], torch.tensor(loss).double(), rtol=1e-6, atol=1e-9)


def test_the_loss_is_the_codes_own():
    for steps in (0, 1, 5, 40):
        codes, losses = solve(steps=steps, lr=3.0)
        torch.testing.assert_close(losses, loss_at(curved, codes, TARGETS))
        assert (losses <= loss_at(curved, START, TARGETS)).all()
    assert (losses < loss_at(curved, CODES, TARGETS)).all()


def test_what_was_given_is_not_written_to():
    class Alias:
        def embed(self, targets):
            return targets[:], targets.flatten(1)  # views

        def compare(self, images, embedded):
            return pixel_mse(images, embedded[0]) + 0 * embedded[1].sum(1)

        __call__ = None

    targets, start = TARGETS.clone(), START.clone()
    codes, _ = solve(targets, start, Alias(), batch_size=5)
    assert targets.equal(TARGETS)
    assert start.equal(START)
    assert codes.equal(solve(batch_size=5)[0])


def test_codes_of_several_layers():
    class Layered(Curved):
        def __init__(self) -> None:
            super().__init__()
            self.latent_shape, self.latent_space = (2, 4), "w+"

        def decode(self, latents: Tensor) -> Tensor:
            self.check_latents(latents)
            return curved.decode(latents.flatten(1))

    codes, losses = solve(generator=Layered(), start=START.view(N, 2, 4), restarts=1, batch_size=7)
    flat, flat_losses = solve(restarts=1, batch_size=7)
    assert codes.equal(flat.view(N, 2, 4))
    assert losses.equal(flat_losses)


# ---- how many steps --------------------------------------------------------------------------------


def test_no_steps_keep_the_start_and_ask_for_no_slope():
    def loss(images, targets):
        assert not images.requires_grad
        return pixel_mse(images, targets)

    told: list[int] = []
    codes, losses = solve(steps=0, loss=loss, batch_size=7, advance=told.append)
    assert codes.equal(START)
    torch.testing.assert_close(losses, loss_at(curved, START, TARGETS))
    assert sum(told) == N


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_an_image_gets_its_steps_and_no_more(optimizer):
    """A loss at the start and one after each step; a batch that is kept full has not one call too many."""
    loss = Counted()
    solve(numbered(TARGETS), loss=loss, steps=9, tolerance=0.0, restarts=5, batch_size=4, optimizer=optimizer)
    assert loss.seen.tolist() == [10] * N
    assert loss.calls == 10 * N / 4


def test_places_that_are_left_go_to_images_that_wait():
    """Images end at different times; the calls are what a full batch needs, and no image is seen in another's end."""
    loss = Counted()
    solve(numbered(TARGETS), loss=loss, steps=200, restarts=2, batch_size=4)
    assert loss.seen.unique().numel() > 5
    assert (loss.seen <= 201).all()
    assert loss.calls < loss.seen.sum() / 4 + loss.seen.max()


def test_the_last_gradient_is_not_computed():
    slopes = []

    def loss(images, targets):
        slopes.append(images.requires_grad)
        return pixel_mse(images, targets)

    solve(loss=loss, steps=4, tolerance=0.0)
    assert slopes == [True] * 4 + [False]


def test_an_image_that_has_settled_is_done():
    """Before its steps are used up, with the loss that it has in the end up to about the tolerance."""
    short, long = Counted(), Counted()
    _, losses = solve(numbered(TARGETS), loss=short, steps=80)
    _, lowest = solve(numbered(TARGETS), loss=long, steps=80, tolerance=0.0)
    assert (short.seen < 80).all()
    assert (long.seen == 81).all()
    torch.testing.assert_close(losses, lowest, rtol=0.02, atol=0)


def test_an_image_at_its_target_is_done():
    start = loss_at(curved, START, TARGETS)
    target = float(start.median()) / 2
    loss = Counted(loss=lambda x, y: pixel_mse(x, y))
    _, losses = solve(numbered(TARGETS), loss=loss, target=target)
    _, best = solve(numbered(TARGETS), loss=Counted())
    assert (losses[best <= target] <= target).all()
    assert (losses[best <= target] > best[best <= target]).any()
    everything = Counted()
    solve(numbered(TARGETS), loss=everything, target=torch.inf)
    assert everything.seen.tolist() == [1] * N


def test_a_loss_below_zero_is_not_at_its_target():
    targets, start = TARGETS.double(), START.double()
    _, losses = solve(targets, start, loss=lambda x, y: pixel_mse(x, y) - 3, steps=20)
    _, above = solve(targets, start, steps=20)
    torch.testing.assert_close(losses, above - 3, rtol=0, atol=1e-2)
    assert (losses < loss_at(curved, start, targets) - 3).all()


@pytest.mark.parametrize("batch_size", [1, 7, N, 64])
def test_advance_counts_every_image_once(batch_size):
    told: list[int] = []
    solve(steps=13, batch_size=batch_size, tolerance=0.1, restarts=1, advance=told.append)
    assert sum(told) == N
    assert min(told) > 0


# ---- restarts --------------------------------------------------------------------------------------


def bumpy(images: Tensor, targets: Tensor) -> Tensor:
    """Lowest where they agree, with a place to get stuck in wherever one pixel is a whole number away."""
    away = (images - targets).flatten(1)
    return away.square().sum(1) + 5 * (1 - (2 * torch.pi * away[:, 0]).cos())


def test_restarts_find_lower_places_and_lose_none():
    targets = 3 * normal(N, 1, 4, 4)
    start = targets.flatten(1) + 0.1 * normal(N, 16, seed=2)
    start[:, 0] += torch.randint(-2, 3, (N,), generator=torch.Generator().manual_seed(1))
    found = [solve(targets, start, bumpy, plain, steps=200, restarts=n, seed=5)[1] for n in range(4)]
    for fewer, more in pairwise(found):
        assert (more <= fewer).all()
    assert (found[1] < 0.99 * found[0]).any()
    in_vain = found[1] == found[0]
    assert (found[2] < found[1])[in_vain].any()  # the second jump is another one than the first
    assert (found[3] < 0.95 * found[0]).sum() > N / 4
    assert not found[1].equal(solve(targets, start, bumpy, plain, steps=200, restarts=1, seed=6)[1])


def test_a_restart_begins_beside_the_best_code():
    """As far from it as its own numbers are spread, or somewhat less; the start is further away."""
    seen: list[Tensor] = []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return z.view(-1, 1, 4, 4)

    generator = wrap(watched, latent_shape=(16,))
    targets, start = 3 * normal(1, 1, 4, 4), 20 * normal(1, 16, seed=3)
    seen.clear()
    best, _ = solve(targets, start, bumpy, generator, steps=200)
    before = len(seen)
    solve(targets, start, bumpy, generator, steps=200, restarts=1)
    jump = (seen[2 * before] - best).norm() / (best - best.mean()).norm()
    assert 0.2 < jump < 0.7
    assert (best - start).norm() > 2 * (best - best.mean()).norm()


@pytest.mark.parametrize("size", [1, 2])
def test_restarts_of_codes_with_hardly_any_numbers(size):
    tiny = wrap(lambda z: z.sum(1).sin().view(-1, 1, 1, 1), latent_shape=(size,))
    codes, losses = solve(torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, size), generator=tiny, restarts=2)
    assert codes.isfinite().all()
    assert (losses < 1e-6).all()


# ---- losses ----------------------------------------------------------------------------------------


def test_each_target_is_embedded_once():
    class Embedding:
        def __init__(self):
            self.embedded: list[int] = []

        def __call__(self, images, targets):
            return self.compare(images, self.embed(targets))

        def embed(self, targets):
            assert len(targets)
            assert not torch.is_grad_enabled()
            self.embedded += targets[:, 0, 0, 0].long().tolist()
            return targets[..., 1:].flatten(1), torch.arange(len(targets))

        def compare(self, images, embedded):
            return (images[..., 1:].flatten(1) - embedded[0]).square().mean(1)

    loss = Embedding()
    codes, _ = solve(numbered(TARGETS), loss=loss, batch_size=7, restarts=1)
    assert loss.embedded == list(range(N))
    torch.testing.assert_close(codes, solve(numbered(TARGETS), loss=Counted(), batch_size=7, restarts=1)[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_an_image_without_a_finite_loss_keeps_its_start(optimizer, bad):
    def loss(images, targets):
        return pixel_mse(images, targets) * torch.where(targets[:, 0, 0, 0] == TARGETS[9, 0, 0, 1], bad, 1.0)

    how = {"optimizer": optimizer, "batch_size": 7, "restarts": 1}
    counted = Counted(loss=loss)
    codes, losses = solve(numbered(TARGETS), loss=counted, **how)
    assert counted.seen[9] == 1  # there is no way on from there
    assert losses[9] == torch.inf
    assert codes[9].equal(START[9])
    others = torch.arange(N) != 9
    wanted, _ = solve(numbered(TARGETS), loss=Counted(), **how)
    torch.testing.assert_close(codes[others], wanted[others], rtol=0, atol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_loss_that_breaks_later_keeps_the_best_step_before(optimizer, bad):
    calls = []

    def loss(images, targets):
        calls.append(len(images))
        return pixel_mse(images, targets) * (1 if len(calls) <= 4 else bad)

    codes, losses = solve(loss=loss, steps=9, optimizer=optimizer, restarts=1)
    assert codes.isfinite().all()
    torch.testing.assert_close(losses, loss_at(curved, codes, TARGETS))
    assert (losses < loss_at(curved, START, TARGETS)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_loss_of_another_precision(dtype):
    codes, losses = solve(loss=lambda x, y: pixel_mse(x, y).to(dtype), steps=10)
    assert codes.dtype == losses.dtype == torch.float32
    assert (losses < loss_at(curved, START, TARGETS)).all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_where_no_gradients_are_kept(context):
    with context():
        codes, losses = solve(TARGETS.clone(), START.clone(), restarts=1, batch_size=7)
    wanted, wanted_losses = solve(restarts=1, batch_size=7)
    torch.testing.assert_close(codes, wanted)
    torch.testing.assert_close(losses, wanted_losses)
    assert not codes.is_inference()


def test_a_start_that_needs_a_gradient_leaves_none_behind():
    codes, losses = solve(start=START.clone().requires_grad_(True), steps=3)
    assert not codes.requires_grad
    assert not losses.requires_grad


def test_no_images():
    class Unasked:
        def embed(self, targets):
            raise AssertionError

        compare = __call__ = embed

    codes, losses = solve(TARGETS[:0], START[:0], Unasked(), advance=lambda n: pytest.fail("nothing is done"))
    assert codes.shape == (0, 8)
    assert losses.shape == (0,)


# ---- how good --------------------------------------------------------------------------------------


def test_lbfgs_goes_further_than_adam_in_as_many_steps():
    targets, start = stretched.decode(normal(N, 16)), torch.zeros(N, 16)
    (_, ours), (_, adams) = (
        solve(targets, start, generator=stretched, steps=60, tolerance=0.0, optimizer=name)
        for name in ("lbfgs", "adam")
    )
    assert ours.median() < adams.median() / 10


def test_a_curvature_that_was_learnt_saves_steps():
    targets, start = stretched.decode(normal(N, 16)), torch.zeros(N, 16)
    curvature = learn_curvature(stretched, pixel_mse, 500, seed=0)
    (_, with_it), (_, without) = (
        solve(targets, start, generator=stretched, steps=15, curvature=known) for known in (curvature, None)
    )
    assert with_it.median() < without.median() / 10


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer needs one of lbfgs, adam: got 'sgd'"),
        ({"loss": lambda x, y: pixel_mse(x, y).mean()}, r"loss needs one number per image, \[12\]: got \[\]"),
        ({"loss": lambda x, y: pixel_mse(x, y)[:, None]}, r"one number per image, \[12\]: got \[12, 1\]"),
        ({"loss": lambda x, y: pixel_mse(x, y), "start": START[:1]}, "got 1 codes, 12 targets, batch_size=None"),
        ({"start": START[:7], "batch_size": 7}, "got 7 codes, 12 targets, batch_size=7"),
        ({"batch_size": 0}, "batch_size >= 1: got 12 codes, 12 targets, batch_size=0"),
        ({"loss": lambda x, y: pixel_mse(x.detach(), y)}, "the loss has no gradient: decode and loss need to be"),
        ({"start": normal(N, 9)}, r"latents need shape \[B, 8\]: got \[12, 9\]"),
    ],
)
def test_bad_arguments(how, message):
    with pytest.raises(ValueError, match=message):
        solve(**how)
