"""The norms of every step of a solve, from which rows may be dropped on the way."""

from __future__ import annotations

import numpy as np

from .rows import Bools, Floats, Rows


class Trace:
    """Two lines a step, one entry for each row that was still in the solve."""

    def __init__(self) -> None:
        self._steps = 0
        self._lines: list[Floats] = []  # since rows were last dropped
        self._dropped: list[tuple[Rows, Floats]] = []  # the rows, and the lines until then, each time some were

    def add(self, norms: Floats, running: Bools) -> None:
        """The next steps; NaN is kept of rows that do not run."""
        self._lines.append(norms if running.all() else np.where(running, norms, np.nan))
        self._steps += len(norms) // 2

    def cut(self, rows: Rows) -> None:
        """From here on there are other rows than these."""
        empty = np.empty((0, len(rows.positions)))
        self._dropped.append((rows, np.concatenate(self._lines) if self._lines else empty))
        self._lines = []

    def close(self, rows: Rows) -> tuple[Rows, Floats]:
        """All rows in the order of the batch, and (2·steps, batch) norms, NaN once a row has stopped."""
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
