"""Proximal methods: P takes the place of −∂g and is evaluated at `alpha·y + (1 − alpha)·z⁺`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..blocks import Blocks
from ..transforms import Fidelity
from .base import Method
from .construction import MakeProximalStep, kind, pair
from .gradient import GradientDescent, Nesterov


class _Composite(Method):
    """A pair (G, P) per layer, joined into one transform."""

    is_proximal: ClassVar[bool] = True

    def transform(self, layer: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        return proximal_step(*pair(self, layer, "(smooth, proximal)"))

    def layer(self, blocks: Blocks) -> Any:
        return blocks.free(), blocks.monotone()

    def tied(self, blocks: Blocks) -> Any:
        return Fidelity(), blocks.injected()


@dataclass(frozen=True)
class ProximalPoint(GradientDescent):
    """`z⁺ = z + P(alpha·z + (1 − alpha)·z⁺)`: at alpha = 0 the proximal point method, at alpha = 1 gradient descent.

    With a monotone P a layer at alpha = 0 is nonexpansive, and so is a network of them: robust, but not universal.
    """

    is_proximal: ClassVar[bool] = True

    def transform(self, layer: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"ProximalPoint takes one module P(z, *inputs) per layer, not {kind(layer)}")
        return proximal_step(None, layer)

    def layer(self, blocks: Blocks) -> Any:
        return blocks.monotone()


@dataclass(frozen=True)
class ProximalGradient(_Composite, GradientDescent):
    """`z⁺ = z + G(z) + P(alpha·z + (1 − alpha)·z⁺)`: at alpha = 0 proximal gradient, `z⁺ = prox(z + G(z))`."""


@dataclass(frozen=True)
class FISTA(_Composite, Nesterov):
    """`y = z + m_k (z − z₋)`, `z⁺ = y + G(y) + P(alpha·y + (1 − alpha)·z⁺)` (Beck, Teboulle 2009 at alpha = 0)."""
