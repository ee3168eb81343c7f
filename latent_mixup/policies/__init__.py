"""Policies: which codes are mixed, by how much, and what label a mix gets, as small settings that combine."""

from latent_mixup.policies.blending import Channels, Layers, Whole
from latent_mixup.policies.choosing import Hardest
from latent_mixup.policies.draws import Draw
from latent_mixup.policies.labelling import Curve, Teacher
from latent_mixup.policies.partners import Anyone, BankView, ClassPairs, Farthest, Nearest, OtherClass, SameClass
from latent_mixup.policies.partners import BankView as Rows
from latent_mixup.policies.policy import NAMED, Policy, Prior, from_config, named, to_config
from latent_mixup.policies.vicinity import LowPass, Noise, Truncation
from latent_mixup.policies.weights import Beta, Dirichlet, NearEnds, Scheduled, Uniform

__all__ = [
    "NAMED",
    "Anyone",
    "BankView",
    "Beta",
    "Channels",
    "ClassPairs",
    "Curve",
    "Dirichlet",
    "Draw",
    "Farthest",
    "Hardest",
    "Layers",
    "LowPass",
    "NearEnds",
    "Nearest",
    "Noise",
    "OtherClass",
    "Policy",
    "Prior",
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
