"""How many steps each row of a loop takes."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import State
from solvers.state import Layout, tree_map


class Depths(NamedTuple):
    """How many steps the rows take: they end together, and those with fewer steps begin later.

    Hence the tracked steps are the last ones of every row. Each row is evaluated only at points where it would be
    evaluated alone: one step beyond them its Jacobian, times a zero gradient, might be NaN.
    """

    most: int
    least: int
    waits: Tensor | None
    """(batch,) steps that each row waits before its first; None: all rows take the same number."""

    def begun(self, step: int, new: State, old: State) -> State:
        """The new state for the rows that have begun by this step, the old one for the others."""
        if self.waits is None or step >= self.most - self.least:
            return new
        begun = self.waits <= step
        return tree_map(lambda new, old: torch.where(begun.view(-1, *[1] * (new.ndim - 1)), new, old), new, old)


def depths(steps: Any, layout: Layout) -> Depths:
    """The `Depths` for an integer or a (batch,) tensor of integers, checked."""
    if not isinstance(steps, Tensor):
        if not is_count(steps):
            raise ValueError(f"steps={steps!r} must be an integer of at least 1, or a (batch,) tensor of such integers")
        return Depths(int(steps), int(steps), None)
    if steps.is_floating_point() or steps.is_complex() or steps.dtype == torch.bool:
        raise TypeError(f"steps is a tensor of {steps.dtype}: pass integers, or one int for all rows")
    if steps.shape != (layout.batch,):
        raise ValueError(
            f"steps has shape {tuple(steps.shape)} for a batch of {layout.batch}: pass one number for each row, shape "
            f"({layout.batch},), or one int for all of them"
        )
    least, most = (int(bound) for bound in torch.stack(steps.long().aminmax()).tolist()) if layout.batch else (1, 1)
    if least < 1:
        raise ValueError(f"steps contains {least}: each row must take at least 1 step")
    return Depths(most, least, None if least == most else (most - steps.long()).to(layout.device))


def is_count(value: Any) -> bool:
    """Whether it is an integer of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
