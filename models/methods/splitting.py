"""Splitting methods: a pair of transforms per layer, for `min f(x) + g(y)` under `x = y`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..transforms import Fidelity, Sum
from .base import Method, Streams
from .coefficients import Coefficient, Values, coefficient
from .construction import MakeProximalStep, pair
from .domains import POSITIVE, Interval

Pair = tuple[Tensor, Tensor]


class Both(nn.Module):
    """A pair of transforms as one, each at its own point."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, points: Pair, *inputs: Tensor) -> Pair:
        return self.first(points[0], *inputs), self.second(points[1], *inputs)


class _Splitting(Method):
    def transform(self, layer: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        both = Both(*pair(self, layer, "(T1, T2)"))
        return super().transform(both, alpha, proximal_step)

    def layer(self, blocks: Blocks) -> Any:
        return blocks.free(), blocks.free()

    def tied(self, blocks: Blocks) -> Any:
        return Fidelity(), blocks.injected()


@dataclass(frozen=True)
class LinearizedADMM(_Splitting):
    """The alternating direction method with both subproblems linearised, three streams:

    `x⁺ = x + T₁(x) − η(λ + β(x − y))`, `y⁺ = y + T₂(y) + η(λ + β(x⁺ − y))`, `λ⁺ = λ + β(x⁺ − y⁺)`.

    It starts from (z₀, z₀, 0) and returns x, which the last T₂ does not reach: that T₂'s parameters get no gradient
    (DDP needs find_unused_parameters). At the equilibrium `T₁ + T₂ = 0`. It has two transforms per layer: compare at
    equal parameter counts.
    """

    eta: Coefficient = coefficient(0.5, POSITIVE)
    """η > 0, the step size of the constraint term."""
    coupling: Coefficient = coefficient(0.5, Interval(0, 1, "0 < ηβ ≤ 1 (stable below 2)", closed=True))
    """ηβ; the penalty is `β = coupling / eta`."""

    def start(self, z0: Tensor) -> Streams:
        return (z0, z0, torch.zeros_like(z0))

    def query(self, streams: Streams, c: Values) -> Pair:
        return streams[0], streams[1]

    def advance(self, streams: Streams, y: Pair, t: Pair, c: Values) -> Streams:
        first, second, multiplier = streams
        first = first + t[0] - c.eta * multiplier - c.coupling * (first - second)
        second = second + t[1] + c.eta * multiplier + c.coupling * (first - second)
        return (first, second, multiplier + (c.coupling / c.eta) * (first - second))


@dataclass(frozen=True)
class PrimalDual(_Splitting):
    """The primal-dual hybrid gradient method, two streams:

    `x⁺ = x + T₁(x) − τu`, `u⁺ = u + T₂(u) + σ(2x⁺ − x)`, from u = 0, output x.

    T₁ takes the place of −τ∇f, T₂ of −σ∇g*; the last T₂ does not reach the output. Source: Chambolle, Pock, J. Math.
    Imaging Vis. 40 (2011).
    """

    tau: Coefficient = coefficient(0.5, POSITIVE)
    """τ > 0."""
    coupling: Coefficient = coefficient(0.25, Interval(0, 1, "0 < τσ ≤ 1 (Chambolle–Pock)", closed=True))
    """τσ; `σ = coupling / tau`."""

    consistent: ClassVar[bool] = False

    def tied(self, blocks: Blocks) -> Any:
        return Fidelity(), Sum(Fidelity(), blocks.injected())

    def start(self, z0: Tensor) -> Streams:
        return (z0, torch.zeros_like(z0))

    def query(self, streams: Streams, c: Values) -> Pair:
        return streams[0], streams[1]

    def advance(self, streams: Streams, y: Pair, t: Pair, c: Values) -> Streams:
        x, dual = streams
        following = x + t[0] - c.tau * dual
        return (following, dual + t[1] + (c.coupling / c.tau) * (2 * following - x))
