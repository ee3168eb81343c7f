"""Quality: reports on banks, checks of codes, self-tests of generators, and facts about both."""

from latent_mixup.quality.advice import Advice, advise
from latent_mixup.quality.code_check import check_codes
from latent_mixup.quality.verdict import check_text

__all__ = ["Advice", "advise", "check_codes", "check_text"]
