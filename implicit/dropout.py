"""Dropout for cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LockedDropout(nn.Module):
    """Variational dropout: a mask drawn outside the cell once per solve and passed in as an input.

    `mask ∈ {0, 1 / (1 − p)}`, drawn for each row; ones in evaluation mode. Ordinary dropout inside a cell draws a new
    mask at every evaluation, so no fixed point exists.

        mask = self.dropout(x)  # x has the state's shape; else self.dropout(x.new_empty(len(x), width))
        z = self.equilibrium(x, mask)  # whose cell is tanh(W (z * mask) + x)

    Since the mask is an input, it is cut along with the state when converged rows are dropped. Source: Gal,
    Ghahramani, NeurIPS 2016; in equilibrium models: Bai, Kolter, Koltun, NeurIPS 2019.

    Args:
        p: share of entries set to zero, in [0, 1).
        shared: dims of the state along which all entries share one entry of the mask, such as (2, 3) for whole channels
            of (batch, channels, height, width); never 0, the batch.
    """

    def __init__(self, p: float = 0.5, shared: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p < 1:
            raise ValueError(f"LockedDropout: p={p!r} must be a number in [0, 1)")
        if not isinstance(shared, tuple) or not all(isinstance(dim, int) and dim >= 1 for dim in shared):
            raise ValueError(f"LockedDropout: shared={shared!r} must be a tuple of dims from 1 on")
        self.p, self.shared = p, shared

    def forward(self, state: Tensor) -> Tensor:
        """The mask for a state: of its shape, but with size 1 in the `shared` dims."""
        if not state.is_floating_point():
            raise TypeError(
                f"LockedDropout: the state has dtype {state.dtype}: pass a floating tensor of the state's shape"
            )
        if self.shared and max(self.shared) >= state.ndim:
            raise ValueError(f"LockedDropout: shared={self.shared} names a dim beyond shape {tuple(state.shape)}")
        shape = [1 if dim in self.shared else size for dim, size in enumerate(state.shape)]
        return F.dropout(torch.ones(shape, dtype=state.dtype, device=state.device), self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, shared={self.shared}"
