"""Do a generator's codes know more than pixels, and do its samples and mixes look like the data?

Test images, which the generator has not seen, are inverted; the check of ``latent_mixup.quality`` compares their codes
with pixels and with PCA of as many numbers, and decodes with real images. Its judge is trained on training images. One
file for each generator:

    python benchmarks/generators/knowledge.py fashion-mnist fashion-mnist --data-root data \
        --out benchmarks/results/generators/fashion-mnist.json

With ``--steps 0`` the codes are the encoder's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.data import Subset

from latent_mixup import invert, load_generator
from latent_mixup.cli.shared import one_sentence, open_data
from latent_mixup.quality import check_codes, check_text
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, data_option, out_option, quick_option, threads_option, write

INVERTED = 2_000  # test images, where they are inverted
EXAMINED = 5_000  # test images, where they are encoded
QUICK = 400


@click.command()
@click.argument("name")
@click.argument("dataset")
@data_option
@out_option
@click.option("--steps", type=click.IntRange(0), help="Gradient steps an image; default: as ``invert`` takes.")
@threads_option
@quick_option
@one_sentence
def main(name: str, dataset: str, data_root: Path, out: Path, steps: int | None, quick: bool) -> None:
    """Check the codes that the generator NAME has of the test images of DATASET; print and write the result."""
    generator = load_generator(name)
    test, train = (open_data(dataset, data_root, test=part) for part in (True, False))
    images = Subset(test, _drawn(len(test), QUICK if quick else EXAMINED if steps == 0 else INVERTED))
    with tempfile.TemporaryDirectory() as folder:
        bank = invert(images, generator, out=folder, loss="pixels", steps=steps, batch_size=100)
        taken = bank.metadata["inversion"]["steps"]
        record = check_codes(bank, images, generator, others=train, limit=len(images))
    click.echo(check_text(record))
    about: dict[str, Any] = {"name": str(generator.metadata.get("name")), "digest": generator.digest()}
    write(out, {"dataset": dataset, "generator": about, "steps": taken, **record, **circumstances()})


def _drawn(count: int, wanted: int) -> list[int]:
    order = torch.randperm(count, generator=keyed_generator("knowledge-rows"))
    drawn: list[int] = order[:wanted].sort().values.tolist()
    return drawn


if __name__ == "__main__":
    main()
