"""``prob`` by class and ``balance``: which samples become mixes, and of which classes these are."""

import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, one_hot_bank, with_labels
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler

import latent_mixup as lm
from latent_mixup.augment.base import Mixer, MixSettings
from latent_mixup.bank import LatentBank
from latent_mixup.integrations.sheets import sheet_of
from latent_mixup.policies import BankView, OtherClass, Policy, SameClass

SIZES = (60, 12, 3)  # of the classes
NAMES = ["cat", "dog", "7"]
LABELS = torch.arange(3).repeat_interleave(torch.tensor(SIZES))[
    torch.randperm(75, generator=torch.Generator().manual_seed(1))
]
BY_CLASS = [
    {"prob": {0: 0.3, 2: 1.0}},
    {"prob": {1: 0.5}, "policy": Policy(partners=SameClass())},
    {"prob": 0.6, "balance": "batch"},
    {"prob": 0.4, "balance": "classes"},
]


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    return LabelledImages(torch.rand(75, 1, 4, 4, generator=draw) * 2 - 1, LABELS)


@pytest.fixture
def bank(linear_generator, data):
    return LatentBank(linear_generator.encode(data.images), LABELS, metadata={"classes": NAMES})


@pytest.fixture
def mixer(linear_generator, bank):
    return lambda bank=bank, **settings: Mixer(linear_generator, bank, MixSettings(**{"seed": 0, **settings}))


@pytest.fixture
def draws(mixer):
    """Draws for many batches of the data set's labels."""

    def make(batch_size=25, batches=400, bank=None, **settings):
        made = mixer(**settings) if bank is None else mixer(bank, **settings)
        shuffled = torch.Generator().manual_seed(3)
        for number in range(batches):
            labels = LABELS[torch.randperm(75, generator=shuffled)[:batch_size]]
            yield labels, made.draw(batch_size, made.key(0, number), labels=labels)

    return make


def chi_square(counts, expected):
    """Of counts ``[n]`` and the shares that are expected; where one is expected to be 0, it has to be."""
    expected = expected / expected.sum() * counts.sum()
    assert (counts[expected == 0] == 0).all()
    return float(((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum())


# ---- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 25, 64])
def test_each_class_has_its_share_whatever_the_size_of_a_batch(draws, batch_size):
    mixed, seen, expected = torch.zeros(3), torch.zeros(3), torch.tensor([0.3, 0.0, 0.75])
    for labels, draw in draws(batch_size, 6000 // batch_size, prob={"cat": 0.3, "7": 0.75}):
        seen += torch.bincount(labels, minlength=3)
        mixed += torch.bincount(labels[draw.slots], minlength=3)
    assert ((mixed / seen - expected).abs() <= 4.5 * (expected * (1 - expected) / seen).sqrt()).all()


@pytest.mark.parametrize("settings", [{"prob": {0: 0.3, 1: 0.5, 2: 1}}, {"prob": 0.7, "balance": "batch"}], ids=str)
def test_a_mix_begins_with_a_row_of_the_class_that_it_replaces(draws, settings):
    counts = torch.zeros(75)
    for labels, draw in draws(**settings):
        assert torch.equal(LABELS[draw.rows], labels[draw.slots])
        counts += torch.bincount(draw.rows, minlength=75)
    for label, size in enumerate(SIZES):  # any of them
        assert chi_square(counts[label == LABELS], torch.ones(size)) < size + 5 * (2 * size) ** 0.5


def test_evenly_drawn_classes(draws):
    counts, rows = torch.zeros(3), torch.zeros(75)
    for _, draw in draws(prob=0.5, balance="classes"):
        counts += torch.bincount(LABELS[draw.rows], minlength=3)
        rows += torch.bincount(draw.rows, minlength=75)
    assert chi_square(counts, torch.ones(3)) < 20  # of 2 degrees of freedom: once in 22,000 draws
    assert chi_square(rows[LABELS == 0], torch.ones(60)) < 60 + 5 * 120**0.5


def test_without_balance_classes_are_those_of_the_banks_rows(draws):
    counts = torch.zeros(3)
    for _, draw in draws():
        counts += torch.bincount(LABELS[draw.rows], minlength=3)
    assert chi_square(counts, torch.tensor(SIZES)) < 20


def test_classes_follow_the_loader(linear_generator, bank, data):
    weights = (1 / torch.tensor(SIZES))[LABELS]
    sampler = WeightedRandomSampler(weights, 3000, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(data, 50, sampler=sampler)
    settings = {"policy": Policy(unmixed=1.0), "seed": 0}
    found = {
        balance: torch.cat(
            [
                targets
                for _, targets in lm.LatentMixupLoader(loader, linear_generator, bank, balance=balance, **settings)
            ]
        ).sum(0)
        for balance in (None, "batch")
    }
    assert chi_square(found["batch"], torch.ones(3)) < 20
    assert chi_square(found[None], torch.tensor(SIZES)) < 20


@pytest.mark.parametrize("prob", [0.0, 0.35, 1.0])
def test_the_same_share_of_every_class_is_one_number(mixer, data, prob):
    one = mixer(prob=prob, balance="batch").blend(data.images, data.labels, (0, 0, 0, 1))
    each = mixer(prob=dict.fromkeys(NAMES, prob)).blend(data.images, data.labels, (0, 0, 0, 1))
    assert all(map(torch.equal, one, each))


@pytest.mark.parametrize("prob", [{}, {1: 0.0}])
def test_no_share_of_any_class_is_none_at_all(linear_generator, bank, data, prob):
    collate = lm.LatentMixupCollate(linear_generator, bank, dataset=data, prob=prob, seed=0)
    for _ in range(3):  # and nothing is said of mixes that are the same again
        images, targets = collate(data.images, data.labels)
        assert torch.equal(images, data.images)
        assert torch.equal(targets, F.one_hot(data.labels, 3).float())


@pytest.mark.parametrize("settings", BY_CLASS, ids=str)
def test_soft_labels_count_as_their_likeliest_class(mixer, bank, data, settings):
    expected = mixer(**settings).blend(data.images, data.labels, (0, 0, 0, 1))
    leaning = 0.8 * F.one_hot(data.labels, 3) + 0.2 / 3
    for rows, labels in ((one_hot_bank(bank), data.labels), (bank, leaning)):
        made = mixer(with_labels(bank, rows.labels), **settings)
        images, _ = made.blend(data.images, labels, (0, 0, 0, 1))
        assert torch.equal(images, expected[0])


def test_partners_are_the_policys(draws):
    for labels, draw in draws(batches=50, prob={2: 1.0}, policy=Policy(partners=OtherClass())):
        assert (labels[draw.slots] == 2).all()
        assert (LABELS[draw.rows] == 2).all()
        assert (LABELS[draw.partners] != 2).all()


# ---- in the wrappers -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", BY_CLASS, ids=str)
def test_collate_and_loader_draw_alike_by_their_keys(linear_generator, bank, data, settings, monkeypatch):
    monkeypatch.setattr("latent_mixup.augment.collate._fingerprint", lambda images, labels: 0)
    batch = data.images[:25], data.labels[:25]
    collate = lm.LatentMixupCollate(linear_generator, bank, dataset=data, seed=5, **settings)
    loader = lm.LatentMixupLoader([batch], linear_generator, bank, dataset=data, seed=5, **settings)
    assert all(map(torch.equal, collate(*batch), next(iter(loader))))


@pytest.mark.parametrize("settings", BY_CLASS, ids=str)
def test_batches_that_are_decoded_together_are_those_decoded_apart(linear_generator, bank, data, settings):
    apart, together = (
        list(lm.LatentMixupLoader(DataLoader(data, 8), linear_generator, bank, seed=0, decode_batches=n, **settings))
        for n in (1, 4)
    )
    for (images, targets), (same, also) in zip(apart, together, strict=True):
        torch.testing.assert_close(images, same)
        assert torch.equal(targets, also)


def test_a_sample_of_a_data_set_is_drawn_with_the_share_of_its_class(linear_generator, bank, data):
    named = lm.LatentMixupDataset(data, linear_generator, bank, seed=0, prob={"cat": 0.4, "7": 1.0})
    ways = [lm.LatentMixupDataset(data, linear_generator, bank, seed=0, prob=prob) for prob in (0.4, 0.0, 1.0)]
    for index, (image, target) in enumerate(named.__getitems__(range(75))):
        same, also = ways[LABELS[index]][index]
        torch.testing.assert_close(image, same)
        torch.testing.assert_close(target, also)


def test_the_balance_of_a_data_set_is_that_of_its_samples(linear_generator, bank, data):
    plain, batch = (
        lm.LatentMixupDataset(data, linear_generator, bank, seed=0, prob=0.5, balance=balance).__getitems__(range(75))
        for balance in (None, "batch")
    )
    assert all(
        torch.equal(image, same) and torch.equal(target, also)
        for (image, target), (same, also) in zip(plain, batch, strict=True)
    )
    with pytest.raises(ValueError, match='balance="classes" draws own rows, and here sample i is mixed from its own'):
        lm.LatentMixupDataset(data, linear_generator, bank, balance="classes")


def test_rows_outside_of_a_split_are_not_drawn(mixer, linear_generator, bank):
    some = torch.arange(0, 75, 2)
    assert set(LABELS[some].tolist()) == {0, 1, 2}
    for settings in BY_CLASS:
        made = Mixer(linear_generator, bank, MixSettings(seed=0, **settings), rows=some)
        for number in range(20):
            draw = made.draw(75, made.key(0, number), labels=LABELS)
            assert torch.isin(draw.sources, some).all()


def test_pictures_are_of_the_classes_that_are_mixed(linear_generator, bank, data, monkeypatch):
    shown, plain = [], Policy.draw

    def watched(self, k, view, *args, rows=None, **kwargs):
        shown.append(rows)
        return plain(self, k, view, *args, rows=rows, **kwargs)

    monkeypatch.setattr(Policy, "draw", watched)
    collate = lm.LatentMixupCollate(linear_generator, bank, dataset=data, prob={"dog": 0.2})
    collate.show()
    sheet_of(collate)
    assert [set(LABELS[rows].tolist()) for rows in shown] == [{1}, {1}]
    assert "prob={'dog': 0.2}" in repr(collate)


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prob": {0: 1.5}}, ValueError, r"prob needs to be in \[0, 1\]: got 1.5"),
        ({"prob": {0: 0.5, 1: float("nan")}}, ValueError, r"prob needs to be in \[0, 1\]: got nan"),
        ({"prob": {0: "all"}}, TypeError, "prob of class 0 needs to be a number: got 'all'"),
        ({"prob": {0.5: 1.0}}, TypeError, "a class that prob names needs to be an integer: got 0.5"),
        ({"prob": {None: 1.0}}, TypeError, "a class that prob names needs to be a number or a name: got None"),
        ({"prob": [1.0, 0.5]}, TypeError, r"prob needs to be a number: got \[1.0, 0.5\]"),
        ({"balance": "even"}, ValueError, 'balance needs to be "batch", "classes" or None: got \'even\''),
        ({"balance": "classes", "prob": {0: 1.0}}, ValueError, "leave one of them out"),
        ({"balance": "batch", "multi_label": True}, ValueError, "one class a sample, and with multi_label=True"),
        ({"prob": {0: 1.0}, "multi_label": True}, ValueError, "pass one number as prob, and leave balance out"),
        ({"prob": {3: 1.0}}, ValueError, "prob names class 3: expected a number below 3, or .* has: cat, dog, 7"),
        ({"prob": {-1: 1.0}}, ValueError, "prob names class -1: expected a number below 3"),
        ({"prob": {"bird": 0.0}}, ValueError, "prob names class 'bird': expected .*: cat, dog, 7"),
        ({"prob": {1: 1.0, "dog": 0.5}}, ValueError, r"prob needs each class once: class 1 \(dog\) is there twice"),
        ({"num_classes": 5, "prob": {4: 1.0}}, ValueError, "prob names class 4, of which the bank has no row"),
    ],
)
def test_wrong_settings(mixer, settings, error, message):
    with pytest.raises(error, match=message):
        mixer(**settings)


def test_a_number_and_a_name_that_is_a_number(mixer):
    assert mixer(prob={"7": 0.5}).by_class.shares.tolist() == [0, 0, 0.5]
    assert mixer(prob={torch.tensor(2): 0.5}).by_class.shares.tolist() == [0, 0, 0.5]


def test_a_name_of_two_classes_is_no_name(mixer, bank):
    twice = LatentBank(bank[:][0], bank.labels, metadata={"classes": ["cat", "cat", "dog"]})
    with pytest.raises(ValueError, match="a name that one class has"):
        mixer(twice, prob={"cat": 1.0})
    assert mixer(twice, prob={1: 1.0}).by_class.shares.tolist() == [0, 1, 0]


def test_classes_without_a_row(linear_generator, bank, data):
    few = bank.subset(LABELS != 2)
    with pytest.raises(ValueError, match=r"prob names class 2 \(7\), of which the bank has no row that may be mixed"):
        lm.LatentMixupCollate(linear_generator, few, prob={2: 1.0})
    lm.LatentMixupCollate(linear_generator, few, prob={2: 0.0, 1: 1.0})(data.images, data.labels)
    collate = lm.LatentMixupCollate(linear_generator, few, balance="batch", prob=0.01)
    with pytest.raises(ValueError, match=r"of class 2 \(7\) needs a row of that class: the bank has none"):
        collate(data.images, data.labels)
    even = lm.LatentMixupCollate(linear_generator, few, balance="classes", policy=Policy(unmixed=1.0))
    assert even(data.images, data.labels)[1].sum(0)[2] == 0
    held_out = Subset(data, (LABELS != 2).nonzero()[:, 0].tolist())
    with pytest.raises(ValueError, match="no row that may be mixed"):
        lm.LatentMixupLoader(DataLoader(held_out, 8), linear_generator, bank, prob={2: 1.0})


@pytest.mark.parametrize("settings", BY_CLASS[:3], ids=str)
@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_told(mixer, data, label, settings):
    with pytest.raises(ValueError, match=f"label {label} is outside num_classes=3"):
        mixer(**settings).blend(data.images[:2], torch.tensor([0, label]), (0, 0, 0, 1))


def test_rows_by_class_of_a_view_without_some_classes():
    bank = LatentBank(torch.zeros(6, 2), [0, 1, 1, 3, 3, 3])
    rows = BankView(bank, torch.tensor([1, 3, 4])).draw_of_class(torch.tensor([1, 3, 3]), torch.Generator())
    assert rows[0] == 1
    assert torch.isin(rows[1:], torch.tensor([3, 4])).all()
