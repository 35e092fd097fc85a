"""What the loop found, flat, and the `Solution` made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .problem import Problem
from .rows import Floats, Rows, Rule
from .rules.rule import Solver
from .solution import Solution


class Keep(NamedTuple):
    """What the loop is to keep beyond the solution."""

    histories: bool = False
    iterates: tuple[int, ...] = ()
    """Numbers of steps after which the iterate is wanted; 0 is the start."""


class History(NamedTuple):
    """What the solver remembered of some rows, and where they were, when they stopped."""

    rows: Tensor  # their positions in the batch
    step: int  # at which this was, their last or shortly after
    point: Tensor  # (rows, dim): where f was evaluated in that step
    memory: Any


@dataclass(frozen=True)
class Outcome:
    """What the loop found."""

    value: Tensor
    """(batch, dim)."""
    rows: Rows
    norms: Floats
    """(2·steps, batch): ‖f(z) − z‖ and ‖f(z)‖ of each step; NaN once a row has stopped."""
    rule: Rule
    dropped: bool
    histories: list[History] = field(default_factory=list)
    iterates: list[Tensor] = field(default_factory=list)
    """(batch, dim), as `Keep` asked; rows that had stopped before have their solution."""

    def solution(self, problem: Problem, solver: Solver) -> Solution[Any]:
        """The `Solution`, on the state's device; it shares no memory with what the caller passed."""
        rows, absolute = self.rows, self.norms[::2]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = _relative(rows.best, self.rule.reference(rows, rows.best_scale))
            trace = _relative(absolute, self.rule.reference(rows, self.norms[1::2]))
        tensors = (
            torch.from_numpy(np.ascontiguousarray(array)).to(problem.layout.device)
            for array in (relative, rows.status, rows.steps, rows.steps + rows.spent, trace, absolute)
        )
        value = problem.layout.unflatten(self.value.clone())
        return Solution(value, *tensors, alternatives=solver.alternatives)


def _relative(residual: Floats, reference: Floats) -> Floats:
    return np.where(residual == 0, 0.0, residual / reference)
