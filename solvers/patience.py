"""How long ago a row's residual last fell enough, and when the rule must check whether the row is stuck."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np

from .rows import Bools, Floats, Integers, Rows, Rule, least_so_far


class Marks(NamedTuple):
    """The records that decide whether a row is stuck."""

    mark: Floats
    mark_at: Integers
    peaks: Floats


def marked(rule: Rule, rows: Rows, marks: Marks, step: int, norms: Floats, until: Integers | None = None) -> Marks:
    """The marks after ordinary steps, as `judge` would set them; `rows` and `marks` are those before.

    Args:
        rule, rows, marks: what is known before.
        step: number of the first of these steps.
        norms: (2·steps, rows) norms of these steps.
        until: for each row, the number of these steps after which it converges; larger if it does not.
    """
    running, residuals, scales = rows.running, norms[::2], norms[1::2]
    steps = np.arange(len(residuals))[:, None]
    runs = running if until is None else running & (steps < until)
    with np.errstate(invalid="ignore", over="ignore"):
        masked = np.where(runs, residuals, inf)
        least = least_so_far(rows.best, masked)
        calm = masked < rule.falling * least[:-1]
        everywhere = bool((calm | ~runs).all())
        mark, progressed = _progress(rule, running, marks.mark, masked)
        last = np.where(calm, steps, -1).max(0)
        peaks = np.where((running & (last >= 0))[:, None], 0, marks.peaks)
        if not everywhere:
            at = np.concatenate((marks.mark_at[None], np.where(progressed, step + steps, 0)))
            before = np.maximum.accumulate(at)[:-1]  # the step of each mark, before each step
            third = np.minimum(3 * (step + steps - before - 1) // rows.patience, 2)
            since = runs & (steps > last) & ~rule.chose(rows.turn)
            sizes = [np.where(since & (third == part), scales, 0).max(0) for part in range(3)]
            peaks = np.maximum(peaks, np.stack(sizes, 1))
    return Marks(mark, _latest(progressed, marks.mark_at, step), peaks)


class Patience:
    """The step by which some row may be stuck, or has used up its steps.

    A cheap lower bound on it is kept; the marks are computed only when this bound is reached.
    """

    def __init__(self, rule: Rule, rows: Rows) -> None:
        self.rule, self.alike = rule, True
        self.know(rows)

    def know(self, rows: Rows) -> None:
        """Restart from rows whose marks are known."""
        self._mark, self._mark_at = rows.mark, rows.mark_at  # as they were before the fresh steps
        self._bounded: list[Floats] = []  # residuals of these, up to where `_since` is known
        self._fresh: list[Floats] = []  # and of those after
        self._since = rows.mark_at  # for each row, a step no later than its last progress
        self._least = np.minimum(rows.best, rows.mark)  # lower at a residual whose image was not finite
        self.look(rows)

    def look(self, rows: Rows) -> None:
        """Update the deadline and the limit from rows of which some may have stopped."""
        self.deadline = self.limit = 0
        """The first steps at which a row may be stuck, and at which one uses up its steps; 0: rows are recovering."""
        running = rows.running
        if np.logical_or.reduce(rows.recovering) or not np.logical_or.reduce(running):
            return
        stuck, limits = self._since + rows.patience, rows.limit
        if not np.logical_and.reduce(running):
            stuck, limits = stuck[running], limits[running]
        self.deadline, self.limit = int(np.minimum.reduce(stuck)), int(np.minimum.reduce(limits))
        self.alike = self.limit == np.maximum.reduce(limits)

    def add(self, residuals: Floats) -> None:
        """Add the next steps."""
        self._fresh.append(residuals)

    def is_over(self, step: int) -> bool:
        """Whether a step with a lower residual in every row needs the rule."""
        return step >= self.deadline or step >= self.limit

    def room(self, rows: Rows, step: int, residuals: Floats, least: Floats) -> int:
        """How many of the next steps need no judgement by the rule: no row can be stuck, or stop but in the last.

        Args:
            rows: what is known before them.
            step: number of the first of them.
            residuals: theirs, (steps, rows).
            least: least residuals before them.
        """
        end = step + len(residuals)
        if self.deadline < end and not self._sure(rows, step, residuals, least):
            if self._fresh:
                self._bound(rows, step)
            if self._bounded and self.deadline < end:
                self._work_out(rows, step)
            end = min(end, self.deadline)
        return max(min(end, self.limit + self.alike) - step, 0)

    def _sure(self, rows: Rows, step: int, residuals: Floats, least: Floats) -> bool:
        """Whether some progress of each row is never older than its patience. Steps one by one are left to `_bound`."""
        if len(residuals) == 1:
            return False
        lowest = least_so_far(np.minimum(least, self._mark), residuals)
        later = np.arange(max(self.deadline - step, 0) + 1, len(lowest))
        earlier = np.maximum(later - int(np.minimum.reduce(rows.patience)), 0)
        return bool(((lowest[later] < self.rule.progress * lowest[earlier]) | ~rows.running).all())

    def _bound(self, rows: Rows, step: int) -> None:
        residuals = np.concatenate(self._fresh)
        # a mark is never below the least residual so far: one that falls below this is progress
        lowest = least_so_far(self._least, residuals)
        self._least = lowest[-1]
        above = np.add.reduce(self._least < self.rule.progress * lowest)
        self._since = np.where(above, step - len(residuals) + above - 1, self._since)
        self._bounded.append(residuals)
        self._fresh = []
        self.look(rows)

    def _work_out(self, rows: Rows, step: int) -> None:
        residuals = np.concatenate(self._bounded)
        self._bounded = []
        self._mark, progressed = _progress(self.rule, rows.running, self._mark, residuals)
        self._since = self._mark_at = _latest(progressed, self._mark_at, step - len(residuals))
        self.look(rows)


def _progress(rule: Rule, running: Bools, mark: Floats, residuals: Floats) -> tuple[Floats, Bools]:
    """The marks after steps with these residuals, and the steps in which each row made progress."""
    threshold, lowered = np.where(running, rule.progress * mark, -1.0), rule.progress * residuals
    found = residuals < np.concatenate((threshold[None], lowered[:-1]))
    if np.logical_and.reduce(found, axis=None):  # every row in every step
        return residuals[-1], found
    for number, here in enumerate(found):
        np.less(residuals[number], threshold, out=here)
        np.copyto(threshold, lowered[number], where=here)
    return np.where(found.any(0), residuals[_last(found), np.arange(len(mark))], mark), found


def _latest(progressed: Bools, mark_at: Integers, step: int) -> Integers:
    """The step of each row's last progress, after steps of which the first has this number."""
    return np.where(progressed.any(0), step + _last(progressed), mark_at)


def _last(found: Bools) -> Integers:
    """For each row, the index of the last step found, if there is one."""
    return len(found) - 1 - found[::-1].argmax(0)
