"""Training of StyleGAN2."""

from latent_mixup.training.stylegan2.train import StyleGAN2Recipe, pad_to_power_of_two, train_stylegan2

__all__ = ["StyleGAN2Recipe", "pad_to_power_of_two", "train_stylegan2"]
