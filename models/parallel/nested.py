"""What modules keep may be nested: tensors within tuples, containers and objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from implicit.functorch import innermost
from implicit.pure import PLAIN


def replaced(value: Any, new: Callable[[Tensor], Tensor], seen: set[int] | None = None) -> Any:
    """The value with new tensors: tuples are made anew, containers and objects are filled."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return new(value)
    if isinstance(value, tuple):
        parts = [replaced(each, new, seen) for each in value]
        same = all(part is each for part, each in zip(parts, value, strict=True))
        return value if same else type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    held = _held(value)
    if held is not None and id(value) not in seen:
        seen.add(id(value))
        for key, each in list(held.items() if isinstance(held, dict) else enumerate(held)):
            if (other := replaced(each, new, seen)) is not each:
                held[key] = other
    return value


def leads_elsewhere(value: Any, own: Collection[int]) -> bool:
    """Whether a tensor in it has a graph that leads to others than these, given by id."""
    for tensor in _tensors(value, set()):
        nodes = [innermost(tensor).grad_fn]
        seen = set(nodes)
        for node in nodes:
            if node is None:
                continue
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in own:
                return True
            following = [each for each, _ in node.next_functions if each is not None and each not in seen]
            seen.update(following)
            nodes += following
    return False


def alike(one: Any, other: Any) -> bool:
    """Whether they are the same objects, or tuples of such, or equal plain values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) in PLAIN and bool(one == other)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    held = value if isinstance(value, tuple) else _held(value)
    if held is not None and id(value) not in seen:
        seen.add(id(value))
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors(each, seen)


def _held(value: Any) -> dict[Any, Any] | list[Any] | deque[Any] | None:
    """What can be replaced in it."""
    if isinstance(value, (dict, list, deque)):
        return value
    if isinstance(value, (SimpleNamespace, nn.Module)) or is_dataclass(value):
        return getattr(value, "__dict__", None)
    return None
