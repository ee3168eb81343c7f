"""``SameClass(nearest=k)``: what is found, how it is drawn, and what a draw costs."""

import pickle

import pytest
import torch
from reference import nearest_of_own_class

from latent_mixup.bank import LatentBank
from latent_mixup.policies import BankView, Nearest, Policy, SameClass, from_config, neighbours, to_config
from latent_mixup.sampling import keyed_generator

SIZES = [1, 2, 5, 40, 30]  # of the classes


def bank_of(sizes=SIZES, shape=(3, 2)):
    """Rows of classes of these sizes, in any order."""
    draw = keyed_generator("test", 0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=draw)]
    return LatentBank(torch.randn(len(labels), *shape, generator=draw), labels)


def partners_of(row, nearest, view, count=400):
    """Partners that a row is given, ``[count]``."""
    return SameClass(nearest).draw(torch.tensor([row]), count, view, keyed_generator("test", row))[0]


# ---- the neighbours --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(2048, 2**22), (7, 2**22), (2048, 11), (1, 1)])
@pytest.mark.parametrize("k", [1, 4, 29, 100])
def test_they_are_those_of_the_slow_reference(k, blocks, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", blocks[1])
    bank = bank_of()
    found, labels = BankView(bank).neighbours(k), bank.labels.tolist()
    for row in range(len(bank)):
        expected = nearest_of_own_class(bank[:][0], labels, row, k)
        assert found[row, : len(expected)].tolist() == expected


def test_codes_are_read_by_the_block(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 16)
    codes, read = torch.randn(100, 8, generator=keyed_generator("test", 0)), []

    def some(rows):
        read.append(len(rows))
        return codes[rows]

    rows = torch.arange(100)
    found = neighbours.nearest_rows(rows[:40], rows, 5, some)
    assert found.shape == (40, 5)
    assert max(read) == 16
    with monkeypatch.context() as whole:
        whole.setattr(neighbours, "BLOCK_ROWS", 100)
        assert torch.equal(neighbours.nearest_rows(rows[:40], rows, 5, some), found)


@pytest.mark.parametrize("k", [1, 4, 100])
def test_a_view_has_its_own(k):
    bank = bank_of()
    some = (torch.arange(len(bank)) % 3 > 0).nonzero()[:, 0]
    view, part = BankView(bank, some), bank.subset(some)
    for place, row in enumerate(some.tolist()):
        expected = some[nearest_of_own_class(part[:][0], part.labels.tolist(), place, k)]
        assert set(partners_of(row, k, view, 4000).tolist()) == set(expected.tolist())


def test_equal_codes_are_neighbours_and_the_row_itself_is_not():
    view = BankView(LatentBank(torch.ones(6, 4), [0, 0, 0, 0, 1, 1]))
    for row in range(6):
        partners = partners_of(row, 2, view)
        assert (view.classes[partners] == view.classes[row]).all()
        assert row not in partners.tolist()


def test_codes_far_from_zero_are_told_apart():
    codes = torch.tensor([[1.0], [2.0], [4.0], [8.0]]) / 64 + 4096  # a float32 square keeps no 64th there
    assert BankView(LatentBank(codes, [0] * 4)).neighbours(1)[:, 0].tolist() == [1, 0, 1, 2]


def test_of_a_large_class_some_rows_are_searched(monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_SEARCHED", 12)
    bank = bank_of([5, 60])
    found, large = BankView(bank).neighbours(4), bank.labels == 1
    searched = found[large].unique()
    assert 4 < len(searched) <= 12
    labels = torch.full((65,), -1).index_fill(0, searched.long(), 1)  # among those alone, and the row itself
    for row in large.nonzero()[:, 0].tolist():
        own = labels.index_fill(0, torch.tensor([row]), 1).tolist()
        nearest = nearest_of_own_class(bank[:][0], own, row, 4)
        assert found[row].tolist() == nearest
    assert torch.equal(BankView(bank).neighbours(4), found)
    small = (~large).nonzero()[:, 0]
    assert torch.equal(found[small].sort().values, torch.stack([small[small != row] for row in small]).int())


# ---- draws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nearest", [1, 3, 5])
def test_each_neighbour_is_as_likely(nearest):
    bank = bank_of()
    view, labels = BankView(bank), bank.labels.tolist()
    for row in range(0, len(bank), 5):
        expected = nearest_of_own_class(bank[:][0], labels, row, nearest)
        counts = torch.bincount(partners_of(row, nearest, view, 6000), minlength=len(bank))
        assert set(counts.nonzero()[:, 0].tolist()) == set(expected)
        mean = 6000 / len(expected)
        chi_square = float(((counts[expected] - mean) ** 2 / mean).sum())
        assert chi_square < 25  # of at most 4 degrees of freedom: once in 20,000 draws


def test_draws_of_some_rows_are_those_of_each():
    view = BankView(bank_of())
    rows = torch.arange(len(view))
    found = SameClass(3).draw(rows, 2, view, keyed_generator("test", 1))
    assert found.shape == (len(view), 2)
    assert found.dtype == torch.int64
    assert torch.equal(view.classes[found], view.classes[rows][:, None].expand(-1, 2))
    alone = view.class_counts[view.classes] == 1
    assert torch.equal((found == rows[:, None]).all(1), alone)


def test_they_are_nearer_than_the_best_of_some_drawn():
    view = BankView(bank_of([300, 300]))

    def distance(partners):
        draw = Policy(partners=partners).draw(2000, view, keyed_generator("test", 0))
        return float((view.codes(draw.rows) - view.codes(draw.partners)).flatten(1).norm(dim=1).mean())

    ways = [SameClass(1), SameClass(5), Nearest(16, SameClass()), SameClass(100), SameClass()]
    assert sorted(ways, key=distance) == ways


@pytest.mark.parametrize("partners", [SameClass(3), Nearest(2, SameClass(3))], ids=str)
def test_a_check_finds_them_and_no_copy_looks_again(partners, monkeypatch):
    view = BankView(bank_of())
    Policy(partners=partners).check(view)
    expected = partners.draw(torch.arange(20), 2, view, keyed_generator("test", 0))
    looks = []
    monkeypatch.setattr("latent_mixup.policies.partners.nearest_rows", lambda *_: looks.append(1))
    copy = pickle.loads(pickle.dumps(view))  # noqa: S301 - what a spawned worker gets
    for here in (view, copy):
        assert torch.equal(partners.draw(torch.arange(20), 2, here, keyed_generator("test", 0)), expected)
    assert not looks


def test_a_draw_reads_no_codes(monkeypatch):
    view = BankView(bank_of())
    Policy(partners=SameClass(3)).check(view)
    monkeypatch.setattr(LatentBank, "__getitem__", None)
    assert len(Policy(partners=SameClass(3)).draw(64, view, keyed_generator("test", 0))) == 64


def test_a_row_outside_of_the_view_is_an_error():
    view = BankView(bank_of(), torch.arange(0, 78, 2))
    with pytest.raises(ValueError, match="neighbours are known of the rows that may be drawn alone: row 5 may not"):
        SameClass(3).draw(torch.tensor([4, 5]), 1, view, keyed_generator("test", 0))


def test_json_without_it_is_that_of_0_1():
    assert to_config(Policy(partners=SameClass()))["partners"] == {"kind": "SameClass"}
    assert to_config(Policy(partners=Nearest(4, SameClass())))["partners"]["among"] == {"kind": "SameClass"}
    near = to_config(Policy(partners=SameClass(nearest=7)))
    assert near["partners"] == {"kind": "SameClass", "nearest": 7}
    assert from_config(near).partners == SameClass(7)
    assert from_config({"partners": {"kind": "SameClass", "nearest": None}}).partners == SameClass()
