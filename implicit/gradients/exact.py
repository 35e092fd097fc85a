"""The exact gradient, by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import GMRES, Solver, solve
from solvers.problem import Settings

from .base import Gradient, Map, Report, refuse_second_derivatives


@dataclass(frozen=True)
class ImplicitGradient(Gradient):
    """The exact gradient: for an incoming `g` solve `u = Jᵀu + g`, `J = ∂f/∂z` at `z*`, then pull `u` back through f.

    The default. Costs one tracked evaluation and one vector–Jacobian product a backward step; memory does not grow
    with the forward solver's steps. As exact as the forward solve and `rtol` allow. Rows are scaled to unit length
    before solving, so the result does not depend on the loss's scale. First derivatives only: asking for a second
    derivative raises. Source: Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019.
    """

    solver: Solver = GMRES()
    """Any solver; the equation is linear, so GMRES fits."""
    rtol: float = 1e-4
    """Tolerance relative to ‖u‖."""
    max_steps: int = 100
    """Largest number of vector–Jacobian products."""

    def __post_init__(self) -> None:
        Settings(self.solver, self.rtol, 0.0, self.max_steps)

    def point(self, value: Tensor) -> Tensor:
        anchored: Tensor = _Anchor.apply(value.detach().requires_grad_())
        return anchored

    def attach(self, f: Map, start: Tensor, point: Tensor, image: Tensor, report: Report) -> Tensor:
        attached: Tensor = _Implicit.apply(image, point, self, report)
        return attached

    def adjoint(self, image: Tensor, point: Tensor, grad: Tensor, report: Report) -> Tensor:
        """`u = (I − Jᵀ)⁻¹ g`."""
        length = torch.linalg.vector_norm(grad, dim=1, keepdim=True, dtype=_wider(grad.dtype))
        length = torch.where(length > 0, length, 1)
        unit = (grad / length).to(grad.dtype)

        def transposed(u: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(image, point, u, retain_graph=True, allow_unused=True)
            return unit.clone() if product is None else product + unit

        solution = solve(transposed, unit, solver=self.solver, rtol=self.rtol, atol=0.0, max_steps=self.max_steps)
        report(solution)
        assert isinstance(solution.value, Tensor)
        return (solution.value * length).to(grad.dtype)


def _wider(dtype: torch.dtype) -> torch.dtype:
    """A dtype in which squares of `dtype` neither overflow nor vanish."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


class _Anchor(torch.autograd.Function):
    """The point of differentiation, inside the graph: a leaf would collect a `.grad` at every backward pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> None:
        return None


class _Implicit(torch.autograd.Function):
    """Identity in value, downstream of the tracked evaluation; its backward solves the adjoint equation."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, point: Tensor, policy: ImplicitGradient, report: Report) -> Tensor:
        ctx.save_for_backward(image, point)
        ctx.policy, ctx.report = policy, report
        return point.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.is_grad_enabled():
            refuse_second_derivatives()
        image, point = ctx.saved_tensors
        return ctx.policy.adjoint(image, point, grads[0], ctx.report), None, None, None
