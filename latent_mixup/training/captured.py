"""Training steps of a small network on a GPU, captured once and replayed: launching kernels takes most of the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[[int, tuple[Tensor, ...]], None]
"""One step: the number of a variant of the loss, and its tensors, whose values Python does not look at."""

EAGER_STEPS = 3  # steps of each kind before it is captured, in which lazy initialisation happens


class CapturedSteps:
    """Calls a step; from the fourth call of a kind on, replays it with new inputs.

    A kind is a variant with the shapes and types of its tensors. All calls have to be inside :meth:`stream`. Other
    threads may use the device meanwhile, as a loader does that decodes ahead: a capture records its own thread alone.

    Args:
        step: The step. Its optimiser needs ``capturable=True`` and a learning rate on the device.
        device: A CUDA device; the step's tensors are moved there.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self._stream = torch.cuda.Stream(device)
        self._seen: Counter[object] = Counter()
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Use the stream that steps are captured on."""
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
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self.step(variant, inputs)
            self._graphs[kind] = graph, inputs
        graph, inputs = self._graphs[kind]
        for static, new in zip(inputs, tensors, strict=True):
            static.copy_(new)
        graph.replay()
