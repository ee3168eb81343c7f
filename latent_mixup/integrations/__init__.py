"""Training frameworks: import the module of yours, ``lightning``, ``transformers`` or ``timm``."""

from latent_mixup.integrations.sheets import log_sheet, sheet_of, takes_sheets

__all__ = ["log_sheet", "sheet_of", "takes_sheets"]
