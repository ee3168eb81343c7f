"""The small classifier of the paper's MNIST and Fashion-MNIST experiments."""

from __future__ import annotations

from torch import Tensor, nn


class PaperCNN(nn.Module):
    """Conv 1-16, ReLU, conv 16-32, ReLU, max-pool 2; dropout 0.5 between fc 4608-128 and fc 128-10.

    596,042 parameters (the paper says 575 k). ``features`` is the part whose output its inversion compares.

    Args:
        num_classes: Number of logits.

    Reference: Latent-Mixup, section 2.1.1.1.

    Example:
        >>> PaperCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = paper_features()
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4608, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 1, 28, 28]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def paper_features() -> nn.Sequential:
    """The convolutional half of :class:`PaperCNN`: ``[B, 1, 28, 28]`` to ``[B, 32, 12, 12]``."""
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
