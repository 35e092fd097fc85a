"""Coefficients of methods: fixed, scheduled over the layers, or learned within what keeps the method stable."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

Value = float | Sequence[float]
Rule = Callable[[int], Value]
"""From the layer's number, 0 for the first, to the coefficient there."""


@dataclass(frozen=True)
class Learned:
    """A coefficient that is trained, one for each layer, within its domain: `HeavyBall(momentum=Learned(0.5))`."""

    initial: float | Rule
    """Where training starts."""


Coefficient = float | Rule | Learned


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
        """A parameter with about this value."""

    @abstractmethod
    def value(self, raw: Tensor) -> Tensor:
        """The value of a parameter."""


class Interval(Domain):
    """Numbers between two ends, of which the open ones are never reached.

    Args:
        low, high: the ends; infinite ones are no bounds.
        condition: what the interval stands for, named where a value is refused.
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
        super().__init__("k + 1 finite numbers in layer k, the oldest layer's first")

    def size(self, k: int) -> int | None:
        return k + 1

    def holds(self, value: Any) -> bool:
        return True

    def raw(self, value: Tensor) -> Tensor:
        return value

    def value(self, raw: Tensor) -> Tensor:
        return raw


class Convex(OnePerLayer):
    """Likewise, none of them negative, of sum 1."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = "k + 1 weights in layer k, none negative, of sum 1 (consistency and stability)"

    def holds(self, value: Any) -> bool:
        return min(value) >= 0 and abs(sum(value) - 1) <= 1e-6

    def raw(self, value: Tensor) -> Tensor:
        return value.clamp(min=1e-2).log()

    def value(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=0)


FREE = Interval(-math.inf, math.inf, "a finite number")
"""Any number."""
POSITIVE = Interval(0, math.inf, "a positive number")
"""Above 0."""
MOMENTUM = Interval(-1, 1, "the root condition |momentum| < 1")
"""Between −1 and 1."""
CONVEX = Convex()
"""k + 1 weights in layer k, none negative, of sum 1, the oldest layer's first."""
ONE_PER_LAYER = OnePerLayer()
"""k + 1 numbers in layer k, the oldest layer's first."""


def coefficient(default: Coefficient, domain: Domain, *, keyword: bool = False) -> Any:
    """A dataclass field of a method that holds a coefficient."""
    return field(default=default, metadata={"domain": domain}, kw_only=keyword, repr=not keyword)


def domains(method: Any) -> dict[str, Domain]:
    """The coefficients of a method by name."""
    return {entry.name: entry.metadata["domain"] for entry in fields(method) if "domain" in entry.metadata}


def check(method: Any, name: str, value: Any, k: int, where: str = "") -> Value:
    """The value of a coefficient in layer k; `ValueError` with the condition that it breaks, and where."""
    domain = domains(method)[name]
    size = domain.size(k)
    given = value if size is not None and isinstance(value, (tuple, list)) else [value]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in given)
    if not numbers or len(given) != (size or 1) or not domain.holds(value):
        raise ValueError(f"{type(method).__name__}: {name}={value!r}{where} breaks {domain.condition}")
    checked: Value = value
    return checked


class Values:
    """The coefficients of one layer, as attributes: numbers, or tensors where they are learned."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:  # asked only where there is none
        raise AttributeError(f"no coefficient {name}: {', '.join(vars(self))}")


class Coefficients(nn.Module):
    """The coefficients of a method in each layer of a network; those that are learned are its parameters."""

    def __init__(self, method: Any, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self._domains = domains(method)
        self._fixed: list[dict[str, Value]] = [{} for _ in range(depth)]
        for name, domain in self._domains.items():
            given = getattr(method, name)
            rule = given.initial if isinstance(given, Learned) else given
            values = [
                check(method, name, rule(k) if callable(rule) else rule, k, f" in layer {k}") for k in range(depth)
            ]
            if isinstance(given, Learned):
                raw = torch.zeros(depth) if domain.size(0) is None else torch.zeros(depth, depth)
                for k, value in enumerate(values):
                    _entry(raw, domain, k).copy_(domain.raw(torch.as_tensor(value, dtype=torch.float64)))
                self.register_parameter(name, nn.Parameter(raw))
            else:
                for k, value in enumerate(values):
                    self._fixed[k][name] = value

    @property
    def device(self) -> torch.device:
        """Of those that are learned; the processor where none is."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def at(self, k: int) -> Values:
        """The coefficients of layer k."""
        found: dict[str, Any] = dict(self._fixed[k])
        for name, raw in self._parameters.items():
            assert raw is not None
            domain = self._domains[name]
            found[name] = domain.value(_entry(raw, domain, k))
        return Values(found)

    def stacked(self) -> Values:
        """Those of all layers, (depth,) each; for coefficients that are one number a layer."""
        return Values({name: self.column(name) for name in self._domains})

    def column(self, name: str) -> Tensor:
        """One of them in all layers, (depth,)."""
        raw = self._parameters.get(name)
        if raw is None:
            return torch.tensor([layer[name] for layer in self._fixed], dtype=torch.float64, device=self.device)
        return self._domains[name].value(raw).to(torch.float64)


def _entry(raw: Tensor, domain: Domain, k: int) -> Tensor:
    size = domain.size(k)
    return raw[k] if size is None else raw[k, :size]
