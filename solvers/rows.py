"""The criteria for judging rows, and what is known about each.

On the host, in NumPy float64, one entry per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .status import Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

_CONVERGED, _NON_FINITE = int(Status.CONVERGED), int(Status.NON_FINITE)  # cheap for NumPy
MANY = 64
"""Rows from which on one call for each step is faster than one for all: NumPy accumulates row by row."""
RUNNING = -1
"""The status of a row that has not stopped."""
PROGRESS = 0.75
"""Factor to which the residual must fall to count as progress of a solver that may be caught: a digit in 240 steps."""
SLACK, ROUNDINGS = 1.01, 4
"""Allowance for a row that is evaluated again, in a batch of another size: a factor of its residual, and rounding units
of its image."""


def least_so_far(before: Floats, residuals: Floats) -> Floats:
    """(steps + 1, rows): each row's least residual before these steps, and after each of them; NaN after a NaN."""
    least = np.concatenate((before[None], residuals))
    if len(before) < MANY:
        return np.minimum.accumulate(least)
    for last, here in pairwise(least):
        np.minimum(last, here, out=here)
    return least


@dataclass(frozen=True)
class Rule:
    """The criteria by which a row is judged."""

    rtol: float
    atol: float
    rounding: float
    """Relative rounding unit of the output of f."""
    min_steps: int = 0
    may_leap: bool = False
    """The solver may propose points where f is not finite, though plain steps would not lead there."""
    backtracks: bool = False
    """The solver itself takes back such a step."""
    turns: tuple[int, ...] = ()
    """Which of the second solvers, 1 (Broyden's method) and 2 (plain steps), take over a row that is stuck."""
    exact_after: float = np.inf
    """Steps after which the iterate is a fixed point by the structure of f."""
    relative_to_start: bool = False
    """The residual is compared with the first one, not with the image: the equation is F(z) = 0."""

    def chose(self, turn: Integers) -> Bools:
        """Rows whose solver tries far points itself, and leaves them again: f says nothing there."""
        return self.backtracks & (turn == 0)

    @property
    def falling(self) -> float:
        """Factor of the best residual below which another one is lower by more than rounding."""
        return 1 - 4 * min(self.rounding, 2.0**-23)  # norms are summed in at least single precision

    @property
    def progress(self) -> float:
        """Factor of the last residual that counted as progress, below which another one does."""
        return PROGRESS if self.turns else self.falling

    def reference(self, rows: Rows, scale: Floats) -> Floats:
        """The norm that the residual is relative to, if the image has the norm `scale`."""
        return np.broadcast_to(rows.first, scale.shape) if self.relative_to_start else scale

    def tolerance(self, reference: Floats) -> Floats:
        """The residual to be met; rtol is kept above 0, since 0 times an infinite norm would be NaN."""
        return self.atol + max(self.rtol, np.finfo(np.float64).tiny) * reference

    def genuine(self, rows: Rows, step: int, residual: Floats, scale: Floats) -> Bools:
        """Whether meeting the tolerance means convergence: f = z + b meets any relative one once ‖z‖ has grown enough.

        It does if the residual has fallen by more than rounding, or if it meets the tolerance of the first step at a
        similar scale, as after a warm start just outside that tolerance.
        """
        if step == 1 or step > self.exact_after or self.relative_to_start:
            return np.ones(len(residual), dtype=bool)
        fallen = residual + 2 * self.rounding * scale < rows.first
        return fallen | ((residual <= self.tolerance(rows.first_scale)) & (scale <= 2 * rows.first_scale))

    def missing(self, rows: Rows, norms: Floats) -> float:
        """Estimate from (2·steps, rows) norms how many more steps the running row furthest from its tolerance needs."""
        residual, running = norms[-2], rows.running
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            goal = self.tolerance(self.reference(rows, norms[-1]))
            row = int(np.where(running, residual / goal, 0).argmax())
        last, first, wanted = float(residual[row]), float(norms[0][row]), float(goal[row])
        if not (0 < wanted < last < first < np.inf):
            return np.inf if len(norms) > 2 and last > wanted else 0
        return (log(last) - log(wanted)) / log(first / last) * (len(norms) // 2 - 1)

    def holds(self, rows: Rows, residual: Floats, scale: Floats) -> Bools:
        """Whether each row's value, evaluated again with these (…, rows) norms, has the residual that was found."""
        with np.errstate(invalid="ignore", over="ignore"):
            found = np.where(rows.converged, self.tolerance(self.reference(rows, scale)), rows.best)
            holds = residual <= SLACK * found + ROUNDINGS * self.rounding * scale
        return np.asarray(holds | (rows.status == _NON_FINITE))


class Rows(NamedTuple):
    """What is known about each row."""

    positions: Integers  # in the batch
    limit: Integers  # steps that the row may take
    patience: Integers  # steps without progress after which it is stuck
    status: Integers
    running: Bools
    steps: Integers
    spent: Integers  # evaluations beyond one per step
    first: Floats  # residual at the first step
    first_scale: Floats  # ‖f(z)‖ there
    best: Floats  # least residual so far
    best_scale: Floats  # ‖f(z)‖ there
    last_scale: Floats  # ‖f(z)‖ at the last step at which it was finite
    mark: Floats  # residual at the last progress
    mark_at: Integers  # step of the last progress
    peaks: Floats  # (rows, 3): largest ‖f(z)‖, or Inf, in each third of the patience, since the last lower residual
    turn: Integers  # whose turn it is: 0 the solver, 1 Broyden's method, 2 plain steps
    recovering: Bools  # to be put back at its best iterate in the next step, and to begin anew in the step after that

    @classmethod
    def fresh(cls, limit: Integers, patience: int) -> Rows:
        """The rows before the first step; a large budget expects plateaus, so patience is at least a quarter of it."""
        count = len(limit)
        infinite, none, no = np.full(count, np.inf), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
        return cls(
            positions=np.arange(count),
            limit=limit,
            patience=np.maximum(limit // 4, patience),
            status=np.full(count, RUNNING),
            running=~no,
            steps=none,
            spent=none,
            first=infinite,
            first_scale=infinite,
            best=infinite,
            best_scale=np.full(count, np.nan),
            last_scale=infinite,
            mark=infinite,
            mark_at=none,
            peaks=np.zeros((count, 3)),
            turn=none,
            recovering=no,
        )

    @classmethod
    @lru_cache(64)
    def alike(cls, count: int, limit: int, patience: int) -> Rows:
        """`fresh` rows with one limit: always the same ones, which cannot be written to."""
        rows = cls.fresh(np.full(count, limit), patience)
        for known in rows:
            known.flags.writeable = False
        return rows

    @property
    def converged(self) -> Bools:
        """The rows that have converged."""
        return self.status == _CONVERGED

    def take(self, positions: Integers) -> Rows:
        return Rows._make(known[positions] for known in self)
