"""The exact gradient of an equilibrium by dense linear algebra, independent of the toolkit's own gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from solvers import Anderson, solve

from .cells import CASES, Case

POLISH = 3
"""Newton steps, each of which doubles the number of correct digits."""


@dataclass(frozen=True)
class Exact:
    case: Case
    solution: Tensor
    """Exact to rounding."""
    jacobian: Tensor
    """(rows, dim, dim), of the cell at the solution."""
    gradient: Tensor
    """In x and in all parameters, as one vector."""

    @property
    def spectral_radius(self) -> float:
        """The largest over the rows."""
        return torch.linalg.eigvals(self.jacobian).abs().max().item()

    @property
    def condition(self) -> float:
        """The condition number of `I − J`, the largest over the rows."""
        return torch.linalg.cond(_identity(self.jacobian) - self.jacobian).max().item()


@cache
def exact(name: str) -> Exact:
    """The exact gradient of one of `CASES`."""
    case = CASES[name]()
    return differentiated(case, solution_of(case))


def differentiated(case: Case, solution: Tensor) -> Exact:
    """The exact gradient at a solution known to rounding."""
    jacobian = jacobians(case.cell, solution, case.x)
    transposed = (_identity(jacobian) - jacobian).mT
    adjoint = torch.linalg.solve(transposed, case.weight.flatten(1)).view_as(case.weight)
    return Exact(case, solution, jacobian, pulled_back(case, solution, adjoint))


def solution_of(case: Case) -> Tensor:
    """The fixed point, polished by Newton's method with dense Jacobians."""
    with torch.no_grad():
        found = solve(case.cell, torch.zeros_like(case.x), (case.x,), solver=Anderson(), rtol=1e-10, max_steps=1000)
    z = found.check().value
    assert isinstance(z, Tensor)  # as z0 is
    for _ in range(POLISH):
        jacobian = jacobians(case.cell, z, case.x)
        with torch.no_grad():
            residual = (case.cell(z, case.x) - z).flatten(1)
        z = z + torch.linalg.solve(_identity(jacobian) - jacobian, residual).view_as(z)
    return z


def jacobians(cell: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """(rows, dim, dim) `∂f/∂z` of each row, one entry of f at a time."""
    point = z.detach().requires_grad_()
    image = cell(point, x).flatten(1)
    lines = [torch.autograd.grad(image[:, entry].sum(), point, retain_graph=True)[0] for entry in range(image.shape[1])]
    return torch.stack([line.flatten(1) for line in lines], dim=1)


def pulled_back(case: Case, solution: Tensor, adjoint: Tensor) -> Tensor:
    """`adjointᵀ ∂f/∂(x, parameters)`, as one vector."""
    x = case.x.clone().requires_grad_()
    image = case.cell(solution, x)
    return joined(torch.autograd.grad(image, (x, *case.cell.parameters()), adjoint))


def joined(parts: tuple[Tensor, ...]) -> Tensor:
    """The parts as one vector."""
    return torch.cat([part.flatten() for part in parts])


def relative_error(found: Tensor, reference: Tensor) -> float:
    return (torch.linalg.vector_norm(found - reference) / torch.linalg.vector_norm(reference)).item()


def _identity(matrices: Tensor) -> Tensor:
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype)
