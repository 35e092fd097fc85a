"""What modules keep may be nested: tensors within tuples, containers and objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor

from implicit.functorch import innermost
from implicit.pure import PLAIN

from .places import Fields, is_a, is_place, place_of


def tensors_within(value: tuple[Any, ...]) -> Iterator[Tensor]:
    """Those in a tuple, and in tuples in it."""
    for each in value:
        if is_a(each, Tensor):
            yield each
        elif is_a(each, tuple):
            yield from tensors_within(each)


def replaced(value: Any, new: Callable[[Tensor], Tensor], memo: dict[int, tuple[Any, Any]], filled: bool) -> Any:
    """The value with new tensors in it; tuples are made anew, as far as their parts are new.

    Args:
        value: what a module keeps.
        new: makes the tensors.
        memo: values and what is in their places, by id, so that what was one object stays one.
        filled: whether containers and objects within are filled, too.
    """
    if id(value) in memo:
        return memo[id(value)][1]
    if is_a(value, Tensor):
        found = new(value)
    elif is_a(value, tuple):
        found = _rebuilt(value, [replaced(each, new, memo, filled) for each in value])
    else:
        found = value
    memo[id(value)] = value, found
    if filled and not is_a(value, (Tensor, tuple)):
        for key, each in _held(value):
            if (other := replaced(each, new, memo, filled)) is not each:
                _place(value)[key] = other
    return found


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """A tuple with other parts, itself if they are the same, and of its class, whatever that takes to make one."""
    if all(part is each for part, each in zip(parts, value, strict=True)):
        return value
    kind = type(value)
    try:
        found = tuple.__new__(kind, parts)
    except TypeError:  # of those that PyTorch's functions return
        return kind(parts)
    if hasattr(value, "__dict__"):
        vars(found).update(vars(value))
    return found


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
    elif is_a(value, tuple):
        for each in value:
            yield from _tensors(each, seen)
    elif id(value) not in seen:
        seen.add(id(value))
        for _, each in _held(value):
            yield from _tensors(each, seen)


def _held(value: Any) -> list[tuple[Any, Any]]:
    """What can be replaced in it, by name or place."""
    place = _place(value)
    return list(place.items() if isinstance(place, (dict, Fields)) else enumerate(place))


def _place(value: Any) -> Any:
    if is_a(value, (dict, list, deque)):
        return value
    return () if is_a(value, set) or not is_place(value) else place_of(value)
