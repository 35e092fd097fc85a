"""Products with the Jacobian of a map, and the linear equation of a Newton step as a problem."""

from __future__ import annotations

import warnings
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
        return (f(z + step * v) - image) / step

    return product


WAYS: tuple[Way, ...] = (double_reverse_mode, forward_mode, finite_differences)
"""The fastest first: forward mode evaluates f anew for each product, and is slow where operands have no tangent."""
HIDDEN = 1e-2
"""Change of f, relative to that of z, above which finite differences are informative."""
ALIKE = 0.1
"""Relative difference up to which a product and a finite difference count as the same derivative."""


def first_way(problem: Problem, f: Map, z: Tensor, image: Tensor, v: Tensor) -> tuple[int, int]:
    """The position in `WAYS` of the first way that works for f, and the evaluations of f spent on finding it.

    A way that finite differences contradict is skipped: a cell may detach z, or the backward of an `autograd.Function`
    may compute something that autograd does not see. Where the state is small, shorter ones count if they are stable.
    Rows where none is stable, since f is rough, do not count, nor do those where f's rounding may be the difference.

    Args:
        problem: whose state z is.
        f: the problem, or its residual.
        z, image: a point, and its image under f.
        v: the direction of the product that is compared, (rows, dim).
    """
    spread, own = spread_at(problem, z, image), 1 + torch.linalg.vector_norm(z, dim=1, keepdim=True)
    change = finite_differences(f, z, image, spread)(v)
    noise = problem.spread**2 * (own + torch.linalg.vector_norm(image, dim=1, keepdim=True)) / (spread * own)
    threshold = (max(HIDDEN, problem.spread) + 4 * noise[:, 0]) * torch.linalg.vector_norm(v, dim=1)
    size = torch.linalg.vector_norm(change, dim=1)
    telling = size.isfinite() & (size > threshold)

    def contradicted(product: Tensor, change: Tensor) -> Tensor:
        difference = torch.linalg.vector_norm(product - change, dim=1)
        return ~(difference <= ALIKE * size + threshold)  # NaN is no derivative

    tried, checked = 1, False
    for position, way in enumerate(WAYS[:-1]):
        tried += 1
        try:
            with warnings.catch_warnings():
                # PyTorch's own warning at its first forward-mode derivative
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
                product = way(f, z, image, spread)(v)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an operation or a cell without that derivative raises
            continue
        if not checked and (telling & contradicted(product, change)).any():
            tried, checked = tried + 3, True
            short = spread * suited(z, image).clamp(max=1)
            half, near, nearer = (finite_differences(f, z, image, step)(v) for step in (spread / 2, short, short / 2))
            local = telling & ~contradicted(near, nearer)
            telling &= local | ~contradicted(change, half)
            change = torch.where(local[:, None], near, change)
            size = torch.linalg.vector_norm(change, dim=1)
        if not (telling & contradicted(product, change)).any():
            return position, tried
    return len(WAYS) - 1, tried


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
    """`g′(z) δ + shift = 0` for g the residual of a problem, as the fixed point of `δ + g′(z) δ + shift`."""

    def __init__(self, problem: Problem, way: int, z: Tensor, residual: Tensor, shift: Tensor) -> None:
        self.problem = problem
        super().__init__(problem.f, (), Layout(shift))
        self.compact, self.told = problem.compact, True
        self.way, self.z, self.at_z, self.shift = way, z, residual, shift
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
        return (self.product(flat.to(self.z.dtype)) + self.shift).to(self.layout.working_dtype)

    def __call__(self, flat: Tensor) -> Tensor:
        return flat + self.residual(flat)

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        residual = self.residual(z)
        return z + residual, residual

    def take(self, rows: Tensor) -> NewtonEquation:
        """The equation of the rows at these positions."""
        z, residual, shift = self.z[rows], self.at_z[rows], self.shift[rows]
        taken = NewtonEquation(self.problem.take(rows), self.way, z, residual, shift)
        taken.dropped = True
        return taken

    def widened(self) -> NewtonEquation:
        wide = super().widened()
        assert isinstance(wide, NewtonEquation)
        return wide
