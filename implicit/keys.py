"""Hashable keys of what a recorded solve relies on, besides the values of its tensors."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.loops.recording import RecordingError

from .functorch import version
from .pure import PLAIN, Known, PureModule, own_modules
from .references import MANY

_BUILT_IN = {tuple, list, deque, dict, set, frozenset}
_COMPARABLE = PLAIN - {float, complex}
"""Those of which equal values mean the same."""
FEW = 8
"""Items of a tuple up to which it is compared as it is."""
_FIXED = type, nn.Module, Tensor, Enum, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial
TensorKey = Callable[[Tensor], Hashable]
_OWN = "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def memory_key(tensor: Tensor) -> Hashable:
    """Equal for tensors that are the same memory in the same form."""
    if tensor.layout == torch.sparse_coo:  # of which a write in place replaces the parts
        return (
            type(tensor),
            tensor.shape,
            tensor.is_coalesced(),
            memory_key(tensor._indices()),
            memory_key(tensor._values()),
        )
    try:
        address: Hashable = tensor.data_ptr()
    except RuntimeError:  # sparse, or a wrapper
        return _Same(tensor)
    # a view may have the address of another tensor
    return type(tensor), address, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def version_key(tensor: Tensor) -> Hashable:
    """`memory_key`, which differs once the tensor has been written to."""
    return memory_key(tensor), version(tensor)


def host_key(tensor: Tensor) -> Hashable:
    """`memory_key`, but for tensors of a processor their values, which are constants of a CUDA graph."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return memory_key(tensor)
    if tensor.numel() > MANY:
        return version_key(tensor)
    return type(tensor), tensor.shape, tensor.dtype, value_key(tensor.detach().flatten().tolist())


def tensor_key_on(device: torch.device) -> TensorKey:
    """The key of tensors for recordings on this device: a CUDA graph holds the values of those of a processor."""
    return memory_key if device.type == "cpu" else host_key


def modules_key(module: PureModule, tensor_key: TensorKey = memory_key) -> Hashable:
    """What the module relies on now, besides known tensors: what reaches it otherwise than its twins reads no other."""
    return tuple(module_key(part.module, part.kind, part.now, tensor_key) for part in module.parts if part.kept)


def module_key(
    module: nn.Module, kind: type, own: Mapping[str, Any], tensor_key: TensorKey = memory_key, within: bool = False
) -> Hashable:
    """A module's tensors, submodules, hooks and public attributes, its mode among them.

    Args:
        module: the module.
        kind, own: its class and its `__dict__`, now or earlier.
        tensor_key, within: as in `value_key`.
    """

    def same(tensor: Tensor) -> Hashable:  # one that f sets has an old one's address by chance
        return _Same(tensor), tensor_key(tensor)

    children = [(name, id(child)) for name, child in own["_modules"].items()]
    owned = [(name, value_key(value, tensor_key)) for owner in _OWN for name, value in own[owner].items()]
    public = [(name, value_key(value, same, within)) for name, value in own.items() if name[:1] != "_"]
    return id(module), kind, *children, *owned, *public


def value_key(
    value: Any, tensor_key: TensorKey = memory_key, within: bool = False, left: list[int] | None = None
) -> Hashable:
    """Equal for values that mean the same to f.

    Objects of other classes are equal if they are the same one, with the same public attributes.

    Args:
        value: anything.
        tensor_key: the key of a tensor.
        within: whether the value belongs to an object; if it is one itself, its own attributes do not count.
        left: the number of items of containers that are still to be looked at.
    """
    kind = type(value)
    if kind in PLAIN:
        return kind, repr(value) if kind is float else value  # 0.0 and −0.0 differ, and NaN is itself
    if isinstance(value, Tensor):
        return tensor_key(value)
    if kind is tuple and len(value) <= FEW and _COMPARABLE.issuperset(map(type, value)):
        return kind, value, *map(type, value)  # such as the sizes of a kernel; True equals 1
    if Known.places(value):
        return kind, value
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray) and value.size <= MANY and not value.dtype.hasobject
    ):
        return kind, value.dtype, value.shape, value.tobytes()
    left = [MANY] if left is None else left

    def key(item: Any, within: bool = within) -> Hashable:
        return value_key(item, tensor_key, within, left)

    if isinstance(value, slice):
        return kind, key((value.start, value.stop, value.step))
    if isinstance(value, (tuple, list, deque, Mapping, set, frozenset)):
        left[0] -= len(value)
        if left[0] < 0:
            return kind, len(value), _Same(value)
        if isinstance(value, Mapping):
            items: Hashable = tuple([(key(name), key(item)) for name, item in value.items()])
        else:
            items = (tuple if isinstance(value, (tuple, list, deque)) else frozenset)(map(key, value))
        more = () if kind in _BUILT_IN else [(name, key(item, True)) for name, item in _public(value)]
        return kind, items, *more
    if isinstance(value, nn.Module):
        parts = [] if within else own_modules(value)
        return _Same(value), *(module_key(part, type(part), vars(part), tensor_key, within=True) for part in parts)
    if isinstance(value, MethodType):  # a new object each time it is looked up
        return kind, value.__func__, key(value.__self__, within or isinstance(value.__self__, nn.Module))
    if isinstance(value, partial):
        return kind, key((value.func, value.args, value.keywords))
    if is_dataclass(value) and kind is not value:
        named = [(field.name, getattr(value, field.name, None)) for field in fields(value)]
        return kind, *((name, key(item)) for name, item in (*named, *_public(value)))
    return _Same(value), *([] if within else [(name, key(item, True)) for name, item in _public(value)])


def attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes, those in slots among them; none of modules, classes and functions."""
    if isinstance(value, _FIXED):
        return {}
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _public(value: Any) -> list[tuple[str, Any]]:
    return [(name, item) for name, item in attributes(value).items() if name[:1] != "_"]


def input_key(value: Any, tensor_key: TensorKey = memory_key) -> Hashable:
    """`value_key`, with all attributes of an object; raises RecordingError if one of them is another object."""
    if isinstance(value, nn.Module):
        raise RecordingError(f"an input is a module ({type(value).__name__}): make it a submodule")
    if isinstance(value, MethodType):
        return value.__func__, input_key(value.__self__, tensor_key)
    if isinstance(value, partial):
        given = value.func, *value.args, *value.keywords.values()
        return tuple(value.keywords), *(input_key(each, tensor_key) for each in given)
    inside = {} if is_dataclass(value) or isinstance(value, (tuple, list, Mapping)) else attributes(value)
    if any(map(attributes, inside.values())):
        raise RecordingError(
            f"an input is a {type(value).__name__}, which contains other objects, where changes would go unnoticed: "
            "pass what f needs as tensors"
        )
    return value_key(value, tensor_key), value_key(inside, tensor_key, within=True)


def order_key(values: Any) -> Hashable:
    """The order of the keys of nested dicts, which f may follow, though their structures are equal in any order."""
    if isinstance(values, dict):
        return tuple(values), *map(order_key, values.values())
    return tuple(map(order_key, values)) if isinstance(values, (tuple, list)) else None


class _Same:
    """Equal to another one of the same object, as long as this lives: a later object may have its address."""

    def __init__(self, value: object) -> None:
        self._hash = id(value)
        try:
            self._value: Callable[[], object] = weakref.ref(value)
        except TypeError:  # without weak references: the key keeps it alive
            self._value = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        value = self._value()
        return isinstance(other, _Same) and value is not None and value is other._value()
