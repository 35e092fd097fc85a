"""What the books hold of each row. On the host, in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .solution import Status

DRIFT = 10.0
"""Growth of the residual over its best, or of the image over the first one, since the last new best, at which a row out
of patience has diverged rather than stalled."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass
class Rows:
    """One entry a row, for the rows that are in the books."""

    index: Integers  # position in the batch
    active: Bools
    best: Floats  # smallest absolute residual so far
    best_scale: Floats  # ‖f(z)‖ at the iterate kept
    first: Floats  # absolute residual at the first step
    first_scale: Floats  # ‖f(z)‖ at the first step
    last_scale: Floats  # ‖f(z)‖ at the last step
    improved_at: Integers  # step of the last new best
    drifted: Bools  # since the last new best the residual was far above it, or the image far above the first
    led_astray: Bools  # the solver's proposal left the range in which f can be evaluated
    status: Integers
    steps: Integers
    products: Integers  # evaluations within the solver's steps

    @classmethod
    def fresh(cls, count: int) -> Rows:
        best, first, first_scale, last_scale = np.full((4, count), np.inf)
        improved_at, steps, products = np.zeros((3, count), dtype=np.int64)
        drifted, led_astray = np.zeros((2, count), dtype=bool)
        return cls(
            index=np.arange(count),
            active=np.ones(count, dtype=bool),
            best=best,
            best_scale=np.full(count, np.nan),
            first=first,
            first_scale=first_scale,
            last_scale=last_scale,
            improved_at=improved_at,
            drifted=drifted,
            led_astray=led_astray,
            status=np.full(count, int(Status.MAX_STEPS), dtype=np.int64),
            steps=steps,
            products=products,
        )

    def take(self, positions: Integers) -> Rows:
        return Rows(*(getattr(self, field.name)[positions] for field in fields(self)))

    def improve(self, step: int, residual: Floats, scale: Floats, before: Floats, falling: float) -> Integers:
        """Note the new best points from `step` on; returns for each row the last of them, −1 for none.

        Args:
            residual, scale: (points, rows), NaN for rows that have stopped.
            before: (points, rows) or (rows,), the least residual before each point.
            falling: factor below which it has fallen in earnest.
        """
        improved, fell, far = residual < before, residual < falling * before, residual > DRIFT * before
        if len(residual) == 1:
            improved, fell, far = improved[0], fell[0], far[0]
            self.improved_at[fell] = step
            self.drifted = ~fell & (self.drifted | far)
            self.best = np.where(improved, residual[0], self.best)
            self.best_scale = np.where(improved, scale[0], self.best_scale)
            return (improved | ~self.active) - 1
        keep = np.where(improved.any(0), _last_true(improved), -1)
        last_fall = np.where(fell.any(0), _last_true(fell), -1)
        self.improved_at = np.where(last_fall >= 0, step + last_fall, self.improved_at)
        after = np.arange(len(residual))[:, None] > last_fall
        self.drifted = (self.drifted & (last_fall < 0)) | (after & far).any(0)
        self.best = np.fmin(before[-1], residual[-1])
        self.best_scale = np.where(keep < 0, self.best_scale, scale[keep, np.arange(len(keep))])
        return keep


def _last_true(marks: Bools) -> Integers:
    """For each column the last line that is true."""
    return len(marks) - 1 - marks[::-1].argmax(0)
