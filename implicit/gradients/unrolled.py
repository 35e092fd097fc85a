"""The gradient of an unrolled naive iteration: the reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.solver import check_damping, check_positive_integer

from .base import Gradient, Map, Report, naive_step, with_value


@dataclass(frozen=True)
class UnrolledGradient(Gradient):
    """Differentiate `steps` damped naive steps from `z0`, replayed with autograd on.

    The reference to test others against, and the way to second derivatives. It tends to the exact gradient with
    `steps` where the damped map contracts; memory grows with `steps`. The value stays the solver's. The replay is
    naive whatever the forward solver: derivatives of Anderson's mixing weights are never part of it.
    """

    steps: int
    """Tracked steps, at least 1."""
    damping: float = 1.0
    """In (0, 2]."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "steps")
        check_damping(self)

    def attach(self, f: Map, start: Tensor, point: Tensor, image: Tensor, report: Report) -> Tensor:
        z = start
        for _ in range(self.steps):
            z = naive_step(f, z, self.damping)
        return with_value(z, point, twice=True)
