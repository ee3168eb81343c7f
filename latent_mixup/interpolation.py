"""Paths between two batches of latent codes, one function each; defined beside the functions that mix along them."""

from latent_mixup.functional import PATHS, Path, lerp, path_named, slerp

__all__ = ["PATHS", "Path", "lerp", "path_named", "slerp"]
