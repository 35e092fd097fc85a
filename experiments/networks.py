"""The networks that are compared: one family for images, one for vectors, every reading at the same parameter count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models import (
    ContractiveConv,
    ContractiveDense,
    Conv,
    Dense,
    Fidelity,
    MonotoneConv,
    MonotoneDense,
    OptDEQ,
    OptDNN,
    ParaFormer,
    Parallel,
)

Build = Callable[[int], nn.Module]
"""A network from the width of its hidden layers, the dial that sets its parameter count."""

LAYERS = 6
CHANNELS = 24
WIDTH = 12
TOLERANCE = 0.02
"""Largest relative difference in parameters between the networks of a table."""


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison."""

    reading: str
    description: str
    build: Build


def image_network(body: nn.Module) -> nn.Module:
    """Digits in, logits out: a convolution lifts, `body` keeps the shape, pooling and a linear map read the result."""
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        body,
        nn.GroupNorm(4, CHANNELS),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * CHANNELS, 10),
    )


def vector_network(body: nn.Module) -> nn.Module:
    """Points of the plane in, two logits out."""
    return nn.Sequential(nn.Linear(2, WIDTH), body, nn.Linear(WIDTH, 2))


def _composite(method: str, alpha: float, smooth: Build, proximal: Build) -> Build:
    return lambda hidden: OptDNN(method, [(smooth(hidden), proximal(hidden)) for _ in range(LAYERS)], alpha=alpha)


def _contestants(
    wrap: Callable[[nn.Module], nn.Module], *, smooth: Build, proximal: Build, contractive: Build
) -> dict[str, Contestant]:
    """The unrolled, proximal and equilibrium readings, the same for every family."""

    def row(reading: str, description: str, body: Build) -> Contestant:
        return Contestant(reading, description, lambda hidden: wrap(body(hidden)))

    return {
        "gd": row(
            "explicit",
            "gradient descent, unrolled: a ResNet",
            lambda hidden: OptDNN("gd", [smooth(hidden) for _ in range(LAYERS)]),
        ),
        "pgd-explicit": row("explicit", "proximal gradient, alpha = 1", _composite("pgd", 1.0, smooth, proximal)),
        "pgd-implicit": row(
            "implicit", "proximal gradient, alpha = 0: a solve in each layer", _composite("pgd", 0.0, smooth, proximal)
        ),
        "fista-explicit": row("explicit", "FISTA, alpha = 1", _composite("fista", 1.0, smooth, proximal)),
        "fista-implicit": row(
            "implicit", "FISTA, alpha = 0: a solve in each layer", _composite("fista", 0.0, smooth, proximal)
        ),
        "deq": row(
            "equilibrium",
            "infinite depth: one tied proximal gradient step",
            lambda hidden: OptDEQ("pgd", (Fidelity(), contractive(hidden))),
        ),
    }


IMAGES = {
    **_contestants(
        image_network,
        smooth=lambda hidden: Conv(CHANNELS, hidden),
        proximal=lambda hidden: MonotoneConv(CHANNELS, hidden),
        contractive=lambda hidden: ContractiveConv(CHANNELS, hidden, inputs=CHANNELS),
    ),
    "paraformer": Contestant(
        "parallel",
        "Para-Former: transformer branches side by side",
        lambda hidden: ParaFormer(
            image_size=8, patch_size=2, channels=1, classes=10, branches=4, depth=2, width=32, heads=4, hidden=hidden
        ),
    ),
}

VECTORS = {
    **_contestants(
        vector_network,
        smooth=lambda hidden: Dense(WIDTH, hidden),
        proximal=lambda hidden: MonotoneDense(WIDTH, hidden),
        contractive=lambda hidden: ContractiveDense(WIDTH, hidden, inputs=WIDTH),
    ),
    "paraformer": Contestant(
        "parallel",
        "the Para-Former's form on vectors: gradient descent, one sweep over depth",
        lambda hidden: vector_network(Parallel(OptDNN("gd", [Dense(WIDTH, hidden) for _ in range(LAYERS)]), sweeps=1)),
    ),
}

FAMILIES: dict[str, tuple[dict[str, Contestant], int]] = {"digits": (IMAGES, 24), "rings": (VECTORS, 24)}
"""For each task its contestants, and the hidden width of `gd`, which sets the parameter budget."""


def parameters(network: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def matched_width(build: Build, budget: int) -> int:
    """The hidden width whose network comes closest to `budget` parameters, within `TOLERANCE`."""
    low, high = 1, 2
    while parameters(build(high)) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(build(middle)) < budget else (low, middle)
    width = min((low, high), key=lambda hidden: abs(parameters(build(hidden)) - budget))
    found = parameters(build(width))
    if abs(found - budget) > TOLERANCE * budget:
        raise ValueError(
            f"no hidden width meets {budget} parameters within {TOLERANCE:.0%}: the closest, {width}, has {found}"
        )
    return width
