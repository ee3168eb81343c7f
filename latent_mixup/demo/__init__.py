"""``latent-mixup demo`` and ``preview``: the method on what comes with the package."""
