"""The command line, called in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from latent_mixup.cli import main


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def output_of(*arguments: str | Path) -> str:
    """What a command prints that ends well."""
    code, output = call(*arguments)
    assert code == 0, output
    return output


def error_of(*arguments: str | Path) -> str:
    """What a command prints that ends with exit code 1."""
    code, output = call(*arguments)
    assert code == 1, output
    return output


def json_of(*arguments: str | Path) -> dict[str, Any]:
    """The one JSON object that a command prints on stdout with ``--json``; it ends well."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert isinstance(record, dict)
    return record


@contextmanager
def in_folder_with(module: str, text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Inside, the current folder holds a module of the user's; Python does not look there by itself."""
    here.mkdir()
    (here / f"{module}.py").write_text(text)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = {*sys.modules}
    yield here
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(here)):
            del sys.modules[name]
