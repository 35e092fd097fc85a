"""The books of a solve: which rows run, their best residual, why they stopped."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from .books import Archive, Books
from .criterion import Criterion
from .rows import DRIFT, Bools, Floats, Integers, Rows
from .solution import Status
from .streak import Streak

PATIENCE = 30
"""Least number of steps without a new best residual after which a row stops; a quarter of max_steps where that is more,
since whoever allows many steps expects plateaus."""
RUNAWAY = 1e3
"""Growth over the best residual at which an accelerated solver forgets its history; and growth of ‖z‖ over the last
image at which the solver, not f, is held to account for what f makes of z."""
TINY = 1e-18
"""Residual down to which a norm in single precision is what it seems."""


class Verdict(NamedTuple):
    """What follows from a look at the points since the last one."""

    keep: Integers  # for each row the point to keep, −1 for none of them
    forget: Bools  # rows whose history is to be forgotten


class Ledger:
    """Books for the current rows of a solve; `drop` files the rows that have stopped, `close` returns all of them.

    What stops a row, the later line of the table winning:

    | event | status |
    |---|---|
    | no new best residual for `patience` steps | STALLED |
    | the same, and meanwhile the residual was `DRIFT` times its best, or the image the first | DIVERGED |
    | residual or image not finite, and not because the solver leapt | NON_FINITE |
    | the tolerance is met, and not only because ‖z‖ grew | CONVERGED |
    """

    def __init__(self, count: int, rtol: float, atol: float, max_steps: int, rounding: float) -> None:
        self.criterion = Criterion(rtol, atol, rounding)
        self.patience = max(PATIENCE, max_steps // 4)
        self.rows = Rows.fresh(count)
        self.calm = True  # all rows are active, none has been led astray
        self._streak = Streak(self.criterion)
        self._archive = Archive()

    def glance(self, step: int, norms: Tensor) -> int | Integers | None:
        """Book the next points, the first of them that of this step, if none of their rows needs a decision.

        `norms`, (2·points, rows), are `‖f(z) − z‖` and `‖f(z)‖` of each point, on the host. Returns the point that all
        rows keep, or each row's own, −1 for none of them (a row that is held is at its best at each); or None: nothing
        is booked, look closer.
        """
        if self.calm and self._streak.extend(norms, self.rows.best):
            return len(norms) // 2 - 1
        self._settle(step)
        return self._weigh(step, norms.double().numpy())

    def _settle(self, step: int) -> None:
        """Book the streak that ended before this step."""
        norms = self._streak.end()
        if norms is not None:
            self._book(step - len(norms) // 2, norms)
            self._all_improved(step - 1, norms)

    def _book(self, step: int, norms: Floats) -> None:
        self._archive.note(norms)
        self.rows.last_scale = norms[-1] if self.calm else np.where(self.rows.active, norms[-1], self.rows.last_scale)
        if step == 1:
            self.rows.first, self.rows.first_scale = norms[0], norms[1]

    def _all_improved(self, step: int, norms: Floats) -> None:
        rows = self.rows
        rows.improved_at.fill(step)
        rows.drifted.fill(False)
        if self.calm:
            rows.best, rows.best_scale = norms[-2], norms[-1]
        else:
            rows.best, rows.best_scale = np.where(rows.active, norms[-2:], (rows.best, rows.best_scale))

    def _weigh(self, step: int, norms: Floats) -> int | Integers | None:
        """A glance at many rows, or at some that do not improve, that converge, or that have stopped."""
        rows, last = self.rows, len(norms) // 2 - 1
        residual, scale, before = norms[::2], norms[1::2], rows.best
        if last:
            before = np.fmin.accumulate(np.concatenate((before[None], residual)))[:-1]
        tolerance = self.criterion.tolerance(scale)
        healthy = (residual > tolerance) & (residual < RUNAWAY * before)
        if not self.calm:
            if rows.led_astray.any() or self.criterion.lapsed(~rows.active, rows.status, residual, scale).any():
                return None
            healthy |= ~rows.active
            norms = np.where(rows.active, norms, np.nan)
            residual, scale = norms[::2], norms[1::2]
        falling = residual < self.criterion.falling * before
        met = None
        if not (last or healthy.all()):
            # what is tiny may be an artefact of squares that left the range: not to be judged at a glance
            met = ~healthy & (residual <= tolerance) & (residual < before) & (residual > TINY) & np.isfinite(scale)
            healthy |= met & self.criterion.genuine(rows, step, residual, scale)
        if not healthy.all() or step + last - rows.improved_at.min(where=rows.active, initial=step) >= self.patience:
            return None
        keep: int | Integers = last
        if (falling if self.calm else falling | ~rows.active).all():
            self._all_improved(step + last, norms)
        else:
            keep = rows.improve(step, residual, scale, before, self.criterion.falling)
        self._book(step, norms)
        if met is not None:
            rows.status[met[0]], rows.steps[met[0]] = Status.CONVERGED, step
            rows.active, self.calm = rows.active & ~met[0], False
        return keep

    def enter(self, step: int, norms: Floats, sizes: Floats | None) -> Verdict:
        """Book the next points; `sizes`, (points, rows), are `‖z‖`, needed where `norms` are not finite."""
        held = ~self.rows.active  # rows that stop at one of these points move on until the next look
        keep = np.where(held, len(norms) // 2 - 1, -1)
        forget = np.zeros(len(keep), dtype=bool)
        if step == 1:
            self.rows.first, self.rows.first_scale = norms[0], norms[1]
        with np.errstate(invalid="ignore", over="ignore"):
            for point in range(len(norms) // 2):
                size = np.zeros(len(keep)) if sizes is None else sizes[point]
                kept, runaway = self._enter(step + point, norms[2 * point], norms[2 * point + 1], size, held)
                keep[kept] = point
                forget |= runaway
        return Verdict(keep, forget & self.rows.active)

    def _enter(self, step: int, residual: Floats, scale: Floats, size: Floats, held: Bools) -> tuple[Bools, Bools]:
        rows = self.rows
        # a stopped row keeps its value; if f couples the rows, its residual may not keep
        lapsed = self.criterion.lapsed(held & ~rows.active, rows.status, residual, scale)
        if lapsed.any():
            rows.active = rows.active | lapsed
            rows.best = np.where(lapsed, np.inf, rows.best)
            rows.status[lapsed], rows.improved_at[lapsed] = Status.MAX_STEPS, step
        active = rows.active
        self._archive.note(np.where(active, (residual, scale), np.nan))
        finite = np.isfinite(residual) & np.isfinite(scale)
        converged = active & finite & (residual <= self.criterion.tolerance(scale))
        if converged.any():
            converged &= self.criterion.genuine(rows, step, residual, scale)
        keep = converged | (active & finite & (residual < rows.best))
        falling = active & (residual < self.criterion.falling * rows.best)
        rows.improved_at[falling] = step
        reach = DRIFT * np.maximum(rows.first, rows.first_scale)
        rows.drifted = ~falling & (rows.drifted | (residual > DRIFT * rows.best) | ~(scale <= reach))
        forget = residual > RUNAWAY * rows.best
        stopped = active & (step - rows.improved_at >= self.patience)
        if stopped.any():
            lost = rows.drifted & ~self.criterion.resolved(rows, step)
            rows.status[stopped] = np.where(lost, Status.DIVERGED, Status.STALLED)[stopped]
        leapt = np.zeros_like(finite)
        if not finite.all():
            leapt = active & ~finite & np.isfinite(rows.best) & ~(size <= RUNAWAY * rows.last_scale)
            broken = active & ~finite & ~leapt
            rows.status[broken] = Status.NON_FINITE
            stopped |= broken
        rows.status[converged] = Status.CONVERGED
        stopped |= converged
        rows.steps[stopped] = step
        rows.active = active & ~stopped
        rows.best = np.where(keep, residual, rows.best)
        rows.best_scale = np.where(keep, scale, rows.best_scale)
        rows.last_scale = np.where(finite, scale, rows.last_scale)
        forget = rows.active & (forget | rows.led_astray) & ~leapt
        rows.led_astray = rows.active & leapt
        self.calm = bool(rows.active.all()) and not leapt.any()
        return keep, forget

    def charge(self, spent: Integers) -> None:
        """Book evaluations within a step of the solver."""
        self.rows.products += np.where(self.rows.active, spent, 0)

    def drop(self) -> Integers:
        """File the rows that have stopped and go on without them; returns the positions of those that stay."""
        self._archive.file(self.rows)
        stay = np.flatnonzero(self.rows.active)
        self.rows = self.rows.take(stay)
        self.calm = not self.rows.led_astray.any()
        return stay

    def close(self, step: int) -> Books:
        """Stop what still runs and return the books of all rows, in the order of the batch."""
        self._settle(step + 1)
        self.rows.steps[self.rows.active] = step
        return self._archive.close(self.rows, step)
