"""Peak memory of the solvers' histories on a large state, each solve in a process of its own."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from solvers import Anderson, Broyden, Solver, solve

from .peers import installed, torchdeq_solver
from .report import Cell, Progress, Table

SHAPE = (8, 64, 32, 32)
STEPS = (10, 40, 160)
SOLVERS: dict[str, tuple[Solver, str]] = {"Anderson": (Anderson(), "anderson"), "Broyden": (Broyden(), "broyden")}
"""Our solver, and torchdeq's name for its own."""
NO_PEAKS = "skipped: how much memory a process has held at most is measured on Linux and macOS"


def solver_memory(quick: bool, progress: Progress) -> Table:
    """Peaks beyond the state, f's own temporaries and what the process held before."""
    title = f"Memory: peak additional MiB of a solve, z of {'×'.join(map(str, SHAPE))} float32"
    if quick:
        return Table(title, [], ["skipped: --quick leaves out gigabytes"])
    if sys.platform == "win32":
        return Table(title, [], [NO_PEAKS])
    rows: list[dict[str, Cell]] = []
    for name in SOLVERS:
        found: dict[str, dict[int, float]] = {}
        for side in ("ours", "torchdeq") if installed("torchdeq") else ("ours",):
            progress(f"memory: {name}, {side}")
            found[side] = {steps: in_process_of_its_own(peak, name, side, steps) / 2**20 for steps in STEPS}
            rows.append({"solver": name, "by": side, **{f"{steps} steps": found[side][steps] for steps in STEPS}})
        if "torchdeq" in found:
            ratios = {f"{steps} steps": found["ours"][steps] / found["torchdeq"][steps] for steps in STEPS}
            rows.append({"solver": name, "by": "ratio", **ratios})
    notes = [
        "resident memory of a process of its own, over that after two evaluations of f; the state alone is "
        f"{4 * math.prod(SHAPE) / 2**20:.0f} MiB. Ours keep 16 states of history (Anderson) and 12 (Broyden), theirs "
        "12, and one of each step. No stop in reach.",
    ]
    return Table(title, rows, notes)


def in_process_of_its_own(measure: Callable[..., int], *arguments: object) -> int:
    """What `measure(*arguments)` returns in a fresh process, since the peak of a process never falls."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # its imports take seconds, once is enough
    with ProcessPoolExecutor(1, context, initializer=_give_back_what_is_freed) as pool:
        return pool.submit(measure, *arguments).result()


def _give_back_what_is_freed() -> None:
    """Have glibc give back large blocks as at first: it learns to keep them, and their gaps would count."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(-3, 65536)  # M_MMAP_THRESHOLD, bytes; once set it stays


@torch.no_grad()
def peak(name: str, side: str, steps: int) -> int:
    """Bytes by which the solve raises this process's peak of resident memory."""
    torch.manual_seed(0)
    x, z0 = torch.randn(SHAPE), torch.zeros(SHAPE)
    scale = torch.linspace(0.9, 0.9999, SHAPE[-1])
    solver, method = SOLVERS[name]

    def run(z0: Tensor, x: Tensor, steps: int) -> None:
        if side == "ours":
            solve(lambda z: z * scale + x, z0, solver=solver, rtol=1e-14, atol=0.0, max_steps=steps)
        else:
            torchdeq_solver(method)(lambda z: z * scale + x, z0, max_iter=steps, tol=0.0)

    run(z0[:1, :1], x[:1, :1], 3)  # for what the first call imports
    z = x * scale + x
    z = z * scale + x
    before = resident()
    run(z0, x, steps)
    return resident() - before


def resident() -> int:
    """Peak resident memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage there includes the parent's peak
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0])
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
