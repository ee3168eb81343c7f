"""Policies: what is mixed with what, by how much, and what label it gets, as small objects that go together."""

from latent_mixup.policies.blending import Channels, Layers, Whole
from latent_mixup.policies.config import from_config, to_config
from latent_mixup.policies.draws import Draw
from latent_mixup.policies.labelling import Curve, Teacher
from latent_mixup.policies.named import NAMED, named
from latent_mixup.policies.partners import Anyone, ClassPairs, Farthest, Nearest, OtherClass, SameClass
from latent_mixup.policies.policy import Policy
from latent_mixup.policies.rows import Rows
from latent_mixup.policies.vicinity import LowPass, Noise, Truncation
from latent_mixup.policies.weights import Beta, Dirichlet, NearEnds, Scheduled, Uniform

__all__ = [
    "NAMED",
    "Anyone",
    "Beta",
    "Channels",
    "ClassPairs",
    "Curve",
    "Dirichlet",
    "Draw",
    "Farthest",
    "Layers",
    "LowPass",
    "NearEnds",
    "Nearest",
    "Noise",
    "OtherClass",
    "Policy",
    "Rows",
    "SameClass",
    "Scheduled",
    "Teacher",
    "Truncation",
    "Uniform",
    "Whole",
    "from_config",
    "named",
    "to_config",
]
