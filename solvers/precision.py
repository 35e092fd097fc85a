"""How precisely a function computes, which its output's dtype does not tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .state import Layout

TF32 = 2.0**-11
"""Rounding unit of the factors of products in TensorFloat-32."""
_setting = torch._C._get_fp32_precision_getter
_convolves: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def rounding_unit(f: Callable[..., Any], layout: Layout, autocast: torch.dtype | None) -> float:
    """The relative rounding unit of f's output.

    It is that of the dtype, of autocast's, or of TensorFloat-32, in which GPUs multiply float32 matrices if they may,
    and convolve unless they must not.
    """
    unit = max(torch.finfo(dtype).eps for dtype in (layout.dtype, autocast) if dtype is not None)
    if unit >= TF32 or layout.dtype != torch.float32 or not has_tf32(layout.device):
        return unit
    convolves = isinstance(f, nn.Module) and _setting("cuda", "conv") == "tf32" and _has_convolutions(f)
    return TF32 if convolves or _setting("cuda", "matmul") == "tf32" else unit


def has_tf32(device: torch.device) -> bool:
    """Whether it is a GPU that multiplies in TensorFloat-32."""
    return device.type == "cuda" and _capability(device.index) >= (8, 0)


@cache
def _capability(index: int | None) -> tuple[int, int]:
    available = torch.cuda.is_available()  # a fake tensor needs no GPU
    return torch.cuda.get_device_capability(index) if available else (0, 0)


def _has_convolutions(f: nn.Module) -> bool:
    found = _convolves.get(f)
    if found is None:
        found = _convolves[f] = any(isinstance(part, nn.modules.conv._ConvNd) for part in f.modules())
    return found
