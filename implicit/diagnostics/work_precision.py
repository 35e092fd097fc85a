"""What each tolerance costs each solver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solvers import Solver, State, solve

from .tables import Line, Table


@dataclass(frozen=True)
class Work(Line):
    """One solver at one tolerance."""

    name: str
    """Name of the solver."""
    rtol: float
    """Relative tolerance requested."""
    residual: float
    """Largest relative residual reached, over the rows; NaN: a row has none."""
    evaluations: float
    """Evaluations of f, mean over the rows."""
    seconds: float
    """Time of the faster of two solves."""
    converged: float
    """Share of the rows that converged."""


def compare_solvers(
    f: Callable[..., State],
    z0: State,
    args: tuple[Any, ...] = (),
    *,
    solvers: Mapping[str, Solver],
    rtols: Sequence[float] = (1e-2, 1e-4, 1e-6),
    max_steps: int = 1000,
) -> Table[Work]:
    """Work against precision: every solver on one problem at every tolerance, ordered by solver.

    Evaluations measure the problem; seconds also measure this machine and the solver's own work.
    `pandas.DataFrame(row.to_dict() for row in rows)` is a table, `implicit.plots.plot_work_precision(rows)` a picture.

    Args:
        f, z0, args, max_steps: as in `solvers.solve`; atol is 0.
        solvers: by name.
        rtols: relative tolerances.
    """
    if not solvers or not rtols:
        raise ValueError("compare_solvers: name at least one solver in solvers, and one tolerance in rtols")
    rows = Table[Work]()
    for name, solver in solvers.items():
        for rtol in rtols:
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                solution = solve(f, z0, args, solver=solver, rtol=rtol, atol=0, max_steps=max_steps)
                solution.residual.tolist()  # waits for the device
                seconds.append(time.perf_counter() - start)
            evaluations, converged = solution.evaluations.double().mean(), solution.converged.double().mean()
            residual = solution.residual.max() if len(solution.residual) else solution.residual.new_zeros(())
            rows.append(Work(name, rtol, residual.item(), evaluations.item(), min(seconds), converged.item()))
    return rows
