"""A stretch that can be run again: as a CUDA graph or, on a CPU, as a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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


def _after_failure(stream: torch.cuda.Stream, pool: Any) -> None:
    """Return PyTorch to normal after a capture that CUDA has refused.

    Its end fails as well, which in some versions leaves the allocator and the generator of random numbers as they were
    within: from then on, `torch.randn` and dropout would raise. The end of any other capture mends the generator.
    """
    with suppress(RuntimeError):  # where the allocator has left it
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        torch.zeros(1, device=stream.device)


class Graph(Recording):
    """A recording as a CUDA graph, captured on a stream whose device need not be the current one."""

    def __init__(self, function: Callable[[], Stretch], pool: Any, stream: torch.cuda.Stream) -> None:
        torch.clear_autocast_cache()  # casts made outside must not be read inside, nor the reverse
        self._graph = torch.cuda.CUDAGraph()
        inference, graded = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        cause: Exception | None = None
        with (
            torch.inference_mode(False),  # what PyTorch makes for random numbers must serve in any mode
            torch.cuda.stream(stream),  # and its device; left after a failure, too
        ):
            try:
                with (
                    _own_workspaces(),
                    torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"),
                    torch.inference_mode(inference),
                    torch.set_grad_enabled(graded),
                ):
                    try:
                        self._result = function()
                    except Exception as error:
                        cause = error
                        raise
            except Exception as error:  # raised at the end of a capture that had already failed
                _after_failure(stream, pool)
                raise cause or error from None
            finally:
                cause = None  # it references this frame, and everything created in it
                torch.clear_autocast_cache()

    def replay(self) -> Stretch:
        self._graph.replay()
        return self._result


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
