"""What a solver is: hyperparameters, and a rule that proposes the next iterate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .problem import Problem, Settings


class Solver(ABC):
    """A rule `(z, f(z)) → next z`, driven by `solve`.

    Subclass as a frozen dataclass of hyperparameters. Everything that a rule remembers lives in a memory that it makes
    in `init` and is handed back at each `step`: a NamedTuple whose tensors have the rows in dim 0 (so that
    finished rows can be dropped) and whose other fields are plain numbers. Rows must not mix.

        @dataclass(frozen=True)
        class Halfway(Solver):
            def init(self, z):
                return ()

            def step(self, memory, z, fz, residual):
                return z + residual / 2, memory
    """

    strays: ClassVar[bool] = True
    """Whether its iterates may stay where plain steps of f would run away."""

    @abstractmethod
    def init(self, z: Tensor) -> Any:
        """The memory before the first step; `z` is (rows, dim)."""

    @abstractmethod
    def step(self, memory: Any, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, Any]:
        """The next iterate and memory, from the iterate, its image and `residual = fz − z`, all (rows, dim).

        A step may write into its memory, never into `z`, `fz` or `residual`.
        """

    def bind(self, problem: Problem, settings: Settings) -> Solver:
        """The solver for the rows of this problem: itself, unless its steps evaluate `f` or Jacobian products."""
        return self


class RestartingSolver(Solver):
    """A solver whose history can mislead it.

    When the residual of a row has run away, or a proposal has left the range in which `f` can be evaluated, `solve`
    makes the row forget its history and go on with a plain step.
    """

    @abstractmethod
    def restart(self, memory: Any, rows: Tensor) -> Any:
        """The memory with the history of the rows marked in `rows`, (rows,) bool, forgotten."""


class QuasiNewtonSolver(RestartingSolver):
    """A solver whose history estimates `(I − J)⁻¹` at the solution, which a backward pass may use."""

    @abstractmethod
    def transposed_inverse(self, memory: Any, v: Tensor) -> Tensor:
        """The estimate of `(I − Jᵀ)⁻¹ v`, (rows, dim)."""


def check_positive_integer(owner: Any, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_title(owner)}: {name}={value!r} must be an integer of at least 1")


def _title(owner: Any) -> str:
    """How the user knows the thing whose argument is wrong."""
    return getattr(owner, "title", type(owner).__name__)


def check_damping(owner: Any) -> None:
    value = owner.damping
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 2:
        raise ValueError(f"{type(owner).__name__}: damping={value!r} must be a number in (0, 2]; 1 is the full step")


def difference_into(slot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`first − second`, written into a slot of a history without a temporary where PyTorch lets us."""
    if torch.compiler.is_compiling():  # which takes no strided `out`, and fuses this anyway
        return slot.copy_(first - second)
    return torch.sub(first, second, out=slot)


def product_into(slot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Likewise `first · second`."""
    if torch.compiler.is_compiling():
        return slot.copy_(first * second)
    return torch.mul(first, second, out=slot)
