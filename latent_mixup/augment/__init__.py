"""The three wrappers that put decoded mixes into training: data set, collate function, loader."""

from latent_mixup.augment.collate import LatentMixupCollate
from latent_mixup.augment.dataset import LatentMixupDataset
from latent_mixup.augment.loader import LatentMixupLoader
from latent_mixup.augment.sources import SplitWarning

__all__ = [
    "LatentMixupCollate",
    "LatentMixupDataset",
    "LatentMixupLoader",
    "SplitWarning",
]
