"""Sheets of mixes, and the loggers that take them."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.integrations import log_sheet, sheet_of, takes_sheets
from latent_mixup.pictures import HEADING_HEIGHT
from latent_mixup.policies import Policy

CELL = 2 * 4 + 2  # of the tiny generator's images, twice their size, with two white pixels around


def pixels(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))


def rows_of(sheet: bytes) -> list[np.ndarray]:
    picture = pixels(sheet)[HEADING_HEIGHT + 2 :, -2 - 8 * CELL : -2]
    return [picture[number * CELL : number * CELL + CELL - 2] for number in range(3)]


@pytest.fixture
def mixup(linear_generator, toy_bank, toy_dataset):
    def make(**settings):
        return lm.LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, **settings)

    return make


def test_a_sheet_is_its_seeds_and_moves_no_random_state(mixup):
    noisy = mixup(transform=v2.Lambda(lambda image: image + torch.randn(1)))
    before = torch.get_rng_state()
    sheets = [sheet_of(noisy, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert sheets[0] == sheets[1] != sheets[2]


def test_unmixed_codes_are_the_row_above_and_mixes_are_not(mixup):
    own, mixed, partner = rows_of(sheet_of(mixup(policy=Policy(unmixed=1.0))))
    assert np.array_equal(own, mixed)
    assert not np.array_equal(own, partner)
    own, mixed, partner = rows_of(sheet_of(mixup()))
    assert not np.array_equal(own, mixed)
    assert not np.array_equal(partner, mixed)


def test_normalised_images_look_as_they_did(mixup):
    plain, normalised = (pixels(sheet_of(mixup(normalize=moments))).astype(int) for moments in (None, (0.1, 3.0)))
    assert abs(plain - normalised).max() <= 1


class Writer:
    """Holds what it was given, as TensorBoard's ``SummaryWriter`` is called."""

    def __init__(self):
        self.given = []

    def add_image(self, tag, image, global_step=None, walltime=None, dataformats="CHW"):
        assert dataformats == "HWC"
        self.given.append((tag, image, global_step))


class Run:
    """A run of W&B."""

    log_artifact = None

    def __init__(self):
        self.given = []

    def log(self, data, step=None):
        self.given += [(name, image.array, step) for name, image in data.items()]


class WandbLogger(Writer):
    """Lightning's."""

    add_image = None

    def log_image(self, key, images, step=None):
        self.given += [(key, image, step) for image in images]


@pytest.mark.parametrize("kind", ["writer", "lightning's tensorboard", "run", "lightning's wandb"])
def test_each_logger_gets_the_pixels(mixup, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda array: SimpleNamespace(array=array)))
    holder = {"run": Run, "lightning's wandb": WandbLogger}.get(kind, Writer)()
    logger = SimpleNamespace(experiment=holder) if kind == "lightning's tensorboard" else holder
    sheet = sheet_of(mixup())
    assert takes_sheets(logger)
    log_sheet(logger, sheet, 7, name="mixes")
    ((name, image, step),) = holder.given
    assert (name, step) == ("mixes", 7)
    assert np.array_equal(image, pixels(sheet))


def test_another_logger_is_an_error(mixup):
    assert not takes_sheets(SimpleNamespace(log=print))
    with pytest.raises(TypeError, match=r"SummaryWriter, a W&B run.*got list"):
        log_sheet([], sheet_of(mixup()))
