"""Sizes at which networks cost as much as their baselines."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import log

import torch
from torch import Tensor

from ..errors import InputError
from ..failures import Failures
from ..names import file_name, where
from ..tasks.task import Task
from .contestant import Contestant, Contestants
from .terms import Build, Cost, Terms

LARGEST = 2**16
"""Size up to which a network must reach its target; one that does not is taken not to grow."""


def matched_sizes(
    contestants: Contestants, names: list[str], terms: Terms, task: Task, failures: Failures
) -> dict[str, int]:
    """The size of each named contestant under the terms; one that cannot be built is left out, as a failure."""
    inputs, _ = task.sample(16)

    @cache
    def target(baseline: str) -> float:
        assert terms.cost is not None
        torch.manual_seed(0)
        build, size = contestants[baseline].build, own_size(baseline, contestants[baseline])
        try:
            return terms.cost(build(size).eval(), inputs)
        except Exception as error:
            raise InputError(f"the baseline {baseline} cannot be made: {where(error)}") from error

    def size_of(name: str, contestant: Contestant) -> int:
        if terms.cost is None or contestant.fixed or name == contestant.baseline:
            return own_size(name, contestant)
        assert contestant.baseline is not None
        return matched_size(name, contestant.build, target(contestant.baseline), terms.cost, inputs, terms.tolerance)

    found = {
        name: failures.within(name, file_name(name)).attempt(
            "the matching of the size", partial(size_of, name, contestants[name])
        )
        for name in names
    }
    return {name: size for name, size in found.items() if size is not None}


def own_size(name: str, contestant: Contestant) -> int:
    """The size of a contestant that is not matched; `InputError` if it is unknown."""
    if contestant.size is None and not contestant.fixed:
        raise InputError(f"{name} has no size to start from: give its argument a default, size=64")
    return contestant.size or 1


def matched_size(name: str, build: Build, target: float, cost: Cost, inputs: Tensor, tolerance: float) -> int:
    """The size at which the network's cost comes closest to the target, within the tolerance."""

    @cache
    def of(size: int) -> float:
        torch.manual_seed(0)  # the work of a solve depends on the weights
        return cost(build(size).eval(), inputs)

    low, high = 1, 2
    while of(high) < target:
        if high >= LARGEST:
            raise InputError(f"{name} does not grow with its size: use the argument size, or leave it out")
        low, high = high, 2 * high
    guessed = False
    while high - low > 1:
        middle, guessed = (low + high) // 2 if guessed else _guess(of, low, high, target), not guessed
        low, high = (middle, high) if of(middle) < target else (low, middle)
    size = min((low, high), key=lambda size: abs(of(size) - target))
    found = of(size)
    if abs(found - target) > tolerance * target:
        raise InputError(
            f"{name}: no size comes within {tolerance:.0%} of the baseline's {target:,.0f}: the closest, {size}, has "
            f"{found:,.0f}. --match shape, or match='shape', takes each network as it is"
        )
    return size


def _guess(of: Callable[[int], float], low: int, high: int, target: float) -> int:
    """A size strictly between, where a cost that is a power of the size meets the target."""
    if not 0 < of(low) < target < of(high):
        return (low + high) // 2
    power = log(of(high) / of(low)) / log(high / low)
    return min(max(round(low * (target / of(low)) ** (1 / power)), low + 1), high - 1)
