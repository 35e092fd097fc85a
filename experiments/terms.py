"""What makes a comparison fair: networks that are alike in parameters, in work, or in shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from implicit import ConvergenceWarning

from .errors import InputError

Build = Callable[[int], nn.Module]
"""A network from its dial, mostly the width of its hidden layers, which sets its size."""
Cost = Callable[[nn.Module, Tensor], float]


@dataclass(frozen=True)
class Terms:
    """What is the same for all networks."""

    description: str
    """In words, for the table."""
    cost: Cost | None
    """What must agree with the baseline; None: all have the baseline's dial."""
    tolerance: float = 0.0
    """Largest relative difference."""


def parameters(network: nn.Module, inputs: Tensor | None = None) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def flops(network: nn.Module, inputs: Tensor) -> float:
    """Matmul and convolution FLOPs executed a sample, forward, the solver's own included."""
    with warnings.catch_warnings(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore", ConvergenceWarning)
        network(inputs)
    return counter.get_total_flops() / len(inputs)


TERMS = {
    "parameters": Terms("equal parameter counts", parameters, 0.06),
    "flops": Terms("equal forward FLOPs before training", flops, 0.15),
    "shape": Terms("equal transforms, width and depth", None),
}


def matched_dial(build: Build, target: float, cost: Cost, inputs: Tensor, tolerance: float) -> int:
    """The dial whose network's cost comes closest to the target, within the tolerance."""

    def of(dial: int) -> float:
        torch.manual_seed(0)  # the work of a solve depends on the weights
        return cost(build(dial).eval(), inputs)

    low, high = 1, 2
    while of(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle) < target else (low, middle)
    dial = min((low, high), key=lambda dial: abs(of(dial) - target))
    found = of(dial)
    if abs(found - target) > tolerance * target:
        raise InputError(
            f"no size comes within {tolerance:.0%} of the baseline's {target:,.0f}: the closest, {dial}, has "
            f"{found:,.0f}"
        )
    return dial
