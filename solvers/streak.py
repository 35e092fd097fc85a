"""Steps at which every row has a new best residual: the usual case, in which there is nothing to decide."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .rows import Floats

LARGEST = 128
"""Entries up to which Python compares one by one faster than NumPy calls its operations."""


class Streak:
    """The points of such steps, on the host, as plain numbers."""

    def __init__(self, rtol: float, atol: float, falling: float) -> None:
        self.rtol, self.atol, self.falling = rtol, atol, falling
        self._lines: list[list[float]] = []

    def extend(self, norms: Tensor, best: Floats) -> bool:
        """Whether the next points all belong to the streak; if not, none of them does.

        Args:
            norms: (2·points, rows), `‖f(z) − z‖` and `‖f(z)‖` of each point.
            best: (rows,), least residuals before the streak.
        """
        if norms.numel() > LARGEST:
            return False
        lines: list[list[float]] = norms.tolist()
        rtol, atol, falling = self.rtol, self.atol, self.falling
        before = self._lines[-2] if self._lines else best.tolist()
        for residuals, scales in zip(lines[::2], lines[1::2]):
            for residual, scale, least in zip(residuals, scales, before):
                if not rtol * scale + atol < residual < falling * least:
                    return False
            before = residuals
        self._lines += lines
        return True

    def end(self) -> Floats | None:
        """(2·points, rows) norms of the streak, which is over; None if it had no points."""
        lines, self._lines = self._lines, []
        return np.array(lines) if lines else None
