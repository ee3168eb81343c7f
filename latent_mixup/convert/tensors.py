"""Arrays and tensors as they lie in pickles: numpy's reductions and torch's legacy storages, read without either.

A record is checked when it is made and turned into numbers when it is asked for. A tensor never has more
elements than its storage, an array never more than its bytes, so nothing is larger in memory than in the file.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_mixup.convert.pickles import (
    PYTHON_NAMES,
    Budget,
    Buildable,
    Maker,
    Name,
    PickleReader,
    UnsafeCheckpointError,
    read_pickle,
)

_MAX_DIMENSIONS = 8
_MAX_ZIP_PARTS = 20_000
_DTYPE_CODE = re.compile(r"[iu][1248]|f[248]|b1")
_OBJECT_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|O', 'fortran_order': False, 'shape': \(\), \} {0,100}\n", re.DOTALL
)
_MAGIC, _FORMAT = 0x1950A86A20F9469CFC6C, 1001  # how torch's legacy files begin
_STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


def as_sizes(value: Any, what: str) -> tuple[int, ...]:
    """A tuple of at most eight integers from 0."""
    if (
        type(value) is tuple
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    ):
        return value
    raise UnsafeCheckpointError(f"{what} is not a tuple of at most {_MAX_DIMENSIONS} sizes")


# --- numpy


class StoredDtype(Buildable):
    """``numpy.dtype('f4', ...)``, little-endian until BUILD says otherwise; only booleans, integers and floats."""

    extra: str | None = None  # one more code

    def __init__(self, budget: Budget, code: Any, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or not (_DTYPE_CODE.fullmatch(code) or code == self.extra):
            what = repr(code[:20]) if type(code) is str else f"a {type(code).__name__}"
            raise UnsafeCheckpointError(f"it has an array of dtype {what}: expected plain numbers")
        self.code, self.order = code, "<"
        self._built = False

    def build(self, state: Any) -> None:
        """``(3, byte order, None, None, None, -1, -1, 0)``: no fields, no sub-array."""
        plain = type(state) is tuple and 8 <= len(state) <= 9 and all(part is None for part in state[2:5])
        if self._built or not plain or type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
            raise UnsafeCheckpointError("it has an array whose dtype is not of plain numbers")
        self.order, self._built = state[1], True

    @property
    def numpy(self) -> np.dtype[Any]:
        """What numpy calls it."""
        return np.dtype(("<" if self.order in "|=" else self.order) + self.code)


class OuterDtype(StoredDtype):
    """In an ``.npy`` of a pickled dict also ``O8``: the dict is the one element of an array of objects."""

    extra = "O8"


class StoredArray(Buildable):
    """A numpy array: dtype, shape, order and a view of the file."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.order = "C"
        self._data: Any = None
        self._object: Any = None
        self._dtype: StoredDtype | None = None

    def build(self, state: Any) -> None:
        """``(1, shape, dtype, fortran order, data)``."""
        if type(state) is not tuple or len(state) != 5:
            raise UnsafeCheckpointError("it has an array whose state is not of numpy's form")
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, "F" if fortran is True or fortran == 1 else "C", data)

    def fill(self, shape: Any, dtype: Any, order: Any, data: Any) -> None:
        """Take what the file says, once, if the data has exactly the bytes that shape and dtype need."""
        if self._dtype is not None or not isinstance(dtype, StoredDtype):
            raise UnsafeCheckpointError("it has an array that is not made of a dtype and bytes")
        self.shape = as_sizes(shape, "the shape of an array")
        self.order, self._dtype = ("F" if order == "F" else "C"), dtype
        if dtype.code == "O8":
            self._object = data
            return
        if type(data) not in (memoryview, str):
            raise UnsafeCheckpointError("it has an array that is not made of a dtype and bytes")
        self._data = data
        if (needed := math.prod(self.shape) * dtype.numpy.itemsize) != len(data):
            raise UnsafeCheckpointError(f"an array of shape {self.shape} needs {needed} bytes: found {len(data)}")

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return 0 if self._data is None else len(self._data)

    @property
    def code(self) -> str:
        """Its dtype's code, such as ``f4``."""
        return "no" if self._dtype is None else self._dtype.code

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return self.code.startswith("f")

    def numpy(self) -> np.ndarray[Any, Any]:
        """The array; a view of the file where that can be."""
        if self._dtype is None or self._data is None:
            raise UnsafeCheckpointError("it has an array without numbers")
        flat = np.frombuffer(as_bytes(self._data), self._dtype.numpy)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")

    def object(self) -> Any:
        """The one element of a 0-d array of objects."""
        if self.shape != () or type(self._object) is not list or len(self._object) != 1:
            raise UnsafeCheckpointError("it is not an .npy file of one pickled dict")
        return self._object[0]


def as_bytes(data: memoryview | str) -> memoryview | bytes:
    """Bytes as protocol 3 and later store them, or as the Latin-1 text that protocol 2 stores in their place."""
    return data.encode("latin-1") if isinstance(data, str) else data


def _empty_array(budget: Budget, kind: Any, shape: Any, code: Any) -> StoredArray:
    if kind != Name("numpy.ndarray"):
        raise UnsafeCheckpointError("it has an array of a class that is not numpy.ndarray")
    return StoredArray()


def _array_from_buffer(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> StoredArray:
    array = StoredArray()
    array.fill(shape, dtype, order, data)
    return array


def _scalar(budget: Budget, dtype: Any, data: Any) -> bool | int | float:
    scalar = StoredArray()
    scalar.fill((), dtype, "C", data)
    value: bool | int | float = scalar.numpy().item()
    return value


def _latin1(budget: Budget, text: Any, encoding: Any) -> str:
    if type(text) is not str or encoding != "latin1":
        raise UnsafeCheckpointError("it encodes something that is not Latin-1 text")
    return text


NUMPY_NAMES: dict[str, Maker | None] = {
    "numpy.dtype": StoredDtype,
    "numpy.ndarray": None,
    "_codecs.encode": _latin1,
    **dict.fromkeys(("__builtin__.bytes", "builtins.bytes"), lambda budget: ""),
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    NUMPY_NAMES[f"{_core}.multiarray.scalar"] = _scalar
    NUMPY_NAMES[f"{_core}.multiarray._reconstruct"] = _empty_array
    NUMPY_NAMES[f"{_core}.numeric._frombuffer"] = _array_from_buffer


# --- torch


class Storage:
    """The bytes behind tensors: ``numel`` elements of ``dtype``, and how to get at them."""

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        self.dtype, self.numel = dtype, numel
        self.load: Callable[[], memoryview | bytes] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the elements need."""
        return self.numel * self.dtype.itemsize

    def read(self) -> Tensor:
        """A copy of all elements, ``[numel]``."""
        data = b"" if self.load is None else self.load()
        if len(data) != self.nbytes:
            raise UnsafeCheckpointError(f"a storage of {self.numel} {self.dtype} has {len(data)} bytes")
        return torch.frombuffer(bytearray(data), dtype=self.dtype) if self.numel else torch.empty(0, dtype=self.dtype)


class StoredTensor:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``, inside its storage."""

    def __init__(
        self,
        budget: Budget,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> None:
        if type(storage) is not Storage or type(offset) is not int:
            raise UnsafeCheckpointError("it has a tensor without a storage")
        self.storage, self.offset = storage, offset
        self.shape = as_sizes(size, "the size of a tensor")
        self.stride = as_sizes(stride, "the stride of a tensor")
        count = math.prod(self.shape)
        last = offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if offset < 0 or (count and last >= storage.numel) or count > storage.numel:
            raise UnsafeCheckpointError(
                f"a tensor of size {self.shape}, stride {self.stride} and offset {offset} leaves its storage "
                f"of {storage.numel} elements"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def torch(self) -> Tensor:
        """A tensor of its own."""
        elements = self.storage.read()
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=elements.dtype)
        view = elements.as_strided(self.shape, self.stride, self.offset)
        return view.contiguous() if view.numel() == elements.numel() else view.clone()


def _parameter(budget: Budget, tensor: Any, requires_grad: Any = False, hooks: Any = None) -> StoredTensor:
    if type(tensor) is not StoredTensor:
        raise UnsafeCheckpointError("it has a parameter that is not a tensor")
    return tensor


TENSOR_NAMES: dict[str, Maker | None] = {
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "torch._utils._rebuild_parameter": _parameter,
    **dict.fromkeys(_STORAGE_DTYPES),
}


class StorageTable:
    """The storages that a torch file names, by key; the same key is the same storage."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def find(self, persistent_id: Any) -> Storage:
        """``('storage', torch.FloatStorage, key, location, numel[, None])`` to a storage; its bytes come later."""
        plain = type(persistent_id) is tuple and len(persistent_id) >= 5 and persistent_id[5:] in ((), (None,))
        what, kind, key, _, numel = persistent_id[:5] if plain else [None] * 5
        dtype = _STORAGE_DTYPES.get(kind.text) if type(kind) is Name else None
        if what != "storage" or dtype is None or type(key) is not str or len(key) > 100:
            raise UnsafeCheckpointError("it has a storage that is not described as torch does it")
        (count,) = as_sizes((numel,), "the length of a storage")
        known = self.storages.setdefault(key, Storage(dtype, count))
        if (known.dtype, known.numel) != (dtype, count):
            raise UnsafeCheckpointError("it describes one storage in two ways")
        return known


def read_legacy(data: memoryview, budget: Budget, names: dict[str, Maker | None] | None = None) -> Any:
    """What ``torch.save(..., _use_new_zipfile_serialization=False)`` wrote: five pickles, then the raw storages.

    Args:
        data: The whole file.
        budget: Steps it may take.
        names: Globals it may name beside the storage classes.
    """
    table = StorageTable()
    reader = PickleReader(data, {**dict.fromkeys(_STORAGE_DTYPES), **(names or {})}, budget)
    if reader.read() != _MAGIC or reader.read() != _FORMAT:
        raise UnsafeCheckpointError("a storage does not begin as torch's legacy format does")
    system = reader.read()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise UnsafeCheckpointError("a storage was not written on a little-endian machine: convert it there")
    reader.persistent = table.find
    value = reader.read()
    reader.persistent = None
    keys = reader.read()
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(table.storages):
        raise UnsafeCheckpointError("the storages of a tensor are not those that follow it")
    for key in keys:
        storage = table.storages[key]
        if (count := reader.number(8)) != storage.numel:
            raise UnsafeCheckpointError(f"a storage of {storage.numel} elements has {count}")
        view = reader.take(storage.nbytes)
        storage.load = lambda view=view: view
    if reader.position != len(data):
        raise UnsafeCheckpointError(f"{len(data) - reader.position} bytes follow the end of a storage")
    return value


def load_from_bytes(budget: Budget, data: Any) -> Storage:
    """``torch.storage._load_from_bytes``: one storage, as a legacy file inside a byte string."""
    if type(data) is str:  # protocol 2
        budget.copy(len(data))
        data = memoryview(as_bytes(data))
    if type(data) is not memoryview:
        raise UnsafeCheckpointError("it has a storage that is not bytes")
    storage = read_legacy(data, budget)
    if type(storage) is not Storage:
        raise UnsafeCheckpointError("it has a storage that holds something else")
    return storage


def check_zip(data: bytes) -> None:
    """Refuse a zip file with too many parts before its table is parsed, which takes 1 KB of memory a part."""
    if data.count(b"PK\x01\x02") > _MAX_ZIP_PARTS:  # how an entry of the table begins
        raise UnsafeCheckpointError(f"it is a zip file of more than {_MAX_ZIP_PARTS} parts")


def read_zip(data: bytes, budget: Budget, names: dict[str, Maker | None]) -> Any:
    """What ``torch.save`` writes: a zip file, not compressed, with ``data.pkl`` and the raw storages."""
    check_zip(data)
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        budget.spend(10)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.is_dir():
            raise UnsafeCheckpointError("it is a zip file with compressed parts: expected one by torch.save")
        if entries.setdefault(entry.filename, entry) is not entry:
            raise UnsafeCheckpointError("it is a zip file that has a part twice")
    if sum(entry.file_size for entry in entries.values()) > len(data):
        raise UnsafeCheckpointError("it is a zip file whose parts overlap")
    (main,) = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")] or [""]
    if not main:
        raise UnsafeCheckpointError("it is a zip file without data.pkl: expected one by torch.save")
    folder = main.removesuffix("data.pkl")
    if f"{folder}byteorder" in entries and archive.read(entries[f"{folder}byteorder"]) != b"little":
        raise UnsafeCheckpointError("it was not written on a little-endian machine: convert it there")
    table = StorageTable()
    reader = PickleReader(memoryview(archive.read(entries[main])), names, budget, table.find)
    value = reader.read()
    for key, storage in table.storages.items():
        entry = entries.get(f"{folder}data/{key}")  # type: ignore[assignment]
        if entry is None or entry.file_size != storage.nbytes:
            raise UnsafeCheckpointError(f"it lacks the {storage.nbytes} bytes of storage {key!r:.100}")
        storage.load = lambda entry=entry: archive.read(entry)
    return value


def read_torch_file(data: bytes, names: dict[str, Maker | None] | None = None) -> Any:
    """A ``.pt`` file, of the zip kind or the older one, as inert values."""
    names = {**PYTHON_NAMES, **TENSOR_NAMES, **NUMPY_NAMES, **(names or {})}
    budget = Budget(len(data))
    if data[:4] == b"PK\x03\x04":
        return read_zip(data, budget, names)
    return read_legacy(memoryview(data), budget, names)


def read_numpy_object(data: bytes) -> Any:
    """The pickled object in an ``.npy`` file of a 0-d object array, as inert values."""
    header = _OBJECT_HEADER.match(data)
    if header is None:
        raise UnsafeCheckpointError("it is not an .npy file that holds one pickled dict (dtype object, shape ())")
    names = {**NUMPY_NAMES, "numpy.dtype": OuterDtype}
    array = read_pickle(memoryview(data)[header.end() :], names, Budget(len(data)))
    if type(array) is not StoredArray:
        raise UnsafeCheckpointError("it is not an .npy file of one pickled dict")
    return array.object()


def read_numpy_zip(data: bytes, name: str) -> np.ndarray[Any, Any]:
    """The array ``name`` in an ``.npz`` of ``numpy.savez``: plain numbers, not compressed.

    Raises:
        UnsafeCheckpointError: There is none, or it is larger than the file, or has Python objects in it.
    """
    check_zip(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise UnsafeCheckpointError(f"it has no array {name!r}: expected a file of numpy.savez with it")
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
            raise UnsafeCheckpointError(f"its array {name!r} is compressed: expected a file of numpy.savez")
        array: np.ndarray[Any, Any] = np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False)
    return array
