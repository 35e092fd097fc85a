"""Peaceman–Rachford splitting, for cells whose linear part is known."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_positive_integer
from ..problem import Problem
from .reflections import Adjoint, Cayley, Forward, Parts
from .rule import Solver

_UNBOUND = "PeacemanRachford asks f for its linear part: run it through solve, which binds it to f"


@dataclass(frozen=True)
class PeacemanRachford(Solver):
    """Peaceman–Rachford splitting of `z = σ(W z + c)`, with `K = 2 (I + α(I − W))⁻¹ − I` formed once per solve.

    `w⁺ = 2σ(u) − u`, which is |u| for the ReLU, then `u⁺ = K w⁺ + α (K + I) c` and the iterate `z = (w⁺ + u⁺) / 2`:
    reflections alternate between σ and the linear operator. Where I − W is strongly monotone every row converges,
    however large W is. A step makes `inner_steps` of these iterations, each with one product with K, before f is
    evaluated for the residual of `z = f(z)`. `evaluations` counts f and inner steps alike.

    Prefer it to every other solver where f exposes its linear part, a matrix: an `implicit.SplitCell`, or any map with
    a method `split(*args)` that returns its `Parts`. Raises TypeError for another map, ValueError for α ≠ 1 with a σ
    that is not the ReLU. Source: Winston, Kolter, "Monotone operator equilibrium networks", NeurIPS 2020; Lions,
    Mercier, SIAM J. Numer. Anal. 16 (1979).
    """

    step_size: float | None = None
    """α > 0; None: for the ReLU `m^(−1/4) s^(−3/4)`, m the margin and s the root mean square singular value of I − W,
    between the best for the worst direction, `(m s)^(−1/2)`, and for most directions, `1/s`; 1 for another σ."""
    inner_steps: int = 8
    """Reflections per step, at least 1."""

    fixed_cost: ClassVar[bool] = False
    alternatives: ClassVar[str] = "Monotone or NewtonKrylov"

    def __post_init__(self) -> None:
        alpha = self.step_size
        if alpha is not None and (not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 < alpha < torch.inf):
            raise ValueError(f"PeacemanRachford: step_size={alpha!r} must be a positive number, or None")
        check_positive_integer(self, "inner_steps")

    def bind(self, problem: Problem, rtol: float, atol: float) -> Solver:
        parts = split(problem)
        return Forward(problem, Cayley.of(parts, self.step_size, rtol), self.inner_steps, parts)

    def adjoint(self, problem: Problem, slope: Tensor, rtol: float) -> Solver:
        """The same splitting of `u = Jᵀu + g`, from the start `u = g`.

        Args:
            problem: the problem of the forward solve.
            slope: (rows, dim), the slope of σ at the solution; J = slope · W.
            rtol: tolerance of the adjoint equation.
        """
        cayley = Cayley.of(split(problem), self.step_size, rtol)
        return Adjoint(None, cayley.transposed(), self.inner_steps, slope)

    def init(self, z: Tensor) -> Any:
        raise RuntimeError(_UNBOUND)

    def step(self, memory: Any, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, Any]:
        raise RuntimeError(_UNBOUND)


def split(problem: Problem) -> Parts:
    """The parts of a problem's map, c flat and untracked."""
    if not hasattr(problem.f, "split"):
        raise TypeError(
            f"PeacemanRachford asks f for its linear part, but {type(problem.f).__name__} has no method split(*args): "
            "make the cell an implicit.SplitCell, or pass solver=Monotone()"
        )
    with torch.no_grad():
        parts: Parts = problem.f.split(*problem.args)
        weight, shift = parts.weight, problem.layout.flatten(parts.shift).detach()
    dim = shift.shape[1]
    if weight.shape != (dim, dim):
        shapes = f"the linear part has shape {tuple(weight.shape)}; a state of {dim} entries needs {(dim, dim)}"
        raise ValueError(shapes)
    return parts._replace(shift=shift)
