"""Work done ahead of the training step, by one background thread; on an accelerator in a stream of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

THREAD_NAME = "latent-mixup"
MAX_WAIT = 5.0  # seconds for a thread to leave the process
WITH_STREAMS = ("cuda", "xpu")  # devices that work on several streams at a time
ONE_THREAD = ("mps",)  # devices that end the process where two of its threads work on them

T = TypeVar("T")
R = TypeVar("R")

_setting_threads = threading.Lock()


def run_ahead(items: Iterable[T], work: Callable[[T], R], count: int, device: torch.device) -> Generator[R]:
    """``work`` of each item, in order, up to ``count`` of them done before they are asked for.

    The thread ends with the iterator. Its operations use one core, so that the training step keeps the others.

    Args:
        items: Read in the caller's thread, ``count`` ahead.
        work: Called in the background thread; its work on ``device`` runs beside the caller's.
        count: At least 1.
        device: Where the tensors in items and results (nested tuples and lists) are.
    """
    stream, owner = SideStream(device) if device.type in WITH_STREAMS else None, os.getpid()
    ahead: deque[Callable[[], R]] = deque()
    threads: list[int] = []
    pool = ThreadPoolExecutor(1, THREAD_NAME, initializer=_begin, initargs=(threads,))
    try:
        for item in items:
            if stream is None:
                ahead.append(pool.submit(work, item).result)
            else:
                ahead.append(stream.submit(pool, work, item))
            if len(ahead) > count:
                yield ahead.popleft()()
                _refuse_fork(owner)
        while ahead:
            yield ahead.popleft()()
            _refuse_fork(owner)
    finally:
        if os.getpid() == owner:
            pool.shutdown(wait=True, cancel_futures=True)
            _wait_until_gone(threads)


def _begin(threads: list[int]) -> None:
    threads.append(threading.get_native_id())
    use_one_core()


def _wait_until_gone(threads: list[int]) -> None:
    """Wait until threads have left the process: on Linux that is a little after Python has joined them.

    Until then they may hold a lock of a library (MKL frees their buffers), and a worker process that is forked in that
    moment would wait for it for ever.
    """
    for thread in threads:
        task, latest = Path(f"/proc/self/task/{thread}"), time.monotonic() + MAX_WAIT
        while task.exists() and time.monotonic() < latest:
            time.sleep(1e-4)


def _refuse_fork(owner: int) -> None:
    """Raise ``RuntimeError`` in a forked child: the thread that decodes is the parent's."""
    if os.getpid() != owner:
        raise RuntimeError(
            f"this iterator decodes in a thread of process {owner}, and a forked process has no copy of it: "
            "start a new pass here, iter(loader), or use prefetch=0"
        )


class SideStream:
    """An accelerator's stream beside the caller's: work launched on it does not wait for the training step's end.

    Args:
        device: The accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._streams = device, torch.get_device_module(device)
        self.stream = self._streams.Stream(device=device)

    def submit(self, pool: ThreadPoolExecutor, work: Callable[[T], R], item: T) -> Callable[[], R]:
        """Start ``work`` in ``pool`` on this stream, after the caller's work so far.

        Returns:
            A function that gives the result to the stream that is current where it is called.
        """
        ready = self._callers_stream().record_event()

        def beside() -> tuple[R, Any]:
            with self._streams.stream(self.stream):
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
        current: torch.Stream = self._streams.current_stream(self.device)
        return current

    def _ours(self, tree: Any) -> list[Tensor]:
        """The tensors on this device."""
        if isinstance(tree, tuple | list):
            return [tensor for part in tree for tensor in self._ours(part)]
        return [tree] if isinstance(tree, Tensor) and tree.device == self.device else []


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, this thread's work on an accelerator runs beside other threads'; on a CPU that needs nothing."""
    if device.type not in WITH_STREAMS:
        return nullcontext()
    streams = torch.get_device_module(device)  # torch.Stream is no context in torch 2.6
    own: AbstractContextManager[Any] = streams.stream(streams.Stream(device=device))
    return own


def use_one_core() -> None:
    """Let torch's operations use one core in this thread, which has to be new, and in no other.

    ``torch.set_num_threads`` also sets what threads started later begin with, so another thread sets that back.
    """
    with _setting_threads:
        inherited = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(inherited,), name=THREAD_NAME)
        back.start()
        back.join()
        _wait_until_gone([back.native_id or 0])


def has_free_core() -> bool:
    """Whether this process may use more cores than torch's operations do."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() < usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
