"""Naive fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_damping, check_positive_integer
from .rule import PATIENCE, Solver


@dataclass(frozen=True)
class Picard(Solver):
    """Naive iteration, `z⁺ = z + damping·(f(z) − z)`.

    Prefer it if `f` contracts fast, or is so cheap that bookkeeping would dominate. It converges linearly, at the rate
    of the spectral radius of the damped map, and not at all if that exceeds 1. Source: Picard (1890), Banach (1922).
    """

    damping: float = 1.0
    """In (0, 2]; values below 1 help if the Jacobian has eigenvalues far left of zero."""
    exact_after: int | None = None
    """Steps after which the structure of f makes the iterate a fixed point, whatever the residuals before: n for a
    network of depth n as a map of all its states."""

    may_be_caught: ClassVar[bool] = False

    alternatives: ClassVar[str] = "Anderson or Broyden"

    def __post_init__(self) -> None:
        check_damping(self)
        if self.exact_after is not None:
            check_positive_integer(self, "exact_after")

    def patience(self, dim: int) -> int:
        return max(PATIENCE, self.exact_after or 0)

    def init(self, z: Tensor) -> tuple[()]:
        return ()

    def step(self, memory: tuple[()], z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, tuple[()]]:
        return (fz if self.damping == 1 else z.add(residual, alpha=self.damping)), memory
