"""Work done ahead of the training step, by one background thread; on an accelerator in a stream of its own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

THREAD_NAME = "latent-mixup"
WITH_STREAMS = ("cuda", "xpu")  # devices that work on several streams at a time

T = TypeVar("T")
R = TypeVar("R")


def run_ahead(items: Iterable[T], work: Callable[[T], R], count: int, device: torch.device) -> Generator[R]:
    """``work`` of each item, in order, up to ``count`` of them done before they are asked for.

    The thread ends with the iterator. It has one thread of torch's for an operation, so that the training step keeps
    its cores.

    Args:
        items: Read in the caller's thread, ``count`` ahead.
        work: Called in the background thread. What it launches on ``device`` runs beside what the caller launches.
        count: From 1.
        device: Where the tensors are that items and results, nested tuples and lists, are made of.
    """
    stream = SideStream(device) if device.type in WITH_STREAMS else None
    ahead: deque[Callable[[], R]] = deque()
    pool = ThreadPoolExecutor(1, THREAD_NAME, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            if stream is None:
                ahead.append(pool.submit(work, item).result)
            else:
                ahead.append(stream.submit(pool, work, item))
            if len(ahead) > count:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class SideStream:
    """An accelerator's stream beside the caller's: what is launched on it does not wait for the training step's end.

    Args:
        device: The accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.Stream(device=device)

    def submit(self, pool: ThreadPoolExecutor, work: Callable[[T], R], item: T) -> Callable[[], R]:
        """Start ``work`` in ``pool`` on this stream, after what the caller has launched so far.

        Returns:
            A function that gives the result to the stream that is current where it is called.
        """
        ready = self._callers_stream().record_event()

        def beside() -> tuple[R, Any]:
            with self.stream:
                self.stream.wait_event(ready)
                for tensor in self._ours(item):
                    tensor.record_stream(self.stream)
                return work(item), self.stream.record_event()

        future = pool.submit(beside)

        def result() -> R:
            found, done = future.result()
            here = self._callers_stream()
            here.wait_event(done)
            for tensor in self._ours(found):
                tensor.record_stream(here)
            return found

        return result

    def _callers_stream(self) -> torch.Stream:
        return torch.accelerator.current_stream(self.device)

    def _ours(self, tree: Any) -> list[Tensor]:
        """The tensors on this device."""
        if isinstance(tree, tuple | list):
            return [tensor for part in tree for tensor in self._ours(part)]
        return [tree] if isinstance(tree, Tensor) and tree.device == self.device else []


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, this thread's work on an accelerator runs beside that of others; of a CPU's work threads do that."""
    return torch.Stream(device=device) if device.type in WITH_STREAMS else nullcontext()


def has_free_core() -> bool:
    """Whether this process may use more cores than torch's operations do."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() < usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
