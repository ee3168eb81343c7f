r"""How well do encoders invert test images?

Mean MSE of the mean code, of each pass, and of the generator's own encoder where it has one. The encoders come from
``latent-mixup train-encoder``; name each with its generator, GENERATOR=ENCODER.

    python benchmarks/inversion/encoders.py --data-root data --out encoders.json \
        fashion-mnist=runs/mlp runs/gan=runs/restyle
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from latent_mixup import load_generator
from latent_mixup.cli.shared import torchvision_dataset, uint8_images
from latent_mixup.encoders import ReStyleEncoder, load_encoder
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.inversion import pixel_mse
from latent_mixup.training.stylegan2.train import pad_to_power_of_two

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import data_option, out_option, publish

BATCH = 100


@torch.no_grad()
def mean_mse(generator: Generator, targets: Tensor, codes_of: Callable[[Tensor], list[Tensor]]) -> list[float]:
    """MSE of each of the codes that ``codes_of`` gives for a batch, over all images."""
    batches = [
        torch.stack([pixel_mse(generator.decode(codes), batch) for codes in codes_of(batch)])
        for batch in targets.split(BATCH)
    ]
    return [round(float(value), 5) for value in torch.cat(batches, 1).mean(1)]


def score(name: str, folder: Path, images: Tensor) -> dict[str, Any]:
    """One encoder of one generator."""
    generator = load_generator(name)
    encoder = load_encoder(folder, generator)
    padded = images if generator.img_resolution == images.shape[-1] else pad_to_power_of_two(images)
    targets, mean = from_uint8(padded), generator.mean_latent()
    passes = encoder.trajectory if isinstance(encoder, ReStyleEncoder) else lambda batch: [encoder(batch)]
    record: dict[str, Any] = {
        "encoder": type(encoder).__name__,
        "generator": type(generator).__name__,
        "latent_space": generator.latent_space,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "mean_code": mean_mse(generator, targets, lambda batch: [mean.expand(len(batch), *mean.shape)])[0],
        "passes": mean_mse(generator, targets, passes),
        "recipe": encoder.metadata.get("recipe"),
    }
    if generator.has_encoder:
        record["generators_own"] = mean_mse(generator, targets, lambda batch: [generator.encode(batch)])[0]
    return record


@click.command()
@click.argument("pairs", nargs=-1, required=True, metavar="GENERATOR=ENCODER...")
@data_option
@out_option
@click.option("--images", type=click.IntRange(1), default=2_000, show_default=True, help="The first test images.")
def main(pairs: tuple[str, ...], data_root: Path, out: Path, images: int) -> None:
    """Score each pair, print and write."""
    tested = uint8_images(torchvision_dataset("fashion-mnist", data_root, train=False))[:images]
    found = [score(name, Path(folder), tested) for name, _, folder in (pair.partition("=") for pair in pairs)]
    publish(out, {"dataset": "fashion-mnist", "test_images": len(tested), "encoders": found})


if __name__ == "__main__":
    main()
