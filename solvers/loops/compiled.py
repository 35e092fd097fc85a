"""Steps as one graph of `torch.compile`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from ..caller import level_of_caller
from ..checks import check_positive_integer
from ..norms import Measure
from ..problem import Problem
from ..rules.rule import Solver
from .eager import Hold, Loop, Stretch, advance

MOST = 64
"""Graphs of all solves in a process, unless PyTorch's own limit is higher."""


@dataclass(frozen=True)
class Compiled(Loop):
    """`torch.compile` makes one graph of each stretch of `check_every` steps, `f` included.

    Prefer it for tiny states, where dispatch of small operations dominates, if many solves share the compilation (about
    a minute for ten steps of Anderson). Needs fixed shapes, that is compact=False, and a solver with a fixed cost per
    step.

    Each shape, dtype and cell, and each number of entries in the solver's memory, needs a graph of its own. A process
    keeps 64 of them, or `torch._dynamo.config.recompile_limit` if that is higher. Further solves run as with `Eager`,
    with a warning.
    """

    check_every: int = 12
    """Steps between two checks; a multiple of the solver's memory needs the fewest graphs."""

    fixed_shapes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive_integer(self, "check_every")

    def run(self, problem: Problem, solver: Solver, measure: Measure, start: Stretch, room: int, hold: Hold) -> Stretch:
        if hold.redirects or room == 1 or not solver.fixed_cost:
            # as many steps as otherwise, so that the other rows are checked at the same steps
            return advance(problem, solver, measure, start, min(self.check_every, room), hold, self.robust)
        if hold.rows is None:
            none = torch.zeros(len(hold.best), dtype=torch.bool, device=hold.best.device)
            hold = hold._replace(rows=none)
        # one length, one graph: the last stretch runs past the last step, and the excess is cut off; each number of
        # entries in the solver's memory has its own graph
        stale, steps = start._replace(fresh=False), self.check_every
        import torch._dynamo as compiler  # only where something is compiled

        try:
            with compiler.config.patch(recompile_limit=max(MOST, compiler.config.recompile_limit)):
                return _as_one_graph(advance)(problem, solver, measure, stale, steps, hold, self.robust).first(room)
        except compiler.exc.FailOnRecompileLimitHit:
            _warn_of_limit()
            return advance(problem, solver, measure, start, min(steps, room), hold, self.robust)


@cache
def _warn_of_limit() -> None:
    """Warn, once a process, that no more graphs are compiled."""
    warnings.warn(
        "loop=Compiled(): this process has compiled as many graphs as PyTorch keeps of one function, so solves that "
        "need another one run step by step, as with Eager. Each shape, dtype and cell, and each number of entries in "
        "the solver's memory, needs its own: pad inputs to few shapes, let check_every be a multiple of the solver's "
        "memory, or raise torch._dynamo.config.recompile_limit",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


@cache
def _as_one_graph(function: Callable[..., Stretch]) -> Callable[..., Stretch]:
    """The function compiled, with fixed shapes and every tensor an input."""
    compiled: Callable[..., Stretch] = torch.compile(function, dynamic=False, fullgraph=True)
    return compiled
