"""LatentBank in memory: laws of rows, labels, choices of rows, and what bad input gets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from banks import KINDS, assert_same, make_bank, soft_rows

from latent_mixup import LatentBank
from latent_mixup.bank import files
from latent_mixup.bank.files import Content, Shards, digest_of

WRONG_METADATA = {
    "latent_space": [3],
    "generator": ["toy", None, {"digest": 3}, {"repo": 1}, {"commit": []}],
    "dataset": [3, {"length": "9"}, {"length": -1}, {"length": True}],
    "samples": [[], {"label_key": 1.5}, {"image_key": True}],
    "classes": ["abc", [1], {"a": 1}],
    "filtered": [None, {}, [3]],
    "refined": [None, "x"],
    "set_aside": [None, ["3"], {"x": "torn"}, {"3": 4}, {"-3": "torn"}],
}

# --- rows


def test_rows_are_chosen_as_on_a_list():
    bank = make_bank()
    latents, labels = bank[:]
    assert (latents.dtype, labels.dtype) == (torch.float32, torch.int64)
    for rows in ([3, 1, 3], torch.tensor([3, 1, 3]), (3, 1, 3)):
        assert torch.equal(bank[rows][0], latents[[3, 1, 3]])
        assert torch.equal(bank[rows][1], labels[[3, 1, 3]])
    assert torch.equal(bank[-1][0], latents[9])
    assert bank[-1][1].shape == ()
    assert torch.equal(bank[torch.tensor(2)][0], latents[2])
    assert torch.equal(bank[range(2)][0], latents[:2])
    assert torch.equal(bank[[-10, -1]][0], latents[[0, 9]])
    assert torch.equal(bank[::-3][0], latents[[9, 6, 3, 0]])
    assert torch.equal(bank[bank.labels == 1][0], latents[labels == 1])
    assert bank[[]][0].shape == (0, 3, 4)


@pytest.mark.parametrize("row", [10, -11, [0, 10], torch.tensor([-11])])
def test_a_row_out_of_range(row):
    with pytest.raises(IndexError, match=r"row (10|-11) is out of range for a bank of 10 rows"):
        make_bank()[row]


@pytest.mark.parametrize("rows", [1.0, [0.5], torch.tensor([True]), True, [[0], [1]]])
def test_rows_need_integers(rows):
    with pytest.raises(TypeError, match=r"bank\[rows\] needs"):
        make_bank()[rows]


def test_defaults():
    bank = LatentBank(torch.zeros(3, 2), [0, 4, 1])
    assert bank.source_index.tolist() == [0, 1, 2]
    assert bank.num_classes == 5
    assert (bank.mse, bank.lpips, bank.status, bank.metadata) == (None, None, None, {})
    assert (bank.latent_space, bank.generator_digest) == (None, None)
    assert repr(bank) == "LatentBank(3 rows of (2,), 5 classes)"


def test_the_number_of_classes_is_that_of_their_names():
    """The data set names more classes than its samples show."""
    named = {"classes": ["a", "b", "c"]}
    bank = LatentBank(torch.zeros(2, 2), [0, 1], metadata=named)
    assert (bank.num_classes, bank.subset([0]).num_classes, bank.class_counts.tolist()) == (3, 3, [1, 1, 0])
    assert LatentBank.concat([bank]).num_classes == 3
    assert LatentBank(torch.zeros(2, 2), [0, 5], metadata=named).num_classes == 6
    assert LatentBank(torch.zeros(2, 2), [0, 1], metadata={**named, "num_classes": 4}).num_classes == 4
    assert LatentBank(torch.zeros(2, 2), torch.eye(2), metadata=named).num_classes == 2
    assert LatentBank(torch.zeros(2, 2), [0, 1], metadata={"classes": None}).num_classes == 2


def test_concat_reads_few_codes_at_a_time(tmp_path, monkeypatch):
    make_bank(20).save_pretrained(tmp_path, max_shard_bytes=4 * 24)
    bank, read, most = LatentBank.from_pretrained(tmp_path), Shards.latents, []
    monkeypatch.setattr(files, "CHUNK_ROWS", 3)
    monkeypatch.setattr(Shards, "latents", lambda self, rows: most.append(len(rows)) or read(self, rows))
    assert_same(LatentBank.concat([bank.subset(range(7)), bank.subset(range(7, 20))]), make_bank(20))
    assert max(most) == 3


def test_torchs_default_device_and_dtype_change_nothing(tmp_path, toy_dataset, linear_generator, toy_bank):
    expected = make_bank()
    expected.save_pretrained(tmp_path, max_shard_bytes=4 * 24)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # stands for an accelerator
            bank = LatentBank.from_pretrained(tmp_path, verify=True)
            assert bank[[1, 2]][0].dtype == bank[1][0].dtype == torch.float32
            assert bank.rows_of([int(bank.source_index[3]), 1]).tolist() == [3, -1]
            made = LatentBank([[0.5, 0.25]] * 3, [0, 1, 1], mse=[0.1, 0.2, 0.3], status=[0, 0, 1])
            assert (made.dtype, made.mse.dtype, len(made.filter(keep=0.7))) == (torch.float32, torch.float32, 2)
            assert made[::2][1].tolist() == [0, 1]
            soft = LatentBank([[0.5, 0.25]] * 2, [[0.5, 0.5], [1.0, 0.0]])
            soft.save_pretrained(tmp_path / "soft", dtype=torch.float32)
            assert_same(LatentBank.from_pretrained(tmp_path / "soft"), soft)
            assert_same(LatentBank.concat([bank.subset([0, 1, 2]), bank.subset(range(3, 10))]), expected)
            assert toy_bank.rows_for(toy_dataset, linear_generator).tolist() == list(range(50))
    finally:
        torch.set_default_dtype(torch.float32)


def test_codes_are_mixed_in_float32_whatever_they_are_kept_in():
    for dtype, kept in [
        (torch.float16, torch.float16),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        bank = LatentBank(torch.ones(2, 3, dtype=dtype), [0, 1])
        assert (bank.dtype, bank[0][0].dtype) == (kept, torch.float32)


def test_rows_of_is_the_inverse_of_source_index():
    bank = make_bank()
    assert torch.equal(bank.rows_of(bank.source_index), torch.arange(10))
    assert bank.rows_of([0, 4, 15, -1, 2**60]).tolist() == [-1] * 5
    assert bank.rows_of(int(bank.source_index[3])).tolist() == [3]
    assert bank.rows_of([]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(0, 3)}, "empty bank: latents have no row"),
        ({"latents": torch.zeros(3)}, r"latents need shape \[N, \*latent_shape\]: got \[3\]"),
        ({"latents": torch.zeros(3, 0)}, "at least one number a row"),
        ({"latents": torch.zeros(3, 2, dtype=torch.int64)}, "floating dtype: got torch.int64"),
        ({"latents": torch.tensor([[0.0], [1.0], [float("nan")]])}, "row 2 has NaN or infinity"),
        ({"latents": torch.tensor([[0.0], [float("inf")], [0.0]])}, "row 1 has NaN or infinity"),
        ({"labels": [0, 1]}, r"labels needs one entry per row, \[3\], or soft ones, .*: got \[2\]"),
        ({"labels": torch.eye(3).long()}, r"soft labels need a float dtype: got torch.int64 \[3, 3\]"),
        ({"labels": torch.eye(4)}, r"labels needs one entry per row, \[3\], or soft ones, .*: got \[4, 4\]"),
        ({"labels": [0.0, 1.0, 2.0]}, "labels needs integers, or soft ones, .*: got torch.float32"),
        ({"labels": [0, -2, 2]}, "labels needs numbers from 0, or -1 for no label: row 1 has -2"),
        ({"labels": [[0.5, 0.5], [1.0, 0.0], [0.5, 0.6]]}, "row 2 sums to 1.1"),
        ({"labels": torch.eye(3), "metadata": {"num_classes": 4}}, r"shape \[N, 4\] for num_classes=4: got \[3, 3\]"),
        ({"source_index": [0, 1, 1]}, "source_index needs one row per sample: 1 is there twice"),
        ({"source_index": [0, 1, -2]}, "source_index needs numbers from 0: row 2 has -2"),
        ({"mse": [0.0, -1.0, 1.0]}, "mse needs numbers from 0: row 1 has -1"),
        ({"lpips": [0.0, float("nan"), 1.0]}, "lpips needs numbers from 0: row 1 has nan"),
        ({"status": [0, 300, 1]}, "status needs numbers from 0: row 1 has 300"),
        ({"metadata": {"num_classes": 2}}, "labels need to be below num_classes=2: got 2"),
        ({"metadata": {"num_classes": "3"}}, "num_classes needs to be an integer from 0: got '3'"),
        ({"metadata": {"num_classes": 10**30}}, "num_classes needs to be at most 16777216: got 1000"),
        ({"labels": [0, 1, 2**40]}, "num_classes needs to be at most 16777216: got 1099511627777"),
        ({"metadata": {"x": float("nan")}}, "what JSON can say"),
        ({"metadata": {"x": torch.ones(1)}}, "what JSON can say"),
        ({"metadata": {"generator": "toy"}}, r"metadata\['generator'\] needs to be a dict"),
        *(
            ({"metadata": {key: value}}, rf"metadata\['{key}'\].* needs to be .*: got")
            for key, values in WRONG_METADATA.items()
            for value in values
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(change, message):
    columns = {"latents": torch.zeros(3, 2), "labels": [0, 1, 2], **change}
    with pytest.raises(ValueError, match=message) as caught:
        LatentBank(columns.pop("latents"), columns.pop("labels"), **columns)
    assert "\n" not in str(caught.value)


# --- labels of each kind


def test_soft_labels_are_kept_in_float32():
    given = soft_rows(3, 4).double()
    bank = LatentBank(torch.zeros(3, 2), given)
    assert (bank.labels.dtype, bank.num_classes, len(bank)) == (torch.float32, 4, 3)
    assert torch.equal(bank.labels, given.float())
    assert torch.equal(bank[[2, 0]][1], given[[2, 0]].float())
    assert bank[-1][1].shape == (4,)
    assert repr(bank) == "LatentBank(3 rows of (2,), 4 classes, soft labels)"


def test_one_hot_rows_are_the_same_classes():
    hard = LatentBank(torch.zeros(4, 2), [0, 2, 1, 2])
    soft = LatentBank(torch.zeros(4, 2), F.one_hot(hard.labels).float())
    assert torch.equal(soft.hard_labels, hard.hard_labels)
    assert (soft.num_classes, soft.hard_labels.dtype) == (hard.num_classes, torch.int64)
    assert soft.digest() != hard.digest()


def test_missing_labels_are_no_class():
    some, none = LatentBank(torch.zeros(3, 2), [4, -1, 0]), LatentBank(torch.zeros(2, 2), [-1, -1])
    assert (some.num_classes, none.num_classes) == (5, 0)
    assert some.hard_labels.tolist() == some.labels.tolist() == [4, -1, 0]
    assert int(some[1][1]) == -1
    assert repr(some) == "LatentBank(3 rows of (2,), 5 classes, 1 without a label)"
    assert repr(none) == "LatentBank(2 rows of (2,), 0 classes, 2 without a label)"
    labelled = some.subset(some.labels >= 0)
    assert labelled.labels.tolist() == [4, 0]
    labelled.check_labelled()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 2, -1], r"2 of the bank's 4 rows have no label \(-1\), the first is row 1: .*bank.labels >= 0\)"),
        ([-1] * 4, r"none of the bank's 4 rows has a label .* LatentBank\(bank\[:\]\[0\], labels, source_index="),
    ],
)
def test_a_bank_that_needs_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        LatentBank(torch.zeros(4, 2), labels).check_labelled()
    make_bank().check_labelled()
    make_bank(labels=soft_rows()).check_labelled()


def test_the_digest_tells_labels_apart():
    soft = soft_rows()
    digests = [make_bank(labels=labels).digest() for labels in (*KINDS.values(), soft.flip(1))]
    assert len(set(digests)) == 5
    assert make_bank(labels=soft.double()).digest() == make_bank(labels=soft).digest()


def test_the_digest_tells_soft_labels_from_class_indices_of_the_same_bytes():
    soft = torch.tensor([[0.0, 1.0]])
    one, two = (
        Content((2,), {"labels": labels}, lambda rows: torch.zeros(1, 2))
        for labels in (soft, soft.view(torch.int64)[:, 0])
    )
    assert digest_of(one, torch.float32) != digest_of(two, torch.float32)


# --- subset, filter, concat


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_labels_is_chosen_and_put_together_again(kind, tmp_path):
    any_bank = make_bank(labels=KINDS[kind])
    any_bank.save_pretrained(tmp_path, max_shard_bytes=4 * 24)
    for bank in (any_bank, LatentBank.from_pretrained(tmp_path)):
        assert_same(bank.subset(slice(None)), any_bank)
        assert torch.equal(bank.subset([7, 2]).labels, any_bank.labels[[7, 2]])
        assert bank.subset([1]).num_classes == 4
        kept = bank.filter(keep=0.9)
        assert torch.equal(kept.labels, any_bank.labels[any_bank.mse <= kept.mse.max()])
        assert_same(LatentBank.concat([bank.subset([0, 1, 2]), bank.subset(range(3, 10))]), any_bank)


def test_banks_without_any_label_are_put_together():
    halves = [LatentBank(torch.zeros(2, 3), [-1, -1], source_index=[start, start + 1]) for start in (0, 2)]
    assert LatentBank.concat(halves).num_classes == 0
    more = LatentBank(torch.zeros(1, 3), [5], source_index=[9])
    assert LatentBank.concat([*halves, more]).num_classes == 6


def test_a_subset_of_a_subset(tmp_path):
    make_bank().save_pretrained(tmp_path, max_shard_bytes=4 * 24)
    for bank in (make_bank(), LatentBank.from_pretrained(tmp_path)):
        small = bank.subset([8, 2, 5]).subset([2, 0])
        assert torch.equal(small[:][0], make_bank()[[5, 8]][0])
        assert torch.equal(small.source_index, make_bank().source_index[[5, 8]])
        assert small.num_classes == 4
        assert small.rows_of(bank.source_index[8]).tolist() == [1]


def test_a_choice_by_hand_is_known_as_one(tmp_path):
    bank = make_bank()
    part = bank.subset(slice(None))
    part.save_pretrained(tmp_path)
    for chosen in (part, part.subset([1, 2]), part.filter(keep=0.5), LatentBank.from_pretrained(tmp_path)):
        assert (chosen.is_part, chosen.metadata["part_of"]) == (True, 10)
    assert not any(whole.is_part for whole in (bank, bank.filter(keep=0.5), LatentBank.concat([bank])))


@pytest.mark.parametrize(("rows", "message"), [([], "empty bank"), ([1, -9], "row 1 is there twice")])
def test_subset_refuses(rows, message):
    with pytest.raises(ValueError, match=message):
        make_bank().subset(rows)


def test_filter_keeps_the_best_in_their_old_order():
    bank = LatentBank(torch.zeros(5, 2), [0] * 5, mse=[0.5, 0.1, float("inf"), 0.3, 0.2])
    assert bank.filter(max_mse=0.3).source_index.tolist() == [1, 3, 4]
    assert bank.filter(keep=0.4).source_index.tolist() == [1, 4]
    assert bank.filter(keep=1.0).source_index.tolist() == [0, 1, 2, 3, 4]
    assert bank.filter(max_mse=0.3, keep=0.01).source_index.tolist() == [1]


def test_filter_by_class_keeps_the_best_of_each():
    mse = [0.5, 0.1, 0.4, 0.3, 0.2, 0.9, 0.8]
    bank = LatentBank(torch.zeros(7, 2), [0, 0, 0, 0, 2, 1, 1], mse=mse, metadata={"num_classes": 4})
    kept = bank.filter(keep=0.5, per_class=True)
    assert kept.source_index.tolist() == [1, 3, 4, 6]
    assert (bank.class_counts.tolist(), kept.class_counts.tolist()) == ([4, 2, 1, 0], [2, 1, 1, 0])
    assert bank.filter(max_mse=0.9, keep=0.9, per_class=False).source_index.tolist() == [0, 1, 2, 3, 4, 6]
    assert LatentBank(torch.zeros(4, 2), [0, -1, 2, 0]).class_counts.tolist() == [2, 0, 1]


def test_filter_says_how():
    bank = LatentBank(torch.zeros(5, 2), [0] * 5, mse=[0.5, 0.1, float("inf"), 0.3, 0.2], metadata={"mine": 1})
    kept = bank.filter(max_mse=0.3).filter(keep=0.5, per_class=True)
    assert kept.metadata == {
        "mine": 1,
        "filtered": [
            {"max_mse": 0.3, "keep": None, "per_class": False, "rows": 5},
            {"max_mse": None, "keep": 0.5, "per_class": True, "rows": 3},
        ],
    }
    assert bank.metadata == {"mine": 1}


def test_filter_warns_where_a_class_has_no_row_any_more():
    metadata = {"classes": ["cat", "dog", "fox"], "num_classes": 4}
    bank = LatentBank(torch.zeros(4, 2), [0, 1, 1, 2], mse=[0.1, 0.3, 0.4, 0.5], metadata=metadata)
    with pytest.warns(UserWarning, match=r"no row is left of class 1 \(dog\), 2 \(fox\), so no mix .*per_class=True"):
        bank.filter(max_mse=0.2)
    many = LatentBank(torch.zeros(15, 2), range(15), mse=[i / 15 for i in range(15)])
    with pytest.warns(UserWarning, match=r"class 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more, so no mix"):
        many.filter(max_mse=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_mse": 0.1, "per_class": True}, "per_class needs keep"),
        ({"max_mse": 0.0}, "empty bank: no row has mse <= 0.0"),
        ({}, "max_mse or keep"),
        ({"keep": 0}, r"keep is the best fraction, in \(0, 1\]: got 0"),
        ({"keep": 1.1}, "best fraction"),
    ],
)
def test_filter_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_bank().filter(**arguments)


def test_filter_needs_an_mse(toy_bank):
    with pytest.raises(ValueError, match="filter needs the mse of each row"):
        toy_bank.filter(keep=0.5)


def told(labels=(0, 1), shape=(2, 3), **more):
    return LatentBank(torch.zeros(shape), labels, metadata={"latent_space": "z", "generator": {"digest": "a"}}, **more)


@pytest.mark.parametrize(
    ("banks", "message"),
    [
        ([], "at least one bank"),
        ([told(), told()], "source_index needs one row per sample: 0 is there twice"),
        ([told(), told(shape=(2, 4))], r"one latent_shape: bank 0 has \(3,\), bank 1 \(4,\)"),
        ([told(), LatentBank(torch.zeros(2, 3), [0, 1])], "one latent_space: bank 0 has 'z', bank 1 None"),
        (
            [told(), LatentBank(torch.zeros(2, 3), [0, 1], metadata={"latent_space": "z"})],
            "one generator_digest: bank 0 has 'a', bank 1 None",
        ),
        ([told(), told(mse=[0, 0])], "concat needs the same columns"),
        (
            [make_bank(), make_bank(labels=soft_rows())],
            "labels of one kind: bank 0 has class indices, bank 1 soft labels of 4 classes; .*one_hot",
        ),
        (
            [told(torch.eye(3), (3, 2)), told(torch.eye(4), (4, 2))],
            "labels of one kind: bank 0 has soft labels of 3 classes, bank 1 soft labels of 4 classes",
        ),
    ],
)
def test_concat_refuses_banks_of_different_kinds(banks, message):
    with pytest.raises(ValueError, match=message):
        LatentBank.concat(banks)


# --- a generator


def test_a_generator_that_decodes_its_codes_passes(toy_bank, linear_generator):
    toy_bank.check(linear_generator)
    metadata = {"latent_space": "z", "generator": {"digest": linear_generator.digest()}}
    LatentBank(torch.zeros(1, 16), [0], metadata=metadata).check(linear_generator)


@pytest.mark.parametrize(
    ("shape", "metadata", "message"),
    [
        ((17,), {}, r"codes have shape \(17,\), the generator takes \(16,\)"),
        ((16,), {"latent_space": "w"}, "codes lie in 'w', the generator decodes 'z'"),
        (
            (16,),
            {"generator": {"digest": "ab" * 32, "name": "org/gan"}},
            r"digest abababababab \(org/gan\), this one",
        ),
    ],
)
def test_another_generator_is_refused(linear_generator, shape, metadata, message):
    with pytest.raises(ValueError, match=message):
        LatentBank(torch.zeros(1, *shape), [0], metadata=metadata).check(linear_generator)
