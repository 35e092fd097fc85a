"""Steps that are begun before the last ones have been looked at, so that a GPU need not wait for the host."""

from __future__ import annotations

from collections.abc import Callable

from .loops.eager import Hold, Loop, Stretch
from .rows import Bools


class Pipeline:
    """The stretches of a solve, in their order.

    One that is begun ahead knows nothing of what the last one has shown. Where that changes nothing but that rows have
    stopped, which then move once more in vain, it stands; else the solve is begun anew, without foresight.

    Args:
        loop: runs them.
        foresight: whether any may be begun ahead.
    """

    def __init__(self, loop: Loop, foresight: bool) -> None:
        self.loop, self.foresight = loop, foresight and loop.pipelined
        self.ahead: Stretch | None = None
        self.long = False
        """Whether the last stretch was longer than the steps after which the rule wants a look."""
        self.loose: Bools | None = None
        """Rows that had stopped, and were not held in the stretch ahead."""

    def next(self, run: Callable[[int], Stretch], hold: Hold, room: int, missing: float) -> Stretch:
        """The next stretch, and its norms on their way to the host.

        Args:
            run: runs so many steps, where none have been begun.
            hold: rows that do not move in it.
            room: for so many steps.
            missing: steps that some row is expected to need yet.
        """
        if self.ahead is None:
            stretch = run(min(self.loop.span(missing), room))
        else:
            stretch, self.ahead = self.ahead.first(room), None
        steps = len(stretch.points)
        self.norms = self.loop.transfer()
        self.norms.begin(stretch.norms)
        self.long = steps > self.loop.check_every
        if min(room, missing) > steps:
            self.ahead = self.loop.ahead(hold, self.loop.span(missing - steps))
        return stretch

    def stop(self) -> None:
        """No row runs any more: what has been begun is of no use."""
        self.ahead, self.loose, self.long = None, None, False

    def seen(self, before: Bools, after: Bools) -> None:
        """Rows that ran before the last stretch was looked at, and after."""
        self.loose = before & ~after if self.ahead is not None else None
