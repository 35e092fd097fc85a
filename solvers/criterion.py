"""When a residual counts: as met, as fallen, as all that the dtype allows."""

from __future__ import annotations

import numpy as np

from .rows import Bools, Floats, Integers, Rows
from .solution import Status

FLOOR = 16
"""Rounding units of the image within which a residual is as good as the dtype allows, whatever came after."""
SLACK = 1.01
"""Factor over its tolerance up to which a row counts as still converged when it is evaluated again."""


class Criterion:
    """What the tolerances of a solve, and the relative rounding of what f returns, make of a residual."""

    def __init__(self, rtol: float, atol: float, rounding: float) -> None:
        # a relative tolerance of 0 times an infinite scale would be NaN
        self.rtol, self.atol, self.rounding = max(rtol, np.finfo(np.float64).tiny), atol, rounding
        # norms are sums in single precision at least
        self.falling = 1 - 4 * min(rounding, float(np.finfo(np.float32).eps))
        """Factor below the best residual at which another is a new best, not the same one rounded."""

    def tolerance(self, scale: Floats) -> Floats:
        """The residual to be met where the image has this norm."""
        return self.rtol * scale + self.atol

    def lapsed(self, held: Bools, status: Integers, residual: Floats, scale: Floats) -> Bools:
        """Rows that are held where they had converged, and no longer are."""
        return held & (status == Status.CONVERGED) & ~(residual <= SLACK * self.tolerance(scale))

    def resolved(self, rows: Rows, step: int) -> Bools:
        """Rows whose best residual is as good as the dtype allows."""
        best, scale = rows.best, rows.best_scale
        return (best <= FLOOR * self.rounding * scale) & self.genuine(rows, step, best, scale)

    def genuine(self, rows: Rows, step: int, residual: Floats, scale: Floats) -> Bools:
        """Whether meeting the tolerance says something: f = z + b meets any relative one once ‖z‖ has grown enough.

        Either the residual has fallen by more than rounding, or it meets the tolerance of the first step at a like
        scale, as after a warm start just outside it.
        """
        if step == 1:
            return np.ones(len(residual), dtype=bool)
        fallen = residual + 2 * self.rounding * scale < rows.first
        at_first_scale = (residual <= self.tolerance(rows.first_scale)) & (scale <= 2 * rows.first_scale)
        return fallen | at_first_scale
