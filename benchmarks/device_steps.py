"""Microseconds of a step on a device: ours, torchdeq's and JAX's, beside f alone and beside the bytes of a step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from implicit import Equilibrium
from solvers import Anderson, Broyden, Captured, Eager, Loop, Picard, Solver

from .counting import Counted
from .device_clock import copy_bandwidth, graphed, out_of_memory, seconds, spread
from .jax_steps import Jitted, jitted_solves, left_out
from .peers import installed, torchdeq_solver
from .report import Cell, Progress, Table

MEMORY = 6
"""Memory of Anderson and Broyden, on all sides."""
SHAPES = ((1, 64), (32, 256), (64, 3072), (64, 16384), (256, 65536))
STEPS = 48
COPIED = 2**28
"""Numbers in float32 that are copied to measure the bandwidth."""
SOLVERS: dict[str, tuple[Solver, str, dict[str, int]]] = {
    "Picard": (Picard(), "fixed_point_iter", {}),
    "Anderson": (Anderson(memory=MEMORY), "anderson", {"m": MEMORY}),
    "Broyden": (Broyden(memory=MEMORY), "broyden", {"LBFGS_thres": MEMORY}),
}
"""Our solver, torchdeq's name for it, and torchdeq's options."""
LOOPS: dict[str, Loop] = {"eager": Eager(), "captured": Captured()}
PASSES = {"Picard": 8, "Anderson": 13 + 2 * MEMORY, "Broyden": 13 + 2 * MEMORY}
"""Passes over the state in a step that reads and writes each array once."""
COUNTED = (
    "bytes: the time that the passes of a step over the state take at the bandwidth of a copy. Passes: 5 of f (a "
    "product and a sum, as PyTorch runs them), 3 of the residual and both norms, and of Anderson and Broyden "
    f"{5 + 2 * MEMORY}: both histories of {MEMORY} states read once, their newest states written, the image and the "
    "residual read, the next state written."
)


class Run(NamedTuple):
    """One solver on one problem."""

    solve: Callable[[], object]
    taken: Callable[[], int]
    """Number of steps that it really takes."""


class Slow(nn.Module):
    """`z s + x` with s between 0.9 and 0.9999: no solver converges within the steps."""

    scale: Tensor

    def __init__(self, dim: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.9, 0.9999, dim, device=device))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z * self.scale + x


@torch.no_grad()
def step_times(
    device: torch.device,
    progress: Progress,
    *,
    where: str,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    steps: int = STEPS,
    repeats: int = 15,
    copied: int = COPIED,
) -> Table:
    """A row for each state, solver and side; the sides of one state and solver are timed in turn.

    Args:
        where: the device and the versions, in words.
        copied: numbers whose copy measures the bandwidth.
    """
    bandwidth = copy_bandwidth(device, copied, repeats)
    rows: list[dict[str, Cell]] = []
    short: list[str] = []
    for batch, dim in shapes:
        for name in SOLVERS:
            progress(f"steps: {name} at ({batch}, {dim})")
            cell, x = Slow(dim, device), torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).to(device)
            alone = graphed(lambda cell=cell, x=x: _chain(cell, x, steps), device)  # type: ignore[misc]
            taken, runs = {}, {}
            for side, run in _runs(name, cell, x, steps).items():
                try:
                    run.solve()
                    taken[side] = run.taken()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    short.append(f"{side}, {name} at ({batch}, {dim}): out of memory")
                    continue
                if steps <= taken[side] <= steps + 1:  # torchdeq's Broyden evaluates f at the start as well
                    runs[side] = run.solve
                else:
                    short.append(f"{side}, {name} at ({batch}, {dim}): {taken[side]} steps")
            times = seconds({"f": alone, **runs}, device, repeats)
            f = 1e6 * statistics.median(times.pop("f")) / steps
            for side, found in times.items():
                row: dict[str, Cell] = {"state": f"({batch}, {dim})", "entries": batch * dim, "solver": name}
                row |= {"by": side, **spread(found, 1e-6 * taken[side])}
                rows.append(row | {"f in a graph": f, "bytes": 1e6 * 4 * batch * dim * PASSES[name] / bandwidth})
    notes = [
        f"{where}; a copy moves {bandwidth / 1e12:.3g} TB/s, read and written.",
        f"f(z) = z s + x, float32, {steps} steps, checked; memory {MEMORY}. Seconds of a whole solve, f included, over "
        f"its steps: median, least and largest of {repeats} repeats by turns. f in a graph: of the evaluations alone.",
        COUNTED,
        *left_out(device),
    ]
    if short:
        notes.append(f"left out, as {steps} steps were asked for: {'; '.join(short)}.")
    return Table("Steps on a device: µs a step", rows, notes)


def _chain(cell: nn.Module, x: Tensor, count: int) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(count):
        z = cell(z, x)
    return z


def _runs(name: str, cell: Slow, x: Tensor, steps: int) -> dict[str, Run]:
    solver, method, options = SOLVERS[name]
    runs = {side: _ours(cell, x, solver, loop, steps) for side, loop in LOOPS.items()}
    if installed("torchdeq"):
        runs["torchdeq"] = _torchdeq(cell, x, method, options, steps)
    return runs | {side: _jax(run) for side, run in jitted_solves(name, cell.scale, x, steps).items()}


def _ours(cell: Slow, x: Tensor, solver: Solver, loop: Loop, steps: int) -> Run:
    layer = Equilibrium(cell, solver=solver, rtol=1e-14, atol=0.0, max_steps=steps, loop=loop)
    return Run(lambda: layer.solve(x), lambda: int(layer.solve(x).steps.min()))


def _torchdeq(cell: Slow, x: Tensor, method: str, options: dict[str, int], steps: int) -> Run:
    f, z0, solver = Counted(lambda z: cell(z, x)), torch.zeros_like(x), torchdeq_solver(method)

    def run() -> object:
        return solver(f, z0, max_iter=steps, tol=0.0, **options)

    def taken() -> int:
        before = f.calls
        run()
        return f.calls - before

    return Run(run, taken)


def _jax(solve: Jitted) -> Run:
    return Run(solve, lambda: int(solve()[1]))
