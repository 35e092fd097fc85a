"""Hashable keys of what a recorded solve relies on, besides the values of its tensors."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack as _modes

from .pure import PLAIN, Known, PureModule
from .references import MANY

TensorKey = Callable[[Tensor], Hashable]
_OWN = "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_GLOBAL_HOOKS = [
    hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_") and name.endswith("hooks")
]
_SETTINGS: list[Callable[[], Hashable]] = [
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,  # tensors made in inference mode cannot serve elsewhere
    torch.get_default_dtype,
    torch.backends.mha.get_fastpath_enabled,
]
# the getters behind `torch.backends` and others, which take a tenth of their time; versions of PyTorch differ in these
_SETTINGS += [
    getattr(torch._C, f"_get_{name}")
    for name in (
        "deterministic_algorithms",
        "cudnn_enabled",
        "cudnn_benchmark",
        "cudnn_deterministic",
        "cublas_allow_fp16_reduced_precision_reduction",
        "cublas_allow_bf16_reduced_precision_reduction",
        "cublas_allow_fp16_accumulation",
        "flash_sdp_enabled",
        "mem_efficient_sdp_enabled",
        "math_sdp_enabled",
        "cudnn_sdp_enabled",
        "overrideable_sdp_enabled",
    )
    if hasattr(torch._C, f"_get_{name}")
]
_SETTINGS += [
    partial(torch._C._get_fp32_precision_getter, *place)
    for place in (("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"))
]


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


def value_key(value: Any, tensor_key: TensorKey = memory_key) -> Hashable:
    """Equal for values that mean the same to f, objects of other classes by identity.

    Args:
        value: anything.
        tensor_key: the key of a tensor.
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
    if isinstance(value, (tuple, list, deque, dict, set, frozenset)):
        if len(value) > MANY:
            return kind, len(value), _Same(value)
        if isinstance(value, dict):
            return kind, *((value_key(name), value_key(item, tensor_key)) for name, item in value.items())
        items = (value_key(item, tensor_key) for item in value)
        return (kind, *items) if isinstance(value, (tuple, list, deque)) else (kind, frozenset(items))
    if is_dataclass(value) and kind is not value:
        return kind, *(value_key(getattr(value, field.name, None), tensor_key) for field in fields(value))
    return _Same(value)


def order_key(values: Any) -> Hashable:
    """The order of the keys of nested dicts, which f may follow, though their structures are equal in any order."""
    if isinstance(values, dict):
        return tuple(values), *map(order_key, values.values())
    return tuple(map(order_key, values)) if isinstance(values, (tuple, list)) else None


def settings_key() -> Hashable:
    """What applies to all of PyTorch: the settings that choose kernels, dtypes and devices, hooks, and modes."""
    key: tuple[Hashable, ...] = tuple([setting() for setting in _SETTINGS])
    if modes := _modes():
        key += (*map(_mode_key, modes),)
    if any(_GLOBAL_HOOKS):
        key += (*(value_key(dict(hooks)) for hooks in _GLOBAL_HOOKS),)
    return key


def within_modes() -> bool:
    """Whether functions of torch are overridden here, which a backward pass does not see."""
    return any(not _sets_device(mode) for mode in _modes())


def _mode_key(mode: Any) -> Hashable:
    return value_key(mode.device) if _sets_device(mode) else _Same(mode)


def _sets_device(mode: Any) -> bool:
    """Whether it is a `with torch.device(…)`, of which each makes another mode."""
    return type(mode).__name__ == "DeviceContext"


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
