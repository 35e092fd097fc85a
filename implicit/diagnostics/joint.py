"""An equilibrium whose batch is one problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from solvers import Solution, State
from solvers.state import Layout

from ..equilibrium import Equilibrium


class JointCell(nn.Module):
    """A cell on (1, batch · dim) states, each of which holds all rows of another cell's state."""

    def __init__(self, cell: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.cell, self.layout = cell, layout

    def forward(self, z: Tensor, *inputs: Any) -> Tensor:
        return self.flat(self.cell(self.state(z), *inputs))

    def flat(self, state: State) -> Tensor:
        """All rows as one."""
        return self.layout.flatten(state).reshape(1, -1)

    def state(self, flat: Tensor) -> State:
        """The inverse of `flat`."""
        return self.layout.unflatten(flat.view(self.layout.batch, -1))


class JointEquilibrium(Equilibrium):
    """The equilibrium of a cell whose rows depend on each other: one row to the solvers, forward and backward.

    Args:
        layer: the layer that solves row by row.
        state: any state of its batch.
    """

    cell: JointCell

    def __init__(self, layer: Equilibrium[Any], state: State) -> None:
        options = {**vars(layer.settings), "compact": False}
        super().__init__(JointCell(layer.cell, Layout(state)), gradient=layer.gradient, **options)

    def forward(self, *inputs: Any, z0: State | None = None, max_steps: int | None = None, **keywords: Any) -> State:
        """The equilibrium from `z0`, both of them states of the layer."""
        return self.cell.state(super().forward(*inputs, z0=self.cell.flat(z0), max_steps=max_steps, **keywords))

    def solve(
        self, *inputs: Any, z0: State | None = None, max_steps: int | None = None, **keywords: Any
    ) -> Solution[Any]:
        """The `Solution` of the one row; its value is a state of the layer."""
        solution = super().solve(*inputs, z0=self.cell.flat(z0), max_steps=max_steps, **keywords)
        return replace(solution, value=self.cell.state(solution.value))
