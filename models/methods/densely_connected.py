"""The method whose network is a DenseNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import Method, Streams
from .coefficients import Coefficient, Learned, Values, coefficient
from .domains import CONVEX, ONE_PER_LAYER


@dataclass(frozen=True)
class Newest:
    """1 for the newest of the k + 1, 0 for the others."""

    def __call__(self, k: int) -> tuple[float, ...]:
        return (*[0.0] * k, 1.0)


@dataclass(frozen=True)
class DenselyConnected(Method):
    """`z_{k+1} = Σ_{i≤k} a_{k,i} z_i + Σ_{i≤k} b_{k,i} T_i(z_i)`: every layer sees all earlier ones, a DenseNet.

    The a are convex weights, since a root condition for each layer does not bound products of changing layers. Both are
    learned unless given, starting from the newest layer alone, `z⁺ ≈ z + T(z)`, which is gradient descent. The number
    of streams grows with k, so it has no equilibrium.
    """

    weights: Coefficient = coefficient(Learned(Newest()), CONVEX)
    """a: k + 1 numbers, at least 0, with sum 1, the oldest first."""
    gains: Coefficient = coefficient(Learned(Newest()), ONE_PER_LAYER)
    """b: k + 1 numbers, the oldest first."""

    has_equilibrium: ClassVar[bool] = False

    def start(self, z0: Tensor) -> Streams:
        return (z0,)

    def query(self, streams: Streams, c: Values) -> Tensor:
        return streams[0]

    def advance(self, streams: Streams, y: Tensor, t: Tensor, c: Values) -> Streams:
        k = len(streams) // 2
        states, outputs = streams[: k + 1], (t, *streams[k + 1 :])  # newest first
        following = _combined(c.weights, states) + _combined(c.gains, outputs)
        return (following, *states, *outputs)


def _combined(factors: Any, tensors: Streams) -> Any:
    return sum(factor * tensor for factor, tensor in zip(reversed(list(factors)), tensors, strict=True))
