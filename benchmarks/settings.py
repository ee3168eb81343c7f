"""A policy with the share of a batch that it makes: what a search chooses, and each part of it left out in turn."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rows import SEARCH_FILE

from latent_mixup.demo.comparison import Method, decoded_mixes
from latent_mixup.policies import LowPass, Noise, Policy, from_config, to_config


@dataclass(frozen=True)
class Setting:
    """What a method tries.

    Attributes:
        prob: Share of a batch that is decoded.
        policy: How it is made.
    """

    prob: float
    policy: Policy

    def method(self) -> Method:
        """What trains with it."""
        return decoded_mixes(self.prob, self.policy)

    def to_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        return {"prob": self.prob, "policy": to_config(self.policy)}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Setting:
        """What :meth:`to_dict` said."""
        return cls(said["prob"], from_config(said["policy"]))

    def parts(self) -> dict[str, Setting]:
        """The same with each part left out that it has, and with each that it lacks, by what was changed."""
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
    """What the search of a data set chose, from the folder of its results; None where nothing was searched."""
    path = folder / SEARCH_FILE
    return Setting.from_dict(json.loads(path.read_text())["chosen"]) if path.is_file() else None
