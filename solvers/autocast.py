"""Autocast as the caller has it, and what must be computed without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """To what autocast casts on this device; None where it is off, and on devices that have none, as meta."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Products keep the digits of their tensors."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)
