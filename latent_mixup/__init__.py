"""Train image classifiers on mixes of latent codes."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_mixup import functional, generators, interpolation, inversion, robustness
    from latent_mixup.augment.collate import LatentMixupCollate
    from latent_mixup.augment.dataset import LatentMixupDataset
    from latent_mixup.augment.loader import LatentMixupLoader
    from latent_mixup.augment.sources import SplitWarning
    from latent_mixup.bank import LatentBank, list_pretrained, load
    from latent_mixup.fitting.stages import fit
    from latent_mixup.functional import mixup_criterion
    from latent_mixup.generators import load_generator
    from latent_mixup.images import RangeMismatchWarning
    from latent_mixup.inversion.engine import invert
    from latent_mixup.inversion.refine import refine
    from latent_mixup.pool.dataset import RenderedMixupDataset
    from latent_mixup.pool.render import render

__version__ = version("latent-mixup")

__all__ = [
    "LatentBank",
    "LatentMixupCollate",
    "LatentMixupDataset",
    "LatentMixupLoader",
    "RangeMismatchWarning",
    "RenderedMixupDataset",
    "SplitWarning",
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
    """A public name or a module, imported when it is first asked for: the command line starts without torch."""
    places = {
        "LatentBank": "bank",
        "LatentMixupCollate": "augment",
        "LatentMixupDataset": "augment",
        "LatentMixupLoader": "augment",
        "RangeMismatchWarning": "images",
        "RenderedMixupDataset": "pool",
        "SplitWarning": "augment",
        "fit": "fitting",
        "invert": "inversion",
        "list_pretrained": "bank",
        "load": "bank",
        "load_generator": "generators",
        "mixup_criterion": "functional",
        "refine": "inversion",
        "render": "pool",
    }
    if name in places:
        return getattr(import_module(f"{__name__}.{places[name]}"), name)
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as missing:
            if missing.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and modules that are imported on demand."""
    modules = ["bundled", "encoders", "images", "integrations", "losses", "policies", "quality", "training"]
    return [*__all__, *modules]
