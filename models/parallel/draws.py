"""The generators that modules may draw random numbers from."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from implicit.pure import PLAIN

from .holders import is_of_pytorch
from .own_state import writes

_NONE = PLAIN | {dict, OrderedDict, set, list, tuple, Tensor}
"""Classes of most attributes, none of which is a generator."""


class Source(NamedTuple):
    """A generator."""

    get: Callable[[], Any]
    """Its state."""
    set: Callable[[Any], object]

    @classmethod
    def of(cls, value: Any) -> Source | None:
        """That of an object, if it is a generator."""
        if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            return cls(value.getstate, value.setstate)
        if isinstance(value, torch.Generator):
            return cls(value.get_state, value.set_state)
        if isinstance(value, np.random.RandomState):
            return cls(lambda: value.get_state(legacy=False), value.set_state)
        if isinstance(value, np.random.Generator):
            return cls(lambda: value.bit_generator.state, lambda state: setattr(value.bit_generator, "state", state))
        return None


def sources(modules: Iterable[nn.Module]) -> list[Source]:
    """Those of Python and NumPy that everyone shares, and those that modules keep or their `forward` names.

    Args:
        modules: may draw from these, unless they are layers of PyTorch's or compiled by TorchScript; in evaluation
            mode, those that did not do so last time are taken at their word.
    """
    modules = [
        module
        for module in modules
        if (module.training or writes(module) is not False)
        and not (is_of_pytorch(module) or isinstance(module, ScriptModule))
    ]
    if not modules:
        return []
    if "torch._dynamo" in sys.modules:  # which cannot follow generators, and is slow to load
        made: list[Source] = torch.compiler.disable(_sources)(modules)
        return made
    return _sources(modules)


def _sources(modules: list[nn.Module]) -> list[Source]:
    found: dict[int, Source] = {}
    for value in _reached(modules):
        if type(value) not in _NONE and id(value) not in found and (source := Source.of(value)):
            found[id(value)] = source
    return [
        Source(random.getstate, random.setstate),
        Source(lambda: np.random.get_state(legacy=False), np.random.set_state),
        *found.values(),
    ]


def _reached(modules: list[nn.Module]) -> Iterator[Any]:
    for module in modules:
        for value in vars(module).values():
            yield value
            if isinstance(value, (list, tuple)):
                yield from value
            elif isinstance(value, dict):
                yield from value.values()
    for kind in set(map(type, modules)):
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
                yield getattr(value, "__self__", None)


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
