"""Inexact gradients from a few tracked steps at the equilibrium."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.checks import check_damping, check_positive_integer

from .base import Evaluation, Gradient, naive_step, with_value


@dataclass(frozen=True)
class PhantomGradient(Gradient):
    """Differentiate `steps` damped naive steps taken from `z*`: `z ← z + damping·(f(z) − z)`, no backward solve.

    A truncated Neumann series of the exact gradient; `steps=1, damping=1` is Jacobian-free backpropagation. Prefer it
    for speed where the Jacobian is well below 1 in norm; the error does not vanish with the forward tolerance, only
    with `steps`. Memory grows with `steps`. Source: Geng et al., "On Training Implicit Models", NeurIPS 2021;
    Fung et al., "JFB", AAAI 2022.
    """

    steps: int = 1
    """Tracked steps, at least 1."""
    damping: float = 1.0
    """In (0, 2]."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "steps")
        check_damping(self)

    def attach(self, at: Evaluation) -> Tensor:
        z = at.image if self.damping == 1 else at.point.lerp(at.image, self.damping)
        for _ in range(self.steps - 1):
            z = naive_step(at.f, z, self.damping)
        return with_value(z, at.point, twice=False)
