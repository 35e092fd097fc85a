"""Modules that a module reaches otherwise than as its submodules."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

MANY = 1000
"""Largest number of items in a container or array that are looked at."""
_REGISTERED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_HOLDERS = list, tuple, set, deque, dict, FunctionType


def reaches_modules(own: dict[str, Any]) -> bool:
    """Whether a module with these attributes reaches others through lists, dicts or functions of its own."""
    for name, value in own.items():
        if isinstance(value, _HOLDERS) and value and name not in _REGISTERED and _refers(value):
            return True
    return False


def _refers(value: Any) -> bool:
    """Whether the value is, or refers to, a module, which is then not that of a twin."""
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, MethodType):
        return _refers(value.__self__)
    if isinstance(value, partial):
        return any(map(_refers, (value.func, *value.args, *value.keywords.values())))
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return any(isinstance(each, (nn.Module, MethodType)) and _refers(each) for each in held)
    if isinstance(value, (list, tuple, set, deque, dict)):
        return any(map(_refers, islice(value.values() if isinstance(value, dict) else value, MANY)))
    return False


def remedy(parts: Sequence[nn.Module]) -> str | None:
    """What a user can do if the module with these `own_modules` uses its parameters whatever is passed in for them."""
    if any("forward" in vars(part) for part in parts):
        return (
            "its forward, or that of a submodule, was replaced by a function that holds the module. Bind it with "
            "types.MethodType or functools.partial instead"
        )
    if any(reaches_modules(vars(part)) for part in parts):
        return (
            "it reaches modules through a list, a dict or a function of its own. Use nn.ModuleList or nn.ModuleDict, "
            "or the names under which they are registered"
        )
    return None
