"""Modules that a module reaches otherwise than as its submodules."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Container, Sequence
from functools import partial
from itertools import islice
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

MANY = 1000
"""Largest number of items in a container or array that are looked at."""
_IGNORED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_compiled_call_impl"}
_CONTAINERS = list, tuple, set, deque, dict
_NOTHING = bool, int, float, str, type(None), Tensor, type, ModuleType


def reaches_modules(own: dict[str, Any], parts: Container[int]) -> str | None:
    """The name of an attribute by which a module reaches others than as its submodules: a twin would share these.

    Args:
        own: its attributes.
        parts: the `id` of each module of its cell, to whose twins a twin's methods and partial functions are bound.
    """
    for name, value in own.items():
        if name in _IGNORED or isinstance(value, _NOTHING) or (isinstance(value, _CONTAINERS) and not value):
            continue
        if _holds(value, parts):
            return name
    return None


def _holds(value: Any, parts: Container[int]) -> bool:
    """`_refers`, except for what is bound to the cell's own modules."""
    if isinstance(value, MethodType):
        return id(value.__self__) not in parts and _refers(value.__self__)
    if isinstance(value, partial):
        given = *value.args, *value.keywords.values()
        return _holds(value.func, parts) or any(id(each) not in parts and _refers(each) for each in given)
    return _refers(value)


def _refers(value: Any, within: bool = False) -> bool:
    """Whether the value is, or refers to, a module; objects within another object are not searched."""
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, _NOTHING):
        return False
    if isinstance(value, MethodType):
        return _refers(value.__self__, within)
    if isinstance(value, partial):
        return any(_refers(each, within) for each in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return any(isinstance(each, (nn.Module, MethodType)) and _refers(each, within) for each in held)
    if isinstance(value, _CONTAINERS):
        items = value.values() if isinstance(value, dict) else value
        return any(_refers(each, within) for each in islice(items, MANY))
    if isinstance(value, weakref.ref):
        return isinstance(value(), nn.Module)
    inside = {} if within else getattr(value, "__dict__", {})
    return any(_refers(each, within=True) for each in islice(inside.values(), MANY))


def remedy(parts: Sequence[nn.Module]) -> str | None:
    """What a user can do where `reaches_modules` is true of one of these modules, all those of a cell; else None."""
    ids = {id(part) for part in parts}
    names = (reaches_modules(vars(part), ids) for part in parts)
    name = next((name for name in names if name and not name.endswith("_hooks")), None)
    if name == "forward":
        return (
            "its forward, or that of a submodule, was replaced by a function that holds the module. Bind it with "
            "types.MethodType or functools.partial instead"
        )
    if name:
        return (
            f"it reaches a module through its attribute {name}, where it is not registered as a submodule. Assign "
            "the module itself, or use nn.ModuleList or nn.ModuleDict"
        )
    return None
