"""How precisely a function computes, which its output's dtype does not tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from .state import Layout

TF32 = 2.0**-11
"""Rounding unit of the factors of products in TensorFloat-32."""
_setting = torch._C._get_fp32_precision_getter
_convolve: WeakSet[nn.Module] = WeakSet()


def rounding_unit(f: Callable[..., Any], layout: Layout, autocast: torch.dtype | None) -> float:
    """The relative rounding unit of f's output.

    It is that of the dtype, of autocast's, or of TensorFloat-32, in which GPUs multiply float32 matrices if they may,
    and convolve unless they must not.
    """
    unit = max(torch.finfo(dtype).eps for dtype in (layout.dtype, autocast) if dtype is not None)
    if unit >= TF32 or layout.dtype != torch.float32 or not has_tf32(layout.device):
        return unit
    if _setting("cuda", "matmul") == "tf32":
        return TF32
    may = torch.backends.cudnn.enabled and _setting("cuda", "conv") == "tf32"
    return TF32 if may and isinstance(f, nn.Module) and _has_convolutions(f) else unit


def has_tf32(device: torch.device) -> bool:
    """Whether it is a GPU that multiplies in TensorFloat-32."""
    return device.type == "cuda" and _capability(device.index) >= (8, 0)


@cache
def _capability(index: int | None) -> tuple[int, int]:
    available = torch.cuda.is_available()  # a fake tensor needs no GPU
    return torch.cuda.get_device_capability(index) if available else (0, 0)


def resolved(residual: float, rounding: float) -> float:
    """The rounding unit that may keep a relative residual so large: TensorFloat-32 is no cause of a smaller one."""
    single = torch.finfo(torch.float32).eps
    return single if rounding == TF32 and residual <= 4 * single else rounding


def _has_convolutions(f: nn.Module) -> bool:
    if f in _convolve:
        return True
    queue, seen = [f], {f}
    for part in queue:
        if isinstance(part, nn.modules.conv._ConvNd):
            _convolve.add(f)
            return True
        parts = {each for each in part._modules.values() if each is not None} - seen
        seen |= parts
        queue += parts
    return False
