"""How generators, encoders, feature networks and classifiers are trained."""

from latent_mixup.training.classifier import shuffled_batches, train_classifier, train_features
from latent_mixup.training.compact import CompactRecipe, train_compact
from latent_mixup.training.conv import ConvRecipe, train_conv
from latent_mixup.training.dcgan import DCGANRecipe, train_dcgan
from latent_mixup.training.encoder import EncoderRecipe, train_encoder
from latent_mixup.training.stylegan2.train import StyleGAN2Recipe, pad_to_power_of_two, train_stylegan2
from latent_mixup.training.vae import VAERecipe, train_vae

__all__ = [
    "CompactRecipe",
    "ConvRecipe",
    "DCGANRecipe",
    "EncoderRecipe",
    "StyleGAN2Recipe",
    "VAERecipe",
    "pad_to_power_of_two",
    "shuffled_batches",
    "train_classifier",
    "train_compact",
    "train_conv",
    "train_dcgan",
    "train_encoder",
    "train_features",
    "train_stylegan2",
    "train_vae",
]
