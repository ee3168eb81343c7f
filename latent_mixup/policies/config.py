"""A policy as JSON says it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from latent_mixup.policies.blending import Channels, Layers, Whole
from latent_mixup.policies.labelling import Curve, Teacher
from latent_mixup.policies.partners import Anyone, ClassPairs, Farthest, Nearest, OtherClass, SameClass
from latent_mixup.policies.policy import Policy
from latent_mixup.policies.vicinity import LowPass, Noise, Truncation
from latent_mixup.policies.weights import Beta, Dirichlet, NearEnds, Scheduled, Uniform

PARTS: dict[str, tuple[type, ...]] = {
    "weights": (Beta, Uniform, NearEnds, Dirichlet, Scheduled),
    "partners": (Anyone, SameClass, OtherClass, ClassPairs, Nearest, Farthest),
    "among": (Anyone, SameClass, OtherClass, ClassPairs),
    "blend": (Whole, Layers, Channels),
    "noise": (Noise,),
    "truncation": (Truncation,),
    "low_pass": (LowPass,),
    "labels": (Curve,),
}
"""What may stand in a field; a field that is not here holds numbers and words."""


def to_config(policy: Policy) -> dict[str, Any]:
    """All of it, as JSON can say it: each part with its ``kind`` and its settings, what is a default as well.

    Raises:
        ValueError: Its labels are those of a :class:`Teacher`, which no JSON can say.

    Example:
        >>> to_config(Policy(noise=Noise(0.5)))["noise"]
        {'kind': 'Noise', 'scale': 0.5}
    """
    if isinstance(policy.labels, Teacher):
        raise ValueError("a policy with a Teacher holds a network, which JSON cannot say: pass it in Python")
    return {each.name: _said(getattr(policy, each.name)) for each in fields(policy)}


def _said(value: Any) -> Any:
    if is_dataclass(value):
        return {"kind": type(value).__name__, **{each.name: _said(getattr(value, each.name)) for each in fields(value)}}
    return [_said(item) for item in value] if isinstance(value, tuple) else value


def from_config(config: Mapping[str, Any]) -> Policy:
    """The policy that :func:`to_config` said.

    Raises:
        ValueError: A field, a kind or a setting is not known, or is out of its range.

    Example:
        >>> from_config({"weights": {"kind": "Beta", "alpha": 0.4}}).weights
        Beta(alpha=0.4, mode='elem')
    """
    policy: Policy = _made(Policy, "a policy", config)
    return policy


def _made(kind: type, name: str, config: Any) -> Any:
    if not isinstance(config, Mapping):
        raise ValueError(f"{name} needs to be an object: got {config!r}")
    known = [each.name for each in fields(kind)]
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}: expected some of {', '.join(known) or 'none'}")
    try:
        return kind(**{key: _read(key, value) for key, value in config.items()})
    except TypeError as cause:
        raise ValueError(f"{name}: {cause}") from None


def _read(field: str, value: Any) -> Any:
    if field not in PARTS or value is None:
        return tuple(_read(field, item) for item in value) if isinstance(value, list) else value
    kinds = {kind.__name__: kind for kind in PARTS[field]}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in kinds:
        raise ValueError(f"{field} needs an object with a kind, one of {', '.join(kinds)}: got {value!r}")
    return _made(kinds[kind], kind, {key: item for key, item in value.items() if key != "kind"})
