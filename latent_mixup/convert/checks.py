"""What a file says of a network beside its tensors: names that are known, and the values that ours can follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from latent_mixup.convert.assemble import brief
from latent_mixup.files import FormatError

Check: TypeAlias = Callable[[Any], bool]


def anything(value: Any) -> bool:
    """Ours does not depend on it, or reads it from the shapes."""
    return True


def one_of(*values: object) -> Check:
    """Equal to one of these, and of its type."""
    return lambda found: any(type(found) is type(value) and found == value for value in values)


def near(expected: float) -> Check:
    """A number that is this one but for rounding."""
    return lambda found: type(found) in (int, float) and math.isclose(found, expected, rel_tol=1e-4)


def is_filter(value: Any) -> bool:
    """The resampling filter that ours has."""
    return type(value) in (list, tuple) and list(value) == [1, 3, 3, 1]


def check_values(what: str, found: Mapping[Any, Any], known: Mapping[str, Check]) -> None:
    """Raise :class:`FormatError` for a name that is not ``known``, or a value that its check refuses."""
    for name, value in found.items():
        if name not in known:
            raise FormatError(f"its {what} {brief(name)} is unknown: latent_mixup's StyleGAN2 has no such part")
        if not known[name](value):
            raise FormatError(f"its {what} {name} is {brief(value)}: latent_mixup's StyleGAN2 has another one")


def clamp_of(value: Any) -> float | None:
    """``conv_clamp`` as a file says it; raises :class:`FormatError` unless it is a positive number or None."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise FormatError(f"its conv_clamp is {brief(value)}: expected a positive number or None")
    return float(value)
