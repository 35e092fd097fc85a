"""Gradient methods: one transform per layer, in the gradient's place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Method, Streams
from .coefficients import Coefficient, Values, coefficient
from .domains import FREE, MOMENTUM, POSITIVE, Interval


@dataclass(frozen=True)
class NesterovMomentum:
    """`m_k = k / (k + 3)`."""

    def __call__(self, k: int) -> float:
        return k / (k + 3)


@dataclass(frozen=True)
class NesterovAveraging:
    """`θ_k = 2 / (k + 2)`."""

    def __call__(self, k: int) -> float:
        return 2 / (k + 2)


@dataclass(frozen=True)
class GradientDescent(Method):
    """`z⁺ = z + T(z)`: the residual network."""

    def start(self, z0: Tensor) -> Streams:
        return (z0,)

    def query(self, streams: Streams, c: Values) -> Tensor:
        return streams[0]

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        return (y + t,)


@dataclass(frozen=True)
class HeavyBall(Method):
    """`z⁺ = z + β(z − z₋) + T(z)`: momentum; T is evaluated at z, before the momentum step (Polyak 1964)."""

    momentum: Coefficient = coefficient(0.9, MOMENTUM)
    """β in (−1, 1)."""

    def start(self, z0: Tensor) -> Streams:
        return (z0, z0)

    def query(self, streams: Streams, c: Values) -> Tensor:
        return streams[0]

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        z, previous = streams
        return (z + c.momentum * (z - previous) + t, z)


@dataclass(frozen=True)
class Nesterov(Method):
    """`y = z + m_k (z − z₋)`, `z⁺ = y + T(y)`: accelerated gradient descent, APG1 (Nesterov 1983)."""

    momentum: Coefficient = coefficient(NesterovMomentum(), MOMENTUM)
    """m_k in (−1, 1)."""

    def start(self, z0: Tensor) -> Streams:
        return (z0, z0)

    def query(self, streams: Streams, c: Values) -> Tensor:
        z, previous = streams
        return z + c.momentum * (z - previous)

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        return (y + t, streams[0])


@dataclass(frozen=True)
class APG2(Method):
    """`y_{k+1} = (1 + m) y_k − m y_{k−1} + b (1 + m) T_k(y_k) − b₋ m T_{k−1}(y_{k−1})`.

    The output is `z_L = y_{L−1} + T_{L−1}(y_{L−1})`. This is the pure multistep form of Nesterov's method, `m =
    m_{k+1}`, and equals `Nesterov` to rounding with `b = b₋ = 1`. With learned coefficients it is a larger family, in
    which the transforms have weights of their own.
    """

    momentum: Coefficient = coefficient(NesterovMomentum(), MOMENTUM)
    """m_k in (−1, 1)."""
    leading: Coefficient = coefficient(1.0, FREE)
    """b, of the newest transform."""
    lagging: Coefficient = coefficient(1.0, FREE)
    """b₋, of the one before."""

    def start(self, z0: Tensor) -> Streams:
        nothing = torch.zeros_like(z0)
        return (z0, z0, nothing, z0, nothing)

    def query(self, streams: Streams, c: Values) -> Tensor:
        _, newer, t_newer, older, t_older = streams
        point: Tensor = (1 + c.momentum) * (newer + c.leading * t_newer) - c.momentum * (older + c.lagging * t_older)
        return point

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        return (y + t, y, t, streams[1], streams[2])


@dataclass(frozen=True)
class AGD3(Method):
    """`y = (1 − θ)z + θv`, `v⁺ = v + (g/θ)T(y)`, `z⁺ = (1 − θ)z + θv⁺`: Nesterov's three sequences.

    With `g = 1` and `θ_k = 2/(k + 2)` it is `Nesterov` with `m_k = max(0, (k − 1)/(k + 2))`.
    """

    theta: Coefficient = coefficient(NesterovAveraging(), Interval(0, 1, "0 < θ ≤ 1", closed=True))
    """θ_k in (0, 1]."""
    gain: Coefficient = coefficient(1.0, POSITIVE)
    """g > 0."""

    def start(self, z0: Tensor) -> Streams:
        return (z0, z0)

    def query(self, streams: Streams, c: Values) -> Tensor:
        z, v = streams
        return z + c.theta * (v - z)

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        z, v = streams
        v = v + (c.gain / c.theta) * t
        return (z + c.theta * (v - z), v)
