"""The page of pictures of a run: what the generator makes of real images, of mixes, and of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
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
    own, other = _pairs(bank, draw)
    codes, others = bank[own][0], bank[other][0]
    half = path_named(generator.preferred_path)(codes, others, torch.full((len(codes),), 0.5))
    real, partner = (_originals(bank, images, rows) for rows in (own, other))
    rows = {
        "real a": real,
        "a decoded": generator.decode(codes),
        "mix 0.75": mixes(generator, codes, others, 0.75),
        "mix 0.5": mixes(generator, codes, others, 0.5),
        "mix 0.25": mixes(generator, codes, others, 0.25),
        **{
            f"0.5, t = {t}": generator.decode(
                generator.project(half, t, generator=keyed_generator("fit-page-t", number))
            )
            for number, t in enumerate(TIMES)
        },
        "b decoded": generator.decode(others),
        "real b": partner,
        "pixel mix 0.5": (real + partner) / 2,
        "samples": generator.decode(generator.sample_latents(len(codes), draw)),
        "more samples": generator.decode(generator.sample_latents(len(codes), draw)),
    }
    return png([*rows.values()], [*rows], zoom=2 if generator.img_resolution <= 64 else 1)


def _pairs(bank: LatentBank, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and partners drawn at random, a partner of another class where there is one."""
    order = torch.randperm(len(bank), generator=draw)
    own, labels = order[:COLUMNS], bank.hard_labels
    left = order[COLUMNS:].tolist()
    partners = list[int]()
    for row in own.tolist():
        place = next((k for k, each in enumerate(left) if labels[each] != labels[row]), 0)
        partners.append(left.pop(place))
    return own, torch.tensor(partners)


def _originals(bank: LatentBank, images: Prepared, rows: Tensor) -> Tensor:
    found = [images[index][0] for index in bank.source_index[rows].tolist()]
    return from_uint8(torch.stack(found))
