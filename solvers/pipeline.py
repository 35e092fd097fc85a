"""Steps that are begun before the last ones have been checked, so that a GPU need not wait for the host."""

from __future__ import annotations

from collections.abc import Callable

from .loops.eager import Hold, Loop, Stretch
from .rows import Bools


class Pipeline:
    """The stretches of a solve, in order.

    A stretch begun ahead does not know the result of the one before it. If this result is only that rows have stopped,
    the stretch stands, and those rows move once more in vain. Otherwise the solve restarts without foresight.

    Args:
        loop: runs the stretches.
        foresight: whether stretches may be begun ahead.
    """

    def __init__(self, loop: Loop, foresight: bool) -> None:
        self.loop, self.foresight = loop, foresight and loop.pipelined
        self.ahead: Stretch | None = None
        self.long = False
        """Whether the last stretch was longer than the number of steps between two checks."""
        self.loose: Bools | None = None
        """Rows that have stopped but are not held in the stretch begun ahead."""

    def begun(self, stretch: Stretch, run: Callable[[int], Stretch], hold: Hold, limit: int) -> Stretch:
        """The first stretch, with the one after it if that is expected to end the solve.

        At most `limit` steps in all, whose norms are on their way to the host.
        """
        expected, steps = self.loop.expected, len(stretch.points)
        if steps < min(limit, expected):
            span = min(self.loop.span(expected - steps, limit - steps), limit - steps)
            if min(limit, expected) <= steps + span:  # otherwise one after it would overwrite the first one's points
                stretch = stretch.joined(run(span))
        self._send(stretch, hold, limit, expected)
        return stretch

    def next(self, run: Callable[[int], Stretch], hold: Hold, room: int, missing: float) -> Stretch:
        """The next stretch, whose norms are on their way to the host.

        Args:
            run: runs a number of steps, if none have been begun ahead.
            hold: rows that do not move in this stretch.
            room: largest number of steps.
            missing: number of steps that some row is still expected to need.
        """
        if self.ahead is None:
            stretch = run(min(self.loop.span(missing, room), room))
        else:
            stretch, self.ahead = self.ahead.first(room), None
        self._send(stretch, hold, room, missing)
        return stretch

    def _send(self, stretch: Stretch, hold: Hold, room: int, missing: float) -> None:
        steps = len(stretch.points)
        self.norms = self.loop.transfer()
        self.norms.begin(stretch.norms)
        self.long = steps > self.loop.check_every
        if min(room, missing) > steps:
            self.ahead = self.loop.ahead(hold, self.loop.span(missing - steps, room - steps))

    def stop(self) -> None:
        """Discard what was begun ahead, as no row runs any more."""
        self.ahead, self.loose, self.long = None, None, False

    def seen(self, before: Bools, after: Bools) -> None:
        """Record the rows that ran before the last stretch was checked, and after."""
        self.loose = before & ~after if self.ahead is not None else None
