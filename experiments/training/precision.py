"""The arithmetic of training, and the tolerance of solves that it can meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from implicit import Equilibrium

from ..errors import InputError

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Precision → Lightning's name for it; weights and optimiser stay in float32."""
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def check_precision(precision: str, device: str) -> None:
    """Raise `InputError` if the device lacks this arithmetic."""
    if precision == "16" and device == "cpu":
        raise InputError("--precision 16 needs a GPU: on a processor choose bf16 or 32")


@contextmanager
def met(network: nn.Module, precision: str) -> Iterator[None]:
    """Loosen tolerances, forward and backward, to what layers of that precision resolve: twice their rounding.

    With tighter tolerances, rows would circle at the rounding of the layers until the last step.
    """
    if precision == "32":
        yield
        return
    floor = 2 * torch.finfo(_DTYPES[precision]).eps
    layers = [module for module in network.modules() if isinstance(module, Equilibrium)]
    before = [(layer.rtol, layer.gradient) for layer in layers]
    for layer in layers:
        layer.rtol, gradient = max(layer.rtol, floor), layer.gradient
        if any(field.name == "rtol" for field in fields(gradient)):  # type: ignore[arg-type]
            layer.gradient = replace(gradient, rtol=max(gradient.rtol, floor))  # type: ignore
    try:
        yield
    finally:
        for layer, (rtol, gradient) in zip(layers, before, strict=True):
            layer.rtol, layer.gradient = rtol, gradient
