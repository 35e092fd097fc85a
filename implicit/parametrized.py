"""One weight a solve, for modules under `torch.nn.utils.parametrizations`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize

_lock = threading.RLock()


@contextmanager
def one_weight(module: nn.Module) -> Iterator[None]:
    """Within the block parametrized tensors of the module are computed once, tracked, and reused.

    Spectral normalisation would otherwise move its buffers at every access in training mode. They are computed on
    entry, so that a solve that turns gradients off later does not fill PyTorch's cache with untracked ones. That cache
    is one for all threads: blocks of different threads take turns.
    """
    parametrized = [part for part in module.modules() if parametrize.is_parametrized(part)]
    if not parametrized:
        yield
        return
    with _lock, parametrize.cached():
        for part in parametrized:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield
