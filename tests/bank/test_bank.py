"""LatentBank: laws of rows and files, what bad input gets, and what a damaged folder gets."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from latent_mixup import files
from latent_mixup.bank import BankFormatError, LatentBank, fingerprint

GOLDEN = Path(__file__).parents[1] / "golden" / "bank-0.1.0"
GOLDEN_PLAIN = GOLDEN.with_name("bank-0.1.0-plain")
GOLDEN_FLOAT32 = GOLDEN.with_name("bank-0.1.0-float32")
GOLDEN_SOFT = GOLDEN.with_name("bank-format-2-soft")
GOLDEN_MISSING = GOLDEN.with_name("bank-format-2-missing")
INDEX = "bank.index.json"
COLUMNS = ("labels", "source_index", "mse", "lpips", "status")


def make_bank(
    rows: int = 10, shape: tuple[int, ...] = (3, 4), seed: int = 0, labels: torch.Tensor | None = None
) -> LatentBank:
    """A bank with every column; its codes fit in float16 exactly."""
    draw = torch.Generator().manual_seed(seed)
    return LatentBank(
        torch.randn(rows, *shape, generator=draw).half().float(),
        torch.arange(rows) % 3 if labels is None else labels,
        source_index=torch.randperm(rows, generator=draw) + 5,
        mse=torch.rand(rows, generator=draw),
        lpips=torch.rand(rows, generator=draw),
        status=torch.arange(rows) % 2,
        metadata={
            "latent_space": "w+",
            "num_classes": 4,
            "generator": {"name": "toy", "digest": "d" * 64, "commit": None},
        },
    )


def assert_same(one: LatentBank, two: LatentBank) -> None:
    assert torch.equal(one[:][0], two[:][0])
    for name in COLUMNS:
        column = getattr(one, name)
        if column is None:
            assert getattr(two, name) is None
        else:
            assert torch.equal(column, getattr(two, name))
            assert column.dtype == getattr(two, name).dtype
    assert one.metadata == two.metadata
    assert (len(one), one.latent_shape, one.num_classes) == (len(two), two.latent_shape, two.num_classes)


def soft_rows(rows: int = 10, num_classes: int = 4) -> torch.Tensor:
    """Soft labels whose float32 values float16 cannot hold."""
    return torch.randn(rows, num_classes, generator=torch.Generator().manual_seed(1)).softmax(1)


def some_missing(rows: int = 10) -> torch.Tensor:
    """The labels of ``make_bank``, every third of them missing."""
    labels = torch.arange(rows) % 3
    return labels.where(labels != 1, -1)


KINDS = {"classes": None, "soft": soft_rows(), "some missing": some_missing(), "all missing": torch.full((10,), -1)}


@pytest.fixture(params=KINDS)
def any_bank(request):
    """A bank of ten rows with each kind of labels."""
    return make_bank(labels=KINDS[request.param])


@pytest.fixture
def folder(tmp_path):
    """A bank of ten rows in three shards: 4, 4, 2."""
    make_bank().save_pretrained(tmp_path / "bank", max_shard_bytes=4 * 24)
    return tmp_path / "bank"


def names(folder: Path) -> list[str]:
    """The files of the bank; the card beside them is tested elsewhere."""
    return sorted(path.name for path in folder.iterdir() if path.name != "README.md")


def edit_index(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **changes}))


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
        ({"metadata": {"x": float("nan")}}, "what JSON can say"),
        ({"metadata": {"x": torch.ones(1)}}, "what JSON can say"),
        ({"metadata": {"generator": "toy"}}, r"metadata\['generator'\] needs to be a dict"),
        ({"metadata": {"latent_space": 3}}, r"metadata\['latent_space'\] needs to be a string"),
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
    hard = soft.view(torch.int64)[:, 0]
    assert LatentBank(torch.zeros(1, 2), soft).digest() != LatentBank(torch.zeros(1, 2), hard).digest()


# --- subset, filter, concat


def test_subset_of_all_rows_is_the_bank(any_bank):
    assert_same(any_bank.subset(slice(None)), any_bank)


def test_each_kind_of_labels_is_chosen_and_put_together_again(any_bank, tmp_path):
    any_bank.save_pretrained(tmp_path, max_shard_bytes=4 * 24)
    for bank in (any_bank, LatentBank.from_pretrained(tmp_path)):
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


def test_concat_puts_the_parts_together_again(folder):
    for bank in (make_bank(), LatentBank.from_pretrained(folder)):
        assert_same(LatentBank.concat([bank.subset([0, 1, 2]), bank.subset(range(3, 10))]), make_bank())


def test_a_subset_of_a_subset(folder):
    for bank in (make_bank(), LatentBank.from_pretrained(folder)):
        small = bank.subset([8, 2, 5]).subset([2, 0])
        assert torch.equal(small[:][0], make_bank()[[5, 8]][0])
        assert torch.equal(small.source_index, make_bank().source_index[[5, 8]])
        assert small.num_classes == 4
        assert small.rows_of(bank.source_index[8]).tolist() == [1]


def test_a_subset_keeps_the_number_of_classes():
    assert LatentBank(torch.zeros(3, 2), [0, 1, 2]).subset([0]).num_classes == 3


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


def test_concat_refuses_banks_that_do_not_belong_together():
    one = LatentBank(torch.zeros(2, 3), [0, 1], metadata={"latent_space": "z", "generator": {"digest": "a"}})
    cases = [
        ([], "at least one bank"),
        ([one, one], "source_index needs one row per sample: 0 is there twice"),
        ([one, LatentBank(torch.zeros(2, 4), [0, 1])], r"one latent_shape: bank 0 has \(3,\), bank 1 \(4,\)"),
        ([one, LatentBank(torch.zeros(2, 3), [0, 1])], "one latent_space: bank 0 has 'z', bank 1 None"),
        (
            [one, LatentBank(torch.zeros(2, 3), [0, 1], metadata={"latent_space": "z"})],
            "one generator_digest: bank 0 has 'a', bank 1 None",
        ),
        (
            [one, LatentBank(torch.zeros(2, 3), [0, 1], mse=[0, 0], metadata=one.metadata)],
            "concat needs the same columns",
        ),
        (
            [make_bank(), make_bank(labels=soft_rows())],
            "labels of one kind: bank 0 has class indices, bank 1 soft labels of 4 classes; .*one_hot",
        ),
        (
            [LatentBank(torch.zeros(3, 2), torch.eye(3)), LatentBank(torch.zeros(4, 2), torch.eye(4))],
            "labels of one kind: bank 0 has soft labels of 3 classes, bank 1 soft labels of 4 classes",
        ),
    ]
    for banks, message in cases:
        with pytest.raises(ValueError, match=message):
            LatentBank.concat(banks)


# --- files: round trips


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("max_shard_bytes", [1, 50, 100, 2**31])
def test_a_round_trip_is_exact(tmp_path, dtype, max_shard_bytes):
    draw = torch.randn(7, 3, 4).to(dtype)
    bank = LatentBank(draw, torch.arange(7), metadata={"a": [1, {"b": None}]})
    bank.save_pretrained(tmp_path / "b c é", dtype=dtype, max_shard_bytes=max_shard_bytes)
    loaded = LatentBank.from_pretrained(tmp_path / "b c é", verify=True)
    assert_same(loaded, bank)
    assert loaded.dtype == dtype
    assert loaded.digest() == bank.digest()
    order = torch.tensor([6, 0, 3, 3, -1])
    assert torch.equal(loaded[order][0], bank[order][0])
    assert torch.equal(loaded[4][0], bank[4][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("max_shard_bytes", [1, 100, 2**31])
def test_a_round_trip_of_each_kind_of_labels_is_exact(any_bank, tmp_path, dtype, max_shard_bytes):
    for name in ("1", "2"):
        any_bank.save_pretrained(tmp_path / name, dtype=dtype, max_shard_bytes=max_shard_bytes)
    loaded = LatentBank.from_pretrained(tmp_path / "1", verify=True)
    assert_same(loaded, any_bank)
    assert loaded.digest() == any_bank.digest() == loaded.subset(slice(None)).digest()
    assert_same(pickle.loads(pickle.dumps(loaded)), any_bank)  # noqa: S301
    for name in names(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    small = loaded.subset([8, 1])
    small.save_pretrained(tmp_path / "1", dtype=dtype)  # over the folder it is read from
    assert_same(LatentBank.from_pretrained(tmp_path / "1", verify=True), any_bank.subset([8, 1]))


def test_only_new_kinds_of_labels_get_the_new_format(tmp_path):
    expected = {
        "classes": (1, None, None),
        "soft": (2, "float32", [4]),
        "some missing": (2, "int64", []),
        "all missing": (2, "int64", []),
    }
    for kind, labels in KINDS.items():
        make_bank(labels=labels).save_pretrained(tmp_path / kind)
        index = json.loads((tmp_path / kind / INDEX).read_text())
        assert (index["format_version"], index.get("label_dtype"), index.get("label_shape")) == expected[kind]
    labelled = LatentBank.from_pretrained(tmp_path / "some missing")
    labelled.subset(labelled.labels >= 0).save_pretrained(tmp_path / "labelled")
    assert json.loads((tmp_path / "labelled" / INDEX).read_text())["format_version"] == 1


def test_soft_labels_count_in_the_size_of_a_shard(tmp_path):
    bank = LatentBank(torch.zeros(6, 4), soft_rows(6, 100))
    bank.save_pretrained(tmp_path, max_shard_bytes=2 * (4 * 2 + 100 * 4))
    rows = [len(load_file(path)["labels"]) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert rows == [2, 2, 2]


def test_shards_have_equal_rows_and_usual_names(folder):
    assert names(folder) == [*(f"bank-0000{i}-of-00003.safetensors" for i in range(3)), INDEX]
    rows = [len(load_file(folder / name)["labels"]) for name in names(folder)[:3]]
    assert rows == [4, 4, 2]
    assert_same(LatentBank.from_pretrained(folder), make_bank())


def test_the_same_bank_gives_the_same_bytes(tmp_path):
    for name in ("1", "2"):
        make_bank().save_pretrained(tmp_path / name)
    for name in names(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_float16_is_refused_where_it_would_overflow(tmp_path):
    bank = LatentBank(torch.tensor([[1.0], [-70000.0]]), [0, 1])
    with pytest.raises(ValueError, match=r"float16 holds up to 65504: row 1 has 70000, save with dtype=torch.float32"):
        bank.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    bank.save_pretrained(tmp_path / "new", dtype=torch.float32)
    assert_same(LatentBank.from_pretrained(tmp_path / "new"), bank)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"max_shard_bytes": 0}], ids=["dtype", "max_shard_bytes"]
)
def test_save_refuses_what_the_format_cannot_say(tmp_path, options):
    with pytest.raises(ValueError, match=r"got (torch.bfloat16|0)"):
        make_bank().save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("max_shard_bytes", [50, 4 * 24, 2**31])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_saving_over_the_folder_it_is_read_from(folder, max_shard_bytes, dtype):
    bank = LatentBank.from_pretrained(folder)
    for rows in (slice(None), [1, 5, 9], [2, 0]):
        bank = bank.subset(rows)
        expected = bank.subset(slice(None))[:]
        bank.save_pretrained(folder, max_shard_bytes=max_shard_bytes, dtype=dtype)
        assert torch.equal(bank[:][0], expected[0])  # the old files are still mapped
        bank = LatentBank.from_pretrained(folder, verify=True)
        assert torch.equal(bank[:][0], expected[0])
        assert len(names(folder)) == 1 + len(json.loads((folder / INDEX).read_text())["files"])


def test_a_reader_keeps_its_bank_when_another_replaces_it(folder):
    bank = LatentBank.from_pretrained(folder)
    make_bank(seed=1).save_pretrained(folder)
    assert_same(bank, make_bank())
    assert_same(LatentBank.from_pretrained(folder), make_bank(seed=1))
    with pytest.raises(BankFormatError, match=r"bank.index.json was replaced by another bank.*open it again"):
        pickle.loads(pickle.dumps(bank))  # noqa: S301


# --- pickling and processes


def sums(bank: LatentBank) -> tuple[float, list[int]]:
    return float(bank[:][0].double().sum()), bank.labels.tolist()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_opens_the_folder_itself(folder, method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    bank = LatentBank.from_pretrained(folder)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(sums, (bank,)) == sums(bank)
        assert pool.apply(sums, (bank.subset([3, 9]),)) == sums(bank.subset([3, 9]))


def test_a_bank_from_a_folder_is_sent_as_the_folder(tmp_path):
    LatentBank(torch.randn(20_000, 32), torch.arange(20_000) % 10).save_pretrained(tmp_path)
    bank = LatentBank.from_pretrained(tmp_path)
    sums(bank)
    bank.rows_of([3])
    sent = pickle.dumps(bank)
    assert len(sent) < 1000
    assert_same(pickle.loads(sent), bank)  # noqa: S301


def test_a_bank_in_memory_is_sent_whole():
    assert_same(pickle.loads(pickle.dumps(make_bank())), make_bank())  # noqa: S301


def test_opening_reads_no_codes(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("codes were read")

    monkeypatch.setattr("latent_mixup.bank.files.Shards.latents", refuse)
    bank = LatentBank.from_pretrained(folder)
    assert len(bank.subset([1, 2])) == 2


# --- check


class Plain:
    """A data set without targets that counts how often it is asked."""

    def __init__(self, labels) -> None:
        self.labels_, self.asked = labels, 0

    def __len__(self) -> int:
        return len(self.labels_)

    def __getitem__(self, index):
        self.asked += 1
        return torch.rand(1), self.labels_[index]


class WithTargets(Plain):
    @property
    def targets(self):
        return self.labels_


def test_what_belongs_together_passes(toy_bank, toy_dataset, linear_generator):
    toy_bank.check(toy_dataset)
    toy_bank.check(linear_generator)
    told = {"latent_space": "z", "generator": {"digest": linear_generator.digest()}}
    LatentBank(torch.zeros(1, 16), [0], metadata=told).check(linear_generator)


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


def test_a_dataset_is_asked_for_few_items_and_draws_no_random_numbers():
    bank = LatentBank(torch.zeros(1000, 2), torch.arange(1000) % 10)
    dataset, state = Plain((torch.arange(1000) % 10).tolist()), torch.get_rng_state()
    bank.check(dataset)
    assert dataset.asked == 16
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_are_compared_without_loading_an_image():
    labels = torch.arange(1000) % 10
    bank = LatentBank(torch.zeros(1000, 2), labels)
    dataset = WithTargets(labels.tolist())
    bank.check(dataset)
    assert dataset.asked == 0
    dataset.labels_[501] = 7
    with pytest.raises(ValueError, match="sample 501 has label 7 in the data set and 1 in the bank"):
        bank.check(dataset)


def test_a_dataset_that_changes_its_targets_is_asked_for_items():
    dataset = WithTargets([0, 1])
    dataset.target_transform = lambda label: 1 - label
    LatentBank(torch.zeros(2, 2), [0, 1]).check(dataset)
    assert dataset.asked == 2


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Plain([0, 1]), r"codes of 3 samples \(its largest source_index is 2\), the data set has 2"),
        (Plain([2, 1, 0]), "sample 0 has label 2 in the data set and 0 in the bank"),
        (Plain([0.0, 1.0, 2.0]), r"needs to give \(image, label\): item 0 is a tuple of Tensor, float"),
        (Plain(["a", "b", "c"]), r"\(image, label\)"),
        ([{"image": 0, "kind": 1}] * 3, r"\(image, label\): item 0 is a dict"),
        (Plain([0, None, 2]), "sample 1 has label none in the data set and 1 in the bank"),
        (Plain(torch.eye(3)), "data set has soft labels of 3 classes, the bank class indices: .*soft|codes"),
        (WithTargets(torch.eye(3)), "data set has soft labels of 3 classes, the bank class indices"),
    ],
)
def test_another_dataset_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        LatentBank(torch.zeros(3, 2), [0, 1, 2]).check(dataset)


@pytest.mark.parametrize("form", [Plain, WithTargets])
def test_soft_labels_are_compared(form):
    labels = soft_rows(5, 3)
    bank = LatentBank(torch.zeros(4, 2), labels[[4, 0, 2, 3]], source_index=[4, 0, 2, 3])
    for same in (labels, labels.double() + 1e-8, labels.tolist(), list(labels.numpy())):
        bank.check(form(same))
    changed = labels.clone()
    changed[2] = torch.tensor([0.125, 0.25, 0.625])
    with pytest.raises(ValueError, match=r"sample 2 has label \[0.125, 0.25, 0.625\] in the data set and \[0\."):
        bank.check(form(changed))
    with pytest.raises(ValueError, match=r"soft labels of 2 classes, the bank soft labels of 3 classes"):
        bank.check(form(torch.eye(2)[[0] * 5]))
    with pytest.raises(ValueError, match=r"has label 0 in the data set and \["):
        bank.check(form([0] * 5))


@pytest.mark.parametrize("form", [Plain, WithTargets])
def test_class_indices_belong_to_their_one_hot_rows(form):
    bank = LatentBank(torch.zeros(3, 2), torch.eye(3))
    bank.check(form([0, 1, 2]))
    with pytest.raises(ValueError, match=r"sample 1 has label 0 in the data set and \[0, 1, 0\] in the bank"):
        bank.check(form([0, 0, 2]))


@pytest.mark.parametrize("form", [Plain, WithTargets])
def test_missing_labels_are_compared(form):
    bank = LatentBank(torch.zeros(3, 2), [0, -1, 2])
    bank.check(form([0, -1, 2]))
    bank.check(form([0, None, 2]))
    with pytest.raises(ValueError, match="sample 1 has label 1 in the data set and none in the bank"):
        bank.check(form([0, 1, 2]))


def test_a_data_set_of_images_alone_belongs_to_a_bank_without_labels():
    images = list(torch.rand(3, 1, 4, 4))
    LatentBank(torch.zeros(3, 2), [-1] * 3).check(images)
    with pytest.raises(ValueError, match="sample 0 has label none in the data set and 0 in the bank"):
        LatentBank(torch.zeros(3, 2), [0, 1, 2]).check(images)


def test_check_needs_a_generator_or_a_dataset():
    with pytest.raises(TypeError, match="needs a Generator or a data set with len"):
        make_bank().check(3)


def test_fingerprint():
    assert fingerprint(Plain([0, 1])) == {"length": 2, "labels": None}
    one, two = fingerprint(WithTargets([0, 1])), fingerprint(WithTargets(torch.tensor([0, 1])))
    assert one == two
    assert one != fingerprint(WithTargets([1, 0]))


def test_the_fingerprint_of_class_indices_is_for_ever():
    told = "c9b777acc7303d4510d59316781e5f5a50cdb809848ad7b544674b1a61f986d3"
    assert fingerprint(WithTargets([3, 0, 2]))["labels"] == told


def test_the_fingerprint_of_soft_and_missing_labels():
    soft = soft_rows(6, 4)
    one = fingerprint(WithTargets(soft))
    assert one == fingerprint(WithTargets(soft.double().tolist()))
    others = [soft.flip(1), soft.flip(0), soft.argmax(1), -torch.ones(6).long(), torch.eye(4)[[0, 1, 2, 3, 0, 1]]]
    hashes = {fingerprint(WithTargets(targets))["labels"] for targets in (soft, *others)}
    assert len(hashes) == 6
    assert None not in hashes
    row = torch.tensor([[0.0, 1.0]])
    assert fingerprint(WithTargets(row)) != fingerprint(WithTargets(row.view(torch.int64)[:, 0]))  # the same bytes
    assert fingerprint(WithTargets(torch.rand(6, 4)))["labels"] is None  # no labels that a bank can hold


# --- files: faults


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_shard(folder, sixteenth):
    path = folder / names(folder)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * sixteenth // 16])
    with pytest.raises(BankFormatError, match=r"bank-00001-of-00003.safetensors is damaged: expected \d+ bytes"):
        LatentBank.from_pretrained(folder)


@pytest.mark.parametrize("cut", [0, 7, 8, 9, 200])
def test_a_truncated_shard_whose_size_the_index_repeats(folder, cut):
    path = folder / names(folder)[1]
    path.write_bytes(path.read_bytes()[:cut])
    files = json.loads((folder / INDEX).read_text())["files"]
    files[1]["size"] = cut
    edit_index(folder, files=files)
    with pytest.raises(BankFormatError, match=r"bank-00001|files\[1\].size"):
        LatentBank.from_pretrained(folder)


def test_a_flipped_bit_is_found_by_verify(folder):
    path = folder / names(folder)[2]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    LatentBank.from_pretrained(folder)
    with pytest.raises(BankFormatError, match=r"bank-00002-of-00003.safetensors is damaged: expected sha256"):
        LatentBank.from_pretrained(folder, verify=True)


def test_a_missing_shard(folder):
    (folder / names(folder)[2]).rename(folder / "bank-9.safetensors")
    with pytest.raises(BankFormatError, match=r"bank-00002-of-00003.safetensors is missing: bank.index.json names it"):
        LatentBank.from_pretrained(folder)


def test_two_shards_that_change_places(folder):
    first, second, *_ = (folder / name for name in names(folder))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(BankFormatError, match=r"is not shard 0 of this bank.*swapped or mixed"):
        LatentBank.from_pretrained(folder)


def test_a_shard_of_another_bank(folder, tmp_path):
    make_bank(seed=1).save_pretrained(tmp_path / "other", max_shard_bytes=4 * 24)
    shutil.copy(tmp_path / "other" / names(folder)[0], folder)
    with pytest.raises(BankFormatError, match="is not shard 0 of this bank"):
        LatentBank.from_pretrained(folder)


def test_a_leftover_of_an_older_bank_is_harmless(folder, tmp_path):
    make_bank(seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "bank-00000-of-00001.safetensors", folder)
    assert_same(LatentBank.from_pretrained(folder), make_bank())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mse"), "field 'tensors' needs"),
        (lambda t: t.update(more=torch.ones(1)), "field 'tensors' needs"),
        (lambda t: t.update(latents=t["latents"].float()), "field 'latents' needs F16"),
        (
            lambda t: t.update(latents=t["latents"][:, :2].contiguous()),
            r"field 'latents' needs F16 \[10, 3, 4\]",
        ),
        (
            lambda t: t.update(labels=t["labels"].int()),
            r"field 'labels' needs I64 \[10\], found 'I32 \[10\]'",
        ),
        (lambda t: t.update(labels=t["labels"] - 1), "numbers from 0 before format_version 2: row 0 has -1"),
        (
            lambda t: t.update(labels=F.one_hot(t["labels"]).float()),
            r"'labels' needs I64 \[10\], found 'F32 \[10, 3\]'",
        ),
        (lambda t: t.update(labels=t["labels"] + 5), "below num_classes=4"),
        (lambda t: t.update(source_index=t["source_index"] * 0), "source_index needs one row per sample"),
        (lambda t: t.update(mse=t["mse"] - 2), "mse needs numbers from 0"),
        (lambda t: t["latents"].fill_(float("nan")), "latents need finite numbers: row 0 has NaN"),
    ],
)
def test_a_shard_with_other_content_than_the_index_says(tmp_path, change, message):
    make_bank().save_pretrained(tmp_path)
    edit_shard(tmp_path, change)
    with pytest.raises(BankFormatError, match=message):
        LatentBank.from_pretrained(tmp_path, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(labels=t["labels"].argmax(1)), r"'labels' needs F32 \[10, 4\], found 'I64 \[10\]'"),
        (lambda t: t.update(labels=t["labels"][:, :3].contiguous()), r"needs F32 \[10, 4\], found 'F32 \[10, 3\]'"),
        (lambda t: t.update(labels=t["labels"].half()), r"needs F32 \[10, 4\], found 'F16 \[10, 4\]'"),
        (lambda t: t["labels"][3].fill_(0.5), "soft labels need numbers from 0 .*: row 3 sums to 2"),
        (lambda t: t["labels"][3].fill_(float("nan")), "soft labels need numbers from 0 .*: row 3 has nan"),
    ],
)
def test_a_shard_with_other_soft_labels_than_the_index_says(tmp_path, change, message):
    make_bank(labels=soft_rows()).save_pretrained(tmp_path)
    edit_shard(tmp_path, change)
    with pytest.raises(BankFormatError, match=message):
        LatentBank.from_pretrained(tmp_path, verify=True)


def edit_shard(folder: Path, change) -> None:
    """Change the tensors of a bank's only shard, and let the index describe the new file."""
    path = folder / "bank-00000-of-00001.safetensors"
    label = json.dumps(header(path))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"latent_mixup": label})
    edit_index(folder, files=[{"name": path.name, "size": path.stat().st_size, "sha256": files.sha256(path)}])


def header(path: Path) -> object:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["latent_mixup"])


def test_a_folder_without_a_bank(tmp_path):
    with pytest.raises(BankFormatError, match=r"bank.index.json is missing"):
        LatentBank.from_pretrained(tmp_path)


def test_a_bank_of_a_later_version(folder):
    edit_index(folder, format_version=3, something_new=True)
    with pytest.raises(BankFormatError, match=r"bank.index.json has format_version 3.* up to 2: upgrade latent-mixup"):
        LatentBank.from_pretrained(folder)


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        *((None, field) for field in json.loads((GOLDEN / INDEX).read_text())),
        (soft_rows(), "label_dtype"),
        (some_missing(), "label_shape"),
    ],
)
def test_a_missing_field(tmp_path, labels, field):
    make_bank(labels=labels).save_pretrained(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    del index[field]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(BankFormatError, match=f"field '{field}'"):
        LatentBank.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label_dtype", "float16", "'label_dtype' needs int64 or float32, found 'float16'"),
        ("label_dtype", 3, "'label_dtype'"),
        ("label_dtype", "int64", r"'label_shape' needs \[\] for int64 and 4 classes, found \[4\]"),
        ("label_shape", [], r"'label_shape' needs \[4\] for float32 and 4 classes, found \[\]"),
        ("label_shape", [4, 1], "'label_shape'"),
        ("label_shape", [True], "'label_shape'"),
        ("label_shape", 4, "'label_shape'"),
        ("num_classes", 3, r"'label_shape' needs \[3\]"),
        ("num_classes", 0, r"'label_shape' needs \[0\]"),
        ("format_version", 1, "'label_dtype' is unknown"),
    ],
)
def test_a_wrong_field_of_soft_labels(tmp_path, field, value, message):
    make_bank(labels=soft_rows()).save_pretrained(tmp_path)
    edit_index(tmp_path, **{field: value})
    with pytest.raises(BankFormatError, match=message):
        LatentBank.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", "1"),
        ("format_version", True),
        ("digest", "x" * 64),
        ("num_rows", 0),
        ("num_rows", 10.0),
        ("num_rows", 13),
        ("num_rows", 10**30),
        ("latent_shape", []),
        ("latent_shape", [3, -4]),
        ("latent_shape", [10**9]),
        ("latent_shape", [2**31, 2**31]),
        ("dtype", "bfloat16"),
        ("dtype", "float32"),
        ("columns", ["labels"]),
        ("columns", ["labels", "source_index", "__class__"]),
        ("columns", ["labels", "source_index"]),
        ("num_classes", 0),
        ("num_classes", 2),
        ("rows_per_shard", 5),
        ("rows_per_shard", 3),
        ("files", []),
        ("files", {}),
        ("files", [3]),
        ("files", [{"name": "x"}]),
        ("metadata", []),
        ("metadata", {"generator": 3}),
        ("unheard_of", 1),
        ("label_dtype", "int64"),
    ],
)
def test_a_wrong_field_is_named(folder, field, value):
    edit_index(folder, **{field: value})
    with pytest.raises(BankFormatError) as caught:
        LatentBank.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


HOSTILE = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "C:\\x.safetensors",
    "a//b",
    "a\0.safetensors",
    "x.pkl",
    7,
    None,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_in_the_index(folder, name):
    files = json.loads((folder / INDEX).read_text())["files"]
    files[0]["name"] = name
    edit_index(folder, files=files)
    with pytest.raises(BankFormatError, match=r"names a file|needs a .safetensors file"):
        LatentBank.from_pretrained(folder)


def test_a_shard_that_is_a_link_out_of_the_folder(folder, tmp_path):
    name = names(folder)[0]
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BankFormatError, match="link that leaves its folder"):
        LatentBank.from_pretrained(folder)


def test_a_link_to_the_folder_is_fine(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert_same(LatentBank.from_pretrained(tmp_path / "link"), make_bank())


# --- files: writes that fail


@pytest.mark.parametrize(
    ("where", "call"),
    [
        *(("os.replace", call) for call in range(4)),
        *(("latent_mixup.files.save_file", call) for call in range(3)),
    ],
)
def test_a_failed_write_leaves_the_old_bank(folder, monkeypatch, where, call):
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    owner, attribute = where.rsplit(".", 1)
    real = getattr(sys.modules[owner], attribute)
    calls = []

    def fails(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call + 1:
            raise OSError("no space")
        return real(*arguments, **options)

    monkeypatch.setattr(where, fails)
    with pytest.raises(OSError, match="no space"):
        make_bank(seed=1).save_pretrained(folder, max_shard_bytes=4 * 24)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert_same(LatentBank.from_pretrained(folder, verify=True), make_bank())


def test_a_full_disk_leaves_the_old_bank(folder):
    code = (
        "import resource, signal, sys, torch; from latent_mixup.bank import LatentBank\n"
        "bank = LatentBank(torch.zeros(1000, 64), [0] * 1000)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: bank.save_pretrained(sys.argv[1])\n"
        "except OSError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert "cannot write bank-00000-of-00001.safetensors" in run.stdout
    assert len(names(folder)) == 4
    assert_same(LatentBank.from_pretrained(folder, verify=True), make_bank())


def test_a_killed_write_leaves_the_old_bank(folder):
    """SIGKILL between the new shards and the new index, where a bank written in place would be a mixture."""
    code = (
        "import os, signal, sys, torch; from latent_mixup.bank import LatentBank\n"
        "real = os.replace\n"
        "def replace(source, target):\n"
        "    if str(target).endswith('.json'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(source, target)\n"
        "os.replace = replace\n"
        "LatentBank(torch.zeros(10, 3, 4), [0] * 10).save_pretrained(sys.argv[1], max_shard_bytes=96)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -9
    assert_same(LatentBank.from_pretrained(folder, verify=True), make_bank())
    make_bank(seed=1).save_pretrained(folder, max_shard_bytes=4 * 24)
    assert_same(LatentBank.from_pretrained(folder, verify=True), make_bank(seed=1))
    assert len(names(folder)) == 4


# --- fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def open_with(index: bytes, golden: Path = GOLDEN) -> None:
    """Open a golden bank with another index; only our exception may escape."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bank"
        shutil.copytree(golden, folder)
        (folder / INDEX).write_bytes(index)
        try:
            bank = LatentBank.from_pretrained(folder, verify=True)
        except BankFormatError:
            return
        assert torch.isfinite(bank[:][0]).all()


@FUZZ
@given(data=st.data())
def test_fuzz_fields_of_the_index(data):
    index = json.loads((GOLDEN / INDEX).read_text())
    target = data.draw(st.sampled_from([index, index["files"][0], index["metadata"], index["metadata"]["generator"]]))
    key = data.draw(st.sampled_from(sorted(target)) | st.text(max_size=8))
    target[key] = data.draw(JSON)
    open_with(json.dumps(index).encode())


@pytest.mark.parametrize("golden", [GOLDEN_SOFT, GOLDEN_MISSING], ids=["soft", "missing"])
@settings(FUZZ, max_examples=30)
@given(field=st.sampled_from(["format_version", "label_dtype", "label_shape", "num_classes"]), value=JSON)
def test_fuzz_what_the_index_says_of_labels(golden, field, value):
    index = json.loads((golden / INDEX).read_text())
    open_with(json.dumps({**index, field: value}).encode(), golden)


@FUZZ
@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_fuzz_bytes_of_the_index(at, byte):
    data = bytearray((GOLDEN / INDEX).read_bytes())
    data[at % len(data)] = byte
    open_with(bytes(data))


@FUZZ
@given(at=st.integers(0, 700), byte=st.integers(0, 255))
def test_fuzz_bytes_of_a_shard(at, byte):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bank"
        shutil.copytree(GOLDEN, folder)
        path = folder / names(folder)[0]
        data = bytearray(path.read_bytes())
        data[at % len(data)] = byte
        path.write_bytes(data)
        try:
            LatentBank.from_pretrained(folder)[:]
        except BankFormatError:
            return


# --- the promise: banks of 0.1.0 stay readable


def golden_bank() -> LatentBank:
    """Seven rows whose values are exact in float16; ``python tests/test_bank.py`` wrote it for 0.1.0."""
    return LatentBank(
        (torch.arange(42.0) / 8 - 2).view(7, 2, 3),
        torch.tensor([0, 1, 2, 0, 1, 2, 3]),
        source_index=torch.tensor([10, 11, 12, 20, 21, 22, 0]),
        mse=torch.arange(7.0) / 64,
        lpips=torch.arange(7.0) / 32,
        status=torch.tensor([0, 0, 0, 1, 2, 0, 0]),
        metadata={
            "num_classes": 5,
            "latent_space": "w+",
            "generator": {"name": "org/gan", "digest": "0" * 64, "commit": "1" * 40},
            "dataset": {"length": 30, "labels": "2" * 64},
            "inversion": {"steps": 1000, "lr": 0.03, "betas": [0.95, 0.999]},
            "versions": {"latent-mixup": "0.1.0", "torch": "2.14.1"},
        },
    )


def test_the_golden_bank_is_readable_for_ever():
    bank = LatentBank.from_pretrained(GOLDEN, verify=True)
    assert_same(bank, golden_bank())
    assert bank.num_classes == 5
    assert bank[6][0].tolist() == [[2.5, 2.625, 2.75], [2.875, 3.0, 3.125]]
    assert bank.digest() == golden_bank().digest()
    assert names(GOLDEN) == [*(f"bank-0000{i}-of-00003.safetensors" for i in range(3)), INDEX]


def golden_bank_with(labels: torch.Tensor) -> LatentBank:
    """The golden bank with labels of another kind."""
    bank = golden_bank()
    columns = {name: getattr(bank, name) for name in COLUMNS if name != "labels"}
    return LatentBank(bank[:][0], labels, **columns, metadata=bank.metadata)


def golden_plain() -> LatentBank:
    """No column but those that must be there, no metadata, one file; written by 0.1.0."""
    return LatentBank((torch.arange(40.0) / 16 - 1).view(10, 4), torch.tensor([3, 1, 2, 0, 1, 2, 3, 0, 1, 2]))


def golden_float32() -> LatentBank:
    """Every column, codes and errors that float16 would round; written by 0.1.0."""
    return LatentBank(
        (torch.arange(1.0, 43) / 7).view(7, 2, 3),
        torch.tensor([0, 1, 2, 0, 1, 2, 3]),
        source_index=torch.tensor([10, 11, 12, 20, 21, 22, 0]),
        mse=torch.arange(7.0) / 7,
        lpips=torch.arange(7.0) / 3,
        status=torch.tensor([0, 0, 0, 1, 2, 0, 0]),
        metadata={
            "num_classes": 5,
            "latent_space": "w+",
            "versions": {"latent-mixup": "0.1.0", "torch": "2.14.1"},
        },
    )


GOLDEN_BANKS = {
    GOLDEN: golden_bank,
    GOLDEN_PLAIN: golden_plain,
    GOLDEN_FLOAT32: golden_float32,
    GOLDEN_SOFT: lambda: golden_bank_with(torch.arange(1.0, 36).view(7, 5) / torch.arange(15.0, 166, 25)[:, None]),
    GOLDEN_MISSING: lambda: golden_bank_with(torch.tensor([0, -1, 2, 0, 1, -1, 3])),
}
HOW = {
    GOLDEN: {"max_shard_bytes": 3 * 12},
    GOLDEN_PLAIN: {},
    GOLDEN_FLOAT32: {"max_shard_bytes": 3 * 24, "dtype": torch.float32},
    GOLDEN_SOFT: {"max_shard_bytes": 3 * (12 + 20)},
    GOLDEN_MISSING: {"max_shard_bytes": 3 * 12},
}
golden_banks = pytest.mark.parametrize("golden", GOLDEN_BANKS, ids=[golden.name for golden in GOLDEN_BANKS])


@golden_banks
def test_golden_banks_are_readable_for_ever(golden):
    bank, expected = LatentBank.from_pretrained(golden, verify=True), GOLDEN_BANKS[golden]()
    assert_same(bank, expected)
    assert bank.digest() == expected.digest()
    assert bank.num_classes == expected.num_classes
    assert names(golden) == (["bank-00000-of-00001.safetensors", INDEX] if golden == GOLDEN_PLAIN else names(GOLDEN))


@golden_banks
def test_golden_banks_are_written_the_same_for_ever(golden, tmp_path):
    GOLDEN_BANKS[golden]().save_pretrained(tmp_path / "bank", **HOW[golden])
    assert names(tmp_path / "bank") == names(golden)
    for name in names(golden):
        assert (tmp_path / "bank" / name).read_bytes() == (golden / name).read_bytes()


if __name__ == "__main__":
    for golden, make in GOLDEN_BANKS.items():
        make().save_pretrained(golden, **HOW[golden])
