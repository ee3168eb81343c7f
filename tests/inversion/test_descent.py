"""L-BFGS and Adam for many rows at once, against one row at a time and against torch's; and a curvature learnt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latent_mixup.generators import wrap
from latent_mixup.inversion import pixel_mse
from latent_mixup.inversion.curvature import Curvature, learn_curvature
from latent_mixup.inversion.descent import LBFGS, Adam

ROWS, DIM = 6, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Float64, so that two ways of computing the same differ by little even after many steps."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BENDS = torch.logspace(0, 2, DIM, dtype=torch.float64)
AXES = torch.linalg.qr(normal(ROWS, DIM, DIM, seed=1)).Q
SOLUTIONS = normal(ROWS, DIM, seed=2)


def quadratic(x: Tensor, rows: Tensor) -> Tensor:
    """A bowl of condition number 100 for each row, with its own axes and lowest point."""
    along = torch.einsum("bde,be->bd", AXES[rows], x - SOLUTIONS[rows])
    return (BENDS * along.square()).sum(1) / 2 + 1


def rosenbrock(x: Tensor, rows: Tensor) -> Tensor:
    """Rosenbrock's curved valley, of another steepness in each row; lowest where all numbers are 1."""
    valley = (x[:, 1:] - x[:, :-1].square()).square().sum(1)
    return (10 + 20 * rows) * valley + (1 - x[:, :-1]).square().sum(1)


def fenced(x: Tensor, rows: Tensor) -> Tensor:
    """Not a number outside of (-1, 1), and lowest off the middle."""
    return -torch.log(1 - x.square()).sum(1) - x.sum(1) * (1 + rows) / 4


FUNCTIONS = {"quadratic": quadratic, "rosenbrock": rosenbrock, "fenced": fenced}
STARTS = {name: normal(ROWS, DIM) for name in FUNCTIONS}
STARTS["fenced"] = STARTS["fenced"].tanh()


def slopes_of(function, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_(True)
    losses = function(x, rows)
    (slopes,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), slopes


def follow(descent, function, rounds: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The points asked for, ``[rounds, B, D]``, and their losses, ``[rounds, B]``."""
    rows = torch.arange(ROWS) if rows is None else rows
    points, found = [], []
    for _ in range(rounds):
        points.append(descent.points().clone())
        losses, slopes = slopes_of(function, points[-1], rows)
        descent.tell(losses, slopes)
        found.append(losses)
    return torch.stack(points), torch.stack(found)


def make(kind: str, start: Tensor, lr: float = 0.3, **settings):
    if kind == "adam":
        return Adam(start, settings.get("steps", 30), lr, (0.9, 0.99))
    return LBFGS(start, lr, settings.get("tolerance", 1e-3), settings.get("curvature"))


# ---- L-BFGS ----------------------------------------------------------------------------------------


def lbfgs_one_row(function, row: int, start: Tensor, lr: float, rounds: int, flatten) -> Tensor:
    """L-BFGS of one row ``[D]``, written with loops: the points asked for, ``[rounds, D]``."""
    at, slope, step, length, scale = start, torch.zeros_like(start), torch.zeros_like(start), 1.0, 0.0
    accepted: list[float] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    points = []
    first = lr * math.sqrt(len(start))
    for _ in range(rounds):
        point = at + length * step
        points.append(point)
        (loss,), (new,) = slopes_of(function, point[None], torch.tensor([row]))
        promised = length * float(slope @ step)
        sane = math.isfinite(loss) and bool(new.isfinite().all())
        if sane and (not accepted or loss <= max(accepted[-4:]) + 1e-4 * promised):
            move, bend = point - at, new - slope
            if accepted and move @ bend > 1e-10 * move.norm() * bend.norm():
                pairs = [*pairs, (move, bend)][-10:]
                scale = float(move @ bend / (bend @ flatten(bend)))
            elif not accepted:
                scale = first / float(flatten(new).norm())
            accepted.append(float(loss))
            at, slope, length = point, new, 1.0
        elif sane:
            parabola = -promised / (2 * (float(loss) - accepted[-1] - promised))
            length *= min(max(parabola, 0.1), 0.5)
        else:
            length *= 0.1
        if length < 1e-3 and pairs:
            pairs, length, scale = [], 1.0, first / 10 / float(flatten(slope).norm())
        step, shares = slope, []
        for move, bend in reversed(pairs):
            shares.append(float(move @ step / (move @ bend)))
            step = step - shares[-1] * bend
        step = scale * flatten(step)
        for (move, bend), share in zip(pairs, reversed(shares), strict=True):
            step = step + (share - float(bend @ step / (move @ bend))) * move
        step = -step * min(1.0, 30 * first / max(float(step.norm()), 1e-30))
    return torch.stack(points)


@pytest.mark.parametrize("bent", [False, True], ids=["", "curvature"])
@pytest.mark.parametrize("lr", [0.03, 3.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lbfgs_is_one_row_at_a_time_with_loops(name, lr, bent):
    curvature = Curvature(torch.linalg.qr(normal(DIM, 2, seed=5)).Q.T, torch.tensor([9.0, 1.0], dtype=torch.float64))
    descent = LBFGS(STARTS[name], lr, 0.0, curvature if bent else None)
    points, _ = follow(descent, FUNCTIONS[name], 25)

    def flatten(slope: Tensor) -> Tensor:
        return torch.linalg.solve(matrix_of(curvature), slope) if bent else slope

    for row in range(0, ROWS, 2):
        slow = lbfgs_one_row(FUNCTIONS[name], row, STARTS[name][row], lr, 25, flatten)
        torch.testing.assert_close(points[:, row], slow, rtol=1e-6, atol=1e-6)


def test_lbfgs_finds_the_lowest_point_of_a_quadratic():
    descent = LBFGS(STARTS["quadratic"], 0.3, 0.0)
    follow(descent, quadratic, 60)
    torch.testing.assert_close(descent.points(), SOLUTIONS, rtol=0, atol=1e-6)


def test_lbfgs_follows_a_curved_valley():
    descent = LBFGS(STARTS["rosenbrock"], 0.3, 0.0)
    _, losses = follow(descent, rosenbrock, 150)
    assert (losses.amin(0) < 1e-10).sum() >= ROWS - 1  # a row may end in the valley's other, local, lowest point


def test_the_first_step_goes_down_the_slope_and_is_as_long_as_the_rate():
    descent = LBFGS(STARTS["quadratic"], 0.3, 0.0)
    points, _ = follow(descent, quadratic, 2)
    step, (_, slopes) = points[1] - points[0], slopes_of(quadratic, points[0], torch.arange(ROWS))
    torch.testing.assert_close(step.square().mean(1).sqrt(), torch.full((ROWS,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(torch.cosine_similarity(step, -slopes), torch.ones(ROWS, dtype=torch.float64))


def test_a_known_curvature_makes_of_an_ellipse_a_circle():
    """With the bowl's own curvature the first step points at its lowest point."""
    bends, axes = BENDS.flip(0), AXES[0].flip(0)
    descent = LBFGS(STARTS["quadratic"], 0.3, 0.0, Curvature(axes, bends / bends[-1] - 1))
    points, _ = follow(descent, quadratic, 2, rows=torch.zeros(ROWS, dtype=torch.int64))
    step, wanted = points[1] - points[0], SOLUTIONS[0] - points[0]
    torch.testing.assert_close(torch.cosine_similarity(step, wanted), torch.ones(ROWS, dtype=torch.float64))


@pytest.mark.parametrize("lr", [0.3, 30.0])
def test_a_row_comes_back_from_where_the_loss_is_no_number(lr):
    descent = LBFGS(STARTS["fenced"], lr, 0.0)
    _, losses = follow(descent, fenced, 60)
    _, slopes = slopes_of(fenced, descent.at, torch.arange(ROWS))
    assert losses.isnan().any() == (lr > 1)
    torch.testing.assert_close(slopes, torch.zeros_like(slopes), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_slope_that_is_not_finite_is_not_stepped_on(bad):
    """A finite loss with a broken gradient beyond a wall; the lowest place is in front of it."""
    descent = LBFGS(STARTS["quadratic"], 0.3, 0.0)
    wall = SOLUTIONS[:, 0] + 0.1
    met = False
    for _ in range(80):
        points = descent.points()
        losses, slopes = slopes_of(quadratic, points, torch.arange(ROWS))
        beyond = (points[:, 0] > wall) & (STARTS["quadratic"][:, 0] < wall)
        descent.tell(losses, torch.where(beyond[:, None], bad, slopes))
        met = met or bool(beyond.any())
    assert met
    torch.testing.assert_close(descent.at, SOLUTIONS, rtol=0, atol=1e-5)


def test_each_step_taken_is_below_the_worst_of_the_last_four():
    descent = LBFGS(STARTS["rosenbrock"], 3.0, 0.0)
    taken: list[list[float]] = [[] for _ in range(ROWS)]
    refused = climbed = 0
    for _ in range(80):
        before = descent.at.clone()
        points, losses = follow(descent, rosenbrock, 1)
        for row in range(ROWS):
            if taken[row] and descent.at[row].equal(before[row]):
                refused += 1
                continue
            assert descent.at[row].equal(points[0, row])
            if taken[row]:
                assert losses[0, row] < max(taken[row][-4:])
                climbed += bool(losses[0, row] > taken[row][-1])
            taken[row].append(float(losses[0, row]))
    assert refused > 5
    assert climbed > 5


def test_a_step_from_the_start_that_climbs_is_refused():
    """There is one loss to compare with by then, and the worst of it is not infinite."""
    descent = LBFGS(SOLUTIONS + 1e-3, 3.0, 0.0)
    follow(descent, quadratic, 2)
    assert descent.at.equal(SOLUTIONS + 1e-3)


def test_what_was_remembered_is_forgotten_where_it_leads_nowhere():
    """Four times a tenth of the step is not to be had: the next goes down the slope, a tenth as far as the first."""
    descent = LBFGS(STARTS["quadratic"], 0.3, 0.0)
    follow(descent, quadratic, 8)
    ways = []
    for _ in range(4):
        descent.tell(torch.full((ROWS,), torch.nan), torch.zeros(ROWS, DIM))
        step = descent.points() - descent.at
        ways.append(torch.cosine_similarity(step, -slopes_of(quadratic, descent.at, torch.arange(ROWS))[1]))
    assert all((way < 0.999).all() for way in ways[:3])
    torch.testing.assert_close(ways[3], torch.ones_like(ways[3]))
    torch.testing.assert_close(step.square().mean(1).sqrt(), torch.full_like(ways[3], 0.03))


def test_no_step_is_longer_than_thirty_first_ones():
    """A quadratic so flat that its lowest point is a thousand first steps away."""
    descent = LBFGS(torch.full((1, 4), 1000.0), lr=1.0, tolerance=0.0)
    seen, last = [], torch.full((1, 4), 1000.0)
    for _ in range(6):
        point = descent.points()
        seen.append(float((point - last).norm()) / 2)
        last = point
        descent.tell(1e-8 * point.square().sum(1), 2e-8 * point)
    assert max(seen) == pytest.approx(30, rel=1e-4)


def test_a_first_step_that_is_much_too_long_is_shortened_until_it_fits():
    """With nothing to forget there is no way out but shorter steps: here by a factor of a million."""
    start = SOLUTIONS + 1e-6 * normal(ROWS, DIM)
    descent = LBFGS(start, 3.0, 0.0)
    follow(descent, quadratic, 40)
    assert ((descent.at - SOLUTIONS).norm(dim=1) < 1e-3 * (start - SOLUTIONS).norm(dim=1)).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_settled_on_a_plateau(sign):
    """Of three rows one loses a share of 0.0005 in ten evaluations, one 0.005; the last is flat, but falls once."""
    descent = LBFGS(torch.zeros(3, DIM), 0.1, 1e-3)
    settled = []
    for i in range(25):
        shares = torch.tensor([5e-5 * i, 5e-4 * i, 0.1 * (i >= 5)])
        descent.tell(sign - shares, torch.ones(3, DIM))
        settled.append(descent.settled)
    found = torch.stack(settled).T.tolist()
    assert found[0] == [False] * 10 + [True] * 15
    assert found[1] == [False] * 25
    assert found[2] == [False] * 15 + [True] * 10


def test_with_no_tolerance_a_plateau_is_no_end():
    descent = LBFGS(torch.zeros(1, DIM), 0.1, 0.0)
    for _ in range(20):
        descent.tell(torch.ones(1), torch.ones(1, DIM))
        assert not descent.settled.any()


@pytest.mark.parametrize(
    ("loss", "slope"), [(torch.nan, 1.0), (torch.inf, 1.0), (1.0, torch.nan), (1.0, torch.inf), (1.0, 0.0), (0.0, 0.0)]
)
def test_a_row_that_cannot_leave_its_start_has_settled(loss, slope):
    descent = LBFGS(torch.zeros(2, DIM), 0.1, 1e-3)
    descent.tell(torch.tensor([loss, 1.0]), torch.stack([torch.full((DIM,), slope), torch.ones(DIM)]))
    assert descent.settled.tolist() == [True, False]
    assert descent.points().isfinite().all()


# ---- Adam ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.999), (0.0, 0.5)])
def test_adam_is_torchs_with_its_cosine(betas):
    ours, theirs = Adam(STARTS["rosenbrock"], 30, 0.1, betas), STARTS["rosenbrock"].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for _ in range(30):
        torch.testing.assert_close(ours.points(), theirs.detach(), rtol=1e-9, atol=1e-9)
        losses, slopes = slopes_of(rosenbrock, ours.points(), torch.arange(ROWS))
        assert not ours.settled.any()
        ours.tell(losses, slopes)
        theirs.grad = slopes
        optimizer.step()
        schedule.step()
    last = ours.points()
    torch.testing.assert_close(last, theirs.detach(), rtol=1e-9, atol=1e-9)
    assert not ours.settled.any()  # nobody has seen yet where the last step led
    ours.tell(*slopes_of(rosenbrock, last, torch.arange(ROWS)))
    assert ours.settled.all()


# ---- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_a_row_does_not_depend_on_the_others(kind, name):
    function, start = FUNCTIONS[name], STARTS[name]
    together, _ = follow(make(kind, start), function, 20)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled, _ = follow(make(kind, start[order]), function, 20, rows=order)
    torch.testing.assert_close(shuffled, together[:, order], rtol=1e-8, atol=1e-8, equal_nan=True)
    for row in (0, 3):
        alone, _ = follow(make(kind, start[row : row + 1]), function, 20, rows=torch.tensor([row]))
        torch.testing.assert_close(alone[:, 0], together[:, row], rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_a_row_that_enters_begins_anew_and_the_others_go_on(kind):
    entered, others = torch.tensor([4, 1]), torch.tensor([0, 2, 3, 5])
    whole, _ = follow(make(kind, STARTS["quadratic"]), quadratic, 30)
    descent, new = make(kind, STARTS["quadratic"]), normal(2, DIM, seed=9)
    follow(descent, quadratic, 12)
    descent.enter(entered, new)
    after, _ = follow(descent, quadratic, 18)
    assert after[:, others].equal(whole[12:, others])
    fresh, _ = follow(make(kind, new), quadratic, 18, rows=entered)
    torch.testing.assert_close(after[:, entered], fresh, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_a_row_that_enters_has_not_settled(kind):
    descent = make(kind, STARTS["quadratic"], steps=2, tolerance=10.0)
    follow(descent, quadratic, 12)
    assert descent.settled.all()
    descent.enter(torch.tensor([2]), normal(1, DIM))
    follow(descent, quadratic, 1)
    assert descent.settled.tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_the_rows_kept_go_on_as_if_nothing_had_happened(kind):
    kept = torch.tensor([5, 2, 3])
    whole, _ = follow(make(kind, STARTS["rosenbrock"]), rosenbrock, 30)
    descent = make(kind, STARTS["rosenbrock"])
    follow(descent, rosenbrock, 12)
    descent.keep(kept)
    after, _ = follow(descent, rosenbrock, 18, rows=kept)
    torch.testing.assert_close(after, whole[12:, kept], rtol=1e-8, atol=1e-8)
    assert descent.settled.shape == (3,)


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_the_start_that_was_given_is_not_written_to(kind):
    start = STARTS["quadratic"].clone()
    descent = make(kind, start)
    for _ in range(2):
        descent.enter(torch.tensor([0]), torch.zeros(1, DIM, dtype=torch.float64))
        follow(descent, quadratic, 3)
    assert start.equal(STARTS["quadratic"])


# ---- curvature -------------------------------------------------------------------------------------


def matrix_of(curvature: Curvature) -> Tensor:
    """D x D, in units of the floor."""
    directions = curvature.directions
    return torch.eye(directions.shape[1], dtype=directions.dtype) + directions.T * curvature.above @ directions


@pytest.mark.parametrize("k", [0, 3, 7])
def test_solve_is_the_inverse_of_the_matrix(k):
    curvature = Curvature(torch.linalg.qr(normal(7, 7)).Q[:k], normal(k, seed=1).square() * 100)
    x = normal(5, 7, seed=2)
    torch.testing.assert_close(curvature.solve(x), torch.linalg.solve(matrix_of(curvature), x.T).T)


MIXING = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3))).Q * torch.logspace(
    0, -1, 16
).unsqueeze(1)


def ill_conditioned(shape: tuple[int, ...] = (16,)):
    """Linear, from 16 normal numbers; the mean squared error of its pixels has condition number 100."""
    return wrap(lambda z: (z.flatten(1) @ MIXING).view(-1, 1, 4, 4), latent_shape=shape)


@pytest.mark.parametrize("shape", [(16,), (2, 8)])
def test_the_curvature_of_a_linear_generator_is_found(shape):
    """The mean squared error of P pixels has the second derivative 2 / P A A^T everywhere; a factor does not count."""
    found = matrix_of(learn_curvature(ill_conditioned(shape), pixel_mse, 4096, seed=0))
    wanted = 2 / 16 * MIXING @ MIXING.T
    root = torch.linalg.inv(torch.linalg.cholesky(wanted))
    ratios = torch.linalg.eigvalsh(root @ found @ root.T)
    assert ratios[-1] / ratios[0] < 1.2  # 1 where both are the same matrix up to a factor; 100 for the identity


def test_a_curvature_depends_on_its_seed_alone():
    before = torch.get_rng_state()
    first, again, other = (learn_curvature(ill_conditioned(), pixel_mse, 100, seed=seed) for seed in (4, 4, 5))
    assert first.directions.equal(again.directions)
    assert first.above.equal(again.above)
    assert not first.above.equal(other.above)
    assert torch.get_rng_state().equal(before)


def test_a_curvature_of_fewer_draws_than_numbers():
    curvature = learn_curvature(ill_conditioned(), pixel_mse, 5, seed=0)
    assert curvature.directions.shape == (5, 16)
    torch.testing.assert_close(curvature.directions @ curvature.directions.T, torch.eye(5), rtol=0, atol=1e-5)
    assert (curvature.above > 0).all()
    steep = curvature.directions[:1]
    torch.testing.assert_close(curvature.solve(steep), steep / 1000, rtol=0.01, atol=1e-5)
    flat = torch.linalg.svd(curvature.directions).Vh[5:]
    torch.testing.assert_close(curvature.solve(flat), flat)


def test_gradients_that_are_not_finite_tell_nothing():
    def loss(images, targets):
        return pixel_mse(images, targets) * torch.where(targets[:, 0, 0, 0] > 0, torch.nan, 1.0)

    found = matrix_of(learn_curvature(ill_conditioned(), loss, 2048, seed=0))
    whole = matrix_of(learn_curvature(ill_conditioned(), pixel_mse, 2048, seed=0))
    torch.testing.assert_close(found / found.trace(), whole / whole.trace(), rtol=0.2, atol=0.01)


@pytest.mark.parametrize("factor", [0.0, torch.nan])
def test_a_loss_that_says_nothing_has_no_curvature(factor):
    curvature = learn_curvature(ill_conditioned(), lambda x, y: pixel_mse(x, y) * factor, 100, seed=0)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert curvature.solve(x).equal(x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_curvature_is_learnt_where_no_gradients_are_kept(context):
    outside = learn_curvature(ill_conditioned(), pixel_mse, 70, seed=0)
    with context():
        inside = learn_curvature(ill_conditioned(), pixel_mse, 70, seed=0)
    assert inside.above.equal(outside.above)
    assert not inside.directions.is_inference()
    assert not inside.directions.requires_grad
