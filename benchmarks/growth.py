"""How cost grows with the state and with the batch, ours and torchdeq's timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.measuring.timing import Runs, by_turns
from solvers import Solver, solve

from .counting import Counted, row_norms
from .overhead import MANY, PAIRS, STEPS, medians_of, per_call_of, ratios_of
from .peers import installed, torchdeq_solver
from .problem import normal
from .report import Cell, Progress, Table

STATES = tuple(2**power for power in range(6, 23, 4))
BATCHES = (1, 8, 64, 512)
WIDTH = 256
RTOL = 1e-4
LIMIT = 200
"""Largest number of steps."""
Dense = Callable[[Tensor, Tensor], Tensor]
"""(z, x) → f."""


def with_state(quick: bool, progress: Progress) -> Table:
    """Time that a step adds to f, for a single row."""
    rows: list[dict[str, Cell]] = []
    for name in PAIRS:
        for dim in STATES[:2] if quick else STATES:
            progress(f"growth with the state: {name} at {dim:,}")
            per_call = per_call_of(name, 1, dim, 2 if quick else 21 if dim <= MANY else 3)
            medians = medians_of(per_call)
            row: dict[str, Cell] = {"solver": name, "state": dim, **medians, "ours / f": medians["ours"] / medians["f"]}
            if "torchdeq" in per_call:
                row["torchdeq / f"] = medians["torchdeq"] / medians["f"]
                row |= _spread(ratios_of(per_call))
            rows.append(row)
    return Table(
        "Growth with the state: time per call of f at batch 1, µs",
        rows,
        [
            f"as in the table of overhead: f(z) = a z + x elementwise, float32, {STEPS} steps, no stop in reach, "
            "medians; ratio: of what is added to f, ours over torchdeq's, median, least and largest of repeats in turn."
        ],
    )


def with_batch(quick: bool, progress: Progress) -> Table:
    """Seconds and evaluations of whole solves to a tolerance."""
    rows: list[dict[str, Cell]] = []
    weight = (0.8 / WIDTH**0.5 * normal(1, WIDTH, WIDTH)).float()

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T + x)

    for name, (solver, method) in PAIRS.items():
        for batch in BATCHES[:2] if quick else BATCHES:
            progress(f"growth with the batch: {name} at {batch}")
            # rows of unequal size, which need unequal numbers of steps
            x = (normal(2, batch, WIDTH) * torch.logspace(-1, 1, batch, dtype=torch.float64)[:, None]).float()
            sides: dict[str, Callable[[Dense], Tensor]] = {"ours": partial(_ours, solver, x)}
            if installed("torchdeq"):
                sides["torchdeq"] = partial(_torchdeq, method, x)
            runs: Runs = {side: partial(run, f) for side, run in sides.items()}
            by_turns(runs, 1, warm=False)
            times = by_turns(runs, 2 if quick else 7, warm=batch < 64)
            row: dict[str, Cell] = {"solver": name, "batch": batch}
            row |= {f"{side} ms": 1e3 * statistics.median(found) for side, found in times.items()}
            if "torchdeq" in times:
                row |= _spread([ours / theirs for ours, theirs in zip(times["ours"], times["torchdeq"])])
            for side, run in sides.items():
                counted = Counted(f)
                z = run(counted)
                row[f"{side} evaluations"] = counted.rows / batch
                image = f(z, x)
                row[f"{side} unsolved"] = int((row_norms(image - z) > 1.05 * RTOL * row_norms(image)).sum())
            rows.append(row)
    return Table(
        f"Growth with the batch: ms of a solve, a dense tanh cell of width {WIDTH}",
        rows,
        [
            f"to {RTOL:g} relative on both sides, at most {LIMIT} steps, float32, rows of unequal inputs, ours with "
            "compact=True; medians, ratio: ours over torchdeq's, median, least and largest of repeats in turn. "
            "evaluations: of single rows, in mean, as counted inside f. unsolved: rows that miss the tolerance by more "
            "than a twentieth.",
        ],
    )


def _spread(ratios: list[float]) -> dict[str, Cell]:
    return {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _ours(solver: Solver, x: Tensor, f: Dense) -> Tensor:
    found = solve(f, torch.zeros_like(x), (x,), solver=solver, rtol=RTOL, atol=0.0, max_steps=LIMIT, compact=True)
    assert isinstance(found.value, Tensor)  # as x is
    return found.value


@torch.no_grad()
def _torchdeq(method: str, x: Tensor, f: Dense) -> Tensor:
    solver = torchdeq_solver(method)
    return solver(lambda z: f(z, x), torch.zeros_like(x), max_iter=LIMIT, tol=RTOL, stop_mode="rel")[0]
