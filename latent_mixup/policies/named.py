"""Policies by name, each with the share of the samples that it makes: the paper's, and what a search chose."""

from __future__ import annotations

from dataclasses import dataclass

from latent_mixup.policies.policy import Policy
from latent_mixup.policies.vicinity import LowPass
from latent_mixup.policies.weights import Beta


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        prob: Share of samples that are made so.
        policy: How.
    """

    prob: float
    policy: Policy


NAMED = {
    "paper": Named(1.0, Policy(weights=Beta(1.0, "batch"))),
    "robust": Named(0.2, Policy(unmixed=1.0, low_pass=LowPass(0.0, 1.0))),
}
"""``"paper"``: every sample a mix, one ``lam`` a batch. ``"robust"``: what ``benchmarks/search.py`` chose on
Fashion-MNIST: one sample in five is decoded, unmixed, through a low-pass; see ``docs/findings.md``."""


def named(name: str) -> Named:
    """What a name stands for.

    Raises:
        ValueError: There is no such policy.

    Example:
        >>> named("robust").prob
        0.2
    """
    if name not in NAMED:
        raise ValueError(f"no policy is called {name!r}: expected one of {', '.join(NAMED)}, or a Policy")
    return NAMED[name]
