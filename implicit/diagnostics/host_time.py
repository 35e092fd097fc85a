"""Whether a solve on a GPU waits for the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from solvers import Captured, Loop

from ..parametrized import one_weight
from .findings import Finding, Look

SHARE = 0.5
"""Of a step's time that the cell must keep the device busy, below which the step waits for the host."""
REPEATS = 5
"""Of each measurement, of which the median counts."""
EVALUATIONS = 20
"""Of the cell in its CUDA graph, at most."""


class StepTimes(NamedTuple):
    """Seconds, medians."""

    step: float
    """From one step to the next, as a clock on the wall shows it."""
    cell: float
    """That the device takes for one evaluation of the cell, nothing waiting for the host."""


def waiting(look: Look) -> Finding | None:
    layer, device = look.layer, look.value.device
    # what the loop refuses could not be remedied by it
    if device.type != "cuda" or not len(look.value) or not layer.solver.fixed_cost or isinstance(layer.loop, Captured):
        return None
    times = step_times(look)
    return None if times is None else waits_for_host(times, layer.loop)


def waits_for_host(times: StepTimes, loop: Loop) -> Finding | None:
    """What these times say of a solve by this loop."""
    if isinstance(loop, Captured) or not times.cell < SHARE * times.step:
        return None
    return Finding(
        "the solve waits for the host",
        f"a step takes {1e6 * times.step:.3g} µs, in which the device needs {1e6 * times.cell:.3g} µs for the cell",
        "Set loop=Captured(), which records the steps as CUDA graphs: it needs inputs of fixed shapes, compact=False, "
        "and a cell that can be captured, in which nothing waits for the host",
    )


def step_times(look: Look) -> StepTimes | None:
    """Of the layer's own solve on its CUDA device; None: the cell cannot be captured."""
    device = look.value.device
    steps = max(int(look.solution.steps.max()), 1)
    with torch.cuda.device(device):
        solve = _seconds(lambda: look.layer.solve(*look.inputs, z0=look.z0), device)
        cell = _cell_seconds(look, min(steps, EVALUATIONS))
    return None if cell is None else StepTimes(solve / steps, cell)


def _cell_seconds(look: Look, evaluations: int) -> float | None:
    """Of one evaluation, in a CUDA graph of several."""
    problem, point = look.problem, look.value.clone()
    stream = torch.cuda.Stream(point.device)
    stream.wait_stream(torch.cuda.current_stream(point.device))
    with torch.no_grad(), one_weight(look.layer.cell):
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries set themselves up, and weights are computed
                problem(point)
        torch.cuda.current_stream(point.device).wait_stream(stream)
        torch.cuda.synchronize(point.device)
        torch.clear_autocast_cache()  # what was cast outside must not be read inside, nor the reverse
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(evaluations):
                    problem(point)
        except Exception:  # whatever a cell does that a capture does not allow
            return None
        finally:
            torch.clear_autocast_cache()
        return _seconds(graph.replay, point.device) / evaluations


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median, the first call left out."""
    found = []
    for _ in range(1 + REPEATS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
