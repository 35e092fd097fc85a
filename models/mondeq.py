"""The monotone operator equilibrium network, built on this toolkit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit import Equilibrium
from solvers import Monotone, Solver


class MonotoneCell(nn.Module):
    """`z ↦ ReLU(W z + U x + b)` with `W = (1 − m) I − AᵀA + B − Bᵀ`, so that I − W is strongly monotone.

    Its equilibrium exists and is unique for all A and B, and z − f(z) need not be monotone in the usual sense: the cell
    is the proximal operator of the cone of nonnegative vectors after an affine map. Source: Winston, Kolter, "Monotone
    operator equilibrium networks", NeurIPS 2020.

    Args:
        width: of z.
        inputs: width of x.
        margin: m in (0, 1], the strong monotonicity.
    """

    def __init__(self, width: int, inputs: int, *, margin: float = 0.5) -> None:
        super().__init__()
        if not 0 < margin <= 1:
            raise ValueError(f"margin={margin!r} must lie in (0, 1]")
        self.margin = margin
        self.symmetric, self.skew = (nn.Parameter(torch.empty(width, width)) for _ in range(2))
        self.injection = nn.Linear(inputs, width)
        for weight in (self.symmetric, self.skew):
            nn.init.normal_(weight, std=0.5 / width**0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(batch, width), from (batch, width) and (batch, inputs)."""
        within = F.linear(F.linear(z, self.symmetric), self.symmetric.T)
        turned = F.linear(z, self.skew - self.skew.T)
        output: Tensor = torch.relu((1 - self.margin) * z - within + turned + self.injection(x))
        return output


def mondeq(inputs: int, outputs: int, *, width: int = 64, solver: Solver = Monotone()) -> nn.Module:
    """(batch, inputs) → (batch, outputs): the equilibrium of a `MonotoneCell`, read out linearly."""
    cell = MonotoneCell(width, inputs)
    layer = Equilibrium(cell, solver=solver, initial=lambda x: x.new_zeros(len(x), width))
    return nn.Sequential(layer, nn.Linear(width, outputs))
