"""Seconds of several runs, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

Runs = dict[str, Callable[[], object]]


def by_turns(runs: Runs, repeats: int, *, warm: bool) -> dict[str, list[float]]:
    """Seconds of each run, timed in turn, so that a disturbance of the machine affects all of them.

    With `warm`, an untimed call of the same run precedes each timed one: a tiny state's time depends on the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if warm:
                run()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times
