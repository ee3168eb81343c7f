"""``fit``: a generator, a prior and a bank for anybody's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latent_mixup.cli import shared


@click.command("fit")
@click.argument("data")
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the run; started again, it resumes.")
@shared.root_option
@shared.download_option
@shared.key_options
@click.option(
    "--size",
    type=click.Choice(["16", "28", "32", "48", "64", "96", "128"]),
    help="Height and width of the generator's images. Default: from the images, at most 64.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time for the whole run. Default: --steps.")
@click.option(
    "--steps", type=click.IntRange(1), help="Training steps of 128 images. Default: 150 passes, 1,500 to 6,000."
)
@click.option(
    "--inversion-steps", type=click.IntRange(0), help="Gradient steps an image. Default: what a few minutes allow."
)
@click.option("--flip/--no-flip", default=None, help="A mirrored image is the same thing. Default: --flip for RGB.")
@shared.device_option
@click.option("--seed", type=int, default=0, help="Seed of everything that is drawn.")
@shared.threads_option
@shared.one_sentence
def fit_command(
    data: str,
    out: Path,
    data_root: Path | None,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    size: str | None,
    **settings: Any,
) -> None:
    """Train a generator for the images of DATA, invert them, check the result, and say how to use it.

    DATA is a folder of images, flat or with a folder for each class; a CSV file of path,label lines; mnist,
    fashion-mnist or cifar10, as torchvision has them; or hf:NAME[@split] of Hugging Face datasets. Grey or RGB, 500
    images or more; labels are not used in training. If it is killed, run it again.
    """
    from latent_mixup import files
    from latent_mixup.fitting import fit

    keys: shared.Columns = {"image_key": image_key, "label_key": label_key}
    generator, bank = fit(
        shared.open_data(data, data_root, download=download, **keys),
        out,
        size=int(size) if size else None,
        tell=shared.say,
        **shared.keys_in_samples(data, keys),
        **settings,
    )
    if shared.as_json():
        made = {"out": str(out), "generator_digest": generator.digest(), "codes": len(bank)}
        shared.answer("", {**made, "quality": files.read_json(out / "quality.json")})
