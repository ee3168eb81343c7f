"""Generators: latent codes to images in [-1, 1]."""

from latent_mixup.generators.base import Generator, LatentSpace, PathName
from latent_mixup.generators.compact import CompactGenerator
from latent_mixup.generators.conv import ConvGenerator
from latent_mixup.generators.dcgan import DCGAN
from latent_mixup.generators.diffusers_pipeline import DiffusersPipeline
from latent_mixup.generators.diffusers_vae import DiffusersVAE
from latent_mixup.generators.identity import Identity
from latent_mixup.generators.linear import Linear
from latent_mixup.generators.loading import load_generator
from latent_mixup.generators.stylegan2 import StyleGAN2
from latent_mixup.generators.vae import VAE
from latent_mixup.generators.wrap import wrap

__all__ = [
    "DCGAN",
    "VAE",
    "CompactGenerator",
    "ConvGenerator",
    "DiffusersPipeline",
    "DiffusersVAE",
    "Generator",
    "Identity",
    "LatentSpace",
    "Linear",
    "PathName",
    "StyleGAN2",
    "load_generator",
    "wrap",
]
