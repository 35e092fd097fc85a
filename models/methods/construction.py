"""The modules from which a method makes its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from ..blocks import Blocks
from ..proximal import ProximalStep
from ..transforms import Fidelity, Sum

MakeProximalStep = Callable[[nn.Module | None, nn.Module], ProximalStep]


class Construction:
    """How a layer's transform T is made: from what the caller gives for that layer, or from blocks."""

    is_proximal: ClassVar[bool] = False
    """Whether its transform may be evaluated implicitly, alpha < 1."""

    def transform(self, layer: Any, alpha: float, proximal_step: MakeProximalStep) -> nn.Module:
        """One layer's transform T, from what the caller gives for that layer.

        Proximal methods make it with `proximal_step(smooth, proximal)`, which knows alpha and how to solve.
        """
        if alpha != 1:
            raise ValueError(
                f"{type(self).__name__} is an explicit method, but alpha={alpha} needs a proximal one: ppa, pgd, fista"
            )
        if not isinstance(layer, nn.Module):
            raise TypeError(f"{type(self).__name__} takes one module T(z, *inputs) per layer, not {kind(layer)}")
        return layer

    def layer(self, blocks: Blocks) -> Any:
        """The module or pair for one layer of a network of finite depth, made from these blocks."""
        return blocks.free()

    def tied(self, blocks: Blocks) -> Any:
        """The module or pair for the tied layer of infinite depth: T = 0 where `z = x + P(z, x)`, P contracting."""
        return Sum(Fidelity(), blocks.injected())


def kind(layer: Any) -> str:
    """What was given for a layer, in words."""
    return f"a tuple of {len(layer)}" if isinstance(layer, (tuple, list)) else f"a {type(layer).__name__}"


def pair(method: Construction, layer: Any, names: str) -> tuple[nn.Module, nn.Module]:
    """A layer that must be two modules; `TypeError` if it is not."""
    if not (isinstance(layer, (tuple, list)) and len(layer) == 2 and all(isinstance(m, nn.Module) for m in layer)):
        raise TypeError(f"{type(method).__name__} takes a pair {names} per layer, not {kind(layer)}")
    first, second = layer
    return first, second
