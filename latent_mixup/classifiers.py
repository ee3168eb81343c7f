"""Small classifiers: the paper's for MNIST and Fashion-MNIST, and one whose features compare sets of images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from latent_mixup import cards, hub
from latent_mixup.networks import SavedNetwork, network_facts

SUM_TOLERANCE = 1e-2  # probabilities in half precision still count as such


class PaperCNN(nn.Module):
    """Conv 1-16, ReLU, conv 16-32, max-pool 2, ReLU; dropout 0.5 between fc 4608-128 and fc 128-10.

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
        self.features = PaperFeatures()
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4608, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 1, 28, 28]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


class _Features(SavedNetwork):
    hub_kind: ClassVar[hub.Kind] = "features"

    def describe(self, *, digest: str | None = None) -> cards.Facts:
        """What the card says: see :meth:`SavedNetwork.describe`."""
        cls = type(self).__name__
        return network_facts(
            self,
            "a feature extractor",
            "Images that look alike have features that are close: an inversion minimises their distance.",
            f"""from latent_mixup.classifiers import {cls}
from latent_mixup.inversion import FeatureLoss

loss = FeatureLoss({cls}.from_pretrained({{here}}))
# latent_mixup.invert(dataset, generator, loss=loss)""",
            {},
            digest=digest,
        )


class PaperFeatures(_Features, nn.Sequential):
    """The convolutional half of :class:`PaperCNN`: ``[B, 1, 28, 28]`` to ``[B, 32, 12, 12]``.

    The paper's second ReLU stands before its max-pool. Behind it, outputs and gradients are the same, at a quarter of
    the ReLU's work.

    Example:
        >>> PaperFeatures()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 32, 12, 12])
    """

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ReLU())
        self.metadata: dict[str, Any] = {}

    def arguments(self) -> dict[str, Any]:
        """There are none."""
        return {}


class FeatureCNN(_Features):
    """A small classifier for images of any size from 8 px, whose last 128 features compare sets of images.

    Three convolutions, the last two with stride 2, means over a 4x4 grid, a linear layer to the features.

    Args:
        img_channels: Channels of an image.
        num_classes: Number of logits.

    Example:
        >>> FeatureCNN(1, 10).features(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 128])
    """

    def __init__(self, img_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [img_channels, 16, 32, 64]
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2 if i else 1, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU())
        self.head = nn.Linear(128, num_classes)
        self.img_channels, self.num_classes = img_channels, num_classes
        self.metadata: dict[str, Any] = {}

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"img_channels": self.img_channels, "num_classes": self.num_classes}

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, img_channels, H, W]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


FEATURES: dict[str, type[PaperFeatures] | type[FeatureCNN]] = {
    network.__name__: network for network in (PaperFeatures, FeatureCNN)
}


def logits_of_output(output: object, num_images: int, num_classes: int | None = None, *, finite: bool = True) -> Tensor:
    """The logits ``[num_images, K]`` in what a classifier returned.

    Args:
        output: A tensor, an object with ``.logits`` (as transformers' image classifiers return), a mapping with
            ``"logits"``, or a tuple or list that holds one of these alone.
        num_images: Images that the classifier was called with.
        num_classes: Logits wanted of each image; None: any number from two.
        finite: Refuse NaN and infinity.

    Raises:
        ValueError: There are no logits in it, they have another shape, or one is NaN or infinite.

    Example:
        >>> logits_of_output({"logits": torch.zeros(5, 10)}, num_images=5).shape
        torch.Size([5, 10])
    """
    logits = output[0] if isinstance(output, tuple | list) and len(output) == 1 else output
    if not isinstance(logits, Tensor):
        logits = logits.get("logits") if isinstance(logits, Mapping) else getattr(logits, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the classifier needs to return logits, a tensor [B, K]: got {_described(output)}; "
            "pass a module whose forward returns the logits alone"
        )
    wanted = f"[{num_images}, {'K' if num_classes is None else num_classes}]"
    if logits.ndim != 2 or len(logits) != num_images or logits.shape[1] != (num_classes or logits.shape[1]):
        raise ValueError(f"the classifier needs to return logits {wanted}: got {list(logits.shape)}")
    if logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            "the classifier needs to return a floating-point logit for each of two or more classes: got "
            f"{logits.dtype} {list(logits.shape)}; make one logit z two, torch.cat([torch.zeros_like(z), z], 1)"
        )
    if finite and not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(f"the classifier returns NaN or infinite logits for {bad} of {num_images} images")
    return logits


def are_probabilities(logits: Tensor) -> bool:
    """Whether every row of a classifier's output is a distribution, as after a softmax, and not all are one-hot."""
    rows = logits.detach().float()
    if (rows < 0).any() or ((rows.sum(1) - 1).abs() > SUM_TOLERANCE).any():
        return False
    return not bool(((rows == 0) | (rows == 1)).all())


def _described(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return type(output).__name__
