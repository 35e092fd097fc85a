"""Peak memory of a forward and backward pass against the solver's steps, each in a process of its own."""

from __future__ import annotations

import importlib
import sys
import warnings

import torch
from torch import Tensor, nn

from implicit import (
    ConvergenceWarning,
    Equilibrium,
    Gradient,
    ImplicitGradient,
    PhantomGradient,
    ReversibleGradient,
    UnrolledGradient,
)
from solvers import Anderson, Picard, Reversible, Solver

from .cells import ConvolutionalCell
from .peers import installed
from .problem import normal
from .report import Cell, Progress, Table
from .solver_memory import NO_PEAKS, in_process_of_its_own, resident

SHAPE = (8, 16, 48, 48)
STEPS = (10, 40, 160)
OURS = (
    "ImplicitGradient(), Anderson",
    "ImplicitGradient(Picard()), Picard",
    "PhantomGradient(5), Picard",
    "ReversibleGradient(), Reversible",
    "UnrolledGradient(n), Picard",
    "UnrolledGradient(n, checkpoint=True), Picard",
)
TORCHDEQ = "torchdeq ift=True, fixed_point_iter"


class Sluggish(nn.Module):
    """`z + 0.02 (cell(z, x) − z)`, so slow that plain iteration does not converge within the steps."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.lerp(z, self.cell(z, x), 0.02)


def gradient_memory(quick: bool, progress: Progress) -> Table:
    """Peaks beyond the cell's own temporaries and what the process held before."""
    title = f"Memory: peak additional MiB of a forward and backward pass, z of {'×'.join(map(str, SHAPE))} float32"
    if quick:
        return Table(title, [], ["skipped: --quick leaves out two gigabytes"])
    if sys.platform == "win32":
        return Table(title, [], [NO_PEAKS])
    rows: list[dict[str, Cell]] = []
    for name in (*OURS, TORCHDEQ) if installed("torchdeq") else OURS:
        progress(f"memory: {name}")
        peaks = {f"{steps} steps": in_process_of_its_own(peak, name, steps) / 2**20 for steps in STEPS}
        rows.append({"gradient, solver": name, **peaks})
    return Table(
        title,
        rows,
        [
            "resident memory of a process of its own, over that after one evaluation of the cell and its backward. "
            "steps: the most forward, and products backward. n: so many, too. Anderson fills its buffers of "
            "16 states first, forward and backward."
        ],
    )


def peak(name: str, steps: int) -> int:
    """Bytes by which the two passes raise this process's peak of resident memory."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # none of them is meant to converge
    inner, outer = (0.05 * normal(seed, SHAPE[1], SHAPE[1], 3, 3).float() for seed in (1, 2))
    cell = Sluggish(ConvolutionalCell(inner, outer, groups=4))
    x = normal(3, *SHAPE).float().requires_grad_()
    small = x[:1, :, :2, :2].detach().requires_grad_()
    _differentiate(cell, small, solved(name, 2, cell, small))  # for what the first call imports
    _differentiate(cell, x, cell(torch.zeros_like(x), x))
    before = resident()
    _differentiate(cell, x, solved(name, steps, cell, x))
    return resident() - before


def solved(name: str, steps: int, cell: nn.Module, x: Tensor) -> Tensor:
    """The last of `steps` iterates, differentiable."""
    if name == TORCHDEQ:
        deq = importlib.import_module("torchdeq").get_deq(
            ift=True, f_tol=0.0, b_tol=0.0, f_max_iter=steps, b_max_iter=steps
        )
        z: Tensor = deq(lambda z: cell(z, x), torch.zeros_like(x))[0][-1]
        return z
    solver, gradient = _ours(steps)[name]
    z = Equilibrium(cell, solver=solver, gradient=gradient, rtol=1e-14, atol=0.0, max_steps=steps)(x)
    assert isinstance(z, Tensor)  # as x is
    return z


def _ours(steps: int) -> dict[str, tuple[Solver, Gradient]]:
    settings: tuple[tuple[Solver, Gradient], ...] = (
        (Anderson(), ImplicitGradient(rtol=1e-14, max_steps=steps)),
        (Picard(), ImplicitGradient(Picard(), rtol=1e-14, max_steps=steps)),
        (Picard(), PhantomGradient(5)),
        (Reversible(), ReversibleGradient()),
        (Picard(), UnrolledGradient(steps)),
        (Picard(), UnrolledGradient(steps, checkpoint=True)),
    )
    return dict(zip(OURS, settings))


def _differentiate(cell: nn.Module, x: Tensor, z: Tensor) -> object:
    return torch.autograd.grad(z.square().mean(), (x, *cell.parameters()))
