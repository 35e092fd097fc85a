"""Gradients by the adjoint equation `u = Jᵀu + g`, solved exactly or not."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from solvers import QuasiNewtonSolver
from solvers.loops.captures import Source

from ..capture import backward_source
from ..explicit import Explicit
from ..graph import anchored, computed_from, leaves
from .base import Evaluation, Gradient, Map, Report, refuse_second_derivatives
from .root import pullback


class AdjointGradient(Gradient):
    """Solve `u = Jᵀu + g` at the solution in some way, then pull `u` back through the one tracked evaluation of f."""

    def point(self, value: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        return anchored(value, *inputs)

    def attach(self, at: Evaluation) -> Tensor:
        inverse = self.inverse(at)
        explicit, tensors = at.explicit() if self.exact else (None, ())
        # a backward pass visits all that this hangs below, even where it brings no gradient
        used = [tensor if uses else tensor.detach() for tensor, uses in zip(tensors, computed_from(at.image, tensors))]
        attached: Tensor = _Implicit.apply(at.image, at.point, self, explicit, at.report, inverse, *used)
        return attached.clone()  # which the caller may write to: the backward reads what it is a copy of

    def inverse(self, at: Evaluation) -> Map | None:
        """What the forward solve knows of `v ↦ (I − Jᵀ)⁻¹ v`, for the first derivative's equation."""
        return inverse_estimate(at) if self.remembers else None

    @abstractmethod
    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        """`u` with `u = product(u) + shift`, untracked; `inverse` estimates it from the shift."""


def inverse_estimate(at: Evaluation) -> Map:
    """`v ↦ (I − Jᵀ)⁻¹ v` as far as the forward solver's history tells, each row by its own."""
    solver, histories = at.solver, at.outcome.histories

    def inverse(v: Tensor) -> Tensor:
        assert isinstance(solver, QuasiNewtonSolver)
        estimate = v.clone()
        for history in histories:
            rows = history.rows
            found = solver.transposed_inverse(history.memory, v.index_select(0, rows).to(history.point.dtype))
            estimate[rows] = found.to(v.dtype)
        return torch.where(estimate.isfinite().all(dim=1, keepdim=True), estimate, v)

    return inverse


class Products:
    """`u ↦ Jᵀu` at the solution, by the tracked evaluation."""

    def __init__(self, image: Tensor, point: Tensor, explicit: Explicit | None, tensors: list[Tensor]) -> None:
        self.image, self.point, self.explicit, self.tensors = image, point, explicit, tensors

    def __call__(self, u: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self.image, self.point, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(u) if product is None else product

    def source(self, shift: Tensor) -> Source | None:
        """What `solvers.Captured` records of the solve of `u = Jᵀu + shift`."""
        if self.explicit is None:
            return None
        return backward_source(self.explicit, self.tensors, self.point, shift)


class _Implicit(torch.autograd.Function):
    """Identity in value, downstream of the tracked evaluation; its backward solves the adjoint equation.

    A backward that is to be differentiated again goes round the tracked evaluation, whose point is a constant: it
    evaluates f as an explicit function at the solution with its graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        point: Tensor,
        policy: AdjointGradient,
        explicit: Explicit | None,
        report: Report,
        inverse: Map | None,
        *tensors: Tensor,
    ) -> Tensor:
        value = point.detach()
        ctx.save_for_backward(image, point, value, *tensors)
        ctx.policy, ctx.explicit, ctx.report, ctx.inverse = policy, explicit, report, inverse
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, point, value, *tensors = ctx.saved_tensors
        others = (None, None, None, None, None)
        if torch.is_grad_enabled():
            if ctx.explicit is None:
                refuse_second_derivatives()
            return None, *others, *_differentiable(ctx, value, tensors, ctx.needs_input_grad[6:], grads[0])

        products = Products(image, point, ctx.explicit, tensors)
        u = ctx.policy.linear(products, grads[0], ctx.report, ctx.inverse)
        return u, *others, *(None for _ in tensors)


def _differentiable(
    ctx: Any, z: Tensor, tensors: list[Tensor], wanted: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """The gradients in the tensors that want one, each with its own graph."""
    known = [tensor.detach().requires_grad_() for tensor in (z, *tensors)]
    refuse_captured(ctx.explicit, ctx.explicit(*known), known, "second derivatives through an equilibrium")
    chosen = [position for position, wants in enumerate(wanted) if wants]

    def f(z: Tensor, *some: Tensor) -> Tensor:
        replaced = dict(zip(chosen, some, strict=True))
        everything = (replaced.get(position, tensor) for position, tensor in enumerate(constants))
        image: Tensor = ctx.explicit(z, *everything)
        return image

    constants = [tensor.detach() for tensor in tensors]
    some = tuple(tensors[position] for position in chosen)
    found = pullback(f, lambda product, shift: ctx.policy.linear(product, shift, ctx.report, None), z, some, grad)
    gradients: list[Tensor | None] = [None] * len(tensors)
    for position, gradient in zip(chosen, found, strict=True):
        gradients[position] = gradient
    return gradients


def refuse_captured(explicit: Explicit, image: Tensor, known: list[Tensor], what: str) -> None:
    """Raise if the image depends on tensors that want gradients and that the explicit function does not know.

    Args:
        explicit: the function.
        image: its value at `known`.
        known: leaves.
        what: would be wrong without them.
    """
    captured = [leaf for leaf in leaves(image) if not any(leaf is tensor for tensor in known)]
    if captured:
        names = "; ".join(_described(explicit.problem.f, leaf) for leaf in captured)
        raise RuntimeError(
            f"{what} would miss what f captures: {names}. Pass such tensors through args, or make f an nn.Module that "
            "has them as parameters and uses nothing computed from them outside"
        )


def _described(f: Any, leaf: Tensor) -> str:
    """The variables of f that lead to the leaf, and its shape."""
    variables: dict[str, Any] = {}
    if inspect.isfunction(f):
        seen = inspect.getclosurevars(f)
        variables = {**seen.nonlocals, **seen.globals}
    names = [
        name
        for name, value in variables.items()
        if isinstance(value, Tensor) and any(leaf is source for source in leaves(value))
    ]
    return f"{', '.join(names) or 'a tensor'} (a leaf of shape {tuple(leaf.shape)}, {leaf.dtype})"
