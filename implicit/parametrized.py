"""One weight per solve, for modules under `torch.nn.utils.parametrizations`."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward
from torch.nn.utils import parametrize

from solvers.caller import level_of_caller

from .parametrized_classes import separate
from .pure import every_module

Weights = dict[tuple[int, str], Any]
"""PyTorch's cache of computed tensors."""
_KEY = "implicit.parametrized"
_forget = getattr(torch._C, "_remove_obj_from_tls", lambda key: torch._C._stash_obj_in_tls(key, None))  # from 2.10 on
_lock = threading.RLock()  # entered by itself: an interrupt within a Condition's own entry would leave it locked
_changed = threading.Condition(_lock)
_current: _Turn | None = None
WAIT = 1.0
"""Seconds after which a thread that waits for its turn looks whether the one that has it waits in turn."""
LONG = 30.0
"""Seconds after which it says so."""


class _Entry:
    """A block within a turn. It is over when nobody holds this any more, even if an interrupt kept it from ending."""


class _Turn:
    """The blocks of one thread, and of those that run its backward passes, to which PyTorch hands this on."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.entries: WeakSet[_Entry] = WeakSet()


@contextmanager
def turn() -> Iterator[None]:
    """A turn of this thread, within which modules that others may share hold something else than usual."""
    entry, joined = _Entry(), False
    try:
        joined = _joins(entry)
        with _own_cache() if joined else nullcontext():
            yield
    finally:
        _leave(entry, joined)


def _joins(entry: _Entry) -> bool:
    """Enter, once there is no turn of another thread, or its turn, if that waits for this thread: then True.

    On a GPU a backward pass runs in a thread of the device. One of another turn may meet a turn whose own backward pass
    waits for that same thread.
    """
    global _current
    mine = torch._C._get_obj_in_tls(_KEY) if torch._C._is_key_in_tls(_KEY) else None
    joins, told, began = False, False, time.monotonic()
    with _lock:
        while _current is not None and _current.entries and _current is not mine and not joins:
            if not _changed.wait(WAIT):
                joins = _is_of_a_device() and _is_in_backward(_current)
                if not told and time.monotonic() > began + LONG:
                    told = True
                    _tell(_current)
        now = _current = _current if _current is not None and _current.entries else _Turn()
        if now is not mine:
            torch._C._stash_obj_in_tls(_KEY, now)
        now.entries.add(entry)
    return joins


def _leave(entry: _Entry, joined: bool) -> None:
    global _current
    with _lock:
        if _current is None or entry not in _current.entries:
            return
        _current.entries.discard(entry)
        is_over = not _current.entries
        if (is_over or joined) and torch._C._is_key_in_tls(_KEY):
            _forget(_KEY)
        if is_over:
            _current = None
            _changed.notify_all()


def _reset() -> None:
    """In a process that was forked within a turn of a thread that it does not have."""
    global _lock, _changed, _current
    _lock = threading.RLock()
    _changed = threading.Condition(_lock)
    if _current is not None and _current.thread != threading.get_ident():
        _current, parametrize._cache, parametrize._cache_enabled = None, {}, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


def _tell(turn: _Turn) -> None:
    name = next((thread.name for thread in threading.enumerate() if thread.ident == turn.thread), "another thread")
    warnings.warn(
        f"this thread ({threading.current_thread().name}) has waited {LONG:.0f} s for its turn in a module with "
        f"parametrized weights, which {name} has. If that waits for this one, as a cell that starts threads does, both "
        "wait for ever: let the cell call its parts one after the other, or remove their parametrizations",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


@contextmanager
def _own_cache() -> Iterator[None]:
    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept if parametrize._cache_enabled else {}


def _is_of_a_device() -> bool:
    """Whether PyTorch made this thread, to run backward passes."""
    return isinstance(threading.current_thread(), threading._DummyThread)


def _is_in_backward(turn: _Turn) -> bool:
    """Whether the thread that has the turn waits for the end of a backward pass."""
    frame = sys._current_frames().get(turn.thread)
    while frame is not None:
        if frame.f_code is _engine_run_backward.__code__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def one_weight(f: Callable[..., Any], weights: Weights | None = None) -> Iterator[Weights]:
    """Within the block, the parametrized tensors of a module are computed once, tracked, and reused.

    Spectral normalisation would otherwise change its buffers at every access in training mode. The tensors are computed
    on entry, so a solve that turns gradients off later does not fill PyTorch's cache with untracked ones. All threads
    share that cache, so blocks of different threads take turns. Functions and other modules are left alone, but other
    parametrized tensors that are read within the block are reused, too, as within PyTorch's `parametrize.cached`: train
    no other module there.

        with one_weight(f) as weights:
            value = f(x)
        with one_weight(f, weights):  # later, and they are the same

    Args:
        f: the module.
        weights: those of an earlier block, in place of new ones.
    """
    parts = every_module(f) if isinstance(f, nn.Module) else []
    parametrized = [part for part in parts if "parametrizations" in part._modules and parametrize.is_parametrized(part)]
    if not parametrized:
        yield {}
        return
    with turn(), parametrize.cached():
        if weights is None:
            separate(parametrized)
            for part in parametrized:
                for name in part.parametrizations:  # type: ignore[union-attr]
                    getattr(part, name)
            yield dict(parametrize._cache)
            return
        outer = {key: parametrize._cache[key] for key in weights.keys() & parametrize._cache.keys()}
        parametrize._cache.update(weights)
        try:
            yield weights
        finally:
            for key in weights:
                parametrize._cache.pop(key, None)
            parametrize._cache.update(outer)
