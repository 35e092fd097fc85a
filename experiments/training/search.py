"""The learning rate of each network, chosen on data that are held back from training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Subset

from ..errors import InputError
from ..tasks.goals import Goal
from ..tasks.task import Task

FACTOR = 3.0
"""Ratio of neighbouring rates: an optimum is missed by a factor below its square root, which matters little."""
AT_FIRST, AT_MOST = 3, 5
"""Rates that are tried: the task's, its neighbours, and more on the side where the best is the outermost."""
HELD_BACK = 5
"""One row in this many is held back."""


@dataclass(frozen=True)
class Search:
    """The learning rates that were tried for a network, and the best of them."""

    scores: dict[float, float]
    """Rate → score on the held-back data, in increasing order of the rates; NaN: training failed, or diverged."""
    chosen: float

    @property
    def bracketed(self) -> bool:
        """Whether a lower and a higher rate did worse."""
        return min(self.scores) < self.chosen < max(self.scores)


def held_back(task: Task) -> Task:
    """The task on which learning rates are chosen: its test part is the validation part, or held back from training.

    The rows left to train on fill whole batches, if there is at least one: a batch of one row has no statistics.
    """
    if task.validation is not None:
        return replace(task, test=task.validation)
    rows: int = len(task.train)  # type: ignore[arg-type]
    left = rows - rows // HELD_BACK
    left -= left % task.batch if left > task.batch else 0
    if left == rows:
        raise InputError(
            f"task {task.name}: of {rows} rows none can be held back to choose learning rates: pass --no-search"
        )
    order = torch.randperm(rows, generator=torch.Generator("cpu").manual_seed(0), device="cpu").tolist()
    return replace(task, train=Subset(task.train, order[:left]), test=Subset(task.train, order[left:]))


def search(first: float, goal: Goal, attempt: Callable[[float], tuple[float, float]]) -> Search:
    """Try three rates, then go on, up to five, while the best is the outermost: the same rule for all networks.

    Args:
        first: the rate in the middle; chosen if no rate gives a finite score.
        goal: says which score is better.
        attempt: trains at a rate; returns score and loss on the held-back data, NaN if it fails.
    """
    found: dict[float, tuple[float, float]] = {}

    def order(rate: float) -> tuple[bool, float, float]:
        score, loss = found[rate]
        if not math.isfinite(score):
            return False, 0.0, 0.0
        return True, score if goal.higher_is_better else -score, -loss if math.isfinite(loss) else -math.inf

    while True:
        lowest, highest = min(found, default=first), max(found, default=first)
        best = max(found, key=order, default=first)
        if len(found) < AT_FIRST:
            rates = [first / FACTOR, first, first * FACTOR]
        elif len(found) >= AT_MOST or lowest < best < highest or not order(best)[0]:
            break
        else:
            rates = [best / FACTOR if best == lowest else best * FACTOR]
        for rate in rates:
            found[rate] = attempt(rate)
    return Search({rate: found[rate][0] for rate in sorted(found)}, best if order(best)[0] else first)
