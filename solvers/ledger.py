"""The books of a solve: which rows run, their best residual, why they stopped. On the host, in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .solution import Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

PATIENCE = 30
"""Least number of steps without a new best residual after which a row stops; a quarter of max_steps where that is more,
since whoever allows many steps expects plateaus."""
DRIFT = 10.0
"""Growth of residual or image since the first step at which a row out of patience has diverged rather than stalled."""
RUNAWAY = 1e3
"""Growth over the best residual at which an accelerated solver forgets its history."""
SLACK = 1.01
"""Factor over its tolerance up to which a row counts as still converged when it is evaluated again."""
ROUNDINGS = 4
"""Likewise in rounding units of the image: products of another batch size round differently."""


@dataclass
class Rows:
    """One entry a row, for the rows that are in the books."""

    index: Integers  # position in the batch
    active: Bools
    best: Floats  # smallest absolute residual so far
    relative: Floats  # relative residual of the iterate kept
    first: Floats  # absolute residual at the first step
    first_scale: Floats  # ‖f(z)‖ at the first step
    improved_at: Integers  # step of the last new best
    status: Integers
    steps: Integers

    @classmethod
    def fresh(cls, count: int) -> Rows:
        zeros, infinite = np.zeros(count, dtype=np.int64), np.full(count, np.inf)
        return cls(
            index=np.arange(count),
            active=np.ones(count, dtype=bool),
            best=infinite,
            relative=np.full(count, np.nan),
            first=infinite,
            first_scale=infinite,
            improved_at=zeros,
            status=np.full(count, int(Status.MAX_STEPS), dtype=np.int64),
            steps=zeros.copy(),
        )

    def take(self, positions: Integers) -> Rows:
        return Rows(*(getattr(self, field.name)[positions] for field in fields(self)))


@dataclass
class Books:
    """The closed books, one entry a row of the batch."""

    best: Floats
    relative: Floats
    status: Integers
    steps: Integers
    trace: Floats  # (steps, batch)


class Ledger:
    """Books for the current rows of a solve; `drop` files the rows that have stopped, `close` returns all of them.

    What stops a row, the later line of the table winning:

    | event | status |
    |---|---|
    | no new best residual for `patience` steps | STALLED |
    | the same, and residual or image have grown by `DRIFT` since the first step | DIVERGED |
    | residual or image not finite | NON_FINITE |
    | the tolerance is met, and not only because ‖z‖ grew | CONVERGED |
    """

    def __init__(self, count: int, rtol: float, atol: float, max_steps: int, rounding: float) -> None:
        self.rtol, self.atol, self.rounding = rtol, atol, rounding
        self.patience = max(PATIENCE, max_steps // 4)
        self.rows = Rows.fresh(count)
        self.all_active = True
        self._trace: list[tuple[Integers, Floats]] = []
        rows = self.rows
        self._books = Books(
            rows.best.copy(), rows.relative.copy(), rows.status.copy(), rows.steps.copy(), trace=np.empty(0)
        )

    def enter(self, step: int, residual: Floats, scale: Floats) -> tuple[Bools | None, Bools | None]:
        """Book `‖f(z) − z‖` and `‖f(z)‖` of this step's iterates.

        Returns the rows whose iterate is the one to keep and the rows whose history is to be forgotten; None for
        all of them and none of them, the healthy case, which costs a handful of operations.
        """
        rows = self.rows
        tolerance = self.rtol * scale + self.atol
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = residual / scale
            falling = residual < rows.best * (1 - 4 * self.rounding)
        if step == 1:
            rows.first, rows.first_scale = residual, scale
        if self.all_active and falling.all() and (residual > tolerance).all():
            rows.best, rows.relative = residual, relative
            rows.improved_at = np.full(len(residual), step)
            self._trace.append((rows.index, relative))
            return None, None
        relative = np.where(residual == 0, 0.0, relative)
        return self._enter_carefully(step, residual, scale, tolerance, relative, falling)

    def _enter_carefully(
        self, step: int, residual: Floats, scale: Floats, tolerance: Floats, relative: Floats, falling: Bools
    ) -> tuple[Bools, Bools]:
        rows = self.rows
        # a stopped row keeps its value; if f couples the rows, its residual may not keep
        lapsed = ~rows.active & (rows.status == Status.CONVERGED)
        lapsed &= ~(residual <= SLACK * tolerance + ROUNDINGS * self.rounding * scale)
        if lapsed.any():
            rows.active |= lapsed
            rows.best[lapsed], rows.status[lapsed], rows.improved_at[lapsed] = np.inf, Status.MAX_STEPS, step
        active = rows.active
        self._trace.append((rows.index, np.where(active, relative, np.nan)))
        finite = np.isfinite(residual) & np.isfinite(scale)
        converged = active & finite & (residual <= tolerance) & self._genuine(step, residual, scale)
        keep = converged | (active & finite & (residual < rows.best))
        rows.improved_at = np.where(active & falling, step, rows.improved_at)
        impatient = step - rows.improved_at >= self.patience
        with np.errstate(invalid="ignore", over="ignore"):
            reach = DRIFT * np.maximum(rows.first, rows.first_scale)
            drifted = (residual > DRIFT * rows.first) | (scale > reach)
            runaway = residual > RUNAWAY * rows.best
        for event, status in (
            (impatient, Status.STALLED),
            (impatient & drifted, Status.DIVERGED),
            (~finite, Status.NON_FINITE),
            (converged, Status.CONVERGED),
        ):
            rows.status[active & event] = status
        stopped = active & (impatient | ~finite | converged)
        rows.steps[stopped] = step
        rows.active = active & ~stopped
        self.all_active = bool(rows.active.all())
        rows.best = np.where(keep, residual, rows.best)
        # a row with no finite iterate shows the residual it had
        rows.relative = np.where(keep | ((step == 1) & ~finite), relative, rows.relative)
        return keep, rows.active & runaway

    def _genuine(self, step: int, residual: Floats, scale: Floats) -> Bools:
        """Whether meeting the tolerance says something: f = z + b meets any relative one once ‖z‖ has grown enough.

        Either the residual has fallen by more than rounding, or it meets the tolerance of the first step at a like
        scale, as after a warm start just outside it.
        """
        rows = self.rows
        if step == 1:
            return np.ones(len(residual), dtype=bool)
        fallen = residual + 2 * self.rounding * scale < rows.first
        at_first_scale = (residual <= self.rtol * rows.first_scale + self.atol) & (scale <= 2 * rows.first_scale)
        return fallen | at_first_scale

    def drop(self) -> Integers:
        """File the rows that have stopped and go on without them; returns the positions of those that stay."""
        self._file()
        stay = np.flatnonzero(self.rows.active)
        self.rows, self.all_active = self.rows.take(stay), True
        return stay

    def close(self, step: int) -> Books:
        """Stop what still runs and return the books of all rows, in the order of the batch."""
        self.rows.steps[self.rows.active] = step
        self._file()
        books = self._books
        books.trace = np.full((len(self._trace), len(books.status)), np.nan)
        for line, (index, relative) in zip(books.trace, self._trace, strict=True):
            line[index] = relative
        return books

    def _file(self) -> None:
        rows, books = self.rows, self._books
        for booked, current in (
            (books.best, rows.best),
            (books.relative, rows.relative),
            (books.status, rows.status),
            (books.steps, rows.steps),
        ):
            booked[rows.index] = current
