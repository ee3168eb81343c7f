"""Settings: frozen dataclasses whose fields are checked against their annotations, to JSON and back."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S", bound="Setting")


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends included: ``Annotated[int, Between(1, 8)]``."""

    low: float
    high: float = math.inf


Share: TypeAlias = Annotated[float, Between(0, 1)]

LATER = {"later": True}  # of a field that 0.1 did not have: JSON without it says its default, as files of 0.1 do


class Setting:
    """Base of a policy and its parts. Numbers are stored as ``int`` and ``float``, sequences as tuples.

    A subclass is a frozen dataclass; a ``__post_init__`` of its own calls this one first.

    Raises:
        ValueError: A value is not of the type or in the range that the field's annotation names.
    """

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            value = checked(annotation, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)


def checked(annotation: Any, value: Any, name: str) -> Any:
    """``value`` as its annotation has it; raises ``ValueError`` where it is of another type, or out of range.

    Args:
        annotation: ``int``, ``float``, a ``Literal`` of strings, ``tuple[..., ...]``, a class, or several of these; a
            number also with its :class:`Between`.
        value: Anything.
        name: What the error calls it.
    """
    if get_origin(annotation) is Annotated:
        kind, bounds = get_args(annotation)
        if not bounds.low <= (value := checked(kind, value, name)) <= bounds.high:
            wanted = f"in [{bounds.low}, {bounds.high}]" if bounds.high < math.inf else f"from {bounds.low}"
            raise ValueError(f"{name} needs to be {wanted}: got {value}")
        return value
    options = _options(annotation)
    if value is None and NoneType in options:
        return None
    option = options[0]
    if get_origin(option) is Annotated:
        return checked(option, value, name)
    if option in (int, float):
        return _number(option, value, name)
    if get_origin(option) is tuple:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise ValueError(f"{name} needs a list: got {reprlib.repr(value)}")
        return tuple(checked(get_args(option)[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if get_origin(option) is Literal:
        words = get_args(option)
        if not isinstance(value, str) or value not in words:
            known = _listed([f'"{word}"' for word in words])
            raise ValueError(f"{name} needs to be {known}: got {reprlib.repr(value)}")
        return value
    kinds = tuple(kind for kind in options if kind is not NoneType)
    if not isinstance(value, kinds):
        expected = _listed([kind.__name__ for kind in kinds])
        made = f"; make one, {expected}()" if isinstance(value, type) else ""
        raise ValueError(f"{name} needs to be {expected}: got {reprlib.repr(value)}{made}")
    return value


def as_json(value: Any) -> Any:
    """Settings as JSON can hold them: each part an object with its ``kind`` and its fields, those at defaults too.

    Fields that are :data:`LATER` are left out at their default.
    """
    if is_dataclass(value):
        held = [(each, getattr(value, each.name)) for each in fields(value)]
        said = {each.name: as_json(item) for each, item in held if item != each.default or "later" not in each.metadata}
        return {"kind": type(value).__name__, **said}
    return [as_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(kind: type[S], config: object, name: str) -> S:
    """Settings from JSON.

    Args:
        kind: Class of the settings.
        config: An object with its fields.
        name: What an error calls it.

    Raises:
        ValueError: A field is unknown or missing, a kind is unknown, or a value has another type or is out of range.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{name} needs to be an object: got {reprlib.repr(config)}")
    annotations = _annotations(kind)
    for key in config:
        if key not in annotations:
            raise ValueError(f"{name} has no setting {key!r:.80}: expected some of {', '.join(annotations) or 'none'}")
    for each in fields(kind):  # type: ignore[arg-type]
        if each.default is MISSING and each.default_factory is MISSING and each.name not in config:
            raise ValueError(f"{name} needs the setting {each.name!r}, which is missing")
    return kind(**{key: _read(annotations[key], value, key) for key, value in config.items()})


def _read(annotation: Any, value: Any, name: str) -> Any:
    options = (option for option in _options(annotation) if isinstance(option, type))
    kinds = {kind.__name__: kind for kind in options if issubclass(kind, Setting)}
    if not kinds or value is None:
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name} needs an object with a kind, one of {', '.join(kinds)}: got {reprlib.repr(value)}")
    return from_json(kinds[kind], {key: item for key, item in value.items() if key != "kind"}, kind)


def _annotations(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in fields(kind)}


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _number(kind: type, value: Any, name: str) -> Any:
    wanted = {int: "an integer", float: "a finite number"}[kind]
    try:
        number = operator.index(value) if kind is int else float(value)
        if isinstance(value, bool | str | bytes) or not math.isfinite(number) or (kind is int and abs(number) >= 2**63):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} needs to be {wanted}: got {reprlib.repr(value)}") from None
    return number


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
