"""Sizes at which networks are alike."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError
from .families import Contestants
from .tasks import Task
from .terms import Build, Cost, Terms


def matched_dials(contestants: Contestants, names: list[str], terms: Terms, data: Task) -> dict[str, int]:
    """The dial of each of these contestants under the terms."""
    dials = {name: contestants[name].dial for name in names}
    inputs, _ = data.sample(16)
    targets: dict[str, float] = {}
    for name in names:
        contestant = contestants[name]
        if terms.cost is None or contestant.fixed:
            continue
        if contestant.baseline not in targets:
            torch.manual_seed(0)
            baseline = contestants[contestant.baseline].build(contestant.dial)
            targets[contestant.baseline] = terms.cost(baseline.eval(), inputs)
        target = targets[contestant.baseline]
        dials[name] = matched_dial(contestant.build, target, terms.cost, inputs, terms.tolerance)
    return dials


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
