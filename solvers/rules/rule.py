"""The interface of a solver: hyperparameters, and a rule that proposes the next iterate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..problem import Problem

PATIENCE = 30
"""Steps without progress after which a solver is stuck, unless it overrides `patience`."""


class Solver(ABC):
    """A rule `(z, f(z)) → next z`, driven by `solve`.

    Subclass it as a frozen dataclass of hyperparameters. Everything a rule remembers is in a memory, made in `init` and
    passed to each `step`: a NamedTuple whose tensors have the rows in dim 0 (finished rows can then be dropped) and
    whose other fields are plain numbers. Rows must not mix.

        @dataclass(frozen=True)
        class Halfway(Solver):
            def init(self, z):
                return ()

            def step(self, memory, z, fz, residual):
                return z + residual / 2, memory
    """

    may_be_caught: ClassVar[bool] = True
    """Whether it may stall where another solver would not: then Broyden's method and plain steps of f take over."""
    backtracks: ClassVar[bool] = False
    """Whether it takes back a step after which f is not finite."""
    fixed_cost: ClassVar[bool] = True
    """Whether only the loop evaluates f, never a step, so that steps can be compiled."""
    budget: ClassVar[str] = "max_steps"
    """The argument that sets the number of steps, as messages name it."""
    alternatives: ClassVar[str] = "another solver"
    """What to try if it does not converge."""

    exact_after: int | None = None
    """Steps that reach a fixed point by the structure of f; None: unknown."""

    def patience(self, dim: int) -> int:
        """Least number of steps without progress after which a row with `dim` entries has stalled."""
        return PATIENCE

    @abstractmethod
    def init(self, z: Tensor) -> Any:
        """The memory before the first step; `z` is (rows, dim)."""

    @abstractmethod
    def step(self, memory: Any, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, Any]:
        """The next iterate and memory, from the iterate, its image and `residual = fz − z`, all (rows, dim).

        A step may write into its memory, never into `z`, `fz` or `residual`.
        """

    def bind(self, problem: Problem, rtol: float, atol: float) -> Solver:
        """The solver bound to this problem and these tolerances: itself, unless its steps evaluate `f`."""
        return self


class RestartingSolver(Solver):
    """A solver whose history can mislead it.

    When the residual of a row diverges, or a proposal leaves the range in which `f` can be evaluated, `solve` makes the
    row forget its history and continues with a plain step.
    """

    @abstractmethod
    def forget(self, memory: Any, rows: Tensor) -> Any:
        """The memory with the history of the rows marked in `rows`, (rows,) bool, forgotten."""


class QuasiNewtonSolver(RestartingSolver):
    """A solver whose history estimates `(I − J)⁻¹` at the solution, which a backward pass may use."""

    @abstractmethod
    def transposed_inverse(self, memory: Any, v: Tensor, noise: Tensor) -> Tensor:
        """The estimate of `(I − Jᵀ)⁻¹ v`, (rows, dim).

        Args:
            noise: (rows, 1), the norm of rounding errors in residuals: smaller differences of these say nothing.
        """


def difference_into(slot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Write `first − second` into a slot of a history, without a temporary where PyTorch allows it."""
    if torch.compiler.is_compiling():  # the compiler takes no strided `out`, and fuses this anyway
        return slot.copy_(first - second)
    return torch.sub(first, second, out=slot)


def product_into(slot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Write `first · second` into a slot likewise."""
    if torch.compiler.is_compiling():
        return slot.copy_(first * second)
    return torch.mul(first, second, out=slot)
