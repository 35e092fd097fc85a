"""Where networks are trained."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

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


def data_on_the_processor() -> AbstractContextManager[Any]:
    """Data are made, shuffled and loaded on the processor: a notebook may have another default device."""
    # where it is the processor already, to say so would cost time at every call of PyTorch
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
