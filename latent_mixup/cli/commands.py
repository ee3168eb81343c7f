"""The command line: ``latent-mixup COMMAND``."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from latent_mixup.cli.config import config_option
from latent_mixup.cli.evaluation import evaluate_command
from latent_mixup.cli.first_look import demo, list_command, preview
from latent_mixup.cli.fit import fit_command
from latent_mixup.cli.generators import convert_command, info_command
from latent_mixup.cli.inversion import invert_command, report_command
from latent_mixup.cli.publishing import push_command
from latent_mixup.cli.quality import advise_command, filter_command, refine_command
from latent_mixup.cli.rendering import render_command
from latent_mixup.cli.shared import TYPED, json_option
from latent_mixup.cli.training import train_encoder_command, train_generator

COMMANDS = [
    demo,
    preview,
    list_command,
    fit_command,
    invert_command,
    refine_command,
    filter_command,
    render_command,
    report_command,
    advise_command,
    evaluate_command,
    info_command,
    convert_command,
    train_generator,
    train_encoder_command,
    push_command,
]


class _Main(click.Group):
    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        typed = list(args)
        context = super().make_context(info_name, args, *rest, **extra)
        context.meta[TYPED] = typed
        return context


@click.group(cls=_Main, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="latent-mixup")
def main() -> None:
    """Train image classifiers on mixes of latent codes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a code page of Windows may lack a letter of a report


for command in COMMANDS:
    command.params += [json_option, config_option]
    main.add_command(command)
