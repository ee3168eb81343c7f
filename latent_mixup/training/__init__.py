"""How generators, feature networks and classifiers are trained."""

from latent_mixup.training.classifier import shuffled_batches, train_classifier, train_features
from latent_mixup.training.compact import CompactRecipe, train_compact

__all__ = ["CompactRecipe", "shuffled_batches", "train_classifier", "train_compact", "train_features"]
