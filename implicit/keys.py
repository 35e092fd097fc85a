"""Hashable keys of what a recorded solve relies on, besides the values of its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .pure import Known, PureModule

_PLAIN = {bool, int, complex, str, bytes, torch.dtype, torch.device, type(None)}
_OWN = "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def modules_key(module: PureModule, versions: bool = False) -> Hashable:
    """What the module relied on, besides known tensors, when this was built."""
    return tuple(module_key(part.module, part.own, versions) for part in module.parts if part.own)


def module_key(module: nn.Module, own: Mapping[str, Any], versions: bool = False) -> Hashable:
    """A module's tensors, submodules, hooks and public attributes, its mode among them.

    Args:
        module: the module.
        own: its `__dict__`, now or earlier.
        versions: as in `value_key`.
    """
    named = [item for name in _OWN for item in own[name].items()]
    named += [(name, value) for name, value in own.items() if name[:1] != "_"]
    children = ((name, id(child)) for name, child in own["_modules"].items())
    return id(module), *children, *((name, value_key(value, versions)) for name, value in named)


def value_key(value: Any, versions: bool = False) -> Hashable:
    """Equal for values that mean the same to f: objects of other classes by identity, tensors by their memory.

    Args:
        value: anything.
        versions: whether tensors that have been written to differ from what they were.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is float:
        return repr(value)  # 0.0 and −0.0 differ, and NaN is itself
    if isinstance(value, Tensor):
        version = value._version if versions and not value.is_inference() else 0
        return value.data_ptr(), value.shape, value.dtype, value.stride(), version
    if Known.places(value):
        return kind, value
    if isinstance(value, (tuple, list)):
        return kind, *(value_key(item, versions) for item in value)
    if isinstance(value, dict):
        return kind, *((value_key(name, versions), value_key(item, versions)) for name, item in value.items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(value_key(item, versions) for item in value)
    return _Same(value)


def settings_key() -> Hashable:
    """The settings of PyTorch that choose kernels, whether graphs are made, and the default dtype."""
    backends: Any = torch.backends  # some of these attributes have no types
    cuda, cudnn = backends.cuda, backends.cudnn
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),  # tensors made in inference mode cannot serve elsewhere
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        backends.fp32_precision,
        cuda.matmul.fp32_precision,
        cudnn.fp32_precision,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


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
