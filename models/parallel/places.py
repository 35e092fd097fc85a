"""Where objects keep what can be replaced: in a `__dict__`, in slots, or as a container does."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, MutableMapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import MemberDescriptorType, SimpleNamespace
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
    """The attributes of an object that keeps some of them in no `__dict__`.

    Args:
        owner: the object.
        members: descriptors of those, by name.
        others: its `__dict__`, if it has one.
    """

    def __init__(self, owner: Any, members: dict[str, Any], others: dict[str, Any]) -> None:
        self._owner, self._members, self._others = owner, members, others

    def __getitem__(self, name: str) -> Any:
        return self._members[name].__get__(self._owner) if name in self._members else self._others[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._members:
            self._members[name].__set__(self._owner, value)
        else:
            self._others[name] = value

    def __delitem__(self, name: str) -> None:
        if name in self._members:
            self._members[name].__delete__(self._owner)
        else:
            del self._others[name]

    def __iter__(self) -> Iterator[str]:
        for name, member in self._members.items():
            try:
                member.__get__(self._owner)
            except AttributeError:  # it was not set yet
                continue
            yield name
        yield from self._others

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Buffer:
    """A buffer of a TorchScript module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return getattr(owner, self._name)

    def __set__(self, owner: Any, value: Any) -> None:
        setattr(owner, self._name, value)


def place_of(value: Any) -> Any:
    """Where a module, a container or any other object keeps what can be replaced."""
    if type(value) in _CONTAINERS:
        return value
    if is_a(value, torch.jit.ScriptModule):  # it hides everything else
        return Fields(value, {name: _Buffer(name) for name, _ in value.named_buffers(recurse=False)}, {})
    members = {} if is_a(value, nn.Module) else _slots(type(value))  # type: ignore[arg-type]
    others = getattr(value, "__dict__", {})
    return Fields(value, members, others) if members else others


@lru_cache(256)
def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    return {
        name: member
        for base in reversed(kind.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType) and name != "__dict__"
    }
