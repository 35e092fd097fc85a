"""Work of a batch beyond what its rows need, and two hard settings: other units, monotone cells of large norm."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from models import MonotoneDense
from solvers import Anderson, Solver, solve

from .counting import Counted, Finished, Watch
from .evaluations import SOLVERS
from .peers import LIMIT, TORCHDEQ, installed, torchdeq_solver
from .problem import Affine
from .problems import PROBLEMS
from .report import Cell, Progress, Table

Run = Callable[[Counted, Tensor, tuple[Tensor, Tensor]], object]
"""(f, z0, args) → a solve."""

BAR = 1.15
RTOL = 1e-4
STEPS = 4000
NORM = 10.0
BUDGET = 100
WIDTHS = ((8, 16), (16, 32), (32, 64), (64, 64), (64, 128), (64, 256))


def heterogeneous(quick: bool, progress: Progress) -> Table:
    """A batch whose rows need from a few to more than a thousand evaluations."""
    batch, dim = 16 if quick else 64, 16
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    matrix = basis * torch.linspace(-1, 1, dim, dtype=torch.float64) @ basis.T
    rate = 1 - torch.logspace(-0.3, -2.2, batch, dtype=torch.float64)[:, None]
    x = torch.randn(batch, dim, generator=generator, dtype=torch.float64)

    def f(z: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        return rate * (z @ matrix) + x

    def spent(run: Run, rows: slice) -> int:
        counted = Counted(f)
        run(counted, torch.zeros_like(x[rows]), (rate[rows], x[rows]))
        return counted.rows

    runs: dict[str, Run] = {name: partial(_run, solver) for name, solver in SOLVERS.items()}
    if installed("torchdeq"):
        runs |= {f"torchdeq {name}": partial(_run_torchdeq, method) for name, method in TORCHDEQ.items()}
    rows: list[dict[str, Cell]] = []
    for name, run in runs.items():
        progress(f"frugality: {name}")
        whole = spent(run, slice(None))
        alone = sum(spent(run, slice(row, row + 1)) for row in range(batch))
        rows.append({"solver": name, "in the batch": whole, "each alone": alone, "ratio": whole / alone})
    notes = [
        f"rate·S z + x, S symmetric with spectrum [−1, 1], 1 − rate from 0.5 to 0.006, dim {dim}, rtol {RTOL:g}; ours "
        f"with compact=True, whose check at the end is counted; bar {BAR}.",
    ]
    return Table(f"Frugality: row-evaluations inside f of a batch of {batch} rows of unequal difficulty", rows, notes)


def _run(solver: Solver, f: Counted, z0: Tensor, args: tuple[Tensor, Tensor]) -> object:
    return solve(f, z0, args, solver=solver, rtol=RTOL, atol=0.0, max_steps=STEPS, compact=True).check()


def _run_torchdeq(method: str, f: Counted, z0: Tensor, args: tuple[Tensor, Tensor]) -> object:
    solver = torchdeq_solver(method)
    return solver(lambda z: f(z, *args), z0, max_iter=STEPS, tol=RTOL, stop_mode="rel")


def scaled(quick: bool, progress: Progress) -> Table:
    """The same symmetric problem in other units; nothing should change but the rounding."""
    problem, rtol = PROBLEMS["symmetric ±0.95"], 1e-10
    assert isinstance(problem.f, Affine)
    rows: list[dict[str, Cell]] = []
    for scale in (1e-3, 1.0, 1e3):
        progress(f"scaling: {scale:g}")
        f = Affine(problem.f.matrix, scale * problem.f.shift)
        solution = solve(f, problem.z0, solver=Anderson(memory=10), rtol=rtol, atol=0.0, max_steps=LIMIT).check()
        row: dict[str, Cell] = {"scale": f"{scale:g}", "Anderson": solution.evaluations.double().mean().item()}
        if installed("torchdeq"):
            watch = Watch(len(problem.z0), rtol, 200 if quick else LIMIT)
            peer = torchdeq_solver("anderson")
            with suppress(Finished):
                peer(watch.over(f), problem.z0, max_iter=watch.limit, tol=rtol, stop_mode="rel", m=10)
            missed = f"> {watch.limit:,}"
            row["torchdeq anderson"] = missed if None in watch.reached else watch.evaluations
        rows.append(row)
    return Table(
        "Scaling: evaluations of f a row to rtol 1e-10, symmetric spectrum [−0.95, 0.95], dim 64, memory 10",
        rows,
        ["torchdeq: > where a row did not get there."],
    )


def monotone(quick: bool, progress: Progress) -> Table:
    """`z = v − Wᵀσ(W z + b)` at ‖W‖ = 10: well posed, while f expands by up to 100."""
    rows: list[dict[str, Cell]] = []
    shares: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for width, hidden in WIDTHS[:1] if quick else WIDTHS:
        for activation in (nn.ReLU(), nn.Tanh(), nn.Softplus()):
            progress(f"monotone cells: {width} × {hidden}, {type(activation).__name__}")
            cell, v = _cell(width, hidden, activation)
            for name, solver in SOLVERS.items():
                solution = solve(
                    lambda z, v, cell=cell: v + cell(z), v, (v,), solver=solver, rtol=1e-6, atol=0.0, max_steps=BUDGET
                )
                solved = solution.converged & (solution.evaluations <= BUDGET)
                shares[name].append(100 * solved.double().mean().item())
            last = {name: found[-1] for name, found in shares.items()}
            rows.append({"cell": f"{width} × {hidden}", "activation": type(activation).__name__, **last})
    rows.append({"cell": "mean", **{name: statistics.mean(found) for name, found in shares.items()}})
    title = f"Monotone cells of weight norm {NORM:g}: rows solved to rtol 1e-6 within {BUDGET} evaluations, %"
    return Table(title, rows, ["width × hidden; 50 rows each, float64, Jacobian products counted."])


def _cell(width: int, hidden: int, activation: nn.Module) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = MonotoneDense(width, hidden, lipschitz=None, activation=activation).double().requires_grad_(False)
        v = torch.randn(50, width, dtype=torch.float64)
    weight = cell.linear.weight
    weight.mul_(NORM / torch.linalg.matrix_norm(weight, 2))
    return cell, v
