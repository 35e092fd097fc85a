"""Coefficients of methods: fixed, scheduled over the layers, or learned within a stable domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from .domains import Domain

Value = float | Sequence[float]
Rule = Callable[[int], Value]
"""From the layer's number, 0 for the first, to the coefficient there."""


@dataclass(frozen=True)
class Learned:
    """A coefficient that is trained, one for each layer, within its domain: `HeavyBall(momentum=Learned(0.5))`."""

    initial: float | Rule
    """Where training starts."""


Coefficient = float | Rule | Learned


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

    def __getattr__(self, name: str) -> Any:  # called only for a missing attribute
        raise AttributeError(f"no coefficient {name}: choose from {', '.join(vars(self))}")


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
                raw = nn.Parameter(torch.zeros(depth if domain.size(0) is None else (depth, depth)))
                for k, value in enumerate(values):
                    start = domain.raw(torch.tensor(value, dtype=torch.float64, device="cpu"))
                    _entry(raw.data, domain, k).copy_(start)
                self.register_parameter(name, raw)
            else:
                for k, value in enumerate(values):
                    self._fixed[k][name] = value

    @property
    def device(self) -> torch.device:
        """The device of the learned coefficients; the CPU if none is learned."""
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
        """The coefficients of all layers, (depth,) each, if each is one number per layer."""
        return Values({name: self.column(name) for name in self._domains})

    def column(self, name: str) -> Tensor:
        """One coefficient in all layers, (depth,)."""
        raw = self._parameters.get(name)
        if raw is None:
            # filled in place: a copy of numbers from the host would wait for a GPU
            entries: list[Any] = [layer[name] for layer in self._fixed]
            return torch.stack([torch.full((), entry, dtype=torch.float64, device=self.device) for entry in entries])
        return self._domains[name].value(raw).to(torch.float64)

    def always(self, name: str, value: float) -> bool:
        """Whether a coefficient is fixed to this value in all layers."""
        return name not in self._parameters and all(layer[name] == value for layer in self._fixed)


def _entry(raw: Tensor, domain: Domain, k: int) -> Tensor:
    size = domain.size(k)
    return raw[k] if size is None else raw[k, :size]
