"""Whether steps are being recorded in this thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_recorded = threading.local()


class RecordingError(Exception):
    """A function cannot be recorded, because of the exception from which this one is raised, or as the message says."""


@contextmanager
def recording() -> Iterator[None]:
    """A context in which nothing is solved and no unused recording is freed, as a capture cannot contain either."""
    collects, before, _recorded.now = gc.isenabled(), recorded(), True
    gc.disable()
    try:
        yield
    finally:
        _recorded.now = before
        (gc.enable if collects else gc.disable)()


def recorded() -> bool:
    """Whether steps are being recorded in this thread."""
    return getattr(_recorded, "now", False)


def refuse_solve() -> None:
    """Raise RecordingError where steps are being recorded."""
    if recorded():
        raise RecordingError("it contains a solve, whose number of steps depends on its data")
