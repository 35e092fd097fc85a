"""The rule: what the norms at an iterate say about each row. Every status is defined here, and nowhere else.

On the host, in NumPy float64, one entry a row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
PROMISING = 0.5
"""Fall of the residual that a row must have shown for Broyden's method to take over."""
RUNAWAY = 1e3
"""Growth over the best residual at which an accelerated solver forgets its history; and of the image over the first at
which f that is not finite any more has diverged."""
GROWTH, STEADY = 10.0, 1.2
"""An image has grown out of bounds when it is that many times the first, and has grown by STEADY in each third of the
steps without progress: a bounded map that starts small grows, too, but not on and on; or when the first residual is
lost in its rounding."""
FLOOR = 16
"""Rounding units of the image within which a residual is as good as the dtype allows."""
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
        """Rows whose value, evaluated again with these norms, has the residual that was found."""
        found = np.where(rows.status == Status.CONVERGED, self.tolerance(self.reference(rows, scale)), rows.best)
        with np.errstate(invalid="ignore"):
            holds = residual <= SLACK * found + ROUNDINGS * self.rounding * scale
        return np.asarray(holds | (rows.status == Status.NON_FINITE))


@dataclass(frozen=True)
class Rows:
    """What is known of each row."""

    index: Integers  # position in the batch
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
            index=np.arange(count),
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
        return Rows(*(getattr(self, field.name)[positions] for field in fields(self)))


class Verdict(NamedTuple):
    """What follows from some steps."""

    rows: Rows
    keep: Integers  # for each row the last of the steps whose iterate is to be kept, −1 for none of them
    restart: Bools  # rows whose history is to be forgotten
    coupled: bool  # rows that were held have changed


def judge(rule: Rule, rows: Rows, step: int, norms: Floats) -> Verdict:
    """What is known after some more steps.

    | event | what becomes of the row, the later line winning |
    |---|---|
    | no progress for `patience` steps | the next solver's turn; if there is none, STALLED |
    | likewise, while ‖f(z)‖ or the residual grew out of bounds | DIVERGED |
    | its steps are used up | MAX_STEPS; STALLED, if a second solver had taken over |
    | f(z) not finite, and not because the solver leapt | NON_FINITE; DIVERGED, if it had grown out of bounds |
    | the tolerance is met, and not only because ‖z‖ grew | CONVERGED |

    A row that has stopped is held at its value from the next look on. If its residual changes all the same, f couples
    the rows.

    Args:
        rule, rows: what is known before.
        step: number of the first of these steps.
        norms: (2·steps, rows), `‖f(z) − z‖` and `‖f(z)‖` of each step.
    """
    held = ~rows.running
    count = len(norms) // 2
    keep = np.where(held, count - 1, -1)
    restart, coupled = np.zeros_like(held), False
    with np.errstate(invalid="ignore", over="ignore"):
        for number in range(count):
            residual, scale = norms[2 * number : 2 * number + 2]
            coupled |= bool((held & ~rule.holds(rows, residual, scale)).any())
            rows, kept, again = _judge(rule, rows, step + number, residual, scale)
            keep[kept] = number
            restart |= again
    return Verdict(rows, keep, restart & rows.running, coupled)


def _judge(rule: Rule, rows: Rows, step: int, residual: Floats, scale: Floats) -> tuple[Rows, Bools, Bools]:
    if step == 1:
        rows = replace(rows, first=residual, first_scale=scale)
    tolerance = rule.tolerance(rule.reference(rows, scale))
    running, best, turn = rows.running, rows.best, rows.turn

    finite = np.isfinite(residual) & np.isfinite(scale)
    lower = running & finite & (residual < best)
    met = running & finite & (residual <= tolerance) & (step >= rule.min_steps)
    if met.any():
        met &= rule.genuine(rows, step, residual, scale)
    keep = met | lower
    best, best_scale = np.where(keep, residual, best), np.where(keep, scale, rows.best_scale)

    progressed = running & (residual < rule.progress * rows.mark)
    since = step - rows.mark_at
    third = np.minimum(3 * (since - 1) // rows.patience, 2)[:, None] == np.arange(3)
    size = np.where(finite, np.maximum(scale, residual), np.inf)[:, None]
    peaks = np.where(third & running[:, None], np.maximum(rows.peaks, size), rows.peaks)
    peaks = np.where((running & (residual < rule.falling * rows.best))[:, None], 0, peaks)

    # at its best iterate f was finite: if it is no longer so, it was not the solver that leapt
    leapt = running & ~finite & np.isfinite(best) & ~rows.recovering & (turn < 2) & rule.may_leap
    broken = running & ~finite & ~leapt
    stuck = running & ~progressed & (since >= rows.patience) & (step >= rule.min_steps)
    passed_on = np.zeros_like(stuck)
    first = np.maximum(rows.first, rows.first_scale)
    bound = GROWTH * first
    status = rows.status
    if stuck.any():
        floored = (best <= FLOOR * rule.rounding * best_scale) & rule.genuine(rows, step, best, best_scale)
        following = _following(rule, rows, best, step)
        early, middle, late = peaks.T
        steadily = (early > 0) & (middle > STEADY * early) & (late > STEADY * middle) & (late > bound)
        beyond = (2 * rule.rounding * best_scale >= rows.first) & (best_scale > bound)
        grown, leaps = (steadily | beyond) & ~floored, np.isinf(peaks).any(1)
        passed_on = stuck & ~floored & ~(grown & ~leaps) & (following > turn) & ~met & ~broken
        ending = np.where(leaps, Status.NON_FINITE, np.where(grown, Status.DIVERGED, Status.STALLED))
        status = np.where(stuck, ending, status)
        turn = np.where(passed_on, following, turn)
        stuck = stuck & ~passed_on
    spent_up = running & (step >= rows.limit)
    status = np.where(spent_up & ~stuck, np.where(rows.turn > 0, Status.STALLED, Status.MAX_STEPS), status)
    grew = rows.last_scale > RUNAWAY * first
    status = np.where(broken, np.where(grew, Status.DIVERGED, Status.NON_FINITE), status)
    status = np.where(met, Status.CONVERGED, status)
    stopped = stuck | spent_up | broken | met
    passed_on &= ~stopped
    restart = running & ~leapt & ((residual > RUNAWAY * rows.best) | rows.recovering)
    on = running & ~stopped
    return (
        replace(
            rows,
            status=np.where(on, RUNNING, status),
            running=on,
            steps=np.where(stopped, step, rows.steps),
            best=best,
            best_scale=best_scale,
            last_scale=np.where(running & finite, scale, rows.last_scale),
            mark=np.where(progressed, residual, np.where(passed_on, best, rows.mark)),
            mark_at=np.where(progressed | passed_on, step, rows.mark_at),
            peaks=np.where(passed_on[:, None], 0, peaks),
            turn=turn,
            recovering=on & (passed_on | (leapt & ~(rule.backtracks & (turn == 0)))),
        ),
        keep,
        restart,
    )


def _following(rule: Rule, rows: Rows, best: Floats, step: int) -> Integers:
    """Whose turn it is for each row after the solver that is stuck; 0: nobody's."""
    plain = 2 if 2 in rule.turns else 0
    broyden = 1 if 1 in rule.turns else plain
    following = np.where((rows.turn == 0) & (best < PROMISING * rows.first), broyden, plain)
    return np.where(step + 2 <= rows.limit, following, 0)
