"""A generator, its prior and a bank for anybody's images, in one call."""

from latent_mixup.fitting.images import Prepared, prepare
from latent_mixup.fitting.stages import Settings, fit

__all__ = ["Prepared", "Settings", "fit", "prepare"]
