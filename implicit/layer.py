"""What the layers built on a cell share: the cell, where it starts, and a name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from solvers import Solution, State

from .split_cell import SplitCell


class Layer(nn.Module, ABC):
    """A module around a cell `(z, *inputs) → z`, that starts at `initial(*inputs)` or at zeros like the first input."""

    def __init__(self, cell: nn.Module, initial: Callable[..., State] | None) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell is a {type(cell).__name__}: pass an nn.Module, or use fixed_point for a function")
        self.cell, self.initial = cell, initial

    @abstractmethod
    def solve(self, *inputs: Any, z0: State | None = None) -> Solution[Any]:
        """The `Solution` for `inputs`, no graph."""

    @property
    def drops_rows(self) -> bool:
        """Whether rows that have stopped are left out of evaluations, and with them those of the inputs."""
        return False

    @property
    def title(self) -> str:
        """Its name in records where it has no place in a model."""
        return f"{type(self).__name__}({type(self.cell).__name__})"

    def start(self, inputs: tuple[Any, ...], z0: State | None) -> State:
        """The first iterate: the warm start, if there is one."""
        if z0 is not None:
            return z0
        if self.initial is not None:
            return self.initial(*inputs)
        if isinstance(self.cell, SplitCell):
            return torch.zeros_like(self.cell.shift(*inputs))
        if not inputs or not isinstance(inputs[0], Tensor):
            raise TypeError("the default start is zeros like the first input, which is no tensor: pass initial= or z0=")
        return torch.zeros_like(inputs[0])
