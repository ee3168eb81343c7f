"""The page of pictures of a run: what the generator makes of real images, of mixes, and of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.bank.looks import draw_pairs
from latent_mixup.fitting.images import Prepared
from latent_mixup.functional import path_named
from latent_mixup.generators.conv import ConvGenerator
from latent_mixup.images import from_uint8
from latent_mixup.pictures import mixes, png
from latent_mixup.sampling import keyed_generator

COLUMNS = 12
TIMES = (0.2, 0.4)  # of the projections


@torch.no_grad()
def draw_page(generator: ConvGenerator, bank: LatentBank, images: Prepared) -> bytes:
    """A PNG with a column for each pair of rows, of two classes where there are any; its last row has samples."""
    draw = keyed_generator("fit-page")
    own, other = draw_pairs(bank.hard_labels, COLUMNS, draw)
    codes, others = bank[own][0], bank[other][0]
    half = path_named(generator.preferred_path)(codes, others, torch.full((len(codes),), 0.5))
    real, partner = (_originals(bank, images, rows) for rows in (own, other))
    rows = {
        "real a": real,
        "a decoded": generator.decode(codes),
        "mix, lam 0.75": mixes(generator, codes, others, 0.75),
        "mix, lam 0.5": mixes(generator, codes, others, 0.5),
        "mix, lam 0.25": mixes(generator, codes, others, 0.25),
        **{
            f"lam 0.5, prior t {t}": generator.decode(
                generator.project(half, t, generator=keyed_generator("fit-page-t", number))
            )
            for number, t in enumerate(TIMES)
        },
        "b decoded": generator.decode(others),
        "real b": partner,
        "pixels, lam 0.5": (real + partner) / 2,
        "samples": generator.decode(generator.sample_latents(len(codes), draw)),
        "more samples": generator.decode(generator.sample_latents(len(codes), draw)),
    }
    return png([*rows.values()], [*rows], zoom=2 if generator.img_resolution <= 64 else 1)


def _originals(bank: LatentBank, images: Prepared, rows: Tensor) -> Tensor:
    found = [images[index][0] for index in bank.source_index[rows].tolist()]
    return from_uint8(torch.stack(found))
