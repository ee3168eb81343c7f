"""Policies that differ from the paper's in one part, to be compared on the same budget."""

from __future__ import annotations

from pathlib import Path

from record import LABEL_TRUTH, read

from latent_mixup.demo.comparison import Method, decoded_mixes
from latent_mixup.policies import (
    Beta,
    Channels,
    Curve,
    Dirichlet,
    Farthest,
    LowPass,
    NearEnds,
    Nearest,
    Noise,
    OtherClass,
    Policy,
    SameClass,
    Scheduled,
    Truncation,
)

POLICIES: dict[str, Policy] = {
    "paper": Policy(),
    "lam_of_batch": Policy(weights=Beta(mode="batch")),
    "alpha_0.2": Policy(weights=Beta(0.2)),
    "alpha_4": Policy(weights=Beta(4.0)),
    "near_ends": Policy(weights=NearEnds()),
    "three_codes": Policy(weights=Dirichlet()),
    "rising_over_10_epochs": Policy(weights=Scheduled(Beta())),
    "straight_line": Policy(path="lerp"),
    "channels": Policy(blend=Channels()),
    "same_class": Policy(partners=SameClass()),
    "other_class": Policy(partners=OtherClass()),
    "nearest_of_16": Policy(partners=Nearest()),
    "farthest_of_16": Policy(partners=Farthest()),
    "half_unmixed": Policy(unmixed=0.5),
    "noise_0.3": Policy(noise=Noise(0.3)),
    "noise_0.6": Policy(noise=Noise(0.6)),
    "truncation_0.7": Policy(truncation=Truncation(0.7)),
    "low_pass_2": Policy(low_pass=LowPass(0.0, 2.0)),
}


def methods(prob: float, results: Path) -> dict[str, tuple[Method, str | None]]:
    """Each policy as ``policy_NAME``, and the codes that it decodes.

    Args:
        prob: Share of a batch that is decoded.
        results: Folder of the data set's results; ``label-truth.json`` in it adds a policy that labels by its curve.
    """
    policies = dict(POLICIES)
    if (results / LABEL_TRUTH).is_file():
        policies["label_curve"] = Policy(labels=Curve(tuple(read(results / LABEL_TRUTH)["curve"])))
    return {f"policy_{name}": (decoded_mixes(prob, policy), "gan") for name, policy in policies.items()}
