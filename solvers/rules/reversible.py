"""A naive iteration that can be run backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .rule import Solver


class ReversibleMemory(NamedTuple):
    before: Tensor  # (rows, dim): the iterate before the current one
    largest: Tensor  # (rows, 1): the largest norm of an iterate so far


@dataclass(frozen=True)
class Reversible(Solver):
    """Two coupled damped iterations: `z_{k+1} = (1 − damping)·z_{k−1} + damping·f(z_k)`, `z_{−1} = z_0`.

    Each step can be undone, `z_{k−1} = (z_{k+1} − damping·f(z_k)) / (1 − damping)`, so `ReversibleGradient`
    differentiates exactly the iteration that was run and stores none of it. It converges where f contracts, more slowly
    than `Anderson`. Undoing amplifies rounding errors by up to 1 / (1 − damping) per step: take few steps, or use
    float64. Source: McCallum et al., "Reversible Deep Equilibrium Models" (2025).
    """

    damping: float = 0.5
    """In (0, 1): the weight of the new image."""

    may_be_caught: ClassVar[bool] = False
    alternatives: ClassVar[str] = "Anderson with another gradient"

    def __post_init__(self) -> None:
        value = self.damping
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1:
            raise ValueError(f"Reversible: damping={value!r} must be a number in (0, 1)")

    def init(self, z: Tensor) -> ReversibleMemory:
        return ReversibleMemory(z, torch.linalg.vector_norm(z, dim=1, keepdim=True))

    def step(
        self, memory: ReversibleMemory, z: Tensor, fz: Tensor, residual: Tensor
    ) -> tuple[Tensor, ReversibleMemory]:
        new = memory.before.lerp(fz, self.damping)
        largest = memory.largest.maximum(torch.linalg.vector_norm(new, dim=1, keepdim=True))
        return new, ReversibleMemory(z, largest)

    def undo(self, z: Tensor, before: Tensor, image: Tensor) -> Tensor:
        """`z_{k−1}`, from `z = z_{k+1}`, `before = z_k` and `image = f(z_k)`."""
        return (z - self.damping * image) / (1 - self.damping)
