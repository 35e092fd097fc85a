"""Cheap estimates of the exact gradient's adjoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers import Solver
from solvers.checks import check_damping, check_positive_integer

from .adjoint import AdjointGradient
from .base import Map, Report, require_quasi_newton


@dataclass(frozen=True)
class NeumannGradient(AdjointGradient):
    """The truncated Neumann series of the exact gradient: `steps` times `u ← u + damping·(Jᵀu + g − u)` from `u = g`.

    Costs that many vector–Jacobian products, in memory that does not grow with them. After an exact forward solve it is
    the gradient of `PhantomGradient` with one more step, whose memory grows. Prefer it where the Jacobian is well below
    1 in norm and a few products suffice. Source: Geng et al., "On Training Implicit Models", NeurIPS 2021.
    """

    steps: int = 5
    """Vector–Jacobian products, at least 1."""
    damping: float = 1.0
    """In (0, 2]."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "steps")
        check_damping(self)

    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        u = shift
        for _ in range(self.steps):
            u = u.lerp(product(u) + shift, self.damping)
        return u


@dataclass(frozen=True)
class ShineGradient(AdjointGradient):
    """`u = Hᵀg` with the estimate H of `(I − J)⁻¹` that the forward solver has learned: no backward solve at all.

    Needs `Anderson` in the forward solve (`Broyden`'s inverse fits its last step alone and may be huge elsewhere). The
    estimate is good along the directions of the last forward steps and the identity elsewhere; each row has its own
    history, so that rows which depend on each other get the Jacobian-free gradient. It is as cheap as Jacobian-free
    backpropagation, and better where few directions dominate. Where it is not good enough,
    `ImplicitGradient(reuse=True)` starts its solve from it.
    Source: Ramzi et al., "SHINE: SHaring the INverse Estimate", ICLR 2022.
    """

    @property
    def remembers(self) -> bool:
        return True

    def check_solver(self, solver: Solver) -> None:
        require_quasi_newton("ShineGradient", solver)

    def linear(self, product: Map, shift: Tensor, report: Report, inverse: Map | None) -> Tensor:
        return shift if inverse is None else inverse(shift)
