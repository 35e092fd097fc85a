"""Where networks are trained."""

from __future__ import annotations

import torch

from ..errors import InputError


def chosen_device(device: str) -> str:
    """`cpu` or `cuda`, for one of them or `auto`; `InputError` where it is not there."""
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device == "auto":
        return allowed[-1]
    if device not in allowed:
        raise InputError(f"--device {device} cannot be used: this machine has {', '.join(allowed)}; auto picks one")
    return device
