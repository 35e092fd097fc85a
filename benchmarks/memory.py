"""Peak memory of Broyden's history on a large state, each solver in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from solvers import Broyden, solve

from .peers import installed, torchdeq_solver
from .report import Cell, Progress, Table

SHAPE = (32, 256, 32, 32)
STEPS = 40


def memory(quick: bool, progress: Progress) -> Table:
    """Beyond the state, f's own temporaries and what the process held before."""
    title = f"Memory: peak additional MiB of Broyden, z of {'×'.join(map(str, SHAPE))} float32, {STEPS} steps"
    if quick:
        return Table(title, [], ["skipped: --quick leaves out gigabytes"])
    rows: list[dict[str, Cell]] = []
    for name in ("ours", "torchdeq") if installed("torchdeq") else ("ours",):
        progress(f"memory: {name}")
        rows.append({"solver": name, "MiB": in_process_of_its_own(peak, name) / 2**20})
    return Table(title, rows, ["resident memory of a process of its own, over that after two evaluations of f."])


def in_process_of_its_own(measure: Callable[..., int], *arguments: object) -> int:
    """What `measure(*arguments)` returns in a fresh process, for the peak of a process never falls."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what it imports takes seconds, once is enough
    with ProcessPoolExecutor(1, context, initializer=_give_back_what_is_freed) as pool:
        return pool.submit(measure, *arguments).result()


def _give_back_what_is_freed() -> None:
    """glibc learns to keep large blocks, whose gaps would count: have it give them back as at first."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(-3, 65536)  # M_MMAP_THRESHOLD, bytes; once set it stays


@torch.no_grad()
def peak(name: str) -> int:
    """Bytes by which the solve raises this process's peak of resident memory."""
    torch.manual_seed(0)
    x, z0 = torch.randn(SHAPE), torch.zeros(SHAPE)
    scale = torch.linspace(0.9, 0.9999, SHAPE[-1])
    z = x * scale + x
    z = z * scale + x
    before = resident()
    if name == "ours":
        solve(lambda z: z * scale + x, z0, solver=Broyden(), rtol=1e-14, atol=0.0, max_steps=STEPS)
    else:
        torchdeq_solver("broyden")(lambda z: z * scale + x, z0, max_iter=STEPS, tol=0.0)
    return resident() - before


def resident() -> int:
    """Bytes at most resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there includes the parent's peak
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
