"""What a gradient policy is: how a solved equilibrium joins the autograd graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from solvers import Solution

Map = Callable[[Tensor], Tensor]
"""`f` on flat (batch, dim) matrices, with its other arguments bound."""
Report = Callable[[Solution], None]
"""Takes the solution of a backward solve to the log that was open at forward time."""


class Gradient(ABC):
    """A way to differentiate through `z* = f(z*)`. It changes gradients only, never the value.

    The layer asks for the `point` at which to evaluate `f` once with autograd on, evaluates it, and hands the result
    to `attach`. All tensors are flat, (batch, dim).
    """

    def point(self, value: Tensor) -> Tensor:
        """The solution as the tracked evaluation sees it."""
        return value.detach()

    @abstractmethod
    def attach(self, f: Map, start: Tensor, point: Tensor, image: Tensor, report: Report) -> Tensor:
        """A tensor equal to `point` whose backward is this policy's.

        Args:
            f: the map; evaluations are tracked.
            start: the initial iterate, with its own graph.
            point: what `point` returned.
            image: the tracked `f(point)`.
            report: to be called with the `Solution` of each backward solve.
        """


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
    """`value`, differentiated as if it were `tracked`; `twice`: its second derivatives are those wanted."""
    result: Tensor = _WithValue.apply(tracked, value, twice)
    return result


def refuse_second_derivatives() -> NoReturn:
    raise RuntimeError(
        "second derivatives through an equilibrium are not available under this gradient policy: drop "
        "create_graph=True, or use UnrolledGradient, whose steps can be differentiated twice"
    )


def naive_step(f: Map, z: Tensor, damping: float) -> Tensor:
    """`z + damping·(f(z) − z)`."""
    return f(z) if damping == 1 else torch.lerp(z, f(z), damping)
