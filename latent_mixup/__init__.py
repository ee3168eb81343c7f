"""Train image classifiers on mixes of latent codes."""

from importlib.metadata import version

from latent_mixup import functional, generators, interpolation, inversion, robustness
from latent_mixup.bank import LatentBank
from latent_mixup.collate import LatentMixupCollate
from latent_mixup.dataset import LatentMixupDataset
from latent_mixup.functional import mixup_criterion
from latent_mixup.generators import load_generator
from latent_mixup.inversion import invert, refine
from latent_mixup.loader import LatentMixupLoader
from latent_mixup.rendered import RenderedMixupDataset

__version__ = version("latent-mixup")

__all__ = [
    "LatentBank",
    "LatentMixupCollate",
    "LatentMixupDataset",
    "LatentMixupLoader",
    "RenderedMixupDataset",
    "functional",
    "generators",
    "interpolation",
    "inversion",
    "invert",
    "load_generator",
    "mixup_criterion",
    "refine",
    "robustness",
]
