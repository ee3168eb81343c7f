"""LatentBank: the inverted codes of a data set."""

from latent_mixup.bank.bank import LatentBank
from latent_mixup.bank.datasets import fingerprint
from latent_mixup.bank.files import BankFormatError
from latent_mixup.bank.pair import list_pretrained, load

__all__ = ["BankFormatError", "LatentBank", "fingerprint", "list_pretrained", "load"]
