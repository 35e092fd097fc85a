"""Row norms that neither overflow nor underflow while the result is representable."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Bools, Floats

_RANGE = {torch.float32: (1e-18, 1e18), torch.float64: (1e-150, 1e150)}


def row_norms(x: Tensor) -> Floats:
    """(rows,) 2-norms of a (rows, dim) matrix, on the host."""
    x = x.detach()
    if x.dtype == torch.float32:
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).cpu().numpy()
    largest = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    norms = torch.linalg.vector_norm(x / safe, dim=1).double() * safe[:, 0].double()
    return torch.where(largest[:, 0].isfinite(), norms, largest[:, 0].double()).cpu().numpy()


def out_of_range(norms: Floats, dtype: torch.dtype) -> Bools:
    """Where squares may have left the dtype's range, so that a plain norm of 0, Inf or NaN may be an artefact."""
    small, large = _RANGE[dtype]
    return ~((norms > small) & (norms < large))


def extreme(norms: Floats, dtype: torch.dtype) -> bool:
    """Whether any is."""
    small, large = _RANGE[dtype]
    return not (norms.min() > small and norms.max() < large)
