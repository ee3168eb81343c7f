"""``latent-mixup demo`` and ``preview``, and the training methods that the demo and the benchmarks compare."""
