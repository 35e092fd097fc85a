"""Our solvers in torchdeq's models: `register()` once, then name them, `get_deq(f_solver="implicit_anderson")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers import GMRES, Anderson, Broyden, Monotone, NewtonKrylov, Picard, Solution, Solver, solve

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
"""The names that `register` makes known; GMRES is for the backward pass, whose equation is linear."""


def register(solvers: Mapping[str, Solver] = SOLVERS) -> None:
    """Make solvers known to torchdeq under these names, through its public `register_solver`.

        from implicit import torchdeq_bridge

        torchdeq_bridge.register()
        deq = torchdeq.get_deq(f_solver="implicit_anderson", b_solver="implicit_gmres", ift=True)

    Args:
        solvers: by name, such as `{"anderson20": Anderson(memory=20)}`; the default are those of `SOLVERS`.
    """
    for name, solver in solvers.items():
        if not isinstance(name, str) or not isinstance(solver, Solver):
            raise TypeError(
                f"{name!r}: {solver!r} is not a name and a Solver: pass such as {{'anderson20': Anderson(20)}}"
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

        Args:
            func, x0: the map and where to start.
            max_iter: largest number of steps.
            tol: tolerance on `‖func(x) − x‖`, for `stop_mode="rel"` relative to `‖func(x)‖`.
            stop_mode: "abs" or "rel".
            indexing: evaluations of func, counted from 1, whose result to return, too.
        """
        if stop_mode not in ("abs", "rel"):
            raise ValueError(f"stop_mode={stop_mode!r} must be 'abs' or 'rel'")
        wanted, seen, calls = set(indexing or ()), [], 0

        def watched(z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            image = func(z.view(x0.shape)).reshape(z.shape)
            if calls in wanted:
                seen.append(image.view(x0.shape))
            return image

        relative = stop_mode == "rel"
        start = x0.reshape(len(x0), -1)
        rtol, atol = (tol, 0.0) if relative else (0.0, tol)
        solution = solve(watched, start, solver=solver, rtol=rtol, atol=atol, max_steps=max_iter)
        value = solution.value.view(x0.shape)
        return value, seen or ([value] if wanted else []), _statistics(solution, func(value).reshape(len(x0), -1))

    return torchdeq_solver


def _statistics(solution: Solution, image: Tensor) -> Any:
    """torchdeq's record of a solve; its absolute trace, roughly, is the relative one times ‖f(z)‖ at the end."""
    scale = torch.linalg.vector_norm(image, dim=1)
    lowest = solution.residual.to(scale)
    # torchdeq pads its traces with the lowest value
    trace = solution.trace.T.to(scale)
    trace = torch.where(trace.isnan(), lowest[:, None], trace)
    return SolverStat(
        abs_lowest=lowest * scale,
        rel_lowest=lowest,
        abs_trace=trace * scale[:, None],
        rel_trace=trace,
        nstep=solution.steps.to(scale),
    )
