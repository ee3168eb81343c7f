"""Hostile files: one clear error, no side effect, bounded time and memory; and nothing else, whatever is mutated."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from functools import cache

import foreign
import numpy as np
import pytest
import torch
from foreign import Call, Persistent, Raw
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from systems import endless

from latent_mixup.bank import LatentBank
from latent_mixup.convert import UnsafeCheckpointError, convert
from latent_mixup.convert.pickles import MAX_OPCODES, reading
from latent_mixup.files import FormatError
from latent_mixup.generators.stylegan2 import StyleGAN2

SECONDS = 60  # of computing, whatever else the machine does; the slowest takes 3
MEBIBYTES = 300


class Canary:
    """A file that must never appear, and pickles that would make it."""

    def __init__(self, path) -> None:
        self.path = path
        self.command = f"touch {path}"

    def call(self) -> bytes:
        """Opcodes that call ``os.system``, without a protocol or a STOP."""
        text = self.command.encode()
        return b"cposix\nsystem\nX" + struct.pack("<I", len(text)) + text + b"\x85R"

    def pickle(self) -> bytes:
        return b"\x80\x02" + self.call() + b"."


@pytest.fixture
def canary(tmp_path):
    canary = Canary(tmp_path / "canary")
    yield canary
    assert not canary.path.exists(), "something in the file was executed"


@pytest.fixture
def refused(tmp_path, canary):
    """A function that converts bytes and expects one error, in bounded time and memory, and nothing written."""

    def check(data: bytes, message: str | None = None) -> None:
        path = tmp_path / "hostile.bin"
        path.write_bytes(data)
        modules = set(sys.modules)
        tracemalloc.start()
        start = time.process_time()
        try:
            with pytest.raises(FormatError, match=message) as caught:
                convert(path, tmp_path / "out")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert type(caught.value) in (FormatError, UnsafeCheckpointError)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert time.process_time() - start < SECONDS
        assert peak < MEBIBYTES * 2**20 + 4 * len(data)
        assert not (tmp_path / "out").exists()
        assert not [
            name for name in set(sys.modules) - modules if not name.startswith(("torch", "numpy", "encodings", "_"))
        ]

    return check


def embed(opcodes: bytes) -> bytes:
    """A pickle ``{"G_ema": <opcodes>}``."""
    return b"\x80\x04}\x8c\x05G_ema" + opcodes + b"s."


def network_with(value: object, where: str = "unused") -> bytes:
    """A network of the release, with ``value`` in the state of G_ema."""
    return foreign.release_pickle(foreign.tiny(), change=lambda network: network.state.update({where: value}))


# --- code


def test_code_in_a_call_is_refused(refused, canary):
    refused(canary.pickle(), "names 'posix.system'")
    refused(embed(canary.call()), "names 'posix.system'")
    refused(foreign.latents_npy({})[:128] + canary.pickle(), "names 'posix.system'")


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "os system", "torch.storage _load_from_bytes2"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_names_outside_the_vocabulary_are_refused(refused, name, protocol):
    module, attribute = (text.encode() for text in name.split())
    if protocol == 2:
        opcodes = b"c" + module + b"\n" + attribute + b"\n"
    else:
        opcodes = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(attribute)]) + attribute + b"\x93"
    refused(embed(opcodes + b")R"), "which no file of this kind needs")


def test_source_text_in_the_file_stays_text(tmp_path, canary):
    source = f"import os; os.system({canary.command!r})\n"

    def change(network):
        network.source = source
        network.state["_modules"]["mapping"].source = source

    path = tmp_path / "network.pkl"
    path.write_bytes(foreign.release_pickle(foreign.tiny(), change=change))
    assert isinstance(convert(path, tmp_path / "out"), StyleGAN2)
    assert not [name for name in sys.modules if name.startswith("_imported_module")]


def legacy_parts() -> list[bytes]:
    """A legacy file of one storage as its five pickles and its data."""
    stream = io.BytesIO()
    torch.save(torch.ones(4)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    data, parts = stream.getvalue(), []
    for _ in range(5):
        end = [position for _, _, position in pickletools.genops(data)][-1] + 1
        parts.append(data[:end])
        data = data[end:]
    return [*parts, data]


@pytest.mark.parametrize("part", range(5))
def test_code_in_a_nested_storage_is_refused(refused, canary, part):
    parts = legacy_parts()
    parts[part] = canary.pickle()
    refused(network_with(Call(torch.storage._load_from_bytes, b"".join(parts))), "names 'posix.system'")


def test_a_nested_zip_is_refused(refused, canary):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", canary.pickle())
        archive.writestr("archive/version", "3\n")
    refused(network_with(Call(torch.storage._load_from_bytes, stream.getvalue())), "does not begin as a pickle")
    refused(stream.getvalue(), "names 'posix.system'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: [*parts[:5], parts[5] + b"x"], "bytes follow"),
        (lambda parts: [*parts[:5], parts[5][:-1]], "cut off"),
        (lambda parts: [*parts[:5], struct.pack("<q", 2**40) + parts[5][8:]], "has 1099511627776"),
        (lambda parts: [*parts[:5], struct.pack("<q", -1) + parts[5][8:]], "has 18446744073709551615"),
        (lambda parts: parts[1:], "legacy format"),
        (lambda parts: [*parts[:4], pickle.dumps(["other"], 2), parts[5]], "not those that follow"),
        (lambda parts: [*parts[:2], pickle.dumps({"little_endian": False}, 2), *parts[3:]], "little-endian"),
        (lambda parts: [*parts[:3], pickle.dumps(3, 2), *parts[4:]], "not those that follow"),
        (lambda parts: [*parts[:3], parts[3].replace(b"FloatStorage", b"UntypedStorage"), *parts[4:]], "names"),
        (lambda parts: [*parts[:3], parts[3].replace(b"K\x04", b"K\x05"), *parts[4:]], "has 4"),
    ],
)
def test_a_nested_storage_is_checked(refused, change, message):
    refused(network_with(Call(torch.storage._load_from_bytes, b"".join(change(legacy_parts())))), message)


def test_build_on_a_name_or_anything_else_without_a_state_is_refused(refused):
    for target in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cdnnlib.util\nEasyDict\n",
        b"cnumpy\nndarray\n",
        b"]",
        b"}",
    ):
        for state in (b"}", b"N}\x8c\x0c__defaults__Ns\x86", b"}\x8c\x09__class__Ns", b"N"):
            refused(embed(target + state + b"b"), "sets the state of something that has none")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_a_record_is_completed_once(refused):
    network = b"cdnnlib.tflib.network\nNetwork\n)\x81"
    refused(embed(network + b"}b}b"), "state is not a dict")
    refused(
        embed(b"cnumpy\ndtype\n\x8c\x02f4\x85R" + b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" * 2),
        "dtype",
    )


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"(No", "OBJ"),
        (b"(iposix\nsystem\n", "INST"),
        (b"cdnnlib.util\nEasyDict\n)}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"Pabc\n", "PERSID"),
        (b"NQ", "BINPERSID"),
        (b"\x97", "NEXT_BUFFER"),
        (b"\x98", "READONLY_BUFFER"),
        (b"N2", "DUP"),
        (b"\xff", "0xff"),
    ],
)
def test_opcodes_that_no_such_file_needs_are_refused(refused, opcodes, name):
    refused(embed(opcodes), f"opcode {name} is not allowed")


# --- sizes


def test_a_memo_index_costs_nothing(refused):
    refused(b"\x80\x02}r\xff\xff\xff\x7f.", "without 'G_ema'")
    refused(embed(b"]" + b"".join(b"r" + struct.pack("<I", 2**31 - 1 - i) for i in range(1000))), "without 'G_ema'")


def doubling(levels: int) -> tuple:
    value = ("ha",)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "where", ["unused", "z_dim", "_init_args", "_init_kwargs", "_modules", "_buffers", "_parameters"]
)
def test_a_billion_laughs_are_not_counted(tmp_path, refused, where):
    data = network_with(doubling(60), where)
    if where == "unused":
        (tmp_path / "network.pkl").write_bytes(data)
        assert isinstance(convert(tmp_path / "network.pkl", tmp_path / "converted"), StyleGAN2)
    else:
        refused(data)


def test_a_nested_key_is_never_hashed(refused):
    key = b"()q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"1"
    refused(b"\x80\x04" + key + b"}h\x00Ns.", "a key that is a tuple")


def test_keys_that_collide_are_refused(refused):
    colliding = b"".join(b"\x8a\x09" + (k * (2**61 - 1)).to_bytes(9, "little") + b"N" for k in range(1, 100))
    refused(b"\x80\x02}(" + colliding + b"u.", "a key that is a int")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]" * 200_000 + b"a" * 199_999,
        b"(" * 50_000 + b"t" * 50_000,
        b")" + b"\x85" * 200_000,
        b"(" * 600,
        b"N" + b"\x85}\x8c\x01aN\x87" * 50_000,
    ],
)
def test_deep_nesting_is_survived(refused, opcodes):
    refused(b"\x80\x04" + opcodes + b".")


def test_deep_records_are_survived(refused):
    name = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\nq\x00"
    meta = b"}(\x8c\x04type\x8c\x05class\x8c\x0aclass_name\x8c\x01a\x8c\x0amodule_src\x8c\x01b"
    meta += b"\x8c\x05state}\x8c\x01ch\x01su"
    record = b"h\x00" + meta + b"\x85Rq\x01"
    refused(b"\x80\x04](Nq\x01" + name + record * 20_000 + b"e.", "without 'G_ema'")


def test_too_many_opcodes_are_refused(refused):
    refused(b"\x80\x04" + b"N\x85" * (MAX_OPCODES // 2 + 1) + b".", "opcodes")


def test_lengths_that_are_not_there_are_refused(refused):
    for opcodes in (
        b"\x8e" + struct.pack("<Q", 2**63),
        b"\x8d" + struct.pack("<Q", 2**40),
        b"\x96" + struct.pack("<Q", 2**40),
        b"B" + struct.pack("<I", 2**32 - 1),
        b"T" + struct.pack("<i", -1),
    ):
        refused(embed(opcodes), "cut off")
    refused(embed(b"\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20), "integer has 1048576 bytes")
    refused(embed(b"I" + b"9" * 10_000 + b"\n"), "line of text")


def test_bytes_cannot_be_copied_again_and_again(refused):
    text = b"".join(legacy_parts()).decode("latin-1").encode()
    call = b"ctorch.storage\n_load_from_bytes\nh\x00\x85R"
    refused(b"\x80\x02](X" + struct.pack("<I", len(text)) + text + b"q\x00" + call * 100 + b"e.", "more than once")


def test_tables_cannot_be_copied_again_and_again(refused):
    table = b"](K\x01K\x01\x86q\x00" + b"h\x00" * 90_000 + b"eq\x01"
    refused(b"\x80\x02](" + table + b"ccollections\nOrderedDict\nh\x01\x85R" * 60 + b"e.", "opcodes")


STORAGE = (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (1000,), (1,)),
        (0, (2, 2), (1000, 1)),
        (4, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (4,), (-1,)),
        (0, (2**40,), (0,)),
        (0, (2**61, 2**61), (0, 0)),
        (0, (3,), (1, 1)),
        (0, (2**80,), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, [2], (1,)),
        (0, (True,), (1,)),
        (2**80, (1,), (1,)),
        (0.5, (1,), (1,)),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(refused, offset, size, stride):
    refused(network_with(Raw(foreign.storage_of(*STORAGE), offset, size, stride)))


@pytest.mark.parametrize("size", [(0,), (2**61, 0, 2**61), (0, 2**62 - 1)])
def test_an_empty_tensor_allocates_nothing(refused, size):
    def change(network):
        raw = Raw(foreign.storage_of(*STORAGE), 0, size, (1,) * len(size))
        network.state["_modules"]["mapping"].state["_buffers"]["w_avg"] = raw

    refused(foreign.release_pickle(foreign.tiny(), change=change), "needs shape")


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.zeros(2, dtype="S10"),
        np.zeros(2, dtype="U10"),
        np.zeros(2, dtype="V10"),
        np.zeros(2, dtype="c8"),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype=np.longdouble),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(refused, array):
    refused(network_with(array))
    refused(foreign.latents_npy({"00000_0.png": array}))


def test_an_array_of_another_size_is_refused(refused):
    data = foreign.latents_npy({"00000_0.png": np.zeros((2, 3), "f4")}, protocol=3)
    assert data.count(b"K\x02K\x03\x86") == 1
    for size in (b"K\x02K\x04\x86", b"K\xffK\xff\x86", b"K\x02J\xff\xff\xff\xff\x86", b"K\x02N\x86"):
        refused(data.replace(b"K\x02K\x03\x86", size))


def test_a_few_bytes_are_not_turned_into_many_codes(refused):
    array = np.zeros((100, 1000), "f4")
    refused(foreign.latents_npy({f"{i:05d}_0.png": array for i in range(5000)}), "share their bytes")


def test_a_zip_bomb_is_refused(refused):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    refused(stream.getvalue(), "compressed parts")


def test_a_zip_of_too_many_parts_is_refused_before_its_table_is_parsed(tmp_path, monkeypatch):
    """A million parts of no bytes are a file of 100 MB, and were a gigabyte in memory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(30):
            archive.writestr(f"archive/data/{number}", b"")
    path = tmp_path / "many.pt"
    path.write_bytes(stream.getvalue())
    monkeypatch.setattr("latent_mixup.convert.tensors._MAX_ZIP_PARTS", 29)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for name in ("many.pt", "many.npz"):
        path = path.rename(tmp_path / name)
        with pytest.raises(UnsafeCheckpointError, match="a zip file of more than 29 parts"):
            convert(path, tmp_path / "out")


def test_a_zip_that_says_more_than_it_has_is_refused(refused):
    data = foreign.rosinality_file(foreign.tiny())
    index = data.rindex(b"PK\x01\x02")
    for size in (2**31, 2**32 - 2):
        refused(data[: index + 20] + struct.pack("<II", size, size) + data[index + 28 :])


def test_a_huge_network_is_refused_before_it_is_allocated(refused):
    def change(network):
        network.state.update(img_resolution=1024, w_dim=65536, z_dim=65536, c_dim=65536)

    wide = foreign.tiny(channel_base=1024, channel_max=8)
    refused(foreign.release_pickle(wide, change=change), "missing")


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("latent_mixup.convert.pickles.MAX_FILE_BYTES", 10)
    (tmp_path / "a").write_bytes(b"12345678901")
    with pytest.raises(UnsafeCheckpointError, match="larger than 10 bytes"), reading(tmp_path / "a"):
        pass
    with pytest.raises(FileNotFoundError, match="is not a file"), reading(endless()):
        pass


# --- files that break off, or change at random


@cache
def samples() -> dict[str, bytes]:
    generator = foreign.tiny(img_resolution=8, channel_base=16, channel_max=2, z_dim=2, w_dim=2, mapping_num_layers=1)
    codes = {f"{i:05d}_{i}.png": np.full((2, 3), i, "f4") for i in range(5)}
    return {
        "ada": foreign.release_pickle(generator),
        "sg3, protocol 2": foreign.release_pickle(generator, "sg3", protocol=2, numpy=1),
        "tensorflow": foreign.tf_pickle(generator),
        "tensorflow, protocol 2": foreign.tf_pickle(generator, protocol=2),
        "rosinality": foreign.rosinality_file(generator),
        "rosinality, legacy": foreign.rosinality_file(generator, zipped=False),
        "latents": foreign.latents_npy(codes),
        "latents, protocol 2": foreign.latents_npy(codes, protocol=2, numpy=1),
        "latents, protocol 5": foreign.latents_npy(codes, protocol=5),
    }


@pytest.mark.parametrize("name", list(samples()))
def test_a_file_cut_off_anywhere_is_refused(tmp_path, name):
    data = samples()[name]
    convert_bytes(data, tmp_path)
    for size in sorted({*range(0, len(data), max(1, len(data) // 150)), *range(40), *range(len(data) - 40, len(data))}):
        (tmp_path / "file").write_bytes(data[:size])
        with pytest.raises(FormatError):
            convert(tmp_path / "file", tmp_path / "out")
    if name != "rosinality":  # what follows a zip file is no part of it
        with pytest.raises(FormatError):
            convert_bytes(data + b"\0", tmp_path)


def convert_bytes(data: bytes, folder) -> StyleGAN2 | LatentBank:
    (folder / "file").write_bytes(data)
    return convert(folder / "file", folder / "made")


@st.composite
def mutated(draw) -> bytes:
    """One of the samples after a few changes, of bytes or of whole opcodes."""
    name = draw(st.sampled_from(sorted(samples())))
    data = bytearray(samples()[name])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()):
            starts = opcode_starts(name)
            at = draw(st.sampled_from(starts)) if starts else at
        kind = draw(st.sampled_from(["byte", "byte", "opcode", "insert", "delete", "copy", "size", "cut"]))
        if kind == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "opcode":
            data[at : at + 1] = draw(st.sampled_from(OPCODES))
        elif kind == "insert":
            data[at:at] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(OPCODES)))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "copy":
            start = draw(st.integers(0, max(0, len(data) - 1)))
            data[at:at] = data[start : start + draw(st.integers(1, 200))]
        elif kind == "size":
            data[at : at + 4] = struct.pack("<I", draw(st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])))
        else:
            del data[at:]
    return bytes(data)


OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]


@cache
def opcode_starts(name: str) -> list[int]:
    """Where the opcodes of a sample lie, or some of them."""
    data = samples()[name]
    start = data.index(b"\x80") if b"\x80" in data else 0
    try:
        return [start + position for _, _, position in pickletools.genops(data[start:])]
    except ValueError:
        return []


EXAMPLES = 300


def check_mutated(data: bytes, folder) -> str:
    """What comes of a mutated file: ``"read"``, or the exception's name."""
    try:
        made = convert_bytes(data, folder)
    except FormatError as error:
        return type(error).__name__
    tensors = made.state_dict().values() if isinstance(made, StyleGAN2) else [made[:][0]]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
    return "read"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=mutated())
@example(data=b"")
@example(data=b"\x80")
@example(data=b"PK\x03\x04")
@example(data=b"\x93NUMPY")
def test_only_our_exceptions_escape(tmp_path, canary, data):
    assert check_mutated(data, tmp_path) in ("read", "FormatError", "UnsafeCheckpointError")


def test_the_mutations_reach_far_into_the_readers(tmp_path):
    """A mutated file can also be read: then it was changed where only numbers lie."""
    data = bytearray(samples()["ada"])
    position = data.rindex(b"\x00\x00\x80?\x00\x00\x80?")
    data[position] ^= 1
    assert check_mutated(bytes(data), tmp_path) == "read"
    assert check_mutated(network_with(Persistent("Anything", _modules=OrderedDict())), tmp_path) == "read"
