"""Milliseconds of a forward and backward pass on a device: each solver, eager and captured, beside torchdeq's own."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from experiments.measuring.timing import Runs
from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, record
from solvers import GMRES, Anderson, Loop, Solver

from .device_clock import WARM, out_of_memory, seconds, spread
from .device_steps import LOOPS, SOLVERS
from .peers import installed, torchdeq_layer
from .report import Cell, Progress, Table
from .training_step import RTOL, STEPS, Forward, convolutional, dense, one_step, reaches

Problem = Callable[[], tuple[nn.Module, Tensor]]
"""() → a cell and its input."""
CELLS: dict[str, Problem] = {
    "dense 32×512": partial(dense, 32, 512),
    "dense 256×128": partial(dense, 256, 128),
    "dense 1024×2048": partial(dense, 1024, 2048),
    "convolutional 64×48×32×32": partial(convolutional, 64, 48, 32),
}
TIGHT = 1e-10
"""Relative tolerance, in float64, of both solves of the gradient that the others are compared with."""


def training_times(
    device: torch.device, progress: Progress, *, where: str, cells: Mapping[str, Problem] = CELLS, repeats: int = 11
) -> Table:
    """A row for each cell, solver and side that meets the tolerance in every batch row; all of a cell timed in turn.

    Args:
        where: the device and the versions, in words.
    """
    rows: list[dict[str, Cell]] = []
    short: list[str] = []
    unknown: list[str] = []
    for name, make in cells.items():
        progress(f"training step on a device: {name}")
        cell, x = make()
        cell, x = cell.to(device), x.to(device)
        every = _forwards(cell)
        lacks = {key: _lack(forward, cell, x) for key, forward in every.items()}
        forwards = {key: forward for key, forward in every.items() if not lacks[key]}
        short += [f"{side}, {solver} on {name}: {lack}" for (solver, side), lack in lacks.items() if lack]
        exact = tight_gradient(cell, x)
        if exact is None:
            unknown.append(name)
        labels = {f"{solver}, {side}": (solver, side) for solver, side in forwards}
        runs: Runs = {label: partial(one_step, forwards[key], cell, x) for label, key in labels.items()}
        times = seconds(runs, device, repeats)
        medians = {label: statistics.median(found) for label, found in times.items()}
        fastest = min((label for label in medians if label.endswith("torchdeq")), key=medians.__getitem__, default="")
        for label, (solver, side) in labels.items():
            row: dict[str, Cell] = {"cell": name, "solver": solver, "by": side, **spread(times[label], 1e-3)}
            for column, peer in (("÷ same", f"{solver}, torchdeq"), ("÷ fastest", fastest)):
                row[column] = _ratio(times[label], times[peer]) if peer in times else None
            found = one_step(forwards[solver, side], cell, x)
            row["gradient error"] = None if exact is None else _error(found, exact)
            rows.append(row)
    notes = [
        f"{where}. Median, least and largest of {repeats} repeats by turns. ÷ same, ÷ fastest: over torchdeq's same "
        "solver, and its fastest on that cell, median of the repeats.",
        f"{RTOL:g} relative forward and backward on both sides, at most {STEPS} steps, one solver for both; default: "
        "Equilibrium(cell, loop=…) with this tolerance. float32, TensorFloat32 where PyTorch allows it by default.",
        f"gradient error: relative, against solves to {TIGHT:g} in float64.",
    ]
    if short:
        notes.append(f"left out: {'; '.join(short)}.")
    if unknown:
        notes.append(f"no gradient error, since the tight solve does not converge: {', '.join(unknown)}.")
    return Table("Training step on a device: ms of one forward and backward", rows, notes)


def _lack(forward: Forward, cell: nn.Module, x: Tensor) -> str:
    """Why a side is not measured; empty if it is."""
    try:
        if not all(reaches(forward, cell, x) for _ in range(WARM)):  # also once recorded
            return "not every row meets the tolerance"
        found = one_step(forward, cell, x)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return "out of memory"
    return "" if all(bool(part.isfinite().all()) for part in found) else "the gradient is not finite"


def _forwards(cell: nn.Module) -> dict[tuple[str, str], Forward]:
    """Forward passes by solver and side; layers are made once, since they keep what they have recorded."""
    found: dict[tuple[str, str], Forward] = {}
    for name, (solver, method, _) in SOLVERS.items():
        for side, loop in LOOPS.items():
            found[name, side] = _ours(cell, solver, ImplicitGradient(solver, rtol=RTOL, max_steps=STEPS), loop)
        if installed("torchdeq"):
            found[name, "torchdeq"] = partial(_torchdeq, torchdeq_layer(method, rtol=RTOL, steps=STEPS))
    for side, loop in LOOPS.items():
        found["default", side] = _ours(cell, Anderson(), ImplicitGradient(rtol=RTOL, max_steps=STEPS), loop)
    return found


def _ours(cell: nn.Module, solver: Solver, gradient: ImplicitGradient, loop: Loop) -> Forward:
    layer = Equilibrium(cell, solver=solver, gradient=gradient, rtol=RTOL, max_steps=STEPS, loop=loop)

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        z = layer(x)
        assert isinstance(z, Tensor)  # as x is
        return z

    return forward


def _torchdeq(layer: Callable[..., tuple[list[Tensor], object]], cell: nn.Module, x: Tensor) -> Tensor:
    return layer(lambda z: cell(z, x), torch.zeros_like(x))[0][-1]


def tight_gradient(cell: nn.Module, x: Tensor) -> tuple[Tensor, ...] | None:
    """The gradient of the same loss from tight solves in float64; None if a solve does not converge."""
    exact = copy.deepcopy(cell).double()
    gradient = ImplicitGradient(GMRES(), rtol=TIGHT, max_steps=1000)
    layer = Equilibrium(exact, solver=Anderson(), gradient=gradient, rtol=TIGHT, atol=0.0, max_steps=1000)
    with warnings.catch_warnings(), record() as log:
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = torch.autograd.grad(layer(x.double()).square().mean(), tuple(exact.parameters()))
    solved = all(bool(entry.solution.converged.all()) for entry in (*log.forward, *log.backward))
    return found if solved else None


def _error(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    one, other = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (found, exact))
    return float((one - other).norm() / other.norm())


def _ratio(found: list[float], other: list[float]) -> float:
    return statistics.median(one / peer for one, peer in zip(found, other))
