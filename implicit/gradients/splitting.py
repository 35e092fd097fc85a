"""The exact gradient by splitting, for cells whose linear part is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import PeacemanRachford, Settings, Solver
from solvers.problem import Problem
from solvers.rules.peaceman_rachford import split

from .base import Evaluation, Map, Report
from .exact import ImplicitGradient


@dataclass(frozen=True)
class SplittingGradient(ImplicitGradient):
    """The exact gradient: `u = Jᵀu + g` solved by the forward solver's Peaceman–Rachford splitting, J = D W.

    With the slopes D of σ the equation has the form of the forward one, `q = D(Wᵀq + g)`, `u = Wᵀq + g`, and its
    resolvent is the transpose of the forward one. The residual reported is that of `u = Jᵀu + g`, with autograd's own
    products.

    It needs `PeacemanRachford()` in the forward solve. The arguments are those of `ImplicitGradient`, whose `solver`
    serves derivatives beyond the first. Source: Winston, Kolter, NeurIPS 2020.
    """

    def check_solver(self, solver: Solver) -> None:
        if not isinstance(solver, PeacemanRachford):
            raise TypeError(
                f"SplittingGradient needs the linear part that PeacemanRachford takes from the cell, but solver is "
                f"{type(solver).__name__}: pass solver=PeacemanRachford(), or gradient=ImplicitGradient()"
            )

    def inverse(self, at: Evaluation) -> Map | None:
        return _Splitting(at)

    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        if not isinstance(inverse, _Splitting):
            return super().linear(product, shift, report, inverse)
        settings = Settings(inverse.solver(self.rtol), self.rtol, 0.0, max_steps=self.max_steps)
        return self._solved(product, shift, report, None, settings)


class _Splitting:
    """What the backward pass needs from the forward one; as an `inverse` it is the identity: start at `u = g`."""

    def __init__(self, at: Evaluation) -> None:
        assert isinstance(at.f, Problem)
        assert isinstance(at.solver, PeacemanRachford)
        self.problem, self.splitting = at.f, at.solver
        self.point, self.image = at.point.detach(), at.image.detach()

    def __call__(self, v: Tensor) -> Tensor:
        return v

    def solver(self, rtol: float) -> Solver:
        return self.splitting.adjoint(self.problem, self._slope(), rtol)

    def _slope(self) -> Tensor:
        """The slope of σ, (rows, dim)."""
        parts = split(self.problem)
        if parts.rectified:
            return (self.image > 0).to(self.image.dtype)
        affine = torch.addmm(parts.shift, self.point.to(parts.weight.dtype), parts.weight.detach().mT)
        with torch.enable_grad():
            affine.requires_grad_()
            (slope,) = torch.autograd.grad(parts.activation(affine).sum(), affine)
        return slope
