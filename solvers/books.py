"""The closed books of a solve, and the archive from which they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .rows import Floats, Integers, Rows


@dataclass
class Books:
    """The closed books, one entry a row of the batch."""

    best: Floats  # absolute residual of the value
    scale: Floats  # ‖f(z)‖ there
    status: Integers
    steps: Integers
    evaluations: Integers
    residuals: Floats  # (steps, batch), absolute; NaN once a row has stopped
    trace: Floats  # (steps, batch), the same relative

    @property
    def relative(self) -> Floats:
        """Residual of the value, relative to its image."""
        return _relative(self.best, self.scale)


class Archive:
    """The norms of every step, and what was known of the rows when some of them were dropped."""

    def __init__(self) -> None:
        self._lines: list[Floats] = []  # norms of the current rows, since the last ones were filed
        self._filed: list[tuple[Rows, Floats]] = []

    def note(self, norms: Floats) -> None:
        """The next points: (2·points, rows), `‖f(z) − z‖` and `‖f(z)‖` of each; NaN for rows that have stopped."""
        self._lines.append(norms)

    def file(self, rows: Rows) -> None:
        """What is known of the current rows, before some of them are dropped."""
        empty = np.empty((0, len(rows.index)))
        self._filed.append((rows, np.concatenate(self._lines) if self._lines else empty))
        self._lines = []

    def close(self, rows: Rows, step: int) -> Books:
        """The books of all rows, in the order of the batch, `rows` being the current ones after the last step."""
        self.file(rows)
        everyone, norms = self._filed[0]
        if len(self._filed) > 1:
            everyone, norms = self._joined(step)
        lines = 2 * everyone.steps.max(initial=0)
        residuals, scales = norms[:lines:2], norms[1:lines:2]
        return Books(
            best=everyone.best,
            scale=everyone.best_scale,
            status=everyone.status,
            steps=everyone.steps,
            evaluations=everyone.steps + everyone.products,
            residuals=residuals,
            trace=_relative(residuals, scales),
        )

    def _joined(self, step: int) -> tuple[Rows, Floats]:
        first, _ = self._filed[0]
        rows = first.take(first.index)  # copies: its columns may share memory
        norms = np.full((2 * step, len(rows.index)), np.nan)
        line = 0
        for later, block in self._filed:
            for field in fields(Rows):
                getattr(rows, field.name)[later.index] = getattr(later, field.name)
            norms[line : line + len(block), later.index] = block
            line += len(block)
        return rows, norms


def _relative(residual: Floats, scale: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(residual == 0, 0.0, residual / scale)
