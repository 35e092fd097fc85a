"""What the books hold of each row. On the host, in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .solution import Status

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
