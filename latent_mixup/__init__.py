"""Train image classifiers on mixes of latent codes."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from latent_mixup import functional, generators, interpolation
from latent_mixup.augment.collate import LatentMixupCollate
from latent_mixup.augment.dataset import LatentMixupDataset
from latent_mixup.augment.loader import LatentMixupLoader
from latent_mixup.bank import LatentBank, list_pretrained, load
from latent_mixup.functional import mixup_criterion
from latent_mixup.generators import load_generator
from latent_mixup.pool import RenderedMixupDataset, render

if TYPE_CHECKING:
    from latent_mixup import inversion, robustness
    from latent_mixup.fitting.stages import fit
    from latent_mixup.inversion.engine import invert
    from latent_mixup.inversion.refine import refine

__version__ = version("latent-mixup")

__all__ = [
    "LatentBank",
    "LatentMixupCollate",
    "LatentMixupDataset",
    "LatentMixupLoader",
    "RenderedMixupDataset",
    "fit",
    "functional",
    "generators",
    "interpolation",
    "inversion",
    "invert",
    "list_pretrained",
    "load",
    "load_generator",
    "mixup_criterion",
    "refine",
    "render",
    "robustness",
]


def __getattr__(name: str) -> Any:
    """What training does not need is imported when it is first asked for: fit, inversion and robustness."""
    if name == "fit":
        return import_module(f"{__name__}.fitting").fit
    if name in ("inversion", "robustness"):
        return import_module(f"{__name__}.{name}")
    if name in ("invert", "refine"):
        return getattr(import_module(f"{__name__}.inversion"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
