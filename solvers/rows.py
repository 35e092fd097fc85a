"""What a row is judged by, and what is known of it. On the host, in NumPy float64, one entry a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .solution import Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

RUNNING = -1
"""The status of a row that has not stopped."""
PROGRESS = 0.75
"""Fall of the residual below which a solver that may be caught makes no progress: so, a digit takes 240 steps."""
SLACK, ROUNDINGS = 1.01, 4
"""Evaluated again, in a batch of another size, a row still holds up to this factor of its residual and so many rounding
units of its image."""


@dataclass(frozen=True)
class Rule:
    """What a row is judged by."""

    rtol: float
    atol: float
    rounding: float
    """Relative, of what f returns."""
    min_steps: int = 0
    may_leap: bool = False
    """The solver may propose what f cannot take, though plain steps would not lead there."""
    backtracks: bool = False
    """It takes such a step back itself."""
    turns: tuple[int, ...] = ()
    """Which of the second solvers, 1 (Broyden's method) and 2 (plain steps), take over a row that is stuck."""
    exact_after: float = np.inf
    """Steps after which the iterate is a fixed point by the structure of f."""
    relative_to_start: bool = False
    """The residual is compared with the first one, not with the image: the equation is F(z) = 0."""

    @property
    def falling(self) -> float:
        """Factor below the best residual at which another is lower, not the same one rounded."""
        return 1 - 4 * min(self.rounding, 2.0**-23)  # norms are sums in single precision at least

    @property
    def progress(self) -> float:
        """Factor below the last residual that counted as progress at which another does."""
        return PROGRESS if self.turns else self.falling

    def reference(self, rows: Rows, scale: Floats) -> Floats:
        """What the residual is relative to, where the image has this norm."""
        return np.broadcast_to(rows.first, scale.shape) if self.relative_to_start else scale

    def tolerance(self, reference: Floats) -> Floats:
        """The residual to be met; a tolerance of 0 times an infinite norm would be NaN."""
        return self.atol + max(self.rtol, np.finfo(np.float64).tiny) * reference

    def genuine(self, rows: Rows, step: int, residual: Floats, scale: Floats) -> Bools:
        """Whether meeting the tolerance says something: f = z + b meets any relative one once ‖z‖ has grown enough.

        Either the residual has fallen by more than rounding, or it meets the tolerance of the first step at a like
        scale, as after a warm start just outside it.
        """
        if step == 1 or step > self.exact_after or self.relative_to_start:
            return np.ones(len(residual), dtype=bool)
        fallen = residual + 2 * self.rounding * scale < rows.first
        return fallen | ((residual <= self.tolerance(rows.first_scale)) & (scale <= 2 * rows.first_scale))

    def holds(self, rows: Rows, residual: Floats, scale: Floats) -> Bools:
        """Rows whose value, evaluated again with these norms, (…, rows), has the residual that was found."""
        found = np.where(rows.status == Status.CONVERGED, self.tolerance(self.reference(rows, scale)), rows.best)
        with np.errstate(invalid="ignore"):
            holds = residual <= SLACK * found + ROUNDINGS * self.rounding * scale
        return np.asarray(holds | (rows.status == Status.NON_FINITE))


class Rows(NamedTuple):
    """What is known of each row."""

    positions: Integers  # in the batch
    limit: Integers  # steps that it may take
    patience: Integers  # steps without progress after which it is stuck
    status: Integers
    running: Bools
    steps: Integers
    spent: Integers  # evaluations beyond one a step
    first: Floats  # residual at the first step
    first_scale: Floats  # ‖f(z)‖ there
    best: Floats  # least residual so far
    best_scale: Floats  # ‖f(z)‖ there
    last_scale: Floats  # ‖f(z)‖ at the last step at which it was finite
    mark: Floats  # residual at the last progress
    mark_at: Integers  # step of the last progress
    peaks: (
        Floats  # (rows, 3): largest ‖f(z)‖ or ‖f(z) − z‖ in each third of the patience, since the last lower residual
    )
    turn: Integers  # whose turn it is: 0 the solver, 1 and 2 the second ones
    recovering: Bools  # to be held at its best iterate for the next steps, and to go on from there without history

    @classmethod
    def fresh(cls, limit: Integers, patience: int) -> Rows:
        """Before the first step; a quarter of the steps is more patience, since who allows many expects plateaus."""
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

    def take(self, positions: Integers) -> Rows:
        return Rows._make(known[positions] for known in self)
