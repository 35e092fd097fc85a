"""What a gradient policy is: how a solved equilibrium joins autograd's graph.

A policy gets an `Evaluation`, the solution and one tracked evaluation of f at it, and returns a tensor of the same
value with the policy's own backward pass. Policies that solve `u = Jᵀu + g` are in `adjoint`; those that replay steps
are in `phantom`, `unrolled` and `reversible`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from solvers import QuasiNewtonSolver, Settings, Solution, Solver
from solvers.solution import Outcome

from ..pure_problem import PureProblem

Map = Callable[[Tensor], Tensor]
"""`f` on flat (batch, dim) matrices, with its other arguments bound."""
Report = Callable[[bool, Callable[[], Solution]], None]
"""`report(converged, make_solution)` enters a backward solve in the log, and warns if it failed.

`converged` is one bool, whether all rows converged; `make_solution()` returns the `Solution`, which is made only if a
log is open or a warning is due. A policy that solves to no tolerance need not call it.
"""


@dataclass(frozen=True)
class Evaluation:
    """The solution and one tracked evaluation of f at it, for a policy to attach. Tensors are flat, (batch, dim)."""

    f: Map
    """The map `f(z)`; its evaluations are tracked where gradients are on."""
    start: Tensor
    """The initial iterate, with its own graph."""
    point: Tensor
    """The solution, as returned by the policy's `point`."""
    image: Tensor
    """The tracked `f(point)`."""
    pure: Callable[[], tuple[PureProblem, tuple[Tensor, ...]]]
    """Returns f as a pure function `f(z, *tensors)`, and those tensors."""
    report: Report
    """`report(converged, make_solution)`, to be called after a backward solve: one bool, whether all rows converged,
    and a function that returns its `Solution`. A truncated series has none and does not call it."""
    solver: Solver
    """The solver of the forward solve."""
    outcome: Outcome
    """What the forward solve found, including the solver's history if the policy `remembers`."""
    hooked: bool = False
    """Whether hooks saw what autograd saved of the evaluation, as within a checkpoint."""


class Gradient(ABC):
    """A way to differentiate through `z* = f(z*)`. It changes gradients only, never the value.

    The layer evaluates `f` once, with autograd on, at the policy's `point`, and passes the result to `attach`, the only
    method that a policy must define. See `PhantomGradient` for a short example.
    """

    @property
    def exact(self) -> bool:
        """Whether this is the implicit function theorem's gradient, which can be differentiated in turn."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether the policy needs the forward solver's history."""
        return False

    @property
    def whose_settings(self) -> str:
        """For a warning: where to find the settings that a remedy for its solve names."""
        return f"This is the solve of gradient={type(self).__name__}, which has its own settings"

    def check_solver(self, solver: Solver) -> None:  # noqa: B027, most policies work with any
        """Raise `TypeError` if the policy cannot work with this forward solver."""

    def behind(self, settings: Settings) -> Gradient:
        """The policy for a forward solve with these settings, which fill in what the policy leaves open."""
        return self

    def for_root(self) -> Gradient:
        """The policy for the root of a function, whose unit is arbitrary."""
        return self

    @property
    def repeats_steps(self) -> bool:
        """Whether it differentiates the steps that the solver took, and not the solution."""
        return False

    def point(self, value: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """The solution as the tracked evaluation sees it.

        Args:
            value: the solution.
            inputs: the arguments that f uses and that were computed with a graph.
        """
        return value.detach()

    @abstractmethod
    def attach(self, at: Evaluation) -> Tensor:
        """A tensor equal to `at.point` whose backward is this policy's."""

    def root(self, f: Callable[..., Tensor], find: Callable[..., Tensor], report: Report, *tensors: Tensor) -> Tensor:
        """The root of `z = f(z, *tensors)`, differentiable by the transforms of torch.func and by forward mode.

        Args:
            f: a pure function.
            find: `find(*tensors)` solves for z.
            report: as in `Evaluation`.
        """
        raise RuntimeError(
            f"{type(self).__name__} has no rule for torch.func's transforms or forward-mode differentiation: use "
            "ImplicitGradient, or differentiate with torch.autograd"
        )


def check_gradient(gradient: Any) -> None:
    """`TypeError` unless it is a gradient policy."""
    if not isinstance(gradient, Gradient):
        raise TypeError(f"gradient={gradient!r} is not a Gradient: pass an object such as ImplicitGradient()")


class _WithValue(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, tracked: Tensor, value: Tensor, twice: bool) -> Tensor:
        ctx.twice = twice
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled() and not ctx.twice:
            refuse_second_derivatives()
        return grads[0], None, None


def with_value(tracked: Tensor, value: Tensor, *, twice: bool) -> Tensor:
    """The value of one tensor with the gradient of another.

    Args:
        tracked: the tensor with the graph.
        value: a tensor like it.
        twice: whether second derivatives are those of `tracked`, too; if not, requesting them is an error.
    """
    result: Tensor = _WithValue.apply(tracked, value, twice)
    return result


def refuse_second_derivatives() -> NoReturn:
    raise RuntimeError(
        "an inexact gradient has no second derivatives through an equilibrium: drop create_graph=True, or use "
        "ImplicitGradient or UnrolledGradient"
    )


def naive_step(f: Map, z: Tensor, damping: float) -> Tensor:
    """`z + damping·(f(z) − z)`."""
    return f(z) if damping == 1 else torch.lerp(z, f(z), damping)


def unit_batch(x: Tensor) -> tuple[Tensor, Tensor]:
    """The batch scaled so that its longest row has length 1, and that row's length; zeros stay.

    The length has a dtype in which squares stay in range. All rows share one scale: where f couples them, J does not
    commute with a scale for each row.
    """
    wider = torch.float64 if x.dtype in (torch.float32, torch.float64) else torch.float32
    lengths = torch.linalg.vector_norm(x, dim=1, dtype=wider)
    longest = lengths.nan_to_num(0.0, 0.0, 0.0).amax() if len(x) else lengths.new_ones(())
    longest = longest + (longest == 0)
    return (x / longest).to(x.dtype), longest


def require_quasi_newton(who: str, solver: Solver) -> None:
    if not isinstance(solver, QuasiNewtonSolver):
        raise TypeError(
            f"{who} uses the inverse that the forward solver has learned, but {type(solver).__name__} learns none: "
            "pass solver=Anderson()"
        )
