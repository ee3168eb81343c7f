"""Other people's files => ours, without executing anything that is in them."""

from latent_mixup.convert.any import convert
from latent_mixup.convert.latents import read_latents, read_projected
from latent_mixup.convert.nvidia import read_nvidia
from latent_mixup.convert.pickles import UnsafeCheckpointError

__all__ = ["UnsafeCheckpointError", "convert", "read_latents", "read_nvidia", "read_projected"]
