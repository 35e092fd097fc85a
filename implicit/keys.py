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

from .pure import PLAIN, Known, PureModule
from .references import MANY

_FIXED = type, nn.Module, Tensor, Enum, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial
TensorKey = Callable[[Tensor], Hashable]
_OWN = "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def memory_key(tensor: Tensor) -> Hashable:
    """Equal for tensors that are the same memory in the same form."""
    try:
        address: Hashable = tensor.data_ptr()
    except RuntimeError:  # sparse, or a wrapper
        return _Same(tensor)
    # a view may have the address of another tensor
    return type(tensor), address, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def version_key(tensor: Tensor) -> Hashable:
    """`memory_key`, which differs once the tensor has been written to."""
    return memory_key(tensor), 0 if tensor.is_inference() else tensor._version


def host_key(tensor: Tensor) -> Hashable:
    """`memory_key`, but for tensors of a processor their values, which are constants of a CUDA graph."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return memory_key(tensor)
    if tensor.numel() > MANY:
        return version_key(tensor)
    return type(tensor), tensor.shape, tensor.dtype, value_key(tensor.detach().flatten().tolist())


def modules_key(module: PureModule, tensor_key: TensorKey = memory_key) -> Hashable:
    """What the module relied on, besides known tensors, when this was built."""
    return tuple(module_key(part.module, part.kind, part.own, tensor_key) for part in module.parts if part.kept)


def module_key(module: nn.Module, kind: type, own: Mapping[str, Any], tensor_key: TensorKey = memory_key) -> Hashable:
    """A module's tensors, submodules, hooks and public attributes, its mode among them.

    Args:
        module: the module.
        kind, own: its class and its `__dict__`, now or earlier.
        tensor_key: as in `value_key`.
    """

    def same(tensor: Tensor) -> Hashable:  # one that f sets has an old one's address by chance
        return _Same(tensor), tensor_key(tensor)

    children = [(name, id(child)) for name, child in own["_modules"].items()]
    owned = [(name, value_key(value, tensor_key)) for owner in _OWN for name, value in own[owner].items()]
    public = [(name, value_key(value, same)) for name, value in own.items() if name[:1] != "_"]
    return id(module), kind, *children, *owned, *public


def value_key(value: Any, tensor_key: TensorKey = memory_key, within: bool = False) -> Hashable:
    """Equal for values that mean the same to f.

    Objects of other classes are equal if they are the same one, with the same public attributes.

    Args:
        value: anything.
        tensor_key: the key of a tensor.
        within: whether the value belongs to an object; if it is one itself, its own attributes do not count.
    """
    kind = type(value)
    if kind in PLAIN:
        return kind, repr(value) if kind is float else value  # 0.0 and −0.0 differ, and NaN is itself
    if isinstance(value, Tensor):
        return tensor_key(value)
    if Known.places(value):
        return kind, value
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray) and value.size <= MANY and not value.dtype.hasobject
    ):
        return kind, value.dtype, value.shape, value.tobytes()
    if isinstance(value, slice):
        return kind, value_key((value.start, value.stop, value.step))
    if isinstance(value, (tuple, list, deque, Mapping, set, frozenset)):
        if len(value) > MANY:
            return kind, len(value), _Same(value)
        if isinstance(value, Mapping):
            return kind, *((value_key(name), value_key(item, tensor_key, within)) for name, item in value.items())
        items = (value_key(item, tensor_key, within) for item in value)
        return (kind, *items) if isinstance(value, (tuple, list, deque)) else (kind, frozenset(items))
    if is_dataclass(value) and kind is not value:
        return kind, *(value_key(getattr(value, field.name, None), tensor_key, within) for field in fields(value))
    if within or not has_attributes(value):
        return _Same(value)
    inside = ((name, value_key(item, tensor_key, within=True)) for name, item in vars(value).items() if name[:1] != "_")
    return kind, _Same(value), *inside


def has_attributes(value: Any) -> bool:
    """Whether the value is an object that has attributes of its own, and is no module, class or function."""
    return hasattr(value, "__dict__") and not isinstance(value, _FIXED)


def input_key(value: Any, tensor_key: TensorKey = memory_key) -> Hashable:
    """`value_key`, with all attributes of an object; raises RecordingError if one of them is another object."""
    if isinstance(value, nn.Module):
        raise RecordingError(f"an input is a module ({type(value).__name__}): make it a submodule")
    if not has_attributes(value) or isinstance(value, Mapping) or is_dataclass(value):
        return value_key(value, tensor_key)
    inside = vars(value)
    if any(has_attributes(item) for item in inside.values()):
        raise RecordingError(
            f"an input is a {type(value).__name__}, which contains other objects, where changes would go unnoticed: "
            "pass what f needs as tensors"
        )
    return type(value), _Same(value), value_key(inside, tensor_key, within=True)


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
