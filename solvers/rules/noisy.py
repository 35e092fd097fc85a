"""Naive iteration with noise that fades."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_damping
from .rule import PATIENCE, Solver

ENDLESS = 2**31
"""A patience that no budget exhausts."""


class NoisyMemory(NamedTuple):
    step: int


@dataclass(frozen=True)
class NoisyPicard(Solver):
    """Naive iteration with noise, `z⁺ = z + damping·(f(z) − z) + noise·decay^k·ξ`, ξ standard normal, k = 0, 1, ….

    Prefer it where f has several fixed points and you want those with large basins of attraction, or in training, so
    that the learned fixed points withstand noise. The residual is that of f, without noise: a row converges once the
    noise has faded below its tolerance, and with `decay=1` only if the tolerance lies above the noise. Every row gets
    the same noise, so it is solved as it would be alone, and equal seeds give equal solves. `Compiled` and `Captured`
    loops refuse it. Source: Huang, Geng, Kolter, "Equilibrium Reasoners", ICML 2026.
    """

    noise: float = 0.1
    """Standard deviation of each entry in the first step; at least 0."""
    decay: float = 0.8
    """Factor of the noise from step to step, in (0, 1]."""
    damping: float = 1.0
    """In (0, 2]."""
    seed: int = 0
    """Seed of the noise; pass a new one in each training step if the noise is to differ."""

    may_be_caught: ClassVar[bool] = False
    fixed_cost: ClassVar[bool] = False
    """Each step draws random numbers on the CPU."""

    alternatives: ClassVar[str] = "less noise, a lower decay, Picard or Anderson"

    def __post_init__(self) -> None:
        check_damping(self)
        if not _is_number(self.noise) or not 0 <= self.noise < math.inf:
            raise ValueError(f"NoisyPicard: noise={self.noise!r} must be a finite number of at least 0")
        if not _is_number(self.decay) or not 0 < self.decay <= 1:
            raise ValueError(f"NoisyPicard: decay={self.decay!r} must be a number in (0, 1]; 1 keeps the noise")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"NoisyPicard: seed={self.seed!r} must be an integer of at least 0")

    def patience(self, dim: int) -> int:
        """Long enough for the noise to fade, since residuals need not fall before."""
        return ENDLESS if self.decay == 1 else max(PATIENCE, math.ceil(3 / (1 - self.decay)))

    def init(self, z: Tensor) -> NoisyMemory:
        return NoisyMemory(0)

    def step(self, memory: NoisyMemory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, NoisyMemory]:
        # a function of the step alone, since steps may be begun ahead and repeated
        generator = torch.Generator("cpu").manual_seed((1_000_003 * self.seed + memory.step) % 2**63)
        normal = torch.randn(1, z.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(z)
        size = self.noise * self.decay**memory.step
        return z + self.damping * residual + size * normal, NoisyMemory(memory.step + 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
