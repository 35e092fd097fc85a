"""Steps that are begun before the last ones have been looked at, so that a GPU need not wait for the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
        self.norms, steps = _Transfer(stretch.norms), len(stretch.points)
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


class _Transfer:
    """Norms on their way to the host, without waiting for what is launched later."""

    def __init__(self, norms: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._norms = norms
        if norms.is_cuda:
            self._norms = torch.empty(norms.shape, dtype=norms.dtype, device="cpu", pin_memory=True)
            self._norms.copy_(norms, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> Tensor:
        """The one synchronisation of a stretch."""
        if self._event is not None:
            self._event.synchronize()
        return self._norms
