"""Gradients by the adjoint equation `u = Jᵀu + g`, solved exactly or not: the tracked way through a solve.

An ordinary backward pass takes `Jᵀu` from the one tracked evaluation of the forward pass (`Products`). One that is
differentiated again bypasses it through `higher.differentiable`; the transforms of torch.func never come here (`root`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from solvers import QuasiNewtonSolver
from solvers.loops.captures import Source
from solvers.problem import Problem
from solvers.root_problem import RootProblem

from ..compiled import uncompiled_cells
from ..graph import anchored
from ..pure_problem import PureProblem
from ..sources import backward_source
from .base import Evaluation, Gradient, Map, Report, refuse_second_derivatives
from .batched import one_by_one, refuse_batch
from .contract import checked_linear
from .higher import Sources, differentiable


class AdjointGradient(Gradient):
    """A policy that solves `u = Jᵀu + g` at the solution (`linear`), and pulls `u` back through the tracked evaluation.

    The base for estimates of the adjoint. It takes care of layers used twice, several backward passes, threads,
    checkpoints and captured tensors; second derivatives are refused unless the policy is `exact`.
    """

    @property
    def records(self) -> bool:
        """Whether the backward solve may be recorded."""
        return False

    def point(self, value: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        return anchored(value, *inputs)

    def attach(self, at: Evaluation) -> Tensor:
        pure, tensors = at.pure()
        if self.records:
            pure.note()
        sources = Sources.of(pure, tensors, at.image)
        others = self, sources, at.hooked, at.report, self.inverse(at)
        attached: Tensor = _Implicit.apply(at.image, at.point, *others, *sources.visited(tensors), *sources.captured)
        return attached.clone()  # the caller may write to the clone: the backward pass reads the original

    def inverse(self, at: Evaluation) -> Map | None:
        """The forward solve's estimate of `v ↦ (I − Jᵀ)⁻¹ v`, for the first derivative's equation.

        None if the policy does not use it, or the rows depend on each other, each of which has a history of its own.
        """
        return inverse_estimate(at) if self.remembers and not at.outcome.joint else None

    @abstractmethod
    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        """`u` with `u = product(u) + shift`, exactly or nearly, without a graph.

        Args:
            product: `u ↦ Jᵀu` on (batch, dim).
            shift: g, (batch, dim); not to be changed in place.
            report: `report(converged, make_solution)` as in `Evaluation`, for a policy that solves.
            inverse: the forward solver's estimate of `v ↦ (I − Jᵀ)⁻¹v`, if the policy `remembers` and the rows are
                independent; else None.
        """


def inverse_estimate(at: Evaluation) -> Map:
    """`v ↦ (I − Jᵀ)⁻¹ v` as estimated by the forward solver's history, for each row by its own."""
    solver, histories = at.solver, at.outcome.histories
    rounding = at.f.rounding if isinstance(at.f, Problem) else torch.finfo(at.point.dtype).eps
    unit = at.f.unit if isinstance(at.f, RootProblem) else None

    def inverse(v: Tensor) -> Tensor:
        assert isinstance(solver, QuasiNewtonSolver)
        estimate = v.clone()
        for history in histories:
            rows, point = history.rows, history.point
            noise = rounding * torch.linalg.vector_norm(point, dim=1, keepdim=True)
            if unit is not None:
                noise = noise / unit.index_select(0, rows)
            found = solver.transposed_inverse(history.memory, v.index_select(0, rows).to(point.dtype), noise)
            estimate[rows] = found.to(v.dtype)
        if unit is not None:
            estimate = (estimate / unit).to(v.dtype)  # it is that of F, the equation of u F
        return torch.where(estimate.isfinite().all(dim=1, keepdim=True), estimate, v)

    return inverse


class Products:
    """`u ↦ Jᵀu` at the solution, by the tracked evaluation, or by a new one where that cannot serve."""

    def __init__(self, image: Tensor, point: Tensor, pure: PureProblem, tensors: list[Tensor]) -> None:
        self.image, self.point, self.pure, self.tensors = image, point, pure, tensors

    def __call__(self, u: Tensor) -> Tensor:
        try:
            return self._product(u)
        except RuntimeError as error:
            if "donated buffers" not in str(error):  # compiled code frees them at its first use
                raise
            self.evaluate_again()
            return self._product(u)

    def _product(self, u: Tensor) -> Tensor:
        if not self.image.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(self.image, self.point, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(u) if product is None else product

    def evaluate_again(self) -> None:
        """Replace the evaluation by a new one with its own graph."""
        self.point = self.point.detach().requires_grad_()
        with torch.enable_grad(), uncompiled_cells():
            image = self.pure(self.point, *(tensor.detach() for tensor in self.tensors))
        self.pure.confirm(self.image, image, self.tensors)
        self.image = image

    def source(self, shift: Tensor, autocast: torch.dtype | None) -> Source | None:
        """What `solvers.Captured` records of the solve of `u = Jᵀu + shift`, with products under this autocast."""
        return backward_source(self.pure, self.tensors, self.point, shift, autocast)


class _Implicit(torch.autograd.Function):
    """Identity in value, downstream of the tracked evaluation; its backward solves the adjoint equation.

    A backward pass that is to be differentiated again bypasses the tracked evaluation, whose point is a constant: it
    evaluates f as a pure function at the solution, which has its graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        point: Tensor,
        policy: AdjointGradient,
        sources: Sources,
        hooked: bool,
        report: Report,
        inverse: Map | None,
        *tensors: Tensor,
    ) -> Tensor:
        value = point.detach()
        ctx.save_for_backward(image, point, value, *tensors[: len(tensors) - len(sources.captured)])
        ctx.policy, ctx.sources, ctx.hooked, ctx.report, ctx.inverse = policy, sources, hooked, report, inverse
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, point, value, *visited = ctx.saved_tensors
        policy, sources, report = ctx.policy, ctx.sources, ctx.report
        tensors = sources.all(visited)
        others = (None,) * 6
        if torch.is_grad_enabled():
            if not policy.exact:
                refuse_second_derivatives()
            sources.refuse_compiled()
            refuse_batch(grads[0])

            def linear(product: Map, shift: Tensor) -> Tensor:
                return one_by_one(lambda shift: checked_linear(policy, product, shift, report, None), shift)

            wanted = sources.wanted(ctx.needs_input_grad[7:])
            found = differentiable(linear, sources, value, image, tensors, wanted, grads[0])
            return None, *others, *(each for place, each in enumerate(found) if place not in sources.constants)

        products = Products(image, point, sources.pure, tensors)
        if ctx.hooked:  # each product would make the hooks restore what was saved; a checkpoint would solve again
            products.evaluate_again()

        def solve(grad: Tensor) -> Tensor:
            return checked_linear(policy, products, grad, report, ctx.inverse)

        return one_by_one(solve, grads[0]), *others, *(None for _ in ctx.needs_input_grad[7:])
