"""The books of a solve: which rows run, their best residual, why they stopped. On the host, in NumPy float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .solution import Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PATIENCE = 30
"""Steps without a new best residual after which a row has stalled: longer than the plateaus of accelerated solvers."""
EXPLODED = 1e8
"""Growth of the residual over its first value at which a row has diverged at once."""
DRIFTED = 10.0
"""Growth of the residual over its first value at which a row out of patience has diverged rather than stalled."""
RUNAWAY = 1e3
"""Growth over the best residual at which an accelerated solver forgets its history."""


class Ledger:
    """Books for the current rows of a solve; `drop` files the rows that have stopped, `close` returns all of them."""

    def __init__(self, rows: int, rtol: float, atol: float, rounding: float) -> None:
        self.rtol, self.atol, self.rounding = rtol, atol, rounding
        self.index = np.arange(rows)
        self.active: Bools = np.ones(rows, dtype=bool)
        self.best: Floats = np.full(rows, np.inf)
        self.relative: Floats = np.full(rows, np.nan)
        self.first: Floats = np.full(rows, np.inf)
        self.improved_at = np.zeros(rows, dtype=np.int64)
        self.status = np.full(rows, int(Status.MAX_STEPS), dtype=np.int64)
        self.steps = np.zeros(rows, dtype=np.int64)
        self._trace: list[tuple[NDArray[np.int64], Floats]] = []
        self._filed = {name: getattr(self, name).copy() for name in ("relative", "status", "steps")}

    def enter(self, step: int, residual: Floats, scale: Floats) -> tuple[Bools | None, Bools | None]:
        """Book `‖f(z) − z‖` and `‖f(z)‖` of this step's iterates.

        Returns the rows whose iterate is the one to keep and the rows whose history is to be forgotten; None for
        all of them and none of them, the healthy case, which costs a handful of operations.
        """
        tolerance = self.rtol * scale + self.atol
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = residual / scale
            falling = residual < self.best * (1 - 4 * self.rounding)
        if falling.all() and (residual > tolerance).all():
            if step == 1:
                self.first = residual
            self.best, self.relative = residual, relative
            self.improved_at = np.full(len(residual), step)
            self._trace.append((self.index, relative))
            return None, None
        return self._enter_carefully(step, residual, scale, tolerance, relative, falling)

    def _enter_carefully(
        self, step: int, residual: Floats, scale: Floats, tolerance: Floats, relative: Floats, falling: Bools
    ) -> tuple[Bools, Bools]:
        active = self.active
        relative = np.where(residual == 0, 0.0, relative)
        self._trace.append((self.index, np.where(active, relative, np.nan)))
        if step == 1:
            self.first = residual
        finite = np.isfinite(residual) & np.isfinite(scale)
        meets = active & finite & (residual <= tolerance)
        # a test met only because ‖z‖ grew is not convergence: f = z + b
        shrunk = (step == 1) | (residual + 2 * self.rounding * scale < self.first) | (residual == 0)
        converged = meets & shrunk
        keep = converged | (active & finite & (residual < self.best))
        self.improved_at = np.where(active & falling, step, self.improved_at)
        impatient = step - self.improved_at >= PATIENCE
        with np.errstate(invalid="ignore"):
            exploded = residual > EXPLODED * self.first
            drifted = residual > DRIFTED * self.first
            runaway = residual > RUNAWAY * self.best
        for rows, status in (
            (impatient, Status.STALLED),
            ((impatient & drifted) | exploded | (meets & ~shrunk), Status.DIVERGED),
            (~finite, Status.NON_FINITE),
            (converged, Status.CONVERGED),
        ):
            self.status[active & rows] = status
        stopped = active & (impatient | exploded | meets | ~finite)
        self.steps[stopped] = step
        self.active = active & ~stopped
        self.best = np.where(keep, residual, self.best)
        # a row with no finite iterate shows the residual it had
        self.relative = np.where(keep | ((step == 1) & ~finite), relative, self.relative)
        return keep, self.active & runaway

    def drop(self) -> NDArray[np.int64]:
        """File the rows that have stopped and go on without them; returns the positions of those that stay."""
        self._file()
        stay = np.flatnonzero(self.active)
        for name in ("index", "active", "best", "relative", "first", "improved_at", "status", "steps"):
            setattr(self, name, getattr(self, name)[stay])
        return stay

    def close(self, step: int) -> dict[str, NDArray[np.generic]]:
        """Stop what still runs and return residual, status, steps and trace of all rows, in their first order."""
        self.steps[self.active] = step
        self._file()
        trace = np.full((len(self._trace), len(self._filed["status"])), np.nan)
        for row, (index, relative) in zip(trace, self._trace, strict=True):
            row[index] = relative
        return {**self._filed, "trace": trace}

    def _file(self) -> None:
        for name, filed in self._filed.items():
            filed[self.index] = getattr(self, name)
