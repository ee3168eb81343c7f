"""LatentBank: the inverted codes of a data set."""

from latent_mixup.bank.bank import LatentBank
from latent_mixup.bank.datasets import fingerprint
from latent_mixup.bank.files import BankFormatError

__all__ = ["BankFormatError", "LatentBank", "fingerprint"]
