"""Pools: mixes decoded once, written to a folder, and read as fast as stored images."""

from latent_mixup.pool.dataset import RenderedMixupDataset
from latent_mixup.pool.render import render

__all__ = ["RenderedMixupDataset", "render"]
