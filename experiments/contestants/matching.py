"""Sizes at which networks are alike."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from ..errors import InputError
from ..failures import Failures
from ..tasks import Task
from . import Contestant, Contestants
from .terms import Build, Cost, Terms


def matched_dials(
    contestants: Contestants, names: list[str], terms: Terms, data: Task, failures: Failures
) -> dict[str, int]:
    """The dial of each of these contestants under the terms; without those that cannot be made, which are failures."""
    inputs, _ = data.sample(16)

    @cache
    def target(baseline: str, dial: int) -> float:
        assert terms.cost is not None
        torch.manual_seed(0)
        return terms.cost(contestants[baseline].build(dial).eval(), inputs)

    def dial_of(contestant: Contestant) -> int:
        if terms.cost is None or contestant.fixed:
            return contestant.dial
        wanted = target(contestant.baseline, contestant.dial)
        return matched_dial(contestant.build, wanted, terms.cost, inputs, terms.tolerance)

    found = {
        name: failures.within(name, name).attempt("the matching of the size", partial(dial_of, contestants[name]))
        for name in names
    }
    return {name: dial for name, dial in found.items() if dial is not None}


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
