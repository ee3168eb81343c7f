"""Which policy, labels and pool size are best."""
