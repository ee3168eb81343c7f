"""A bank's folder: round trips, what damaged or hostile files get, writes that fail, and golden banks."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from banks import COLUMNS, INDEX, KINDS, assert_same, edit_index, make_bank, read_index, shards, soft_rows, some_missing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from systems import FORK, endless, link, needs_posix, pipe

from latent_mixup import LatentBank, files
from latent_mixup.bank import BankFormatError

GOLDEN = Path(__file__).parents[1] / "golden" / "bank-0.1.0"
GOLDEN_PLAIN = GOLDEN.with_name("bank-0.1.0-plain")
GOLDEN_FLOAT32 = GOLDEN.with_name("bank-0.1.0-float32")
GOLDEN_SOFT = GOLDEN.with_name("bank-format-2-soft")
GOLDEN_MISSING = GOLDEN.with_name("bank-format-2-missing")
SOFT = soft_rows()


@pytest.fixture
def folder(tmp_path):
    """A bank of ten rows in three shards: 4, 4, 2."""
    make_bank().save_pretrained(tmp_path / "bank", max_shard_bytes=4 * 24)
    return tmp_path / "bank"


def names(folder: Path) -> list[str]:
    """The files of the bank; the card beside them is tested elsewhere."""
    return sorted(path.name for path in folder.iterdir() if path.name != "README.md")


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
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_of_each_kind_of_labels_is_exact(kind, tmp_path, dtype, max_shard_bytes):
    any_bank = make_bank(labels=KINDS[kind])
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


@pytest.mark.parametrize("method", ["spawn", FORK])
def test_another_process_opens_the_folder_itself(folder, method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    bank = LatentBank.from_pretrained(folder)
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        for sent in (bank, bank.subset([3, 9])):
            assert pool.submit(sums, sent).result() == sums(sent)


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


# --- files: faults


@pytest.mark.parametrize("cut", [0, 7, 8, 9, 200, -1])
def test_a_truncated_shard(folder, cut):
    path = folder / names(folder)[1]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BankFormatError, match=r"bank-00001-of-00003.safetensors is damaged: expected \d+ bytes"):
        LatentBank.from_pretrained(folder)
    files = json.loads((folder / INDEX).read_text())["files"]
    files[1]["size"] = path.stat().st_size
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
    shards(folder)[2].rename(folder / "bank-9.safetensors")
    with pytest.raises(BankFormatError, match=r"bank-00002-of-00003.safetensors is missing: bank.index.json names it"):
        LatentBank.from_pretrained(folder)


def test_a_shard_in_the_place_of_another(folder, tmp_path):
    first, second, _ = shards(folder)
    own = first.read_bytes()
    make_bank(seed=1).save_pretrained(tmp_path / "other", max_shard_bytes=4 * 24)
    for other in (second, shards(tmp_path / "other")[0]):
        shutil.copy(other, first)
        with pytest.raises(BankFormatError, match=r"is not shard 0 of this bank.*swapped or mixed"):
            LatentBank.from_pretrained(folder)
    first.write_bytes(own)
    assert_same(LatentBank.from_pretrained(folder), make_bank())


def test_a_leftover_of_an_older_bank_is_harmless(folder, tmp_path):
    make_bank(seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "bank-00000-of-00001.safetensors", folder)
    assert_same(LatentBank.from_pretrained(folder), make_bank())


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (None, lambda t: t.pop("mse"), "field 'tensors' needs"),
        (None, lambda t: t.update(more=torch.ones(1)), "field 'tensors' needs"),
        (None, lambda t: t.update(latents=t["latents"].float()), "field 'latents' needs F16"),
        (None, lambda t: t.update(latents=t["latents"][:, :2].contiguous()), r"field 'latents' needs F16 \[10, 3, 4\]"),
        (None, lambda t: t.update(labels=t["labels"].int()), r"'labels' needs I64 \[10\], found 'I32 \[10\]'"),
        (None, lambda t: t.update(labels=t["labels"] - 1), "numbers from 0 before format_version 2: row 0 has -1"),
        (
            None,
            lambda t: t.update(labels=torch.eye(3)[t["labels"]]),
            r"'labels' needs I64 \[10\], found 'F32 \[10, 3\]'",
        ),
        (None, lambda t: t.update(labels=t["labels"] + 5), "below num_classes=4"),
        (None, lambda t: t.update(source_index=t["source_index"] * 0), "source_index needs one row per sample"),
        (None, lambda t: t.update(mse=t["mse"] - 2), "mse needs numbers from 0"),
        (None, lambda t: t["latents"].fill_(float("nan")), "latents need finite numbers: row 0 has NaN"),
        (SOFT, lambda t: t.update(labels=t["labels"].argmax(1)), r"'labels' needs F32 \[10, 4\], found 'I64 \[10\]'"),
        (SOFT, lambda t: t.update(labels=t["labels"][:, :3].contiguous()), r"F32 \[10, 4\], found 'F32 \[10, 3\]'"),
        (SOFT, lambda t: t.update(labels=t["labels"].half()), r"needs F32 \[10, 4\], found 'F16 \[10, 4\]'"),
        (SOFT, lambda t: t["labels"][3].fill_(0.5), "soft labels need numbers from 0 .*: row 3 sums to 2"),
        (SOFT, lambda t: t["labels"][3].fill_(float("nan")), "soft labels need numbers from 0 .*: row 3 has nan"),
    ],
)
def test_a_shard_with_other_content_than_the_index_says(tmp_path, labels, change, message):
    make_bank(labels=labels).save_pretrained(tmp_path)
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
    edit_index(folder, format_version=4, something_new=True)
    with pytest.raises(BankFormatError, match=r"bank.index.json has format_version 4.* up to 3: upgrade latent-mixup"):
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
    link(folder / name, tmp_path / name)
    with pytest.raises(BankFormatError, match="link that leaves its folder"):
        LatentBank.from_pretrained(folder)


def test_a_link_to_the_folder_is_fine(folder, tmp_path):
    link(tmp_path / "link", folder)
    assert_same(LatentBank.from_pretrained(tmp_path / "link"), make_bank())


def spoil(path: Path, how: str) -> None:
    """Put something that is no regular file of the folder in the place of a file."""
    path.unlink(missing_ok=True)
    if how == "fifo":
        pipe(path)
    elif how == "folder":
        path.mkdir()
    else:
        link(path, {"device": endless, "loop": lambda: path, "nowhere": lambda: path.with_name("nowhere")}[how]())


@pytest.mark.parametrize("how", ["fifo", "folder", "device", "loop", "nowhere"])
def test_what_is_no_regular_file_is_never_opened(folder, how):
    for name in ("bank-zz.safetensors", "bank-00003-of-00003.safetensors", ".hidden", "x.json"):
        spoil(folder / name, how)  # nobody names them
    assert_same(LatentBank.from_pretrained(folder, verify=True), make_bank())
    for path in (shards(folder)[1], folder / INDEX):
        spoil(path, how)
        with pytest.raises(BankFormatError, match=rf"{path.name} (is missing|is a link that|cannot be resolved)"):
            LatentBank.from_pretrained(folder)


def test_a_reader_beside_a_writer_gets_one_bank_or_the_other(tmp_path):
    """Two banks in turn, with and without a shard more: none is mixed, and no load fails."""
    banks = [make_bank(), make_bank(14, seed=1)]
    banks[0].save_pretrained(tmp_path, max_shard_bytes=96)
    stop = threading.Event()

    def write() -> None:
        for bank in itertools.cycle(reversed(banks)):
            if stop.is_set():
                return
            bank.save_pretrained(tmp_path, max_shard_bytes=96)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            found = LatentBank.from_pretrained(tmp_path)
            assert_same(found, banks[len(found) == 14])
    finally:
        stop.set()
        writer.join()


# --- files: what the format cannot hold


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: bank.metadata.update(notes="x" * 2**26), "bank.index.json is .* bytes: expected at most"),
        (
            lambda bank: bank.metadata.update(notes=[0] * 2**20),
            "bank.index.json holds about .* values: expected at most",
        ),
        (lambda bank: bank.metadata.update(refined=3), r"metadata\['refined'\] needs to be a list of dicts"),
        (lambda bank: bank.metadata.update(notes={1}), "what JSON can say"),
        (lambda bank: setattr(bank, "num_classes", 10**30), "'num_classes' needs an integer from 0 to 16777216"),
        (lambda bank: setattr(bank, "_codes", torch.zeros(10, *[1] * 8, 3)), "'latent_shape' needs 1 to 8 positive"),
    ],
)
def test_what_could_not_be_read_again_is_refused_before_anything_is_written(folder, change, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bank = make_bank(seed=1)
    change(bank)
    with pytest.raises(ValueError, match=message) as caught:
        bank.save_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def many_set_aside(count: int) -> LatentBank:
    bank = make_bank()
    bank.metadata["set_aside"] = {str(100 + i): f"image {i}, as it is, cannot be read \u00e9" for i in range(count)}
    return bank


def test_many_images_set_aside_are_in_a_file_of_their_own(tmp_path):
    for count, version in ((10_000, 1), (10_001, 3), (60_000, 3)):
        bank = many_set_aside(count)
        bank.save_pretrained(tmp_path, max_shard_bytes=96)
        assert read_index(tmp_path)["format_version"] == version
        assert (tmp_path / "bank-set-aside.safetensors").exists() == (version == 3)
        assert_same(LatentBank.from_pretrained(tmp_path, verify=True), bank)
        assert "set_aside" in bank.metadata
    assert (tmp_path / INDEX).stat().st_size < 3000
    make_bank().save_pretrained(tmp_path, max_shard_bytes=96)
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ends"), "expected the tensors source_index, ends and errors"),
        (lambda t: t.update(ends=t["ends"].int()), "need int64"),
        (lambda t: t.update(ends=t["ends"].flip(0)), "ascending"),
        (lambda t: t.update(ends=t["ends"] + 1), "ascending"),
        (lambda t: t.update(ends=t["ends"][1:].clone()), "one position in errors for each"),
        (lambda t: t["errors"].fill_(255), "can't decode|invalid"),
        (lambda t: t.update(source_index=-t["source_index"]), r"metadata\['set_aside'\] needs to be"),
        (
            lambda t: t.update(source_index=t["source_index"][None].clone(), ends=t["ends"][None].clone()),
            "one position",
        ),
    ],
)
def test_a_damaged_file_of_images_set_aside(tmp_path, change, message):
    many_set_aside(10_001).save_pretrained(tmp_path)
    path = tmp_path / "bank-set-aside.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit_index(tmp_path, set_aside={"name": path.name, "size": path.stat().st_size, "sha256": files.sha256(path)})
    with pytest.raises(BankFormatError, match=rf"bank-set-aside.safetensors.*({message})"):
        LatentBank.from_pretrained(tmp_path)


# --- files: writes that fail


@needs_posix
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


class Killed(BaseException):
    """Nothing catches it, and nothing that is to happen afterwards does."""


def ends_before(call: int, save) -> bool:
    """Run ``save`` until its file operation number ``call``; from there on none is done, as after a kill."""
    calls = itertools.count()

    def counted(real, *arguments, **options):
        if next(calls) >= call:
            raise Killed
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "mkdir", "replace", "rename", "link", "unlink", "rmdir", "fsync", "chmod"):
            patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
        try:
            save()
        except Killed:
            patch.undo()  # the lock is free again, as the system frees that of a killed process
            return True
    return False


@pytest.mark.parametrize("new", [make_bank(), make_bank(14, seed=1)], ids=["the same codes", "other codes"])
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_bank(tmp_path, new):
    old = make_bank()
    new.metadata["more"] = 1
    make_bank(seed=2).save_pretrained(tmp_path / "old", max_shard_bytes=96)
    old.save_pretrained(tmp_path / "old", max_shard_bytes=96)  # a bank over a bank
    for call in itertools.count():
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(call))
        killed = ends_before(call, lambda folder=folder: new.save_pretrained(folder, max_shard_bytes=96))
        found = LatentBank.from_pretrained(folder, verify=True)
        assert_same(found, old if "more" not in found.metadata else new)
        new.save_pretrained(folder, max_shard_bytes=96)
        assert_same(LatentBank.from_pretrained(folder, verify=True), new)
        assert len(names(folder)) == 1 + len(read_index(folder)["files"])
        if not killed:
            break
    assert call > 20


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
    assert len(names(golden)) == (2 if golden == GOLDEN_PLAIN else 4)
    if golden == GOLDEN:
        assert bank[6][0].tolist() == [[2.5, 2.625, 2.75], [2.875, 3.0, 3.125]]


@golden_banks
def test_golden_banks_are_written_the_same_for_ever(golden, tmp_path):
    GOLDEN_BANKS[golden]().save_pretrained(tmp_path / "bank", **HOW[golden])
    assert names(tmp_path / "bank") == names(golden)
    for name in names(golden):
        assert (tmp_path / "bank" / name).read_bytes() == (golden / name).read_bytes()


if __name__ == "__main__":
    for golden, make in GOLDEN_BANKS.items():
        make().save_pretrained(golden, **HOW[golden])
