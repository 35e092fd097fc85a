"""What a module reads: a recording is right for other tensors only if it reads nothing else than is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from solvers.loops.eager import recording
from solvers.loops.recording import RecordingError
from solvers.state import tree_leaves

from .keys import attributes
from .pure import own_modules
from .references import remedy

_DEEP = 4
"""Largest number of containers and objects around a tensor that counts as an attribute."""
_CONTAINERS = tuple, list, deque, set, frozenset
_NEW = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}
"""Operations on what `torch.tensor` has just made."""


class Watched:
    """A module that raises RecordingError where it reads a tensor that is neither an input nor an attribute of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        parts = own_modules(self.module)
        known = [*_tensors(inputs), *(tensor for part in parts for tensor in _tensors(vars(part)))]
        with recording(), _Reading(known, remedy(parts)):  # a solve within it is refused as in the recording itself
            return self.module(*inputs)


class _Reading(TorchDispatchMode):
    """Raises RecordingError where an operation reads a tensor that is neither known nor computed here."""

    def __init__(self, known: Iterable[Tensor], remedy: str | None) -> None:
        super().__init__()
        self._known, self._remedy = set(map(_memory, known)), remedy

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in _NEW:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and _memory(tensor) not in self._known:
                    shape = "×".join(map(str, tensor.shape)) or "one number"
                    raise RecordingError(
                        f"it reads a tensor ({shape}) that is neither an input nor an attribute of its modules"
                        + (f": {self._remedy}" if self._remedy else ". Make it an input or a buffer")
                    )
        result = function(*args, **kwargs)
        self._known.update(_memory(tensor) for tensor in tree_leaves(result) if isinstance(tensor, Tensor))
        return result


def _tensors(value: Any, deep: int = _DEEP) -> Iterator[Tensor]:
    """The tensors in containers and attributes of objects, but not those of modules."""
    if isinstance(value, Tensor):
        yield value
    elif deep and not isinstance(value, nn.Module):
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, _CONTAINERS) else ()
        for each in (*items, *attributes(value).values()):
            yield from _tensors(each, deep - 1)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse, or a wrapper
        return id(tensor)
