"""Whether steps are being recorded in this thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

_recorded = threading.local()
_lock = threading.Lock()
_count = 0
_collected = True


class RecordingError(Exception):
    """A function cannot be recorded, because of the exception from which this one is raised, or as the message says."""


Raised = TypeVar("Raised", bound=BaseException)


def without_frames(error: Raised, handled: BaseException | None) -> Raised:
    """The error, and those it came from, without the frames that they passed, whose tensors would stay in memory.

    Args:
        error: raised by a recording.
        handled: the exception that was being handled before; it is the caller's, and left alone.
    """
    every: list[BaseException | None] = [error]
    for one in every:
        if one is not None and one is not handled:
            one.__traceback__ = None
            every += [each for each in (one.__cause__, one.__context__) if each not in every]  # which may form a circle
    return error


@contextmanager
def recording() -> Iterator[None]:
    """A context in which nothing is solved and no unused recording is freed, as a capture cannot contain either."""
    global _count, _collected
    before, _recorded.now = recorded(), True
    with _lock:  # threads may record at once: the last one to end restores what the first one found
        if not _count:
            _collected = gc.isenabled()
            gc.disable()
        _count += 1
    try:
        yield
    finally:
        _recorded.now = before
        with _lock:
            _count -= 1
            if _collected and not _count:
                gc.enable()


def this_thread() -> object:
    """A mark of this thread, which no later one has."""
    if not hasattr(_recorded, "thread"):
        _recorded.thread = object()
    return _recorded.thread


def recorded() -> bool:
    """Whether steps are being recorded in this thread."""
    return getattr(_recorded, "now", False)


def refuse_solve() -> None:
    """Raise RecordingError where steps are being recorded."""
    if recorded():
        raise RecordingError("it contains a solve, whose number of steps depends on its data")
