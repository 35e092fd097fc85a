"""The values that coefficients may take: what keeps a method consistent and stable."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Domain(ABC):
    """The values that a coefficient may take, and a smooth map from all real numbers onto them."""

    def __init__(self, condition: str) -> None:
        self.condition = condition

    def size(self, k: int) -> int | None:
        """Entries in layer k; None: a scalar."""
        return None

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether a finite value lies in the domain."""

    @abstractmethod
    def raw(self, value: Tensor) -> Tensor:
        """A parameter that `value` maps to about this value."""

    @abstractmethod
    def value(self, raw: Tensor) -> Tensor:
        """The value of a parameter."""


class Interval(Domain):
    """Numbers between two ends; open ends are never reached.

    Args:
        low, high: the ends; infinite ones are no bounds.
        condition: what the interval stands for, named when a value is refused.
        closed: whether `high` itself is allowed.
    """

    def __init__(self, low: float, high: float, condition: str, *, closed: bool = False) -> None:
        super().__init__(condition)
        self.low, self.high, self.closed = low, high, closed

    def holds(self, value: Any) -> bool:
        return self.low < value < self.high or (self.closed and value == self.high)

    def raw(self, value: Tensor) -> Tensor:
        if math.isinf(self.low):
            return value
        if math.isinf(self.high):
            return torch.expm1(value - self.low).log()
        share = (value - self.low) / (self.high - self.low)
        return torch.logit(share, eps=1e-3)

    def value(self, raw: Tensor) -> Tensor:
        if math.isinf(self.low):
            return raw
        if math.isinf(self.high):
            return self.low + nn.functional.softplus(raw)
        return self.low + (self.high - self.low) * torch.sigmoid(raw)


class OnePerLayer(Domain):
    """As many free numbers in layer k as there are layers up to it, k + 1, the oldest first."""

    def __init__(self) -> None:
        super().__init__("the rule of k + 1 finite numbers in layer k, the oldest layer's first")

    def size(self, k: int) -> int | None:
        return k + 1

    def holds(self, value: Any) -> bool:
        return True

    def raw(self, value: Tensor) -> Tensor:
        return value

    def value(self, raw: Tensor) -> Tensor:
        return raw


class Convex(OnePerLayer):
    """k + 1 numbers in layer k, the oldest first, none negative, with sum 1."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = "the rule of k + 1 weights in layer k, none negative, of sum 1 (consistency and stability)"

    def holds(self, value: Any) -> bool:
        return min(value) >= 0 and abs(sum(value) - 1) <= 1e-6

    def raw(self, value: Tensor) -> Tensor:
        return value.clamp(min=1e-2).log()

    def value(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=0)


FREE = Interval(-math.inf, math.inf, "|value| < ∞")
"""Any number."""
POSITIVE = Interval(0, math.inf, "0 < value < ∞")
"""Above 0."""
MOMENTUM = Interval(-1, 1, "the root condition |momentum| < 1")
"""Between −1 and 1."""
CONVEX = Convex()
"""the rule of k + 1 weights in layer k, none negative, of sum 1, the oldest layer's first."""
ONE_PER_LAYER = OnePerLayer()
"""k + 1 numbers in layer k, the oldest layer's first."""
