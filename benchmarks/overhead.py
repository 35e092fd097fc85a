"""Time that a solver adds to f, ours and torchdeq's timed in turn."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from experiments.measuring.timing import Runs, by_turns
from solvers import Anderson, Broyden, Compiled, Picard, Solver, solve

from .counting import Counted
from .peers import installed, torchdeq_solver
from .report import Cell, Progress, Table

STEPS = 30
SHAPES = ((1, 64), (1, 4096), (32, 256), (64, 3072), (64, 16384))
PAIRS: dict[str, tuple[Solver, str]] = {
    "Picard": (Picard(), "fixed_point_iter"),
    "Anderson": (Anderson(memory=6), "anderson"),  # torchdeq keeps 6, too
    "Broyden": (Broyden(), "broyden"),
}
DROWNED = 0.15
"""Overhead of the peer, as a share of f, below which whole calls are compared: the difference would be noise."""
MANY = 10_000
"""Entries of a state beyond which fewer repeats suffice."""
FLOOR = 0.01
"""Least overhead that is believed, as a share of f."""


def overhead(quick: bool, progress: Progress) -> Table:
    """Time per call of f that a solver adds to bare f."""
    rows: list[dict[str, Cell]] = []
    for name in PAIRS:
        ratios, least = [], []
        for batch, dim in SHAPES[:3] if quick else SHAPES:
            progress(f"overhead: {name} at ({batch}, {dim})")
            per_call = per_call_of(name, batch, dim, 2 if quick else 11 if batch * dim > MANY else 31)
            row: dict[str, Cell] = {"solver": name, "shape": f"({batch}, {dim})", **medians_of(per_call)}
            if "torchdeq" in per_call:
                found = ratios_of(per_call)
                ratios.append(statistics.median(found))
                least += ratios_of({key: [min(found)] for key, found in per_call.items()})
                row |= {"ratio": ratios[-1], "min": min(found), "max": max(found), "ratio of least": least[-1]}
            rows.append(row)
        if ratios:
            means = {"ratio": statistics.geometric_mean(ratios), "ratio of least": statistics.geometric_mean(least)}
            rows.append({"solver": name, "shape": "geometric mean", **means})
    notes = [
        "f, ours, torchdeq: medians. ratio: (ours − f) / (torchdeq − f), median, least and largest of repeats in turn; "
        f"ours / torchdeq where torchdeq adds less than {DROWNED:.0%} to f. ratio of least: of the shortest times, "
        "which other work on the machine disturbs least. Of small states each call is timed after one of its own.",
        f"f(z) = a z + x elementwise, float32, {STEPS} steps, no stop in reach; Anderson's memory is 6 on both sides.",
    ]
    return Table("Overhead: time per call of f, µs", rows, notes)


def per_call_of(name: str, batch: int, dim: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per call of f, bare and by both solvers of this name, one value per repeat."""
    f, z0 = _slow(batch, dim)
    runs = _runs(f, z0, *PAIRS[name])
    calls = {key: _calls(f, run) for key, run in runs.items()}
    times = _times(runs, repeats, warm=batch * dim <= MANY)
    return {key: [seconds / calls[key] for seconds in found] for key, found in times.items()}


def medians_of(per_call: dict[str, list[float]]) -> dict[str, float]:
    """Medians in µs."""
    return {key: 1e6 * statistics.median(found) for key, found in per_call.items()}


def compiled(quick: bool, progress: Progress) -> Table:
    """The compiled mode on a tiny state, whole calls."""
    title = f"Compiled mode: a whole call of {STEPS} steps at (1, 64), µs"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if quick:
        return Table(title, [], ["skipped: --quick leaves out compiling, a minute or so"])
    if shutil.which(compiler) is None:
        return Table(title, [], [f"skipped: torch.compile needs a C++ compiler, and {compiler} is not there"])
    rows: list[dict[str, Cell]] = []
    f, z0 = _slow(1, 64)
    for name in ("Picard", "Anderson"):
        progress(f"compiled mode: {name}, compiling")
        solver, method = PAIRS[name]
        runs = _runs(f, z0, solver, method)

        def run(solver: Solver = solver) -> object:
            return solve(f.f, z0, solver=solver, rtol=1e-14, atol=0.0, max_steps=STEPS, loop=Compiled(STEPS - 1))

        with _no_cache():
            start = time.perf_counter()
            run()
            compilation = time.perf_counter() - start
            times = _times({"compiled": run, **runs}, 21, warm=True)
        medians = {key: 1e6 * statistics.median(found) for key, found in times.items()}
        row: dict[str, Cell] = {"solver": name, **medians}
        if "torchdeq" in runs:
            row["compiled / torchdeq"] = medians["compiled"] / medians["torchdeq"]
        rows.append(row | {"seconds to compile": compilation})
    return Table(
        title,
        rows,
        ["f included, each call after one of its own; seconds to compile: the first call, nothing cached before it."],
    )


def _slow(batch: int, dim: int) -> tuple[Counted, Tensor]:
    """A map so slow that no solver converges within the steps, and its start."""
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.randn(batch, dim, generator=generator), torch.linspace(0.9, 0.9999, dim)
    return Counted(lambda z: z * scale + x), torch.zeros(batch, dim)


def _runs(f: Counted, z0: Tensor, solver: Solver, method: str) -> Runs:
    runs: Runs = {
        "f": lambda: [f(z0) for _ in range(STEPS)],
        "ours": lambda: solve(f, z0, solver=solver, rtol=1e-14, atol=0.0, max_steps=STEPS),
    }
    if installed("torchdeq"):
        peer = torchdeq_solver(method)
        runs["torchdeq"] = lambda: peer(f, z0, max_iter=STEPS, tol=0.0)
    return runs


def _calls(f: Counted, run: Callable[[], object]) -> int:
    before = f.calls
    run()
    return f.calls - before


@torch.no_grad()
def _times(runs: Runs, repeats: int, *, warm: bool) -> dict[str, list[float]]:
    for run in runs.values():
        run()
    return by_turns(runs, repeats, warm=warm)


def ratios_of(per_call: dict[str, list[float]]) -> list[float]:
    """Our overhead over torchdeq's, one ratio per repeat; of whole calls if torchdeq's is lost in noise."""
    bare, peer = (statistics.median(per_call[name]) for name in ("f", "torchdeq"))
    drowned = peer - bare < DROWNED * bare
    ratios = []
    for f, ours, theirs in zip(per_call["f"], per_call["ours"], per_call["torchdeq"]):
        # one repeat may be disturbed: a peer below f would flip the sign
        ratios.append(ours / theirs if drowned else max(ours - f, FLOOR * f) / max(theirs - f, FLOOR * f))
    return ratios


@contextmanager
def _no_cache() -> Iterator[None]:
    """Hide from the compiler the code of earlier runs, which it keeps in a folder."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            else:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
