"""What makes a comparison fair: networks that are alike in parameters, in work, or in shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from implicit import ConvergenceWarning

Build = Callable[[int], nn.Module]
"""Makes a network from its size, usually the width of its hidden layers."""
Cost = Callable[[nn.Module, Tensor], float]


@dataclass(frozen=True)
class Terms:
    """What is the same for all networks."""

    description: str
    """In words, for the table."""
    cost: Cost | None
    """What must agree with the baseline; None: all have the baseline's size."""
    tolerance: float = 0.0
    """Largest relative difference."""


def parameters(network: nn.Module, inputs: Tensor | None = None) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def flops(network: nn.Module, inputs: Tensor) -> float:
    """Matmul and convolution FLOPs executed per sample in a forward pass, the solver's own included."""
    with warnings.catch_warnings(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore", ConvergenceWarning)
        network(inputs)
    return counter.get_total_flops() / len(inputs)


TERMS = {
    "parameters": Terms("equal parameter counts", parameters, 0.06),
    "flops": Terms("equal forward FLOPs before training", flops, 0.15),
    "shape": Terms("equal transforms, width and depth", None),
}


def in_common(terms: Terms, fixed: list[bool]) -> str:
    """What the networks have in common, in words; `fixed` says which of them have a fixed size."""
    if all(fixed):
        return "its own size" if len(fixed) == 1 else "sizes of their own"
    return terms.description + (", except those of fixed size" if any(fixed) else "")
