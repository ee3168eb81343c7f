import math
import random

import numpy as np
import pytest
import torch

from latent_mixup import sampling
from latent_mixup.bank import LatentBank
from latent_mixup.policies import Beta, Policy, Rows
from latent_mixup.sampling import draw_lam, draw_slots, keyed_generator

N = 20_000
KEYS = [
    (),
    (0,),
    (0, 0),
    (1, 0),
    (0, 1),
    (-1,),
    (2**64 - 1,),
    (2**70,),
    (10**30, -(10**30)),
    (12, 3),
    (1, 23),
]


def rows_of(num_rows):
    return Rows(LatentBank(torch.zeros(num_rows, 2), torch.zeros(num_rows, dtype=torch.int64)))


def mixes(batch_size=64, rows=None, key=(0,), alpha=1.0, prob=1.0):
    return Policy(Beta(alpha)).draw_batch(batch_size, prob, rows or rows_of(50), keyed_generator("test", *key))


# ---- keys ------------------------------------------------------------------------------------------


def test_a_key_names_one_stream():
    streams = [tuple(torch.rand(4, generator=keyed_generator("test", *key)).tolist()) for key in KEYS]
    again = [tuple(torch.rand(4, generator=keyed_generator("test", *key)).tolist()) for key in KEYS]
    assert streams == again
    assert len(set(streams)) == len(KEYS)


def test_numpy_integers_are_integers():
    assert keyed_generator("test", np.int64(3)).initial_seed() == keyed_generator("test", 3).initial_seed()


def test_neighbouring_keys_are_unrelated():
    first = torch.stack([torch.rand((), generator=keyed_generator("test", 7, i)) for i in range(4000)])
    assert abs(float(first.mean()) - 0.5) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1])) < 0.06


def test_global_random_state_is_untouched():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    mixes()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_a_default_device_does_not_matter():
    rows = rows_of(50)
    expected = mixes(rows=rows)
    with torch.device("meta"):
        draw = mixes(rows=rows)
    assert torch.equal(draw.lam, expected.lam)


# ---- lam -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e3])
def test_lam_has_the_moments_of_beta(alpha):
    lam = draw_lam(N, alpha, keyed_generator("test", 0)).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert lam.min() >= 0
    assert lam.max() <= 1
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / N)
    assert abs(lam.var() / variance - 1) < 0.05


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 10.0, 1e3])
def test_lam_is_distributed_as_beta(alpha):
    ours = draw_lam(N, alpha, keyed_generator("test", 1)).sort().values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torch.distributions.Beta(alpha, alpha).sample((N,)).sort().values
    grid = torch.linspace(1e-3, 1 - 1e-3, 999)  # torch keeps its own away from 1
    at = [torch.searchsorted(values, grid, right=True) / N for values in (ours, theirs)]
    assert (at[0] - at[1]).abs().max() < 1.95 * math.sqrt(2 / N)  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_lam_is_symmetric(alpha):
    lam = draw_lam(N, alpha, keyed_generator("test", 2))
    at = torch.linspace(0.01, 0.99, 41)
    below = torch.stack([(lam <= x).float().mean() for x in at])
    above = torch.stack([(1 - lam <= x).float().mean() for x in at])
    assert (below - above).abs().max() < 0.02


@pytest.mark.parametrize("alpha", [1e-30, 1e-6, 1e12, 1e300])
def test_extreme_alpha_stays_finite(alpha):
    lam = draw_lam(1000, alpha, keyed_generator("test", 0))
    assert lam.isfinite().all()
    at_the_ends = ((lam < 1e-3) | (lam > 1 - 1e-3)).float().mean()
    assert at_the_ends == (1.0 if alpha < 1 else 0.0)


def test_one_lam_for_the_batch():
    lam = draw_lam(5, 1.0, keyed_generator("test", 0), mode="batch")
    assert torch.equal(lam, lam[:1].expand(5))
    assert len(draw_lam(5, 1.0, keyed_generator("test", 0)).tolist()) == len(
        set(draw_lam(5, 1.0, keyed_generator("test", 0)).tolist())
    )


@pytest.mark.parametrize("mode", ["elem", "batch"])
def test_no_lam_at_all(mode):
    assert draw_lam(0, 1.0, keyed_generator("test", 0), mode).shape == (0,)


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha needs to be above 0 and finite: got {alpha}"):
        draw_lam(3, alpha, keyed_generator("test", 0))


# ---- a batch ---------------------------------------------------------------------------------------


def test_everything_is_replaced():
    draw = mixes(prob=1.0)
    assert torch.equal(draw.slots, torch.arange(64))
    assert draw.rows.dtype == draw.partners.dtype == torch.int64
    assert draw.lam.dtype == torch.float32


def test_nothing_is_replaced():
    draw = mixes(prob=0.0)
    assert [len(part) for part in (draw.slots, draw.rows, draw.partners, draw.lam)] == [0, 0, 0, 0]


def test_slots_are_distinct_and_sorted():
    draw = mixes(prob=0.5)
    assert len(draw.slots) == 32
    assert (draw.slots.diff() > 0).all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_mean_share_is_prob(batch_size):
    share = [len(draw_slots(batch_size, 0.3, keyed_generator("test", i))) / batch_size for i in range(1500)]
    assert abs(sum(share) / len(share) - 0.3) < 0.04


def test_each_slot_is_as_likely():
    counts = torch.zeros(5)
    for i in range(1000):
        counts[draw_slots(5, 0.4, keyed_generator("test", i))] += 1
    assert (counts / 1000 - 0.4).abs().max() < 0.07


SHARES = torch.tensor([0.25, 0.0, 0.7, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_each_sample_has_its_share(batch_size):
    n = 3000
    counts, shares = torch.zeros(batch_size), SHARES[torch.arange(batch_size) % 4]
    for i in range(n):
        slots = draw_slots(batch_size, shares, keyed_generator("test", i))
        counts[slots] += 1
        assert abs(len(slots) - float(shares.sum())) < 1
        for share in SHARES:
            among = shares == share
            assert abs(int(among[slots].sum()) - float(share * among.sum())) < 1
    assert ((counts / n - shares).abs() <= 4.5 * (shares * (1 - shares) / n).sqrt()).all()  # four: once in 16,000


def test_samples_of_one_share_are_drawn_as_pairs_of_any_places():
    pairs = torch.zeros(4, 4)
    for i in range(3000):
        slots = draw_slots(4, torch.full((4,), 0.5, dtype=torch.float64), keyed_generator("test", i))
        pairs[slots[0], slots[1]] += 1
    assert (pairs.triu(1)[pairs.triu(1) > 0] / 3000 - 1 / 6).abs().max() < 0.03
    assert (pairs > 0).sum() == 6


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [0, 1, 5, 64])
def test_one_share_for_all_samples_is_the_number(batch_size, prob):
    for i in range(50):
        found, expected = (
            draw_slots(batch_size, share, keyed_generator("test", i))
            for share in (torch.full((batch_size,), prob, dtype=torch.float64), prob)
        )
        assert torch.equal(found, expected)


def test_a_share_of_one_is_all_beside_any_others():
    shares = torch.rand(999, generator=keyed_generator("test", 0), dtype=torch.float64)
    shares[::3] = 1
    for i in range(50):
        slots = draw_slots(999, shares, keyed_generator("test", i))
        assert torch.isin(torch.arange(0, 999, 3), slots).all()
        assert (slots.diff() > 0).all()


def test_rows_and_partners_are_uniform_and_independent():
    draw = mixes(N, rows_of(4))
    table = torch.zeros(4, 4).index_put((draw.rows, draw.partners), torch.tensor(1.0), accumulate=True)
    assert (table / N - 1 / 16).abs().max() < 0.01


@pytest.mark.parametrize("prob", [1.5, -0.1, math.nan])
def test_bad_prob(prob):
    with pytest.raises(ValueError, match=rf"prob needs to be in \[0, 1\]: got {prob}"):
        draw_slots(3, prob, keyed_generator("test", 0))


@pytest.mark.parametrize("mode", ["pair", None])
def test_bad_mode(mode):
    with pytest.raises(ValueError, match='mode needs to be "elem" or "batch"'):
        draw_lam(3, 1.0, keyed_generator("test", 0), mode)


def test_rank_from_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert sampling.default_rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert sampling.default_rank() == 3


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_looking_at_the_first_proposals_first_changes_nothing(monkeypatch, alpha, first):
    monkeypatch.setattr(sampling, "FIRST_PROPOSALS", sampling.NUM_PROPOSALS)
    expected = [draw_lam(n, alpha, keyed_generator("test", n)) for n in range(1, 70)]
    monkeypatch.setattr(sampling, "FIRST_PROPOSALS", first)
    for n, lam in enumerate(expected, 1):
        assert torch.equal(draw_lam(n, alpha, keyed_generator("test", n)), lam)


def test_the_purpose_is_part_of_the_name():
    one, two = (torch.rand(64, generator=keyed_generator(purpose, 7, 0)) for purpose in ("draws", "restart"))
    assert not (one == two).any()
