"""The gradient of an unrolled naive iteration: the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solvers.checks import check_damping, check_positive_integer

from .base import Evaluation, Gradient, Map, naive_step, with_value


@dataclass(frozen=True)
class UnrolledGradient(Gradient):
    """Differentiate `steps` damped naive steps from `z0`, replayed with autograd on.

    The reference to test others against, with second derivatives. It tends to the exact gradient as `steps` grows,
    if the damped map contracts; memory grows with `steps`. The value stays the solver's. The replay is naive
    whatever the forward solver, so derivatives of Anderson's mixing weights are never part of it.
    """

    steps: int
    """Tracked steps, at least 1."""
    damping: float = 1.0
    """In (0, 2]."""
    checkpoint: bool = False
    """Keep only √steps states, and evaluate the steps between them again in the backward pass."""

    def __post_init__(self) -> None:
        check_positive_integer(self, "steps")
        check_damping(self)
        if not isinstance(self.checkpoint, bool):
            raise TypeError(f"UnrolledGradient: checkpoint={self.checkpoint!r} must be True or False")

    def attach(self, at: Evaluation) -> Tensor:
        if not self.checkpoint:
            return with_value(self._run(at.f, at.start, self.steps), at.point, twice=True)
        # evaluating the steps again must use the same weights, whatever has become of f
        pure, tensors = at.pure()

        def f(z: Tensor) -> Tensor:
            return pure(z, *tensors)

        z, left, segment = at.start, self.steps, math.isqrt(self.steps)
        while left:
            z = checkpoint(self._run, f, z, min(segment, left), use_reentrant=False)
            left -= min(segment, left)
        return with_value(z, at.point, twice=True)

    def _run(self, f: Map, z: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            z = naive_step(f, z, self.damping)
        return z
