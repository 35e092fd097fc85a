"""Steps at which every row has a new best residual: the usual case, in which there is nothing to decide."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .criterion import Criterion
from .rows import Floats

SMALL = 128
"""Entries up to which Python compares one by one faster than NumPy calls its operations."""

Line = Floats | list[float]


class Streak:
    """The norms at the points of such steps, on the host."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self._lines: list[Line] = []

    def extend(self, norms: Tensor, best: Floats) -> bool:
        """Whether the next points all belong to the streak; if not, none of them does.

        Args:
            norms: (2·points, rows), `‖f(z) − z‖` and `‖f(z)‖` of each point.
            best: (rows,), least residuals before the streak.
        """
        before = self._lines[-2] if self._lines else best
        if norms.numel() <= SMALL:
            few: list[list[float]] = norms.tolist()
            belong = self._each_belongs(few, before)
            lines: list[Line] = [*few]
        else:
            many: Floats = norms.double().numpy()
            belong = self._belong(many, np.asarray(before))
            lines = [*many]
        if belong:
            self._lines += lines
        return belong

    def _belong(self, lines: Floats, before: Floats) -> bool:
        residuals, scales = lines[::2], lines[1::2]
        if len(residuals) > 1:
            before = np.concatenate((before[None], residuals[:-1]))
        unmet = self.criterion.tolerance(scales) < residuals
        return bool(unmet.all() and (residuals < self.criterion.falling * before).all())

    def _each_belongs(self, lines: list[list[float]], before: Line) -> bool:
        rtol, atol, falling = self.criterion.rtol, self.criterion.atol, self.criterion.falling
        for residuals, scales in zip(lines[::2], lines[1::2]):
            for residual, scale, least in zip(residuals, scales, before):
                if not rtol * scale + atol < residual < falling * least:
                    return False
            before = residuals
        return True

    def end(self) -> Floats | None:
        """(2·points, rows) norms of the streak, which is over; None if it had no points."""
        lines, self._lines = self._lines, []
        return np.array(lines) if lines else None
