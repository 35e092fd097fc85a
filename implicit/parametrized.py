"""One weight a solve, for modules under `torch.nn.utils.parametrizations`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

_lock = threading.RLock()


@contextmanager
def one_weight(f: Callable[..., Any]) -> Iterator[None]:
    """Within the block parametrized tensors of a module are computed once, tracked, and reused; a function has none.

    Spectral normalisation would otherwise move its buffers at every access in training mode. They are computed on
    entry, so that a solve that turns gradients off later does not fill PyTorch's cache with untracked ones. That cache
    is one for all threads: blocks of different threads take turns.
    """
    parts = f.modules() if isinstance(f, nn.Module) else ()
    parametrized = [part for part in parts if parametrize.is_parametrized(part)]
    if not parametrized:
        yield
        return
    with _lock, parametrize.cached():
        for part in parametrized:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield
