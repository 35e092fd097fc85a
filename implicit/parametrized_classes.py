"""Classes of modules with parametrized tensors: PyTorch gives each module one of its own, with a property for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


def class_before_parametrizations(module: nn.Module) -> type:
    """The module's class, without the properties of its parametrized tensors."""
    kind, names = type(module), tuple(parametrized_names(module))
    if not names:
        return kind
    if vars(kind).keys() >= set(names):
        kind = parametrize.type_before_parametrizations(module)
    if not any(isinstance(getattr(kind, name, None), property) for name in names):
        return kind
    return _without(kind, names)  # type: ignore[arg-type]


@lru_cache
def _without(kind: type, names: tuple[str, ...]) -> type:
    """A class that was extended after it had been given the properties, without these."""
    return type(kind.__name__, (kind,), dict.fromkeys(names))


def separate(parts: Sequence[nn.Module]) -> None:
    """Give deep copies of one module classes of their own.

    With the class they share properties, whose place in PyTorch's cache is that of the module which they are copies of:
    all of them would get the tensor of the first one that is read.
    """
    kinds = Counter(map(type, parts))
    for part in parts:
        kind = type(part)
        if kinds[kind] == 1:
            continue
        own = {name: _cached(name, getattr(kind, name)) for name in part.parametrizations}  # type: ignore[union-attr]
        if own.keys() <= vars(kind).keys():  # PyTorch's class, which adds to its base what is copied here
            kept = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            part.__class__ = type(kind.__name__, kind.__bases__, {**kept, **own})
        else:
            part.__class__ = type(kind.__name__, (kind,), own)


def _cached(name: str, shared: property) -> property:
    """A parametrized tensor whose place in the cache is that of the module of which it is."""
    assert shared.fget is not None
    computed = shared.fget

    def get(self: nn.Module) -> Any:
        if not parametrize._cache_enabled or torch._C._get_tracing_state() is not None:
            return computed(self)
        key = id(self), name
        if parametrize._cache.get(key) is None:
            parametrize._cache[key] = self.parametrizations[name]()  # type: ignore[index, operator]
        return parametrize._cache[key]

    return property(get, shared.fset)


def parametrized_names(module: nn.Module) -> Any:
    """Those of its parametrized tensors."""
    return module.parametrizations if "parametrizations" in module._modules else ()
