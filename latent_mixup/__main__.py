"""``python -m latent_mixup``: the command line."""

from latent_mixup.cli import main

main(prog_name="latent-mixup")
