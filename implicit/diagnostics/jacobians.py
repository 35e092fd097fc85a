"""Jacobians of a problem: dense, or as matrix-free operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from solvers.problem import Problem
from solvers.rules.first_way import first_way
from solvers.rules.jacobian_products import WAYS, spread_at


def tracked(problem: Problem, flat: Tensor) -> tuple[Tensor, Tensor]:
    """A point and its image, with a graph between them."""
    with torch.enable_grad():
        point = flat.detach().requires_grad_()
        return point, problem(point)


def dense_jacobians(problem: Problem, flat: Tensor) -> NDArray[Any]:
    """(batch, dim, dim) Jacobians, by one vector–Jacobian product of the whole batch for each of their rows."""
    jacobians = torch.zeros(*flat.shape, flat.shape[1], dtype=torch.float64, device="cpu")
    point, image = tracked(problem, flat)
    for line in range(flat.shape[1] if image.requires_grad else 0):
        unit = torch.zeros_like(image)
        unit[:, line] = 1
        (product,) = torch.autograd.grad(image, point, unit, retain_graph=True, materialize_grads=True)
        jacobians[:, line] = product
    return jacobians.numpy()


class NotFiniteError(Exception):
    """A product was NaN or Inf."""


class Transposed(LinearOperator):  # type: ignore[misc]
    """`Jᵀ / scale` of a problem of one row, as SciPy's operator: Jᵀ has J's eigenvalues and singular values."""

    def __init__(self, problem: Problem, flat: Tensor) -> None:
        super().__init__(np.float64, (flat.shape[1], flat.shape[1]))
        self._problem, self._flat, self.scale = problem, flat, np.float64(1)
        self._point, self._image = tracked(problem, flat)
        self._forward: Callable[[Tensor], Tensor] | None = None

    def _matvec(self, v: NDArray[Any]) -> NDArray[Any]:
        if not self._image.requires_grad:
            return np.zeros(self.shape[0])
        cotangent = self._tensor(v)
        (product,) = torch.autograd.grad(self._image, self._point, cotangent, retain_graph=True, materialize_grads=True)
        return self._array(product)

    def _rmatvec(self, v: NDArray[Any]) -> NDArray[Any]:
        if not self._image.requires_grad:
            return np.zeros(self.shape[0])
        if self._forward is None:
            problem, at = self._problem, (self._flat, self._image.detach())
            way, *_ = first_way(problem, problem, *at, self._tensor(v))
            self._forward = WAYS[way](problem, *at, spread_at(problem, *at))
        return self._array(self._forward(self._tensor(v)))

    def _tensor(self, v: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(v).reshape(1, -1)).to(self._flat)

    def _array(self, product: Tensor) -> NDArray[Any]:
        values: NDArray[Any] = product.detach()[0].double().cpu().numpy() / self.scale
        if not np.isfinite(values).all():
            raise NotFiniteError
        return values
