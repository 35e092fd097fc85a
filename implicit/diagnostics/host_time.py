"""Whether a solve on a GPU waits for the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from solvers import Captured, Loop
from solvers.loops.graphs import Graph, one_at_a_time
from solvers.loops.recording import recording

from ..parametrized import one_weight
from ..sources import hindrance
from .findings import Finding, Look

SHARE = 0.5
"""Share of a step for which the cell must keep the device busy; below it, the step waits for the host."""
REPEATS = 5
"""Repeats of each measurement; the median counts."""
EVALUATIONS = 20
"""Largest number of evaluations of the cell in its CUDA graph."""


_LATER = "loop=Captured() would record the steps as CUDA graphs, but cannot record this cell: {}"


class StepTimes(NamedTuple):
    """Median times, in seconds."""

    step: float
    """Wall-clock time from one step to the next."""
    cell: float
    """Device time of one evaluation of the cell, without waiting for the host."""


def waiting(look: Look) -> Finding | None:
    layer, device = look.layer, look.value.device
    # `Captured` is no remedy for a solver that it refuses
    if device.type != "cuda" or not len(look.value) or not layer.solver.fixed_cost or isinstance(layer.loop, Captured):
        return None
    times = step_times(look)
    found = None if times is None else waits_for_host(times, layer.loop)
    reason = None if found is None else hindrance(look.problem, look.value.clone())
    return found if found is None or reason is None else replace(found, remedy=_LATER.format(reason))


def waits_for_host(times: StepTimes, loop: Loop) -> Finding | None:
    """A finding if, by these times, a solve with this loop waits for the host."""
    if isinstance(loop, Captured) or not times.cell < SHARE * times.step:
        return None
    return Finding(
        "the solve waits for the host",
        f"a step takes {1e6 * times.step:.3g} µs, of which the cell needs {1e6 * times.cell:.3g} µs on the device",
        "Set loop=Captured(), which records the steps as CUDA graphs: it needs inputs of fixed shapes, compact=False, "
        "and a cell that can be captured, in which nothing waits for the host",
    )


def step_times(look: Look) -> StepTimes | None:
    """The times of the layer's own solve on its CUDA device; None: the cell cannot be captured."""
    device = look.value.device
    steps = max(int(look.solution.steps.max()), 1)
    with torch.cuda.device(device):
        solve = _seconds(lambda: look.layer.solve(*look.inputs, z0=look.z0), device)
        cell = _cell_seconds(look, min(steps, EVALUATIONS))
    return None if cell is None else StepTimes(solve / steps, cell)


def _cell_seconds(look: Look, evaluations: int) -> float | None:
    """Seconds per evaluation of the cell, from a CUDA graph of several; None: it cannot be captured."""
    problem, point = look.problem, look.value.clone()
    stream = torch.cuda.Stream(point.device)
    stream.wait_stream(torch.cuda.current_stream(point.device))
    with torch.no_grad(), one_weight(look.layer.cell):
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries initialise, and weights are computed
                problem(point)
        torch.cuda.current_stream(point.device).wait_stream(stream)
        torch.cuda.synchronize(point.device)

        def evaluate() -> None:
            for _ in range(evaluations):
                problem(point)

        try:
            with one_at_a_time, recording():
                graph = Graph(evaluate, torch.cuda.graph_pool_handle(), stream)
        except Exception:  # whatever the cell does that a capture forbids
            return None
        return _seconds(graph.replay, point.device) / evaluations


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, without the first one."""
    found = []
    for _ in range(1 + REPEATS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
