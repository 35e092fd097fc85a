"""Steps as one graph of `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from ..checks import check_positive_integer
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .eager import Hold, Loop, Stretch, advance


@dataclass(frozen=True)
class Compiled(Loop):
    """`torch.compile` makes one graph of each stretch of `check_every` steps, `f` included.

    Prefer it for tiny states, where dispatch of small operations dominates, if many solves share the compilation (about
    a minute for ten steps of Anderson). Needs fixed shapes, that is compact=False, and a solver with a fixed cost per
    step.
    """

    check_every: int = 12
    """Steps between two checks; a multiple of the solver's memory needs the fewest graphs."""

    fixed_shapes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        if hold.redirects or room == 1 or not solver.fixed_cost:
            # as many steps as otherwise, so that the other rows are checked at the same steps
            return advance(problem, solver, measure, start, min(self.check_every, room), hold)
        if hold.rows is None:
            none = torch.zeros(len(hold.best), dtype=torch.bool, device=hold.best.device)
            hold = hold._replace(rows=none)
        # one length, one graph: the last stretch runs past the last step, and the excess is cut off; each number of
        # entries in the solver's memory has its own graph
        start = start._replace(fresh=False)
        return _as_one_graph(advance)(problem, solver, measure, start, self.check_every, hold).first(room)


@cache
def _as_one_graph(function: Callable[..., Stretch]) -> Callable[..., Stretch]:
    """The function compiled, with fixed shapes and every tensor an input."""
    compiled: Callable[..., Stretch] = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled
