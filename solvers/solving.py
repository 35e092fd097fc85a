"""`solve`, the way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .anderson import Anderson
from .compilation import uncompiled
from .coupling import verified
from .problem import Settings, prepare
from .solution import Solution
from .solver import Solver
from .state import State


@uncompiled
def solve(
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver = Anderson(),
    rtol: float = 1e-4,
    atol: float = 1e-8,
    max_steps: int = 100,
    compact: bool = False,
    check_every: int = 1,
    compile: bool = False,
) -> Solution:
    """Find `z* = f(z*, *args)` for every row of a batch, each on its own.

    A row has converged when `‖f(z) − z‖₂ ≤ atol + rtol·‖f(z)‖₂`, unless it meets that only because ‖z‖ grew. A row
    that cannot converge says so in its status; nothing raises because of it. No gradient is recorded: for that use
    `implicit.fixed_point`.

    Args:
        f: maps a state to a state of the same shapes and dtype; must not write into its arguments.
        z0: first iterate: a tensor, or a (named) tuple of tensors, (batch, …) with at least one more dim.
        args: further arguments of `f`. With `compact`, every tensor among them has the batch in dim 0.
        solver: the rule that proposes iterates.
        rtol: tolerance relative to `‖f(z)‖`, at least 0.
        atol: absolute tolerance, at least 0.
        max_steps: largest number of steps; each evaluates `f` at the current iterate.
        compact: drop rows that have stopped from further evaluations. Pays where rows differ much and `f` is costly.
            One evaluation of the full batch at the end verifies that rows do not depend on each other; if they do, the
            whole batch is solved again, with a `RuntimeWarning`.
        check_every: look at the residuals, which on a GPU waits for it, once in so many steps. A row that converges
            gets the same result, after up to check_every evaluations in vain; one that is made to forget its history
            does so later.
        compile: run each stretch of `check_every` steps, `f` included, as one graph of `torch.compile`. Pays for tiny
            states, whose time goes into calling small operations, once the compilation (a minute or so for ten steps
            of Anderson) is spread over many solves; a `check_every` that is a multiple of the solver's memory compiles
            fewest graphs.

    Raises:
        TypeError, ValueError: an argument, or what `f` returns, is not of the form above.
    """
    settings = Settings(solver, rtol, atol, max_steps, compact, check_every, compile)
    problem = prepare(f, z0, args, compact)
    with torch.no_grad():
        return verified(problem, problem.layout.flatten(z0), settings).solution(problem.layout)
