"""One weight per solve, for modules under `torch.nn.utils.parametrizations`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward
from torch.nn.utils import parametrize

from .pure import every_module

_KEY = "implicit.parametrized"
_lock = threading.Lock()
_holder: tuple[object, int] | None = None
"""A mark of the turn, which PyTorch hands on to the threads that run a backward pass, and the thread that took it."""
_forget = getattr(torch._C, "_remove_obj_from_tls", lambda key: torch._C._stash_obj_in_tls(key, None))  # from 2.10 on
WAIT = 1.0
"""Seconds after which a thread that waits for its turn looks whether the one that has it waits in turn."""


@contextmanager
def turn() -> Iterator[None]:
    """A turn of this thread, within which modules that others may share hold something else than usual.

    On a GPU a backward pass runs in a thread of the device. One that belongs to this turn is within it. One that does
    not may meet a turn whose own backward pass waits for that same thread: then it goes first, apart from what is
    cached in that turn.
    """
    global _holder
    if _holder is not None and _mark() is _holder[0]:
        yield
        return
    while not _lock.acquire(timeout=WAIT):
        if _of_a_device() and _in_backward(_holder):
            kept, parametrize._cache = parametrize._cache, {}
            try:
                yield
            finally:
                parametrize._cache = kept
            return
    mark = object()
    _holder = mark, threading.get_ident()
    torch._C._stash_obj_in_tls(_KEY, mark)
    try:
        yield
    finally:
        _holder = None
        _forget(_KEY)
        _lock.release()


def _mark() -> object:
    """That of the turn to which this thread belongs, if any."""
    return torch._C._get_obj_in_tls(_KEY) if torch._C._is_key_in_tls(_KEY) else None


def _of_a_device() -> bool:
    """Whether PyTorch made this thread, to run backward passes."""
    return isinstance(threading.current_thread(), threading._DummyThread)


def _in_backward(holder: tuple[object, int] | None) -> bool:
    """Whether the thread that has the turn waits for the end of a backward pass."""
    frame = None if holder is None else sys._current_frames().get(holder[1])
    while frame is not None:
        if frame.f_code is _engine_run_backward.__code__:
            return True
        frame = frame.f_back
    return False


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
