"""A policy with its share of a batch: the result of a search, and variants with one part changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from record import SEARCH_FILE, read

from latent_mixup.demo.comparison import Method, decoded_mixes
from latent_mixup.policies import LowPass, Noise, Policy, from_config, to_config


@dataclass(frozen=True)
class Setting:
    """A share and a policy.

    Attributes:
        prob: Share of a batch that is decoded.
        policy: How the decoded images are made.
    """

    prob: float
    policy: Policy

    def method(self) -> Method:
        """The method that trains with it."""
        return decoded_mixes(self.prob, self.policy)

    def to_dict(self) -> dict[str, Any]:
        """The setting as JSON."""
        return {"prob": self.prob, "policy": to_config(self.policy)}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Setting:
        """The inverse of :meth:`to_dict`."""
        return cls(config["prob"], from_config(config["policy"]))

    def parts(self) -> dict[str, Setting]:
        """Variants by name, one for each part: without it where the policy has it, with it where it has not."""
        lacking: dict[str, dict[str, Any]] = {
            "mixing": {"unmixed": 1.0},
            "noise": {"noise": None},
            "low_pass": {"low_pass": None},
        }
        having: dict[str, dict[str, Any]] = {
            "mixing": {"unmixed": 0.0},
            "noise": {"noise": Noise()},
            "low_pass": {"low_pass": LowPass()},
        }
        changes: dict[str, dict[str, Any]] = {}
        for part, without in lacking.items():
            if replace(self.policy, **without) == self.policy:
                changes[f"with_{part}"] = having[part]
            else:
                changes[f"without_{part}"] = without
        changes["decoded_alone"] = {"unmixed": 1.0, "noise": None, "low_pass": None, "truncation": None}
        made: dict[str, Setting] = {}
        for name, change in changes.items():
            setting = replace(self, policy=replace(self.policy, **change))
            if setting not in (self, *made.values()):
                made[name] = setting
        return made


def searched(folder: Path) -> Setting | None:
    """The setting that a search chose, from the folder of its results; None where there was no search."""
    path = folder / SEARCH_FILE
    return Setting.from_dict(read(path)["chosen"]) if path.is_file() else None
