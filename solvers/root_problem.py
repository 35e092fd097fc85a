"""Equations in the form of fixed points."""

from __future__ import annotations

from torch import Tensor

from .problem import Problem


class RootProblem(Problem):
    """`F(z, *args) = 0`, as the fixed point of `z − u F(z)`; the residual is exactly `−F(z)`."""

    relative_to_start = True
    subtracts = False
    unit: Tensor | None = None
    """u, (rows, 1), such that `u ∂F/∂z` is neither small nor large, for derivatives; None: 1."""

    def __call__(self, flat: Tensor) -> Tensor:
        return self.image(flat, self.residual(flat))

    def image(self, flat: Tensor, residual: Tensor) -> Tensor:
        """`z − u F(z)`, given the residual."""
        return flat + (residual if self.unit is None else self.unit * residual)

    def residual(self, flat: Tensor) -> Tensor:
        return -super().__call__(flat)

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        residual = self.residual(z)
        return z + residual, residual

    def take(self, rows: Tensor) -> Problem:
        taken = super().take(rows)
        assert isinstance(taken, RootProblem)
        taken.unit = None if self.unit is None else self.unit.index_select(0, rows)
        return taken


class LinearProblem(Problem):
    """`z = A z + b` from a start at zero, whose residual there is b: tolerances are relative to b, and not to z."""

    relative_to_start = True
