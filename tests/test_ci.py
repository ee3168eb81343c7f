"""What CI and releases run: the workflows, the floors of the dependencies, and the core tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
JOBS = [(path.stem, job) for path in WORKFLOWS for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]]


def workflow(stem: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{stem}.yml").read_text(encoding="utf-8"))


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_named_by_commit(path):
    """A tag can be moved to other code; the comment says which version it was."""
    used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    wrong = [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)]
    assert used
    assert not wrong


@pytest.mark.parametrize(("stem", "name"), JOBS, ids="-".join)
def test_a_job_may_read_alone_and_ends(stem, name):
    whole = workflow(stem)
    job = whole["jobs"][name]
    assert whole["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] <= 60
    assert "permissions" not in job or (stem, name, job["permissions"]) == ("release", "publish", {"id-token": "write"})


def test_tests_run_on_three_systems_and_the_parts_are_those_of_ci():
    jobs = workflow("tests")["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu", "macos", "windows"]
    (lowest,) = re.findall(r'requires-python = ">=(.*)"', PROJECT)
    known = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert (matrix["python"][0], known[0]) == (lowest, lowest)
    assert matrix["python"][-1] == known[-1]
    for system in ("MacOS", "Microsoft :: Windows", "POSIX :: Linux"):
        assert f'"Operating System :: {system}"' in PROJECT
    assert ".ci/run tests" in commands(jobs["tests"])
    assert commands(jobs["lowest"]) == [".ci/run lowest"]
    assert commands(jobs["style"]) == [".ci/run style"]
    assert commands(jobs["site"]) == [".ci/run site"]


def test_a_release_is_a_tag_and_needs_no_password():
    whole = workflow("release")
    assert whole[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key "on" as a truth value
    build, publish = whole["jobs"]["build"], whole["jobs"]["publish"]
    assert "python -m build" in commands(build)
    assert (publish["needs"], publish["environment"]["name"]) == ("build", "pypi")
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in publish["steps"][-1]


def test_each_dependency_has_a_floor():
    """``.ci/run lowest`` installs it."""
    (listed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    found = dict(re.findall(r'"([\w-]+)>=([\d.]+)', listed))
    assert len(found) == len(listed.splitlines())
    assert (found["torch"], found["torchvision"]) == ("2.6", "0.21")


def test_the_core_tests_are_there():
    core = (ROOT / "tests" / "core.txt").read_text(encoding="utf-8").split()
    assert len({*core}) == len(core) > 5
    for each in core:
        assert (ROOT / each).exists(), each
