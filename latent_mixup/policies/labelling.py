"""Labels of a mix other than the weights of its code: a curve of the weights, or a classifier's output."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.classifiers import are_probabilities, logits_of_output
from latent_mixup.networks import eval_mode
from latent_mixup.policies.settings import Setting, Share, checked


@dataclass(frozen=True)
class Curve(Setting):
    """Label weights as a piecewise-linear curve of the code's weights: a code half-way need not look half-way.

    With more than two sources, the curve of each weight is divided by their sum. Where the curve is 0 for all of them,
    the label weights are the code's.

    Args:
        points: Label weights at equally spaced ``lam`` from 0 to 1: the first is 0, the last is 1, and none falls.

    Raises:
        ValueError: The points are not of this form.

    Example:
        >>> Curve((0.0, 0.1, 0.5, 0.9, 1.0))(torch.tensor([[0.3, 0.7]])).shape
        torch.Size([1, 2])
    """

    points: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a <= b for a, b in pairwise(self.points))
        if len(self.points) < 2 or self.points[0] != 0 or self.points[-1] != 1 or not rising:
            raise ValueError(f"a curve needs points from 0 to 1 that never fall: got {self.points}")

    def at(self, lam: Tensor) -> Tensor:
        """The curve at each ``lam`` in [0, 1]."""
        points = torch.tensor(self.points, dtype=lam.dtype, device=lam.device)
        place = lam.clamp(0, 1) * (len(points) - 1)
        left = place.long().clamp_max(len(points) - 2)
        return torch.lerp(points[left], points[left + 1], place - left)

    def __call__(self, weights: Tensor) -> Tensor:
        """Weights ``[k, n]`` to label weights ``[k, n]``, rows that sum to 1."""
        if weights.shape[1] == 2:
            own = self.at(weights[:, :1])
            return torch.cat([own, 1 - own], 1)
        curved = self.at(weights)
        sums = curved.sum(1, keepdim=True)
        return torch.where(sums > 0, curved / sums, weights)


class Teacher:
    """Soft labels from a frozen classifier for decoded mixes; a code of weight 1 keeps its own label.

    Args:
        model: Images ``[k, C, H, W]`` in [-1, 1] to logits ``[k, num_classes]``, or an object that holds them: see
            :func:`latent_mixup.classifiers.logits_of_output`. On the generator's device; it is put in eval mode and
            frozen.
        temperature: Divides the logits; above 0.
        min_confidence: Share of the likeliest class, in [0, 1], below which a mix is not used: the sample stays as it
            is, and of a pool such entries are not drawn.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``temperature`` is not above 0, or ``min_confidence`` is out of range.

    Reference: Hinton et al. 2015 (arXiv 1503.02531), equation 1.

    Example:
        >>> Teacher(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)))(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 10])
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0, min_confidence: float = 0.0) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Teacher needs a classifier, a torch.nn.Module: got {model!r:.80}")
        self.temperature = checked(float, temperature, "Teacher.temperature")
        if self.temperature <= 0:
            raise ValueError(f"temperature needs to be above 0: got {temperature}")
        self.min_confidence: float = checked(Share, min_confidence, "Teacher.min_confidence")
        self.model = model.eval().requires_grad_(False)
        self._checked = False

    def facts(self) -> dict[str, Any]:
        """What decides its labels, as JSON: the settings, and the digest of its weights."""
        digest = files.tensors_sha256(self.model.state_dict())
        settings = {"temperature": self.temperature, "min_confidence": self.min_confidence}
        return {"kind": "Teacher", "weights": digest, **settings}

    @torch.no_grad()
    def __call__(self, images: Tensor, num_classes: int | None = None) -> Tensor:
        """Images ``[k, C, H, W]`` to soft labels ``[k, num_classes]``, in eval mode whatever the model's owner does.

        Raises:
            ValueError: The model does not return ``num_classes`` finite logits for each image (None: any number).
        """
        with eval_mode(self.model):
            logits = logits_of_output(self.model(images.clone()), len(images), num_classes)  # it may work in place
        if not self._checked and are_probabilities(logits):
            warnings.warn(
                "the teacher returns probabilities (from 0, each row sums to 1) in the place of logits, so its labels "
                "are far too soft: leave out the softmax at its end",
                stacklevel=2,
            )
        self._checked = True
        logits = logits.float()
        return torch.softmax((logits - logits.amax(1, keepdim=True)) / max(self.temperature, 1e-30), 1)
