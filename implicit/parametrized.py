"""One weight per solve, for modules under `torch.nn.utils.parametrizations`."""

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
    """Within the block, the parametrized tensors of a module are computed once, tracked, and reused.

    Spectral normalisation would otherwise change its buffers at every access in training mode. The tensors are computed
    on entry, so a solve that turns gradients off later does not fill PyTorch's cache with untracked ones. All threads
    share that cache, so blocks of different threads take turns. Functions and other modules are left alone.
    """
    parametrized = (
        [part for part in _modules(f) if parametrize.is_parametrized(part)] if isinstance(f, nn.Module) else []
    )
    if not parametrized:
        yield
        return
    with _lock, parametrize.cached():
        for part in parametrized:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield


def _modules(f: nn.Module) -> Iterator[nn.Module]:
    """The module and its submodules that may be parametrized: `f.modules()` takes as long as a small cell does."""
    queue, found = [f], {id(f)}
    for module in queue:
        children = module._modules
        if "parametrizations" in children:
            yield module
        for child in children.values():
            if child is not None and id(child) not in found:
                found.add(id(child))
                queue.append(child)
