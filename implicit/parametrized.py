"""One weight per solve, for modules under `torch.nn.utils.parametrizations`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .pure import every_module

_lock = threading.RLock()
WAIT = 1.0
"""Seconds that a backward pass waits: on a GPU it runs in another thread, for which the one with the turn may wait."""


@contextmanager
def turn() -> Iterator[None]:
    """A turn of this thread, within which modules that others may share hold something else than usual."""
    held = _lock.acquire(timeout=-1 if torch._C._current_graph_task_id() == -1 else WAIT)
    try:
        yield
    finally:
        if held:
            _lock.release()


@contextmanager
def one_weight(f: Callable[..., Any]) -> Iterator[None]:
    """Within the block, the parametrized tensors of a module are computed once, tracked, and reused.

    Spectral normalisation would otherwise change its buffers at every access in training mode. The tensors are computed
    on entry, so a solve that turns gradients off later does not fill PyTorch's cache with untracked ones. All threads
    share that cache, so blocks of different threads take turns. Functions and other modules are left alone.
    """
    parts = every_module(f) if isinstance(f, nn.Module) else []
    parametrized = [part for part in parts if "parametrizations" in part._modules and parametrize.is_parametrized(part)]
    if not parametrized:
        yield
        return
    with turn(), parametrize.cached():
        for part in parametrized:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield
