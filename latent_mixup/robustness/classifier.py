"""The gate in front of every score: a model in eval mode, called on copies of images, its output and labels checked."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import chain

import torch
from torch import Tensor, nn

from latent_mixup.classifiers import are_probabilities, logits_of_output
from latent_mixup.networks import eval_mode
from latent_mixup.robustness.shared import check_classes, describe

_warned: ContextVar[list[bool] | None] = ContextVar("warned", default=None)


class Classifier:
    """A model as the scores call it: on a copy of the images, its output checked.

    Attributes:
        num_classes: Logits of an image; None before the first call.
    """

    def __init__(self, model: nn.Module, *, needs_logits: bool = False) -> None:
        self.model, self.needs_logits = model, needs_logits
        self.num_classes: int | None = None

    def logits(self, images: Tensor, labels: Tensor | None = None, *, finite: bool = True) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, C, H, W]``.

        Args:
            images: Stay as they are, even if the model works in place.
            labels: To be compared with them, ``[B]``.
            finite: Refuse NaN and infinity.

        Raises:
            ValueError: The model does not return such logits, or a label is none of its classes.
        """
        logits = logits_of_output(self.model(images.clone()), len(images), self.num_classes, finite=finite)
        if self.num_classes is None and self.needs_logits:
            warn_of_probabilities(logits)
        self.num_classes = logits.shape[1]
        if labels is not None:
            check_classes(labels, self.num_classes)
        return logits

    def with_gradient(
        self, images: Tensor, labels: Tensor | None = None, *, finite: bool = True
    ) -> tuple[Tensor, Tensor]:
        """A copy of the images as a leaf of the graph, and its :meth:`logits`.

        Raises:
            ValueError: As :meth:`logits`; or there is no gradient back to the images.
        """
        images = images.detach().clone().requires_grad_()
        logits = self.logits(images, labels, finite=finite)
        if not logits.requires_grad:
            raise no_gradient()
        return images, logits


@contextlib.contextmanager
def scored(model: nn.Module, *, gradient: bool = False) -> Iterator[Classifier]:
    """The model in eval mode, with or without gradients, whatever mode the caller is in; as it was afterwards.

    With gradients, compiled parts run eagerly: a compiled backward pass can run but once ("donated buffers"), and the
    number of images of an attack changes at every step.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: Its weights were made in inference mode, where there is no gradient.
    """
    check_model(model)
    eager = gradient and "torch._dynamo" in sys.modules  # nothing is compiled before that is imported
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradient))
        if eager:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if gradient and any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
            raise ValueError("an attack needs gradients: build or load the model outside torch.inference_mode")
        yield Classifier(model, needs_logits=gradient)


def no_gradient() -> ValueError:
    """The error for logits that do not depend on the images, as far as autograd knows."""
    return ValueError("the model's logits carry no gradient back to the images: remove a torch.no_grad or detach in it")


def device_of(model: nn.Module, device: torch.device | str | None = None) -> torch.device | str:
    """``device``, or where None that of the model's parameters and buffers."""
    if device is not None:
        return device
    first = next(chain(model.parameters(), model.buffers()), None)
    return "cpu" if first is None else first.device


def check_model(model: object) -> None:
    """Raise ``TypeError`` unless this is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the first argument must be the classifier, a torch.nn.Module: got {describe(model)}")


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn where every row of ``logits`` is a distribution; in :func:`warning_once`, once."""
    if not are_probabilities(logits):
        return
    warned = _warned.get()
    if not warned:
        warnings.warn(
            "the classifier returns probabilities (from 0, each row sums to 1) in place of logits, so the score is "
            "wrong: leave out the softmax at its end",
            stacklevel=1,
        )
        if warned is not None:
            warned.append(True)


@contextlib.contextmanager
def warning_once() -> Iterator[None]:
    """Several scores of one model: one warning."""
    token = _warned.set([])
    try:
        yield
    finally:
        _warned.reset(token)
