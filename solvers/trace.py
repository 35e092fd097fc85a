"""The norms of every step of a solve whose rows may be dropped on the way."""

from __future__ import annotations

import numpy as np

from .rows import Floats, Rows


class Trace:
    """Two lines per step, with one entry for each row still in the solve."""

    def __init__(self) -> None:
        self._steps = 0
        self._lines: list[Floats] = []  # since rows were last dropped
        self._dropped: list[tuple[Rows, Floats]] = []  # at each drop, the rows before it and their lines

    def add(self, norms: Floats) -> None:
        """Append the next steps."""
        self._lines.append(norms)
        self._steps += len(norms) // 2

    def cut(self, rows: Rows) -> None:
        """Store the lines of these rows; the next lines belong to other rows."""
        empty = np.empty((0, len(rows.positions)))
        self._dropped.append((rows, np.concatenate(self._lines) if self._lines else empty))
        self._lines = []

    def close(self, rows: Rows) -> tuple[Rows, Floats]:
        """All rows in the order of the batch, and (2·steps, batch) norms, arbitrary once a row has stopped."""
        self.cut(rows)
        (everyone, norms), *later = self._dropped
        if later:
            everyone = everyone.take(everyone.positions)  # copies
            norms = np.concatenate((norms, np.full((2 * self._steps - len(norms), len(everyone.positions)), np.nan)))
            line = len(self._dropped[0][1])
            for some, block in later:
                for known, of_some in zip(everyone, some):
                    known[some.positions] = of_some
                norms[line : line + len(block), some.positions] = block
                line += len(block)
        return everyone, norms[: 2 * everyone.steps.max(initial=0)]


def until_stopped(norms: Floats, rows: Rows) -> Floats:
    """The norms, NaN once a row has stopped."""
    if (2 * rows.steps == len(norms)).all():
        return norms
    ends = np.where(rows.running, np.inf, rows.steps)
    return np.where(np.arange(len(norms))[:, None] < 2 * ends, norms, np.nan)
