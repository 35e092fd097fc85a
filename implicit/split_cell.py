"""Cells whose linear part is known."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from solvers.rules.reflections import Activation, Parts


class SplitCell(nn.Module):
    """`z ↦ σ(W z + c(inputs))`: a cell that exposes its linear part. W and c are formed once per solve.

    Solve it with `Equilibrium(cell, solver=PeacemanRachford(), gradient=SplittingGradient())`, which starts from zeros
    like c. Every other solver and gradient accepts it as well.

        class Cell(SplitCell):
            def weight(self):
                return 0.9 * self.matrix / torch.linalg.matrix_norm(self.matrix, 2)  # I − W ≥ 0.1 I

            def shift(self, x):
                return self.injection(x)

        Cell(margin=0.1)

    Args:
        margin: m > 0 such that the symmetric part of I − W is at least m for all values of the parameters. It ensures
            that the equilibrium exists and is unique, and that every row converges.
        activation: σ, entry by entry, nondecreasing and 1-Lipschitz. For the ReLU the splitting chooses its step size.
    """

    def __init__(self, *, margin: float, activation: Activation = torch.relu) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin={margin!r} must be positive: I − W has to be strongly monotone")
        self.margin, self.activation = margin, activation

    @abstractmethod
    def weight(self) -> Tensor:
        """W, (dim, dim) for a state of dim entries, with its graph."""

    @abstractmethod
    def shift(self, *inputs: Any) -> Tensor:
        """c, (batch, …) like z, with its graph."""

    def split(self, *inputs: Any) -> Parts:
        return Parts(self.weight(), self.shift(*inputs), self.activation, self.margin)

    def forward(self, z: Tensor, *inputs: Any) -> Tensor:
        """`σ(W z + c)`, (batch, …) like z."""
        return SplitMap(self)(z, self.shift(*inputs), self.weight())


class SplitMap:
    """The map `(z, c, W) ↦ σ(W z + c)` of a cell: what a solve evaluates once W and c are formed."""

    def __init__(self, cell: SplitCell) -> None:
        self.activation, self.margin = cell.activation, cell.margin
        self.formed: dict[Any, Any] = {}  # for the backward pass

    def __call__(self, z: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        if z.ndim == 2:
            return self.activation(torch.addmm(shift, z, weight.mT))
        return self.activation(torch.addmm(shift.flatten(1), z.flatten(1), weight.mT).view(z.shape))

    def split(self, shift: Tensor, weight: Tensor) -> Parts:
        return Parts(weight, shift, self.activation, self.margin, self.formed)
