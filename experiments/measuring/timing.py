"""Seconds of several runs, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable

Runs = dict[str, Callable[[], object]]


def by_turns(runs: Runs, repeats: int, *, warm: bool) -> dict[str, list[float]]:
    """Seconds of each run; a disturbance of the machine meets all of them.

    `warm`: after a call of its own, for a tiny state's time is a matter of what the processor's caches hold.
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
