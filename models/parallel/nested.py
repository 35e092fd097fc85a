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


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, of what the value is itself: a proxy would answer for another object, or raise."""
    return issubclass(type(value), kind)


def mapped(value: Any, new: Callable[[Any], Any]) -> Any:
    """A tuple with other things in the places of what it and tuples in it hold, itself if these are the same."""
    if not is_a(value, tuple):
        return new(value)
    parts = [mapped(each, new) for each in value]
    same = all(part is each for part, each in zip(parts, value, strict=True))
    return value if same else type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def tensors_within(value: tuple[Any, ...]) -> Iterator[Tensor]:
    """Those in a tuple, and in tuples in it."""
    for each in value:
        if is_a(each, Tensor):
            yield each
        elif is_a(each, tuple):
            yield from tensors_within(each)


def replaced(value: Any, new: Callable[[Tensor], Tensor], seen: set[int] | None = None) -> Any:
    """The value with new tensors: tuples are made anew, containers and objects are filled."""
    seen = set() if seen is None else seen

    def one(value: Any) -> Any:
        if is_a(value, Tensor):
            return new(value)
        held = _held(value)
        if held is not None and id(value) not in seen:
            seen.add(id(value))
            for key, each in list(held.items() if isinstance(held, dict) else enumerate(held)):
                if (other := replaced(each, new, seen)) is not each:
                    held[key] = other
        return value

    return mapped(value, one)


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
    if is_a(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) in PLAIN and bool(one == other)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if is_a(value, Tensor):
        yield value
        return
    held = value if is_a(value, tuple) else _held(value)
    if held is not None and id(value) not in seen:
        seen.add(id(value))
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors(each, seen)


def _held(value: Any) -> Any:
    """What can be replaced in it."""
    if is_a(value, (dict, list, deque)):
        return value
    if is_a(value, (SimpleNamespace, nn.Module)) or is_dataclass(type(value)):
        return getattr(value, "__dict__", None)
    return None
