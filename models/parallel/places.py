"""Where objects keep what can be replaced: in a `__dict__`, in slots, or as a container does."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, deque, set}


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, of what the value is itself: a proxy would answer for another object, or raise."""
    return issubclass(type(value), kind)


def is_place(value: Any) -> bool:
    """Whether it holds what may be changed."""
    kind = type(value)
    return kind in _CONTAINERS or kind is SimpleNamespace or is_dataclass(kind) or issubclass(kind, (tuple, nn.Module))


class Fields(MutableMapping[str, Any]):
    """The attributes of an object that keeps some of them, those of these names, in no `__dict__`."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        self._owner, self._names = owner, list(names)
        # a dataclass may be frozen
        self._set = setattr if isinstance(owner, torch.jit.ScriptModule) else object.__setattr__
        self._more = {} if isinstance(owner, torch.jit.ScriptModule) else getattr(owner, "__dict__", {})

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._set(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._names if hasattr(self._owner, name))
        yield from self._more

    def __len__(self) -> int:
        return sum(1 for _ in self)


def place_of(value: Any) -> Any:
    """Where a module, a dataclass or a container keeps what can be replaced."""
    if type(value) in _CONTAINERS:
        return value
    if is_a(value, torch.jit.ScriptModule):  # it hides everything else
        return Fields(value, (name for name, _ in value.named_buffers(recurse=False)))
    slots = [] if is_a(value, nn.Module) else list(_slots(type(value)))
    return Fields(value, slots) if slots else vars(value)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name
