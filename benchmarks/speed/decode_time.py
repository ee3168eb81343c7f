"""How long is a decode on a CPU, by the number of images a call and by option of LatentMixupLoader?

The bundled generator and a StyleGAN2 of the CIFAR-10 size with random weights. All cases take turns; a ratio is to the
first size without an option, turn by turn. Beside it stands the largest difference of a pixel that an option makes.

    python benchmarks/speed/decode_time.py --out benchmarks/results/decode_time.json
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from latent_mixup.augment.base import Decoder
from latent_mixup.demo.demo import bundled_codes
from latent_mixup.generators import Generator, StyleGAN2
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, out_option, publish, quick_option, read, threads_option

SIZES = {"bundled": (64, 128, 256, 512, 1024), "StyleGAN2 of the CIFAR-10 size": (8, 16, 32)}
TURNS = {"bundled": 101, "StyleGAN2 of the CIFAR-10 size": 7}
QUICK_SIZES = {"bundled": (4, 8)}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "autocast=torch.bfloat16": {"autocast": torch.bfloat16},
    "channels_last=True": {"channels_last": True},
    "compile=True": {"compile": True},
}


def generators(names: list[str]) -> dict[str, Generator]:
    """The generators of these names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: bundled_codes().generator if name == "bundled" else StyleGAN2() for name in names}


def measure(generator: Generator, sizes: tuple[int, ...], options: list[str], turns: int) -> list[dict[str, Any]]:
    """Every size without an option, and every option at the first size."""
    codes = generator.sample_latents(max(sizes), keyed_generator("decode-codes"))
    ways = [(size, "none") for size in sizes] + [(sizes[0], option) for option in options if option != "none"]
    decoders = {option: Decoder(copy.deepcopy(generator), **OPTIONS[option]) for option in options}
    plain = decoders["none"](codes[: sizes[0]])
    moved = {option: float((decoder(codes[: sizes[0]]) - plain).abs().max()) for option, decoder in decoders.items()}
    seconds: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(turns), unit="turn", disable=None):
        for size, option in ways:
            started = time.perf_counter()
            decoders[option](codes[:size])
            seconds[size, option].append((time.perf_counter() - started) / size)
    return [
        {
            "images_a_call": size,
            "option": option,
            "ms_an_image": round(1e3 * statistics.median(found), 4),
            "ratio": round(statistics.median(a / b for a, b in zip(found, seconds[ways[0]], strict=True)), 3),
            "moves_an_image_by": moved[option],
            "n": turns,
        }
        for (size, option), found in seconds.items()
    ]


@click.command()
@out_option
@click.option(
    "--part",
    "parts",
    type=click.Choice(list(SIZES)),
    multiple=True,
    help="Repeatable; the file's others stay; default: all.",
)
@threads_option
@quick_option
def main(out: Path, parts: tuple[str, ...], quick: bool) -> None:
    """Time decodes in turn; print and write medians and ratios."""
    sizes = QUICK_SIZES if quick else SIZES
    options = ["none", "channels_last=True"] if quick else list(OPTIONS)
    rows = {
        name: measure(generator, sizes[name], options, 3 if quick else TURNS[name])
        for name, generator in generators([name for name in sizes if not parts or name in parts]).items()
    }
    before = _measured(out, circumstances()) if parts else {}
    publish(out, {"generators": {**before, **rows}, **circumstances()})


def _measured(out: Path, here: dict[str, Any]) -> dict[str, Any]:
    """The generators in a file; raises where it was measured with other versions or on another machine."""
    found = read(out) if out.is_file() else {"generators": {}, **here}
    there = {name: found[name] for name in here}
    if there != here:
        raise click.ClickException(f"{out} was measured elsewhere: expected {here}, found {there}; take another --out")
    generators: dict[str, Any] = found["generators"]
    return generators


if __name__ == "__main__":
    main()
