"""Robustness: adversarial attacks, to score with and to train with, blur, corruptions, calibration.

Every score takes the classifier as it is (in eval mode during the call, restored afterwards) and images in the
classifier's own, normalised input range. Norms are in the units of that range: images in [-1, 1] give twice the norm
of the same images in [0, 1], so scores are comparable in one range only. ``bounds`` is that range in every score that
needs it, the values of black and white: two numbers, or two lists with a number per channel. Unless it is given it is
(-1, 1), the package's own; images of which no value is below 0, which may lie in [0, 1], are then refused.
:class:`Normalized` turns a model that takes normalised images into one for [0, 1].

A classifier may return a tensor of logits ``[B, K]``, an object with ``.logits``, a mapping with ``"logits"``, or a
tuple of one of these; two logits or more, all finite. Labels are its classes, integers of any type.
"""

from latent_mixup.robustness.accuracy import accuracy, logits_of
from latent_mixup.robustness.adversarial_training import adversarial
from latent_mixup.robustness.autoattack import autoattack
from latent_mixup.robustness.blur import blur_sweep, blurred, blurred_accuracy
from latent_mixup.robustness.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from latent_mixup.robustness.cifar_c import CorruptedCIFAR, cifar_c_names
from latent_mixup.robustness.corruptions import corrupt, corruption_accuracy, corruption_names
from latent_mixup.robustness.deepfool import DeepFoolResult, DeepFoolScore, deepfool, deepfool_score
from latent_mixup.robustness.evaluation import Scores, evaluate
from latent_mixup.robustness.pgd import PGDResult, pgd, pgd_accuracy
from latent_mixup.robustness.ranges import Normalized

__all__ = [
    "CorruptedCIFAR",
    "DeepFoolResult",
    "DeepFoolScore",
    "Normalized",
    "PGDResult",
    "Scores",
    "accuracy",
    "adversarial",
    "autoattack",
    "blur_sweep",
    "blurred",
    "blurred_accuracy",
    "brier_score",
    "cifar_c_names",
    "corrupt",
    "corruption_accuracy",
    "corruption_names",
    "deepfool",
    "deepfool_score",
    "evaluate",
    "expected_calibration_error",
    "logits_of",
    "negative_log_likelihood",
    "pgd",
    "pgd_accuracy",
]
