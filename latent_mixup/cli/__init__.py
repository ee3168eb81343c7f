"""The command line: ``latent-mixup COMMAND``."""

from latent_mixup.cli.commands import main

__all__ = ["main"]
