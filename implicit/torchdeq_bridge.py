"""Our solvers in torchdeq's models: `register()` once, then name them, `get_deq(f_solver="implicit_anderson")`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from solvers import GMRES, Anderson, Broyden, Monotone, NewtonKrylov, Picard, Solution, Solver, solve

from .logs import current_logs
from .reports import Reports

try:
    from torchdeq.solver import register_solver
    from torchdeq.solver.stat import SolverStat
except ImportError as error:
    raise ImportError("implicit.torchdeq_bridge needs torchdeq: pip install 'implicit-networks[torchdeq]'") from error

SOLVERS: Mapping[str, Solver] = {
    "implicit_picard": Picard(),
    "implicit_anderson": Anderson(),
    "implicit_broyden": Broyden(),
    "implicit_monotone": Monotone(),
    "implicit_newton_krylov": NewtonKrylov(),
    "implicit_gmres": GMRES(),
}
"""The names that `register` adds by default; GMRES is for the backward pass, whose equation is linear."""


def register(solvers: Mapping[str, Solver] = SOLVERS) -> None:
    """Register solvers with torchdeq under these names, through its public `register_solver`.

        from implicit import torchdeq_bridge

        torchdeq_bridge.register()
        deq = torchdeq.get_deq(f_solver="implicit_anderson", b_solver="implicit_gmres", ift=True)

    Args:
        solvers: by name, such as `{"anderson20": Anderson(memory=20)}`; by default those of `SOLVERS`.
    """
    for name, solver in solvers.items():
        if not isinstance(name, str) or not isinstance(solver, Solver):
            raise TypeError(
                f"{name!r}: {solver!r} is not a name with its Solver: pass a dict, {{'anderson20': Anderson(20)}}"
            )
        register_solver(name, in_torchdeqs_form(solver))


def in_torchdeqs_form(solver: Solver) -> Callable[..., tuple[Tensor, list[Tensor], SolverStat]]:
    """The function that torchdeq calls, for `register_solver`."""

    def torchdeq_solver(
        func: Callable[[Tensor], Tensor],
        x0: Tensor,
        max_iter: int = 50,
        tol: float = 1e-3,
        stop_mode: str = "abs",
        indexing: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[Tensor], SolverStat]:
        """Solve x = func(x) from x0, (batch, …); a tensor without further dims is a batch of scalars, as in torchdeq.

        A solve that fails issues a `ConvergenceWarning`, and `record()` includes it, as for our layers.

        Args:
            func, x0: the map and where to start.
            max_iter: largest number of evaluations of func.
            tol: tolerance on `‖func(x) − x‖`, for `stop_mode="rel"` relative to `‖func(x)‖`.
            stop_mode: "abs" or "rel".
            indexing: evaluations of func, counted from 1, whose results are returned as well; for those from `max_iter`
                on, or after the last, the solution.
        """
        if stop_mode not in ("abs", "rel"):
            raise ValueError(f"stop_mode={stop_mode!r} must be 'abs' or 'rel'")
        wanted = sorted(indexing or ())
        seen: dict[int, Tensor] = {}
        calls = 0

        def watched(z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            image = func(z.view(x0.shape)).reshape(z.shape)
            if calls in wanted and calls < max_iter:
                seen[calls] = image.view(x0.shape)
            return image

        relative = stop_mode == "rel"
        start = x0.reshape(len(x0), math.prod(x0.shape[1:]))  # also for an empty batch
        rtol, atol = (tol, 0.0) if relative else (0.0, tol)
        solution = solve(watched, start, solver=solver, rtol=rtol, atol=atol, max_steps=max_iter)
        direction, reports = _reports(func, sys._getframe(1))
        reports.enter(direction, bool(solution.converged.all()), lambda: solution)
        value = solution.value.view(x0.shape)
        return value, [seen.get(call, value) for call in wanted], _statistics(solution)

    return torchdeq_solver


def _reports(func: Any, caller: FrameType) -> tuple[Literal["forward", "backward"], Reports]:
    """Which of torchdeq's passes a solve belongs to, and where to report it."""
    hint = "In torchdeq, max_steps is {0}_max_iter; rtol and atol are {0}_tol with {0}_stop_mode"
    if getattr(func, "__module__", "") != "torchdeq.grad":
        return "forward", Reports(current_logs(), "torchdeq", _users(func), hint.format("f"))
    # torchdeq makes this function anew for each solve: its owner is among the caller's local variables
    known = caller.f_locals
    owner = _users(known["func"]) if "func" in known else known.get("trainer", func)
    return "backward", Reports(current_logs(), "torchdeq", owner, hint.format("b"))


def _users(func: Any) -> Any:
    """The user's function in torchdeq's wrapper."""
    return getattr(func, "func", func)


def _statistics(solution: Solution) -> Any:
    """torchdeq's record of a solve, its traces padded with the lowest value."""
    lowest, trace, distances = (
        floats.to(solution.value.dtype) for floats in (solution.residual, solution.trace, solution.absolute)
    )
    absolute = lowest
    if len(trace):  # find the value in the trace
        place = (trace - lowest).abs().nan_to_num(torch.inf).argmin(dim=0, keepdim=True)
        absolute = distances.gather(0, place)[0]
    stopped = trace.isnan()
    return SolverStat(
        abs_lowest=absolute,
        rel_lowest=lowest,
        abs_trace=torch.where(stopped, absolute, distances).T,
        rel_trace=torch.where(stopped, lowest, trace).T,
        nstep=solution.steps.to(lowest),
    )
