"""First-order methods as rules whose gradient term is a learnable transform.

Every formula is the method's textbook form with its gradient step replaced by T, after the idea of Wu, Xiao, Fang, Lin,
"Designing Universally-Approximating Deep Neural Networks: A First-Order Optimization Approach", TPAMI 2024; the
rows are derived here, not quoted from the paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .proximal import ProximalStep

MakeProximalStep = Callable[[nn.Module | None, nn.Module], ProximalStep]
Streams = tuple[Tensor, ...]
"""What a method carries from step to step."""


@dataclass(frozen=True)
class Method(ABC):
    """A rule `streams_k → streams_{k+1}`, linear in the streams and in the transform's output `T_k(y_k)`.

    Subclass as a frozen dataclass of coefficients with `start`, `query` and `advance`; every reading (unrolled,
    proximal, equilibrium, parallel) uses these three and nothing else. They may only add and scale: linearity is what
    makes the evaluation in parallel over depth exact.
    """

    @abstractmethod
    def start(self, z0: Tensor) -> Streams:
        """The streams before the first step; the first of them is the output."""

    @abstractmethod
    def query(self, streams: Streams, k: int) -> Tensor:
        """`y_k`, the point at which step k evaluates its transform."""

    @abstractmethod
    def advance(self, streams: Streams, y: Tensor, t: Tensor, k: int) -> Streams:
        """The streams after step k, from `y = query(streams, k)` and `t = T_k(y)`."""

    @property
    def stationary(self) -> bool:
        """Whether every step has the same coefficients, as an equilibrium reading needs."""
        return True

    def transform(self, module: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        """One layer's transform T, from what the caller gives for that layer.

        Proximal methods make it with `proximal_step(smooth, proximal)`, which knows alpha and how to solve.
        """
        if alpha != 1:
            raise ValueError(
                f"{type(self).__name__} is an explicit method, alpha={alpha} needs a proximal one: ppa, pgd or fista"
            )
        if not isinstance(module, nn.Module):
            raise TypeError(f"{type(self).__name__} takes one module T(z, *inputs) a layer, not {_kind(module)}")
        return module


@dataclass(frozen=True)
class GradientDescent(Method):
    """`z⁺ = z + T(z)`: the residual network."""

    def start(self, z0: Tensor) -> Streams:
        return (z0,)

    def query(self, streams: Streams, k: int) -> Tensor:
        return streams[0]

    def advance(self, streams: Streams, y: Tensor, t: Tensor, k: int) -> Streams:
        return (y + t,)


@dataclass(frozen=True)
class Nesterov(Method):
    """`y = z + m_k (z − z₋)`, `z⁺ = y + T(y)`: accelerated gradient descent (Nesterov 1983)."""

    momentum: float | None = None
    """Constant m in (−1, 1), where the recursion is zero-stable; None: m_k = k / (k + 3)."""

    def __post_init__(self) -> None:
        momentum = self.momentum
        if momentum is not None and (
            isinstance(momentum, bool) or not isinstance(momentum, (int, float)) or not -1 < momentum < 1
        ):
            raise ValueError(
                f"{type(self).__name__}: momentum={momentum!r} breaks the root condition |momentum| < 1; "
                "None gives the schedule k / (k + 3)"
            )

    @property
    def stationary(self) -> bool:
        return self.momentum is not None

    def start(self, z0: Tensor) -> Streams:
        return (z0, z0)

    def query(self, streams: Streams, k: int) -> Tensor:
        z, previous = streams
        momentum = k / (k + 3) if self.momentum is None else self.momentum
        return z + momentum * (z - previous)

    def advance(self, streams: Streams, y: Tensor, t: Tensor, k: int) -> Streams:
        return (y + t, streams[0])


class _Composite(Method):
    """The proximal rows: a pair (G, P) a layer, joined into one transform."""

    def transform(self, module: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        if not (
            isinstance(module, (tuple, list)) and len(module) == 2 and all(isinstance(m, nn.Module) for m in module)
        ):
            raise TypeError(f"{type(self).__name__} takes a pair (smooth, proximal) a layer, not {_kind(module)}")
        smooth, proximal = module
        return proximal_step(smooth, proximal)


@dataclass(frozen=True)
class ProximalPoint(GradientDescent):
    """`z⁺ = z + P(alpha·z + (1 − alpha)·z⁺)`: at alpha = 0 the proximal point method, at alpha = 1 gradient descent.

    With a monotone P a layer at alpha = 0 is nonexpansive, and so is a network of them: robust, and not universal.
    """

    def transform(self, module: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        if not isinstance(module, nn.Module):
            raise TypeError(f"ProximalPoint takes one module P(z, *inputs) a layer, not {_kind(module)}")
        return proximal_step(None, module)


@dataclass(frozen=True)
class ProximalGradient(_Composite, GradientDescent):
    """`z⁺ = z + G(z) + P(alpha·z + (1 − alpha)·z⁺)`: at alpha = 0 proximal gradient, `z⁺ = prox(z + G(z))`."""


@dataclass(frozen=True)
class FISTA(_Composite, Nesterov):
    """`y = z + m_k (z − z₋)`, `z⁺ = y + G(y) + P(alpha·y + (1 − alpha)·z⁺)` (Beck, Teboulle 2009 at alpha = 0)."""


METHODS: dict[str, Method] = {
    "gd": GradientDescent(),
    "nesterov": Nesterov(),
    "ppa": ProximalPoint(),
    "pgd": ProximalGradient(),
    "fista": FISTA(),
}
"""The table of methods. A new one is a subclass of `Method` and, for a short name, a row here."""


def find_method(method: Method | str) -> Method:
    """A method from itself or its key in `METHODS`."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}: pass a Method, or one of {', '.join(METHODS)}")
    return METHODS[method]


def _kind(module: Any) -> str:
    return f"a tuple of {len(module)}" if isinstance(module, (tuple, list)) else f"a {type(module).__name__}"
