"""The generators that modules may draw random numbers from."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import BuiltinMethodType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from implicit.pure import PLAIN

from .holders import Holder
from .places import is_a
from .writes import writes

_NONE = PLAIN | {dict, OrderedDict, set, list, Tensor, nn.Parameter}
"""Classes of most attributes, none of which is a generator."""


class Source(NamedTuple):
    """A generator."""

    get: Callable[[], Any]
    """Its state."""
    set: Callable[[Any], object]

    @classmethod
    def of(cls, value: Any) -> Source | None:
        """That of an object, if it is a generator."""
        if is_a(value, random.Random) and not is_a(value, random.SystemRandom):
            return cls(value.getstate, value.setstate)
        if is_a(value, torch.Generator):
            return cls(value.get_state, value.set_state)
        if is_a(value, np.random.RandomState):
            return cls(lambda: value.get_state(legacy=False), value.set_state)
        if is_a(value, np.random.Generator):
            return cls(lambda: value.bit_generator.state, lambda state: setattr(value.bit_generator, "state", state))
        return None


def sources(modules: Sequence[nn.Module], held: Iterable[Holder], for_weight: bool = False) -> list[Source]:
    """Those of Python and NumPy that everyone shares, and those that modules keep or their `forward` names.

    Args:
        modules: may draw from these; in evaluation mode, those that did not do so last time are taken at their word.
        held: what they keep.
        for_weight: as in `writes`.
    """
    drawing = {id(module): module for module in modules if module.training or writes(module, for_weight) is not False}
    if not drawing:
        return []
    values = [value for each in held if id(each.module) in drawing for value in each.contents.values()]
    if "torch._dynamo" in sys.modules:  # which cannot follow generators, and is slow to load
        made: list[Source] = torch.compiler.disable(_sources)(drawing.values(), values)
        return made
    return _sources(drawing.values(), values)


def _sources(modules: Iterable[nn.Module], values: list[Any]) -> list[Source]:
    found: dict[int, Source] = {}
    queue = [*values, *_named(set(map(type, modules)))]
    for value in queue:
        if type(value) not in _NONE and id(value) not in found and (source := Source.of(value)):
            found[id(value)] = source
        elif is_a(value, tuple):
            queue.extend(value)
        elif is_a(value, partial):
            queue.extend((value.func, *value.args, *value.keywords.values()))
        elif is_a(value, staticmethod):
            queue.append(value.__func__)
        elif is_a(value, (MethodType, BuiltinMethodType)):
            queue.append(value.__self__)
    return [
        Source(random.getstate, random.setstate),
        Source(lambda: np.random.get_state(legacy=False), np.random.set_state),
        *found.values(),
    ]


def _named(kinds: Iterable[type]) -> Iterator[Any]:
    """What classes hold, and their `forward` names."""
    for kind in kinds:
        if kind.__module__.startswith(("torch.nn.", "torch.jit.")):
            continue
        for base in kind.__mro__:
            if not base.__module__.startswith(("torch.", "builtins")):
                yield from vars(base).values()
        forward: Any = kind.forward  # type: ignore[attr-defined]
        if hasattr(forward, "__code__"):
            yield from map(forward.__globals__.get, forward.__code__.co_names)
            for cell in forward.__closure__ or ():
                try:
                    value = cell.cell_contents
                except ValueError:  # the variable has not been assigned yet
                    continue
                yield value


def same(one: Any, other: Any) -> bool:
    """Whether two states of a generator are equal."""
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def default(like: Tensor) -> Source:
    """PyTorch's own, on the device of a tensor."""
    if not like.is_cuda:
        return Source(torch.get_rng_state, torch.set_rng_state)
    return Source(
        lambda: torch.cuda.get_rng_state(like.device), lambda state: torch.cuda.set_rng_state(state, like.device)
    )
