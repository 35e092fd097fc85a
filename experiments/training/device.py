"""Where networks are trained."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..errors import InputError


def chosen_device(device: str) -> str:
    """`cpu` or `cuda`, for one of these names or `auto`; `InputError` if the device is not available."""
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device == "auto":
        return allowed[-1]
    if device not in allowed:
        raise InputError(f"--device {device} cannot be used: this machine has {', '.join(allowed)}; auto picks one")
    return device


def data_on_the_processor() -> AbstractContextManager[Any]:
    """A context in which data are made, shuffled and loaded on the processor, whatever a notebook's default device."""
    # if the processor is the default already, the context would only cost time at every call of PyTorch
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
