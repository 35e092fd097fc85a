"""Seconds of monDEQ's equilibrium, ours and the authors' algorithm timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.measuring.timing import Runs, by_turns
from implicit import Equilibrium, SplittingGradient, record
from models.mondeq import MonotoneCell
from solvers import PeacemanRachford

from .counting import row_norms
from .problem import normal
from .report import Cell, Progress, Table

RTOL = 1e-5
"""Ours: on each row's residual, forward and backward; theirs: on the whole batch's last change, their default."""
THEIRS, PATIENT = 50, 2000
"""Largest numbers of iterations: their default, and enough to meet their own test."""
INPUTS, BATCH = 32, 128


class Textbook:
    """Winston and Kolter's forward and backward splitting, α = 1, the inverse formed once per weight.

    Leaner than their own code, whose backward pass divides by slopes and writes through masks.
    """

    def __init__(self, cell: MonotoneCell, iterations: int) -> None:
        self.cell, self.iterations = cell, iterations

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight, shift = self.cell.weight(), self.cell.shift(x)
            resolvent = torch.linalg.inv(2 * torch.eye(len(weight)) - weight)
            point = self.alternate(lambda w: (w + shift) @ resolvent.mT, torch.relu, torch.zeros_like(shift))
        image: Tensor = self.cell(point, x)
        attached: Tensor = _Adjoint.apply(image, weight, resolvent, self)
        return attached

    def alternate(
        self, resolvent: Callable[[Tensor], Tensor], projection: Callable[[Tensor], Tensor], point: Tensor
    ) -> Tensor:
        """Alternate the two reflections until the point changes little."""
        reflected = point
        for _ in range(self.iterations):
            half = 2 * point - reflected
            reflected = 2 * resolvent(half) - half
            last, point = point, projection(reflected)
            if (point - last).norm().item() <= RTOL * (1e-6 + point.norm().item()):
                break
        return point


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, resolvent: Tensor, owner: Textbook) -> Tensor:
        ctx.save_for_backward(image, weight, resolvent)
        ctx.owner = owner
        return image.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        image, weight, resolvent = ctx.saved_tensors
        (grad,), active = grads, image > 0
        known = torch.where(active, grad, 0)
        point = ctx.owner.alternate(
            lambda w: w @ resolvent, lambda u: torch.where(active, u + known, 0), torch.zeros_like(grad)
        )
        return grad + point @ weight, None, None, None


def splitting(quick: bool, progress: Progress) -> Table:
    """Widths × gains of the weights, forward alone and with the backward pass."""
    rows: list[dict[str, Cell]] = []
    for width in (64,) if quick else (64, 256):
        for gain in (1.0, 3.0, 10.0):
            progress(f"splitting: width {width}, weights × {gain:g}")
            rows += _rows(width, gain, 3 if quick else 21)
    return Table(
        f"monDEQ, batch {BATCH}: ms by Peaceman–Rachford splitting, float32",
        rows,
        [
            f"theirs: a textbook's loop of the authors' algorithm, α = 1, until the batch changes by {RTOL:g}, at most "
            f"{THEIRS} iterations (their default) or {PATIENT} (patient); ours: until each row's residual is {RTOL:g} "
            "of its image.",
            f"ratio: ours over theirs, median of repeats in turn. solved: rows of {BATCH} with ‖f(z) − z‖ ≤ "
            f"{RTOL:g} ‖f(z)‖, and 5 % of rounding; backward: rows of ours that meet it in u = Jᵀu + g.",
        ],
    )


def _rows(width: int, gain: float, repeats: int) -> list[dict[str, Cell]]:
    cell, x = _cell(width, gain), normal(2, BATCH, INPUTS).float()
    gradient = SplittingGradient(rtol=RTOL)
    layer = Equilibrium(cell, solver=PeacemanRachford(), gradient=gradient, rtol=RTOL)
    solvers: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": layer,
        "theirs": Textbook(cell, THEIRS),
        "patient": Textbook(cell, PATIENT),
    }
    with record() as log:
        layer(x).square().mean().backward()
    rows: list[dict[str, Cell]] = []
    for name, run in (("forward", _forward), ("forward, backward", _both)):
        runs: Runs = {label: partial(run, solver, cell, x) for label, solver in solvers.items()}
        by_turns(runs, 2, warm=False)
        times = by_turns(runs, repeats, warm=True)
        row: dict[str, Cell] = {"width": width, "weights ×": gain, "pass": name}
        row |= {f"{label} ms": 1e3 * statistics.median(found) for label, found in times.items()}
        for label in ("theirs", "patient"):
            row[f"ratio {label}"] = statistics.median(one / other for one, other in zip(times["ours"], times[label]))
        if run is _forward:
            row |= {f"solved {label}": _solved(solver, cell, x) for label, solver in solvers.items()}
        else:
            row["solved ours"] = int(log.backward[0].solution.converged.sum())
        rows.append(row)
    return rows


def _cell(width: int, gain: float) -> MonotoneCell:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = MonotoneCell(width, INPUTS)
    with torch.no_grad():
        cell.symmetric.mul_(gain)
        cell.skew.mul_(gain)
    return cell


@torch.no_grad()
def _forward(solver: Callable[[Tensor], Tensor], cell: MonotoneCell, x: Tensor) -> object:
    return solver(x)


def _both(solver: Callable[[Tensor], Tensor], cell: MonotoneCell, x: Tensor) -> object:
    return torch.autograd.grad(solver(x).square().mean(), tuple(cell.parameters()))


@torch.no_grad()
def _solved(solver: Callable[[Tensor], Tensor], cell: MonotoneCell, x: Tensor) -> int:
    z = solver(x)
    image = cell(z, x)
    return int((row_norms(image - z) <= 1.05 * RTOL * row_norms(image)).sum())
