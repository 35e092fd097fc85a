"""The exact gradient of the iteration that was run, by undoing it step by step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import Reversible, Solver
from solvers.caller import level_of_caller
from solvers.solution import History

from ..logs import ConvergenceWarning
from ..pure_problem import PureProblem
from .base import Evaluation, Gradient, refuse_second_derivatives
from .higher import Sources, refuse_captured

LOST = 1e-3
"""Largest relative distance from the start at which undoing may end; beyond, its digits are lost."""
ASTRAY = 1.5
"""Size, relative to the largest iterate of the solve, beyond which nothing is left of an iterate that was undone."""
REST = 2e-3
"""Largest relative size of the adjoint at which nothing may be left of the iterate; the rest is only about right."""


@dataclass(frozen=True)
class ReversibleGradient(Gradient):
    """The gradient of the very iteration that `Reversible` ran, in memory that does not grow with its steps.

    The backward pass undoes the iteration step by step, and evaluates and differentiates `f` once for each. Unlike
    `ImplicitGradient` it is exact however far the solve has come, for instance after a few fixed steps; z0 gets its
    gradient, too. A row that missed its tolerance returns its best iterate, with the gradient of its last one. Tensors
    that f captures are refused. Where rounding errors have grown beyond the iterates, for the reason given in
    `Reversible`, the solution stands in for them; warns unless the gradient had decayed by then.
    Source: McCallum et al., "Reversible Deep Equilibrium Models" (2025).
    """

    @property
    def remembers(self) -> bool:
        return True

    @property
    def repeats_steps(self) -> bool:
        return True

    def check_solver(self, solver: Solver) -> None:
        if not isinstance(solver, Reversible):
            raise TypeError(
                f"ReversibleGradient undoes the steps of Reversible(), not of {type(solver).__name__}: "
                "pass solver=Reversible()"
            )

    def attach(self, at: Evaluation) -> Tensor:
        assert isinstance(at.solver, Reversible)
        if at.outcome.joint:
            raise RuntimeError(
                "the gradient of a reversible iteration undoes each row by itself, but the rows depend on each other: "
                "make each problem one row, z0[None] and x[None], or use ImplicitGradient"
            )
        pure, tensors = at.pure()
        captured = Sources.of(pure, tensors, at.image).captured
        if captured:
            refuse_captured(pure, captured, "the gradient of a reversible iteration")
        steps = torch.tensor(at.outcome.rows.steps, device=at.point.device)  # a copy: they may be read-only
        histories = at.outcome.histories
        attached: Tensor = _Undo.apply(at.point, at.solver, pure, histories, steps, at.start, *tensors)
        return attached


class _Undo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        solver: Reversible,
        pure: PureProblem,
        histories: list[History],
        steps: Tensor,
        start: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(value, steps, start, *tensors)
        ctx.solver, ctx.pure, ctx.histories = solver, pure, histories
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            refuse_second_derivatives()
        value, steps, start, *tensors = ctx.saved_tensors
        known = [tensor.detach().requires_grad_() for tensor in tensors]
        sums = [torch.zeros_like(tensor) for tensor in tensors]
        damping = ctx.solver.damping
        z, before = (torch.empty_like(start) for _ in range(2))
        last = torch.zeros_like(steps)  # each row's position in the sequence of iterates
        largest = torch.empty_like(last[:, None], dtype=torch.float64)  # norm of its iterates
        for history in ctx.histories:
            # a solve may have gone on in a wider dtype
            z[history.rows], before[history.rows] = (each.to(z) for each in (history.point, history.memory.before))
            largest[history.rows] = history.memory.largest.double()
            last[history.rows] = history.step - 1
        adjoint, adjoint_before = torch.zeros_like(start), torch.zeros_like(start)
        rest = torch.zeros_like(largest)  # norm of the adjoint from where the row's iterate is lost
        for position in range(int(last.max()) if len(last) else 0, -1, -1):
            adjoint = torch.where((steps - 1 == position)[:, None], grads[0], adjoint)
            if position == 0:
                break
            moves = (last >= position)[:, None]
            # a row whose iterate is lost, not one that never was finite, continues at its solution
            astray = ~(_norm(before) <= ASTRAY * largest) & largest.isfinite()
            rest = torch.where(astray, rest.maximum(_norm(adjoint) + _norm(adjoint_before)), rest)
            # a row that failed and is not in the loss: its zeros times NaN would spoil the sums
            idle = ~before.isfinite().all(dim=1, keepdim=True) & (adjoint == 0).all(dim=1, keepdim=True)
            with torch.enable_grad():
                point = torch.where(astray, value, before.where(~idle, start)).requires_grad_()
                image = ctx.pure(point, *known)
            found = torch.autograd.grad(image, [point, *known], damping * adjoint, allow_unused=True)
            for total, gradient in zip(sums, found[1:], strict=True):
                if gradient is not None:
                    total.add_(gradient)
            through = adjoint_before if found[0] is None else adjoint_before + found[0]
            adjoint, adjoint_before = (
                torch.where(moves, through, adjoint),
                torch.where(moves, (1 - damping) * adjoint, adjoint_before),
            )
            earlier = ctx.solver.undo(z, before, image.detach())
            moves &= ~astray
            z, before = torch.where(moves, before, z), torch.where(moves, earlier, before)
        _warn_if_lost(z, start, value, grads[0], adjoint + adjoint_before, rest)
        return None, None, None, None, None, adjoint + adjoint_before, *sums


def _warn_if_lost(z: Tensor, start: Tensor, value: Tensor, incoming: Tensor, adjoint: Tensor, rest: Tensor) -> None:
    """Warn of rows that end far from their start, unless their gradient had decayed by then.

    Backwards, errors of the state grow as fast as the gradient decays, so their product is about the gradient's error,
    until nothing is left of the state: what is left of the gradient then is only roughly right.
    """
    scale = _norm(start).maximum(_norm(value))
    distance, size, weight = _norm(z - start), _norm(incoming), _norm(adjoint)
    distance = torch.where(distance == 0, 0, distance / scale)
    error = torch.where(rest > 0, rest * LOST / REST, distance * weight).where((size != 0) | (weight != 0), 0)
    returned = (distance <= LOST) & (rest == 0)
    lost = (~returned & ~(error <= LOST * size))[:, 0]
    if lost.any():
        warnings.warn(
            f"undoing the iteration lost too many digits in {int(lost.sum())} of {len(lost)} rows, which end "
            f"{distance[lost].max().item():.1e} (relative) from their start: their gradients are wrong. Take "
            "fewer steps, a smaller damping, or float64",
            ConvergenceWarning,
            stacklevel=level_of_caller(),
        )


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
