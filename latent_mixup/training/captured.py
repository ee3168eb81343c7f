"""Training steps of a small network on a GPU, captured once and replayed: launching kernels costs more than they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[[int, tuple[Tensor, ...]], None]
"""A step of a variant of the loss on its tensors, without a look at their values from Python."""

EAGER_STEPS = 3  # of each kind, before it is captured: what is made lazily has then been made


class CapturedSteps:
    """Calls a step; from the fourth of a kind on, replays it with new inputs.

    A kind is a variant with the shapes and types of its tensors. Everything has to happen inside :meth:`stream`.

    Args:
        step: What is captured. Its optimiser needs ``capturable=True`` and a learning rate on the device.
        device: A CUDA device, where the step's tensors are moved to.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self._stream = torch.cuda.Stream(device)
        self._seen: Counter[object] = Counter()
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The stream that steps are captured on."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def __call__(self, variant: int, tensors: tuple[Tensor, ...]) -> None:
        """One step."""
        kind = (variant, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if self._seen[kind] < EAGER_STEPS:
            self._seen[kind] += 1
            self.step(variant, tuple(tensor.to(self.device) for tensor in tensors))
            return
        if kind not in self._graphs:
            inputs = tuple(torch.empty_like(each, device=self.device) for each in tensors)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self.step(variant, inputs)
            self._graphs[kind] = graph, inputs
        graph, inputs = self._graphs[kind]
        _copy(inputs, tensors)
        graph.replay()


def _copy(inputs: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> None:
    for static, new in zip(inputs, tensors, strict=True):
        static.copy_(new)
