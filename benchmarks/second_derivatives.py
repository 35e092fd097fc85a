"""Hessian–vector products through an equilibrium, against a converged unrolling."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from implicit import (
    Gradient,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ShineGradient,
    UnrolledGradient,
)

from .cells import CASES, Case
from .differentiation import FORWARD, ours
from .exact import joined, relative_error
from .peers import installed
from .problem import normal
from .report import Cell, Progress, Table

UNROLLED = 200
"""Number of steps after which the iteration has converged to rounding."""
OURS: dict[str, Gradient] = {
    "ImplicitGradient()": ImplicitGradient(),
    "ImplicitGradient(rtol=1e-8)": ImplicitGradient(rtol=1e-8),
    f"UnrolledGradient({UNROLLED})": UnrolledGradient(UNROLLED),
    "PhantomGradient(5)": PhantomGradient(5),
    "NeumannGradient(5)": NeumannGradient(5),
    "ShineGradient()": ShineGradient(),
}
TORCHDEQ: dict[str, dict[str, bool | int]] = {
    "torchdeq ift=True": {"ift": True},
    "torchdeq hook_ift=True": {"hook_ift": True},
    "torchdeq grad=5": {"grad": 5},
}

Solved = Callable[[Case, Tensor], Tensor]
"""(case, x) → z*."""


def second_derivatives(quick: bool, progress: Progress) -> Table:
    """Errors of Hessian–vector products, in x and the parameters together."""
    progress("second derivatives")
    case = CASES["Gaussian 0.9"]()
    reference = _hessian_product(case, _unrolled)
    runs: dict[str, Solved] = {name: partial(_ours, gradient) for name, gradient in OURS.items()}
    if installed("torchdeq"):
        runs |= {name: partial(_torchdeq, options) for name, options in TORCHDEQ.items()}
    rows: list[dict[str, Cell]] = []
    for name, solved in runs.items():
        try:
            outcome: Cell = relative_error(_hessian_product(case, solved), reference)
        except RuntimeError as error:
            if "second derivatives" not in str(error):
                raise
            outcome = "refused"
        rows.append({"gradient": name, "relative error": outcome})
    return Table(
        "Second derivatives: relative error of a Hessian–vector product, Gaussian 0.9, float64",
        rows,
        [
            f"of ⟨weight, z*⟩ + Σ z*³ in x and all parameters, against {UNROLLED} unrolled steps; z* and torchdeq's "
            f"backward solve to {FORWARD:g}. refused: with an error that says so.",
        ],
    )


def _hessian_product(case: Case, solved: Solved) -> Tensor:
    x = case.x.clone().requires_grad_()
    tensors = (x, *case.cell.parameters())
    z = solved(case, x)
    gradient = torch.autograd.grad((case.weight * z + z**3).sum(), tensors, create_graph=True)
    directional = sum(((part * normal(seed, *part.shape)).sum() for seed, part in enumerate(gradient)), torch.zeros(()))
    return joined(torch.autograd.grad(directional, tensors))


def _unrolled(case: Case, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(UNROLLED):
        z = case.cell(z, x)
    return z


def _ours(gradient: Gradient, case: Case, x: Tensor) -> Tensor:
    return ours(gradient)(case.cell, x)


def _torchdeq(options: dict[str, bool | int], case: Case, x: Tensor) -> Tensor:
    deq = importlib.import_module("torchdeq").get_deq(
        f_tol=FORWARD, b_tol=FORWARD, f_max_iter=UNROLLED, b_max_iter=UNROLLED, **options
    )
    z: Tensor = deq(lambda z: case.cell(z, x), torch.zeros_like(x))[0][-1]
    return z
