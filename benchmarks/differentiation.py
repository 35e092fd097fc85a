"""One gradient of a case, ours or a peer's: its error, and its vector–Jacobian products counted inside the cell."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from implicit import ConvergenceWarning, Equilibrium, Gradient, record
from solvers import Anderson, Solver

from .cells import Case
from .exact import Exact, joined, pulled_back, relative_error

Layer = Callable[[nn.Module, Tensor], Tensor]
"""(cell, x) → its equilibrium, differentiable."""
FORWARD = 1e-12
"""Relative tolerance of our forward solves; torchdeq starts at the solution."""
STEPS = 1000


class CountedCell(nn.Module):
    """A cell that counts the calls of its backward."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.counter = Counter()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.counter.through(self.cell(z, x))


class Counter:
    """Counts backward calls; shared by the copies of a cell that a gradient may make."""

    calls = 0

    def through(self, image: Tensor) -> Tensor:
        """The image unchanged; every gradient that comes back through it is counted."""
        same: Tensor = _Counting.apply(image, self)
        return same


class _Counting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, counter: Counter) -> Tensor:
        ctx.counter = counter
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.counter.calls += 1
        return grads[0], None


@dataclass(frozen=True)
class Found:
    """A gradient compared with the exact one; products exclude the last, to x and the parameters, which all need."""

    products: int
    """Products of the batch, as counted inside the cell."""
    products_a_row: float
    """Mean products of a row until its backward solve met its tolerance, as recorded."""
    error: float
    cosine: float
    warned: bool
    """Whether a `ConvergenceWarning` was issued."""


def gradient_of(case: Case, layer: Layer) -> Tensor:
    """The gradient in x and in all parameters, as one vector."""
    x = case.x.clone().requires_grad_()
    return joined(torch.autograd.grad(layer(case.cell, x), (x, *case.cell.parameters()), case.weight))


def measured(exact: Exact, layer: Layer) -> Found:
    """Work and error of the gradient by this layer."""
    cell = CountedCell(exact.case.cell)
    with record() as log, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        found = gradient_of(replace(exact.case, cell=cell), layer)
    products = cell.counter.calls - 1
    recorded = [solution.evaluations.double().mean().item() for _, solution in log.backward]
    warned = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return _compared(exact, found, products, sum(recorded) if recorded else products, warned)


def _compared(exact: Exact, gradient: Tensor, products: int, products_a_row: float, warned: bool) -> Found:
    cosine = torch.cosine_similarity(gradient, exact.gradient, dim=0).item()
    return Found(products, products_a_row, relative_error(gradient, exact.gradient), cosine, warned)


def ours(gradient: Gradient, solver: Solver = Anderson(), rtol: float = FORWARD) -> Layer:
    """A layer with this gradient, after a forward solve from zero."""

    def layer(cell: nn.Module, x: Tensor) -> Tensor:
        equilibrium = Equilibrium(cell, solver=solver, gradient=gradient, rtol=rtol, atol=0.0, max_steps=STEPS)
        z = equilibrium(x)
        assert isinstance(z, Tensor)  # as x is
        return z

    return layer


def torchdeq(start: Tensor, backward: Mapping[str, float | str]) -> Layer:
    """torchdeq's implicit gradient with these options of the backward solve, after one step from the solution."""
    deq = importlib.import_module("torchdeq").get_deq(ift=True, f_max_iter=1, **backward)

    def layer(cell: nn.Module, x: Tensor) -> Tensor:
        z: Tensor = deq(lambda z: cell(z, x), start)[0][-1]
        return z

    return layer


def scipy_gmres(exact: Exact, rtol: float) -> Found:
    """The gradient by SciPy's GMRES, never restarted, row by row, on dense Jacobians."""
    sparse = importlib.import_module("scipy.sparse.linalg")
    adjoints, counts = [], []
    for jacobian, shift in zip(exact.jacobian, exact.case.weight.flatten(1)):
        transposed, products = jacobian.T.numpy(), 0

        def product(u: Any, transposed: Any = transposed) -> Any:
            nonlocal products
            products += 1
            return u - transposed @ u

        operator = sparse.LinearOperator(transposed.shape, matvec=product, dtype=transposed.dtype)
        adjoint, _ = sparse.gmres(operator, shift.numpy(), rtol=rtol, atol=0.0, restart=len(shift), maxiter=1)
        adjoints.append(torch.from_numpy(adjoint))
        counts.append(products)
    adjoint = torch.stack(adjoints).view_as(exact.case.weight)
    found = pulled_back(exact.case, exact.solution, adjoint)
    return _compared(exact, found, max(counts), sum(counts) / len(counts), warned=False)
