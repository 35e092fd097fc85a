"""Products with the Jacobian of a map, and the linear equation of a Newton step as a problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..problem import Problem
from ..state import Layout, unhooked

Map = Callable[[Tensor], Tensor]
"""A map of (rows, dim) matrices."""
Way = Callable[[Map, Tensor, Tensor, Tensor], Map]
"""Takes a map, a point, its image there and the `spread_at` of finite differences; returns the product `v ↦ J v`."""


def double_reverse_mode(f: Map, z: Tensor, image: Tensor, spread: Tensor) -> Map:
    """Differentiate uᵀJ in u: exact, where reverse mode works twice; one evaluation of f for all products."""
    # hooks of checkpointing or save_on_cpu would recompute or copy the tensors saved here at each product
    with torch.enable_grad(), unhooked():
        point = z.detach().requires_grad_()
        tracked = f(point)
        u = torch.zeros_like(tracked, requires_grad=True)
        (transposed,) = torch.autograd.grad(tracked, point, u, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(transposed, u, v, retain_graph=True)
        return result

    return product


def forward_mode(f: Map, z: Tensor, image: Tensor, spread: Tensor) -> Map:
    """Use `torch.func.jvp`: exact; one evaluation of f per product."""
    return lambda v: torch.func.jvp(f, (z,), (v,))[1]


def finite_differences(f: Map, z: Tensor, image: Tensor, spread: Tensor) -> Map:
    """Use `(f(z + εv) − f(z)) / ε`: half the digits, for any f; one evaluation of f per product."""
    size = 1 + torch.linalg.vector_norm(z, dim=1, keepdim=True)

    def product(v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        step = torch.where(length > 0, spread * size / length, 1)
        return torch.where(length > 0, (f(z + step * v) - image) / step, 0)

    return product


WAYS: tuple[Way, ...] = (double_reverse_mode, forward_mode, finite_differences)
"""The fastest first: forward mode evaluates f anew for each product, and is slow where operands have no tangent."""


def suited(z: Tensor, image: Tensor) -> Tensor:
    """(rows, 1), the size of a state and its image relative to that for which finite differences step."""
    own = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    both = own + torch.linalg.vector_norm(image, dim=1, keepdim=True)
    return torch.where((both > 0) & both.isfinite(), both / (1 + own), 1)


def spread_at(problem: Problem, z: Tensor, image: Tensor) -> Tensor:
    """(rows, 1), the relative step length of finite differences; longer where z is small beside its image.

    Not where F(z) = 0 is solved, since F may have any unit.
    """
    longer = torch.ones_like(z[:, :1]) if problem.relative_to_start else suited(z, image).clamp(min=1)
    return problem.spread * longer


class NewtonEquation(Problem):
    """`u g′(z) δ + shift = 0` for g the residual of a problem, as the fixed point of `δ + u g′(z) δ + shift`.

    Args:
        problem: whose residual is g.
        way: the position in `WAYS` of how products are made.
        z, residual: the point, and g there.
        shift: (rows, dim).
        unit: u, (rows, 1), such that `u g′` is neither small nor large.
    """

    def __init__(self, problem: Problem, way: int, z: Tensor, residual: Tensor, shift: Tensor, unit: Tensor) -> None:
        self.problem = problem
        super().__init__(problem.f, (), Layout(shift))
        self.compact, self.told = problem.compact, True
        self.way, self.z, self.at_z, self.shift, self.unit = way, z, residual, shift, unit
        self.product = WAYS[way](problem.apart().residual, z, residual, spread_at(problem, z, residual))
        if WAYS[way] is double_reverse_mode:
            self.spent = np.ones(len(z), dtype=np.int64)  # its one evaluation of f

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        """Whether the problem's rows are coupled."""
        return self.problem.coupled

    @coupled.setter
    def coupled(self, value: bool) -> None:
        self.problem.coupled |= value

    @property
    def independent(self) -> bool:  # type: ignore[override]
        """Whether the problem's rows are independent."""
        return self.problem.independent

    @independent.setter
    def independent(self, value: bool) -> None:
        if value:
            self.problem.independent = value

    def residual(self, flat: Tensor) -> Tensor:
        return (self.product(flat.to(self.z.dtype) * self.unit) + self.shift).to(self.layout.working_dtype)

    def __call__(self, flat: Tensor) -> Tensor:
        return flat + self.residual(flat)

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        residual = self.residual(z)
        return z + residual, residual

    def take(self, rows: Tensor) -> NewtonEquation:
        """The equation of the rows at these positions."""
        own = (part[rows] for part in (self.z, self.at_z, self.shift, self.unit))
        taken = NewtonEquation(self.problem.take(rows), self.way, *own)
        taken.dropped = True
        return taken

    def widened(self) -> NewtonEquation:
        wide = super().widened()
        assert isinstance(wide, NewtonEquation)
        return wide
