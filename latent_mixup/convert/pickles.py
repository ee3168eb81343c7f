"""Pickles as data: every opcode builds an inert value, and none imports or calls anything.

``pickle.Unpickler`` imports what a file names and calls it, so a safe reader made from it is a list of
exceptions: stubs that must not be writable, classes that must not be callable, a C memo that must not be made
to grow. This reader has no such part. It knows the opcodes that picklers of protocol 2 to 5 emit; a name in the
file is looked up in a :data:`Vocabulary` and is refused when it is not there; what is "called" is a maker of
ours that only puts its arguments into a record. Opcodes are counted, payloads are views of the file, so time
and memory are bounded by the file's size. Nothing recurses, so depth cannot overflow a stack.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, TypeAlias

from latent_mixup.files import FormatError

MAX_FILE_BYTES = 4 * 1024**3
MAX_OPCODES = 4_000_000
_MAX_STACK = 100_000
_MAX_MARKS = 500
_MAX_LINE = 512
_MAX_LONG_BYTES = 64
_MAX_KEY = 2**31  # larger integers can be chosen to collide in a dict


class UnsafeCheckpointError(FormatError):
    """Somebody else's file holds what its format does not, and was refused before anything came of it."""


class Budget:
    """What a file may cost: steps, and bytes that are copied; one serves a pickle and the pickles inside it.

    Args:
        size: Bytes of the file: nothing in it is copied twice.
        steps: Opcodes, and entries of tables.
    """

    def __init__(self, size: int, steps: int = MAX_OPCODES) -> None:
        self._size, self._steps = size, steps

    def spend(self, steps: int = 1) -> None:
        """Count ``steps``; raise when none is left."""
        self._steps -= steps
        if self._steps < 0:
            raise UnsafeCheckpointError("it has more opcodes than any file of this kind")

    def copy(self, size: int) -> None:
        """Count ``size`` bytes of the file that will be in memory once more; raise when there are not so many."""
        self._size -= size
        if self._size < 0:
            raise UnsafeCheckpointError("it uses its bytes more than once")


class Buildable(ABC):
    """A record that the file may complete once, by BUILD."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state; raise when it is not of the expected form, or was there before."""


@dataclass(frozen=True, slots=True)
class Name:
    """A global of the vocabulary, ``module.name``: a string, not what it stands for."""

    text: str


Maker: TypeAlias = Callable[..., Any]  # (budget, *arguments in the file) -> an inert value
Vocabulary: TypeAlias = Mapping[str, "Maker | None"]  # None: may be named, cannot be made
Persistent: TypeAlias = Callable[[Any], Any]


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """All bytes of a regular file of at most 4 GiB, and its name, size and SHA-256.

    Whatever goes wrong inside becomes one :class:`FormatError` that names the file.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpointError: It is too large.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: expected a StyleGAN2 checkpoint or latents")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnsafeCheckpointError(f"{path} is larger than {MAX_FILE_BYTES} bytes: expected a checkpoint")
    data = path.read_bytes()
    try:
        yield data, {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except FormatError as cause:
        error = type(cause) if type(cause) in (FormatError, UnsafeCheckpointError) else UnsafeCheckpointError
        raise error(f"{path}: {cause}") from cause
    except Exception as cause:
        what = f"{type(cause).__name__}: {' '.join(str(cause).split()) or 'no message'}"
        raise UnsafeCheckpointError(f"{path} is damaged or not of a known kind: {what:.300}") from cause


def read_pickle(data: memoryview, vocabulary: Vocabulary, budget: Budget) -> Any:
    """The one pickle that ``data`` holds, as inert values.

    Args:
        data: The whole stream. Byte strings in the result are views of it.
        vocabulary: The globals it may name.
        budget: Shared with whatever is read inside it.

    Raises:
        UnsafeCheckpointError: The stream has an opcode, a name or a size it should not have, or ends too early.
    """
    reader = PickleReader(data, vocabulary, budget)
    value = reader.read()
    if reader.position != len(data):
        raise UnsafeCheckpointError(f"{len(data) - reader.position} bytes follow the end of the pickle")
    return value


class PickleReader:
    """Reads pickles one after the other from ``data``; ``position`` is where the next one begins.

    Args:
        data: The stream.
        vocabulary: The globals it may name.
        budget: Steps it may take.
        persistent: What a persistent id stands for; None: there may be none.
    """

    def __init__(
        self, data: memoryview, vocabulary: Vocabulary, budget: Budget, persistent: Persistent | None = None
    ) -> None:
        self.data, self.position = data, 0
        self.vocabulary, self.budget, self.persistent = vocabulary, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The next pickle's value."""
        self.stack, self.marks, self.memo = [], [], {}
        if bytes(self.data[self.position : self.position + 1]) != b"\x80":
            raise UnsafeCheckpointError("it does not begin as a pickle of protocol 2 to 5")
        while (opcode := self.take(1)[0]) != _STOP:
            self.budget.spend()
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise UnsafeCheckpointError(f"opcode {_OPCODE_NAMES.get(opcode, hex(opcode))} is not allowed")
            handler(self)
            if len(self.stack) > _MAX_STACK or len(self.marks) > _MAX_MARKS:
                raise UnsafeCheckpointError("it is nested deeper than any file of this kind")
        if len(self.stack) != 1 or self.marks:
            raise UnsafeCheckpointError("the pickle does not end with one value")
        value = self.stack.pop()
        self.memo.clear()
        return value

    # --- The bytes

    def take(self, size: int) -> memoryview:
        """A view of the next ``size`` bytes."""
        end = self.position + size
        if end > len(self.data):
            raise UnsafeCheckpointError(f"it is cut off: {end - len(self.data)} bytes are missing at its end")
        view = self.data[self.position : end]
        self.position = end
        return view

    def number(self, size: int) -> int:
        """The next unsigned little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        """The text up to the next newline."""
        text, newline, _ = bytes(self.data[self.position : self.position + _MAX_LINE]).partition(b"\n")
        if not newline:
            raise UnsafeCheckpointError(f"a line of text does not end within {_MAX_LINE} bytes")
        self.position += len(text) + 1
        return text.decode("utf-8")

    # --- The stack

    def push(self, value: Any) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Take the top ``count`` values, which must lie above the last mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise UnsafeCheckpointError("an opcode takes more values than there are")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        if not self.marks:
            raise UnsafeCheckpointError("an opcode looks for a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type[Any]) -> Any:
        """The top value, which must be exactly a ``kind``."""
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)) or type(self.stack[-1]) is not kind:
            raise UnsafeCheckpointError(f"an opcode expects a {kind.__name__} and finds something else")
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        """Put values behind those of the list on top."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, one after the other, into the dict on top."""
        target = self.top(dict)
        if len(items) % 2:
            raise UnsafeCheckpointError("a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def memoize(self, index: int) -> None:
        """Remember the top value."""
        if not self.stack:
            raise UnsafeCheckpointError("an opcode remembers a value that is not there")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push a remembered value."""
        if index not in self.memo:
            raise UnsafeCheckpointError("an opcode recalls a value that was not remembered")
        self.push(self.memo[index])

    # --- Names, and what is made of them

    def find(self, module: Any, name: Any) -> None:
        """Push a name of the vocabulary; nothing is imported."""
        if not (type(module) is str and type(name) is str and len(module) <= _MAX_LINE and len(name) <= _MAX_LINE):
            raise UnsafeCheckpointError("a global is not named by two short strings")
        text = f"{module}.{name}"
        if text not in self.vocabulary:
            raise UnsafeCheckpointError(f"it names {text!r:.200}, which no file of this kind needs")
        self.push(Name(text))

    def make(self) -> None:
        """REDUCE and NEWOBJ: the record that a name and its arguments stand for."""
        name, arguments = self.pop(2)
        maker = self.vocabulary.get(name.text) if type(name) is Name else None
        if maker is None or type(arguments) is not tuple:
            what = repr(name.text) if type(name) is Name else f"a {type(name).__name__}"
            raise UnsafeCheckpointError(f"it calls {what:.200}, which is not something to call")
        self.push(maker(self.budget, *arguments))

    def build(self) -> None:
        """BUILD: complete a record."""
        (state,) = self.pop(1)
        target = self.stack[-1] if self.stack else None
        if type(target) is dict and type(state) is dict and list(state) == ["_metadata"]:
            return  # a torch state_dict has this attribute; nothing depends on it
        if not isinstance(target, Buildable):
            raise UnsafeCheckpointError("it sets the state of something that has none")
        target.build(state)

    def persist(self) -> None:
        """BINPERSID: what the surrounding file keeps elsewhere."""
        if self.persistent is None:
            raise UnsafeCheckpointError("opcode BINPERSID is not allowed")
        self.push(self.persistent(*self.pop(1)))


def check_key(key: Any) -> Any:
    """A key that can be hashed at once: a string or a small integer."""
    if type(key) is str or (type(key) is int and abs(key) < _MAX_KEY):
        return key
    raise UnsafeCheckpointError(f"a dict has a key that is a {type(key).__name__}: expected a string")


def mapping(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    """``OrderedDict()``, ``EasyDict()``, or ``OrderedDict([[key, value], ...])`` of Python 2."""
    if type(items) not in (list, tuple) or not all(type(item) in (list, tuple) and len(item) == 2 for item in items):
        raise UnsafeCheckpointError("a dict is not made of pairs")
    budget.spend(len(items))
    return {check_key(key): value for key, value in items}


def collection(budget: Budget, items: Any = ()) -> Any:
    """``set(list)``: the list, since nothing asks a set for more."""
    if type(items) not in (list, tuple):
        raise UnsafeCheckpointError("a set is not made of a list")
    return items


PYTHON_NAMES: dict[str, Maker | None] = {
    "collections.OrderedDict": mapping,
    "builtins.set": collection,
    "__builtin__.set": collection,
}


# --- Opcodes => what they do. PROTO, FRAME and STOP are about the stream; the rest builds values.

Handler: TypeAlias = Callable[[PickleReader], None]


def _protocol(reader: PickleReader) -> None:
    if not 2 <= (protocol := reader.number(1)) <= 5:
        raise UnsafeCheckpointError(f"pickle protocol {protocol} is not one of 2 to 5")


def _constant(value: object) -> Handler:
    return lambda reader: reader.push(value)


def _new(kind: type[Any]) -> Handler:
    return lambda reader: reader.push(kind())


def _packed(layout: str) -> Handler:
    struct = Struct(layout)
    return lambda reader: reader.push(struct.unpack(reader.take(struct.size))[0])


def _payload(length_bytes: int, decode: Callable[[memoryview], Any] = lambda view: view) -> Handler:
    return lambda reader: reader.push(decode(reader.take(reader.number(length_bytes))))


def _text(length_bytes: int, encoding: str, errors: str = "strict") -> Handler:
    return _payload(length_bytes, lambda view: str(view, encoding, errors))


def _decode_long(view: memoryview) -> int:
    if len(view) > _MAX_LONG_BYTES:
        raise UnsafeCheckpointError(f"an integer has {len(view)} bytes")
    return int.from_bytes(view, "little", signed=True)


def _text_integer(reader: PickleReader) -> None:
    line = reader.line()
    reader.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line[:32]))


def _tuple(count: int) -> Handler:
    return lambda reader: reader.push(tuple(reader.pop(count)))


_NAMED_HANDLERS: dict[str, Handler] = {
    "PROTO": _protocol,
    "FRAME": lambda reader: reader.take(8).release(),  # how far a pickler buffers; the opcodes say the rest
    "MARK": lambda reader: reader.marks.append(len(reader.stack)),
    "POP_MARK": lambda reader: reader.pop_to_mark().clear(),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "INT": _text_integer,  # Python 2 writes integers of more than 32 bits so
    "BININT": _packed("<i"),
    "BININT1": _packed("<B"),
    "BININT2": _packed("<H"),
    "LONG1": _payload(1, _decode_long),
    "LONG4": _payload(4, _decode_long),
    "BINFLOAT": _packed(">d"),
    "BINUNICODE": _text(4, "utf-8", "surrogatepass"),
    "SHORT_BINUNICODE": _text(1, "utf-8", "surrogatepass"),
    "BINUNICODE8": _text(8, "utf-8", "surrogatepass"),
    "BINSTRING": _text(4, "latin-1"),  # Python 2: text or bytes
    "SHORT_BINSTRING": _text(1, "latin-1"),
    "BINBYTES": _payload(4),
    "SHORT_BINBYTES": _payload(1),
    "BINBYTES8": _payload(8),
    "BYTEARRAY8": _payload(8),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda reader: reader.push(tuple(reader.pop_to_mark())),
    "EMPTY_LIST": _new(list),
    "APPEND": lambda reader: reader.extend(reader.pop(1)),
    "APPENDS": lambda reader: reader.extend(reader.pop_to_mark()),
    "EMPTY_SET": _new(list),
    "ADDITEMS": lambda reader: reader.extend(reader.pop_to_mark()),
    "FROZENSET": lambda reader: reader.push(reader.pop_to_mark()),
    "EMPTY_DICT": _new(dict),
    "SETITEM": lambda reader: reader.set_items(reader.pop(2)),
    "SETITEMS": lambda reader: reader.set_items(reader.pop_to_mark()),
    "BINPUT": lambda reader: reader.memoize(reader.number(1)),
    "LONG_BINPUT": lambda reader: reader.memoize(reader.number(4)),
    "MEMOIZE": lambda reader: reader.memoize(len(reader.memo)),
    "BINGET": lambda reader: reader.recall(reader.number(1)),
    "LONG_BINGET": lambda reader: reader.recall(reader.number(4)),
    "GLOBAL": lambda reader: reader.find(reader.line(), reader.line()),
    "STACK_GLOBAL": lambda reader: reader.find(*reader.pop(2)),
    "REDUCE": PickleReader.make,
    "NEWOBJ": PickleReader.make,
    "BUILD": PickleReader.build,
    "BINPERSID": PickleReader.persist,
}
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_HANDLERS = {code: _NAMED_HANDLERS[name] for code, name in _OPCODE_NAMES.items() if name in _NAMED_HANDLERS}
_STOP = ord(".")
