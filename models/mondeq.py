"""The monotone operator equilibrium network, built on this toolkit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from implicit import Equilibrium, Gradient, ImplicitGradient, SplitCell, SplittingGradient
from solvers import PeacemanRachford, Solver


class MonotoneCell(SplitCell):
    """`z ↦ ReLU(W z + U x + b)` with `W = (1 − m) I − AᵀA + B − Bᵀ`, so that I − W is strongly monotone.

    Its equilibrium exists and is unique for all A and B, though z − f(z) need not be monotone: the cell is the proximal
    operator of the cone of nonnegative vectors after an affine map. Source: Winston, Kolter, "Monotone
    operator equilibrium networks", NeurIPS 2020.

    Args:
        width: of z.
        inputs: width of x.
        margin: m in (0, 1], the strong monotonicity.
    """

    def __init__(self, width: int, inputs: int, *, margin: float = 0.5) -> None:
        if not 0 < margin <= 1:
            raise ValueError(f"margin={margin!r} must lie in (0, 1]")
        super().__init__(margin=margin)
        self.symmetric, self.skew = (nn.Parameter(torch.empty(width, width)) for _ in range(2))
        self.injection = nn.Linear(inputs, width)
        for weight in (self.symmetric, self.skew):
            nn.init.normal_(weight, std=0.5 / width**0.5)

    def weight(self) -> Tensor:
        """W, (width, width)."""
        turning = self.skew - self.skew.mT
        identity = torch.eye(len(turning), dtype=turning.dtype, device=turning.device)
        return torch.addmm((1 - self.margin) * identity + turning, self.symmetric.mT, self.symmetric, alpha=-1)

    def shift(self, x: Tensor) -> Tensor:
        """U x + b, (batch, width), from (batch, inputs)."""
        shift: Tensor = self.injection(x)
        return shift


def mondeq(inputs: int, outputs: int, *, width: int = 64, solver: Solver = PeacemanRachford()) -> nn.Module:
    """(batch, inputs) → (batch, outputs): the equilibrium of a `MonotoneCell`, read out linearly."""
    split = isinstance(solver, PeacemanRachford)
    gradient: Gradient = SplittingGradient() if split else ImplicitGradient()
    return nn.Sequential(
        Equilibrium(MonotoneCell(width, inputs), solver=solver, gradient=gradient), nn.Linear(width, outputs)
    )
