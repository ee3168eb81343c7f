"""``--config FILE.toml``: values of a command's options from a file, by click's ``default_map``."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "config"


def _read(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Make the values of a file those of the options that are not on the command line.

    Raises:
        UsageError: It is no TOML, or a key or the form of a value is none of the command's.
    """
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:  # of TOML or of UTF-8
        raise click.UsageError(f"{path} is not TOML: {cause}", context) from cause
    known = {_key(param): param for param in context.command.params if param is not option}
    found = {}
    for name, value in values.items():
        param = known.get(name.replace("_", "-"))
        if param is None:
            (near,) = difflib.get_close_matches(name, known, 1, cutoff=0)
            raise click.UsageError(
                f"{path}: {context.info_name} has no option {name!r}, did you mean {near!r}?", context
            )
        found[str(param.name)] = _typed(path, name, value, param)
    context.default_map = found


def _key(param: click.Parameter) -> str:
    """An option's name without its dashes; that of an argument."""
    return max(param.opts, key=len).lstrip("-").replace("_", "-")


def _typed(path: Path, name: str, value: Any, param: click.Parameter) -> Any:
    """The value as text, which click reads as if it had been typed: 2.5 is then no number of steps."""
    several = isinstance(param, click.Option) and param.multiple
    entries = value if several and isinstance(value, list) else [value]
    if not all(isinstance(entry, str | int | float) for entry in entries):
        wanted = "a value or a list of them" if several else "one value"
        raise click.UsageError(f"{path}: {name} needs {wanted}: got {value!r:.100}")
    return [str(entry) for entry in entries] if several else str(value)


def words(context: click.Context) -> list[str]:
    """What a file gave, as words of the command line."""
    typed = []
    for param in context.command.params:
        if context.get_parameter_source(str(param.name)) is click.core.ParameterSource.DEFAULT_MAP:
            value = (context.default_map or {})[str(param.name)]
            typed += [word for entry in ([value] if isinstance(value, str) else value) for word in _words(param, entry)]
    return typed


def _words(param: click.Parameter, value: str) -> list[str]:
    if isinstance(param, click.Argument):
        return [value]
    on, off = param.opts[-1:], param.secondary_opts
    if isinstance(param, click.Option) and param.is_flag:
        return on if click.BOOL.convert(value, param, None) else off
    return [*on, value]


config_option = click.Option(
    [f"--{CONFIG}"],
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read,
    help="Read options that are not typed from this TOML file: option = value, without dashes in front.",
)
