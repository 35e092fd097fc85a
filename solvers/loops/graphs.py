"""A stretch that can be run again: as a CUDA graph or, on a CPU, as a call."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from ..state import tree_leaves
from .eager import Stretch


class Recording(ABC):
    """A function without arguments whose result is in the same memory each time."""

    turn = False
    """Alternates: of two recordings that follow each other, one has True."""

    @abstractmethod
    def replay(self) -> Stretch:
        """Run it again."""


one_at_a_time = threading.Lock()
"""Held while a graph is captured or launched: PyTorch captures one in a process, and up to 2.12 launches none
meanwhile."""
WAIT = 1.0
"""Seconds for which a launch waits for a capture, which in turn may wait for the thread that launches."""
STREAMS = 32
"""Streams of a device that PyTorch hands out in turn."""
_idle: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
_drawn: set[tuple[torch.device, int]] = set()


def own_stream(owner: object, device: torch.device) -> torch.cuda.Stream:
    """A stream for captures that no other living owner has, as long as PyTorch has one."""
    try:
        stream = _idle[device].pop()
    except IndexError:
        for _ in range(STREAMS):
            stream = torch.cuda.Stream(device)
            if (device, stream.cuda_stream) not in _drawn:
                break
        _drawn.add((device, stream.cuda_stream))
    weakref.finalize(owner, _idle[device].append, stream)
    return stream


def hand_over(tensors: Iterable[Tensor], last: torch.cuda.Stream, following: torch.cuda.Stream) -> None:
    """Let a stream use the tensors of a GPU, after the last one that did."""
    following.wait_stream(last)  # which may still work in them
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(following)  # none is free before both streams have passed it


class Graph(Recording):
    """A recording as a CUDA graph.

    Args:
        function: what to record.
        pool: of memory for its tensors.
        stream: to capture on; its device need not be the current one.
    """

    def __init__(self, function: Callable[[], Any], pool: Any, stream: torch.cuda.Stream) -> None:
        torch.clear_autocast_cache()  # casts made outside must not be read inside, nor the reverse
        self._graph = torch.cuda.CUDAGraph()
        inference, graded = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        began, cause = False, None
        with (
            torch.inference_mode(False),  # what PyTorch makes for random numbers must serve in any mode
            torch.cuda.stream(stream),  # and its device; left after a failure, too
        ):
            try:
                with _own_workspaces(), torch.cuda.graph(self._graph, pool, stream, "thread_local"):
                    began = True
                    try:
                        with torch.inference_mode(inference), torch.set_grad_enabled(graded):
                            self._result = function()
                    except BaseException as error:
                        cause = error
                        raise
            except BaseException as error:  # raised at the end of a capture that had already failed
                if began:
                    _clear_away(self._graph, pool, stream)
                raise cause or error from None
            finally:
                cause = None  # it references this frame, and everything created in it
                torch.clear_autocast_cache()

    def replay(self) -> Stretch:
        held = one_at_a_time.acquire(timeout=WAIT)
        try:
            self._graph.replay()
        finally:
            if held:
                one_at_a_time.release()
        return self._result


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let the graph captured in the block allocate workspaces of cuBLAS in its own pool.

    PyTorch keeps one for each stream, and frees it as soon as any graph captured on that stream is freed.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _clear_away(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> None:
    """Return PyTorch to normal after a capture that CUDA has refused.

    Its end fails as well, which in some versions leaves the allocator and the generator of random numbers as they were
    within, with the pool in use for ever: from then on, `torch.randn` and dropout would raise. The end of any other
    capture mends the generator.
    """
    with suppress(RuntimeError):
        graph.pool()
        return  # it has ended as any other
    version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    with suppress(RuntimeError):  # where the allocator has left it
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
    if version < (2, 13) and torch.version.hip is None:  # others release it with the graph
        with suppress(RuntimeError):
            torch._C._cuda_releasePool(stream.device.index, pool)
    for _ in range(2):  # another thread may disturb the first
        with suppress(RuntimeError):
            with torch.cuda.graph(torch.cuda.CUDAGraph(), None, stream, "thread_local"):
                torch.zeros(1, device=stream.device)
            return


class Called(Recording):
    """A recording that calls the function and copies its result over the first one, so that stale reads show."""

    def __init__(self, function: Callable[[], Stretch]) -> None:
        self._function = function
        self._result = function()
        self._fresh = True

    def replay(self) -> Stretch:
        if self._fresh:
            self._fresh = False
            return self._result
        found = self._function()
        for old, new in zip(tree_leaves(self._result), tree_leaves(found), strict=True):
            if isinstance(old, Tensor) and old is not new:
                old.copy_(new)
        return self._result
