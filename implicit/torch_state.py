"""What applies to all of PyTorch, and may change what a cell computes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack as _modes

from .keys import value_key

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


def settings_key() -> Hashable:
    """The key of the settings that choose kernels, dtypes and devices, of hooks on all modules, and of modes."""
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
    return value_key(mode.device) if _sets_device(mode) else value_key(mode, within=True)


def _sets_device(mode: Any) -> bool:
    """Whether it is a `with torch.device(…)`, of which each makes another mode."""
    return type(mode).__name__ == "DeviceContext"
