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
    drifted: Bools  # residual or image have been far above the first since the last new best
    led_astray: Bools  # the solver's proposal left the range in which f can be evaluated
    status: Integers
    steps: Integers
    products: Integers  # evaluations within the solver's steps

    @classmethod
    def fresh(cls, count: int) -> Rows:
        def filled(value: float) -> Floats:
            return np.full(count, value)

        def zeros() -> Integers:
            return np.zeros(count, dtype=np.int64)

        return cls(
            index=np.arange(count),
            active=np.ones(count, dtype=bool),
            best=filled(np.inf),
            best_scale=filled(np.nan),
            first=filled(np.inf),
            first_scale=filled(np.inf),
            last_scale=filled(np.inf),
            improved_at=zeros(),
            drifted=np.zeros(count, dtype=bool),
            led_astray=np.zeros(count, dtype=bool),
            status=np.full(count, int(Status.MAX_STEPS), dtype=np.int64),
            steps=zeros(),
            products=zeros(),
        )

    def take(self, positions: Integers) -> Rows:
        return Rows(*(getattr(self, field.name)[positions] for field in fields(self)))
