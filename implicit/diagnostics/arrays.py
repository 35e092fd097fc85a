"""Inputs of plots and tables as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_array(values: Any, dtype: Any = None) -> NDArray[Any]:
    """Numbers, tensors on any device, with or without a graph, or lists of such, as a NumPy array."""
    if isinstance(values, Tensor):
        alone = values.detach().cpu().resolve_conj().resolve_neg()
        values = (alone.float() if alone.dtype == torch.bfloat16 else alone).numpy()
    elif isinstance(values, (list, tuple)):
        values = [as_array(value) for value in values]
    return np.asarray(values, dtype=dtype)
