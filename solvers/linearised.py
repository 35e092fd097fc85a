"""A problem's linearisation at a point, itself a problem: `δ ↦ J δ + shift`, whose fixed point is Newton's step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .problem import DroppedRowsError, Problem
from .state import Layout

Product = Callable[[Tensor], Tensor]
Way = Callable[[Problem, Tensor, Tensor], Product]
"""From a problem, a point and its image to the products `v ↦ J v` there."""


def forward_mode(problem: Problem, z: Tensor, image: Tensor) -> Product:
    """By `torch.func.jvp`: exact, one evaluation of f a product."""
    return lambda v: torch.func.jvp(problem, (z,), (v,))[1]


def double_reverse_mode(problem: Problem, z: Tensor, image: Tensor) -> Product:
    """By the derivative of uᵀJ in u: exact, for what reverse mode differentiates twice; one evaluation of f in all."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        tracked = problem(point)
        u = torch.zeros_like(tracked, requires_grad=True)
        (transposed,) = torch.autograd.grad(tracked, point, u, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(transposed, u, v, retain_graph=True)
        return result

    return product


def finite_differences(problem: Problem, z: Tensor, image: Tensor) -> Product:
    """By `(f(z + εv) − f(z)) / ε`: half the digits, for any f; one evaluation of f a product."""
    spread = torch.finfo(problem.layout.dtype).eps ** 0.5
    size = 1 + torch.linalg.vector_norm(z, dim=1, keepdim=True)

    def product(v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        step = torch.where(length > 0, spread * size / length, 1)
        return (problem(z + step * v) - image) / step

    return product


WAYS: tuple[Way, ...] = (forward_mode, double_reverse_mode, finite_differences)


HIDDEN = 1e-2
"""Change of f, relative to that of z, which shows that products of 0 are no derivative; less at a critical point."""


def first_way(problem: Problem, z: Tensor, image: Tensor, v: Tensor) -> tuple[int, int]:
    """The position in `WAYS` of the first that f allows, and the evaluations of f that it took to find out."""
    tried = 0
    for position, way in enumerate(WAYS[:-1]):
        tried += 1
        try:
            with warnings.catch_warnings():
                # PyTorch's own, when it first differentiates forwards
                warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
                product = way(problem, z, image)(v)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, DroppedRowsError):  # how PyTorch says that an operation lacks that derivative
            continue
        tried += 1  # always, so that a row's count does not depend on the others
        change = torch.linalg.vector_norm(finite_differences(problem, z, image)(v), dim=1)
        if product.any() or not (change > HIDDEN * torch.linalg.vector_norm(v, dim=1)).any():
            return position, tried
        break  # f hides its derivative: it detaches z, or computes without gradients
    return len(WAYS) - 1, tried


class Linearised(Problem):
    """`δ ↦ J δ + shift` for J the Jacobian of a problem at the flat point z, by products with it alone."""

    def __init__(self, problem: Problem, way: int, z: Tensor, image: Tensor, shift: Tensor) -> None:
        super().__init__(problem.f, problem.args, Layout(shift))
        self.problem, self.way, self.z, self.image, self.shift = problem, way, z, image, shift
        self.product = WAYS[way](problem, z, image)
        if WAYS[way] is double_reverse_mode:
            self.spent = np.ones(len(z), dtype=np.int64)  # by its one evaluation of f

    def __call__(self, flat: Tensor) -> Tensor:
        return (self.product(flat.to(self.z.dtype)) + self.shift).to(self.layout.working_dtype)

    def take(self, rows: Tensor) -> Linearised:
        """The linearisation of the rows at these positions."""
        z, image, shift = self.z[rows], self.image[rows], self.shift[rows]
        return Linearised(self.problem.take(rows), self.way, z, image, shift)
