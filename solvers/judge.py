"""The rule, which decides the status of each row from the norms at its iterates.

Every status is defined here, and nowhere else. On the host, in NumPy float64, one entry per row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .rows import RUNNING, Bools, Floats, Integers, Rows, Rule
from .status import Status

PROMISING = 0.5
"""Factor of the first residual below which a row must have come for Broyden's method to take over."""
RUNAWAY = 1e3
"""Growth over the best residual at which an accelerated solver forgets its history; and growth over the first norms by
which a row whose f is no longer finite has diverged."""
GROWTH, STEADY = 10.0, 1.2
"""An image has grown out of bounds if it exceeds GROWTH times the first norms, and either grew by the factor STEADY
from third to third of the steps without progress (a bounded map that starts small also grows, but not steadily), or
hides the first residual in its rounding."""
FLOOR = 16
"""Rounding units of the image within which a residual is as good as the dtype allows."""


class Verdict(NamedTuple):
    """What the rule concludes from some steps."""

    rows: Rows
    keep: Integers  # for each row, the index of the last step whose iterate is to be kept; −1: none
    restart: Bools  # rows whose history is to be forgotten
    coupled: bool  # rows that were held have changed
    redirected: bool  # some row, perhaps stopped since, should have continued differently
    astray: Bools  # such rows


def judge(
    rule: Rule, rows: Rows, step: int, norms: Floats, held: Bools | None = None, astray: Bools | None = None
) -> Verdict:
    """Apply the rule to some more steps.

    | event | what becomes of the row; later lines win |
    |---|---|
    | no progress for `patience` steps | the next solver's turn; if there is none, STALLED |
    | likewise, while ‖f(z)‖ grew out of bounds | DIVERGED |
    | its steps are used up | MAX_STEPS; STALLED if a second solver had taken over |
    | f(z) not finite, and not because the solver leapt | NON_FINITE; DIVERGED if it had grown out of bounds |
    | either, for a root, when a second solver had taken over | STALLED: its first step has the unit of F |
    | the tolerance is met, and not only because ‖z‖ grew | CONVERGED |

    If the structure of f makes a row exact after some steps, the row continues until then even where f is not finite,
    provided that f was finite at first. A row that has stopped is held at its value from the next check on. If its
    residual still changes, f couples the rows.

    A row that has leapt, or is passed on, is put back at its best iterate in the next stretch, and begins anew in the
    step after that; until then it is astray, and a point where f is not finite says nothing about it.

    Args:
        rule, rows: what is known before.
        step: number of the first of these steps.
        norms: (2·steps, rows), `‖f(z) − z‖` and `‖f(z)‖` of each step.
        held: rows that do not move; None: those that have already stopped.
        astray: rows that should have continued differently since an earlier step of the same stretch; None: none.
    """
    held = ~rows.running if held is None else held
    astray = np.zeros_like(held) if astray is None else astray
    back = rows.recovering & ~astray  # put back in the first of these steps
    count = len(norms) // 2
    keep = np.where(held, count - 1, -1)
    restart, coupled, watched, redirected = np.zeros_like(held), False, bool(held.any()), False
    with np.errstate(invalid="ignore", over="ignore"):
        for number in range(count):
            if not (watched or rows.running.any()):
                break
            residual, scale = norms[2 * number : 2 * number + 2]
            coupled |= watched and bool((held & np.isfinite(residual) & ~rule.holds(rows, residual, scale)).any())
            rows, kept, again = _judge(rule, rows, step + number, residual, scale, astray)
            if number == 0 and count > 1:
                again &= ~back  # they have begun anew in the second step
            keep[kept] = number
            restart |= again
            otherwise = again & rows.running | rows.recovering
            redirected |= bool(otherwise.any())
            astray = astray | otherwise
    return Verdict(rows, keep, restart & rows.running, coupled, redirected, astray)


def _judge(
    rule: Rule, rows: Rows, step: int, residual: Floats, scale: Floats, astray: Bools
) -> tuple[Rows, Bools, Bools]:
    if step == 1:
        rows = rows._replace(first=residual, first_scale=scale)
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
    calm = running & (residual < rule.falling * rows.best)
    peaks = np.where(calm[:, None], 0, rows.peaks)
    if (calm != running).any():
        third = np.minimum(3 * (since - 1) // rows.patience, 2)[:, None] == np.arange(3)
        size = np.where(rule.chose(turn), 0, np.where(finite, scale, np.inf))[:, None]
        peaks = np.where(third & (running & ~calm)[:, None], np.maximum(peaks, size), peaks)

    # a row that was put back is at its best iterate, where f was finite: if f no longer is, the solver did not leap
    leapt = broken = none = np.zeros_like(running)
    if not finite.all():
        leapt = running & ~finite & np.isfinite(best) & (astray | ~rows.recovering & (turn < 2)) & rule.may_leap
        broken = running & ~finite & ~leapt
        if step <= rule.exact_after < np.inf:
            broken &= ~np.isfinite(rows.first) | (step >= rows.limit)  # until then f corrects the iterate, step by step
    stuck = running & ~progressed & (since >= rows.patience) & (step >= rule.min_steps)
    passed_on = none
    blind = rule.relative_to_start & (turn > 0)  # a second solver's first step has the arbitrary unit of F
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
        status = np.where(stuck, np.where(blind, Status.STALLED, ending), status)
        turn = np.where(passed_on, following, turn)
        stuck = stuck & ~passed_on
    spent_up = running & (step >= rows.limit)
    status = np.where(spent_up & ~stuck, np.where(rows.turn > 0, Status.STALLED, Status.MAX_STEPS), status)
    grew = rows.last_scale > RUNAWAY * first
    status = np.where(broken, np.where(grew, Status.DIVERGED, Status.NON_FINITE), status)
    status = np.where(broken & blind, Status.STALLED, status)
    status = np.where(met, Status.CONVERGED, status)
    stopped = stuck | spent_up | broken | met
    passed_on = passed_on & ~stopped
    restart = running & ~leapt & ((residual > RUNAWAY * rows.best) | rows.recovering)
    on = running & ~stopped
    return (
        rows._replace(
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
            recovering=on & (passed_on | (leapt & (astray | ~rule.chose(turn)))),
        ),
        keep,
        restart,
    )


def _following(rule: Rule, rows: Rows, best: Floats, step: int) -> Integers:
    """For each row, the solver whose turn is next after the one that is stuck; 0: none."""
    plain = 2 if 2 in rule.turns else 0
    broyden = 1 if 1 in rule.turns else plain
    following = np.where((rows.turn == 0) & (best < PROMISING * rows.first), broyden, plain)
    return np.where(step + 2 <= rows.limit, following, 0)
