"""First-order methods as rules whose gradient term is a learnable transform.

Every formula is the method's textbook form with its gradient step replaced by T, after the idea of Wu, Xiao, Fang, Lin,
"Designing Universally-Approximating Deep Neural Networks: A First-Order Optimization Approach", TPAMI 2024; the
rows are derived here, not quoted from the paper.
"""

from __future__ import annotations

from .base import Method, Point, Streams
from .coefficients import Coefficients, Learned, coefficient
from .composite import FISTA, ProximalGradient, ProximalPoint
from .densely_connected import DenselyConnected
from .domains import CONVEX, FREE, MOMENTUM, ONE_PER_LAYER, POSITIVE, Interval
from .gradient import AGD3, APG2, GradientDescent, HeavyBall, Nesterov
from .splitting import LinearizedADMM, PrimalDual

METHODS: dict[str, Method] = {
    "gd": GradientDescent(),
    "heavy_ball": HeavyBall(),
    "nesterov": Nesterov(),
    "apg2": APG2(),
    "agd3": AGD3(),
    "dense": DenselyConnected(),
    "ladmm": LinearizedADMM(),
    "pdhg": PrimalDual(),
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
        own = "a Method"
        if isinstance(method, type) and issubclass(method, Method):
            own += f", as {method.__name__}()"
        raise ValueError(f"unknown method {method!r}: pass {own}, or one of {', '.join(METHODS)}")
    return METHODS[method]


__all__ = [
    "AGD3",
    "APG2",
    "CONVEX",
    "FISTA",
    "FREE",
    "METHODS",
    "MOMENTUM",
    "ONE_PER_LAYER",
    "POSITIVE",
    "Coefficients",
    "DenselyConnected",
    "GradientDescent",
    "HeavyBall",
    "Interval",
    "Learned",
    "LinearizedADMM",
    "Method",
    "Nesterov",
    "Point",
    "PrimalDual",
    "ProximalGradient",
    "ProximalPoint",
    "Streams",
    "coefficient",
    "find_method",
]
